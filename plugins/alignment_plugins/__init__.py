"""The built-in optimizers, evaluators and listeners. They are discovered and loaded like any third-party plugin."""
