"""A trained model for whoever uses it: one file per target, each filling a folder that appears whole or not at all.

`exporting` is the side of the command and loads no torch; the work happens in the process of `child`.
"""
