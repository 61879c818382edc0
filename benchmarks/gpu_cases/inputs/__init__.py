"""What cases run on: models with random weights, and rows of random token ids."""
