"""Parse what the record formats share: turns, judgements, and the values of columns in their many notations."""
