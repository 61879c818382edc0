"""The cases of `benchmarks/gpu.py`, which measures the training core on one GPU."""
