"""Export of a trained model. Each module in `targets` writes one format to a folder that is created atomically.

`request` is used by the command and does not load torch. The export runs in the separate process of `process`.
"""
