"""A first config file: what the data are, what learns from them, and the file's text."""
