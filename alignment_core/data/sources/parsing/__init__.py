"""Parse what the record formats share: turns, judgments, and the values of columns in their many notations."""
