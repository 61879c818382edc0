"""The parts of `benchmarks/smollm2.py`, which compares optimizers, and TRL, on a real chat model."""
