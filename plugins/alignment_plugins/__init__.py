"""The built-in optimizers and evaluators, found and loaded exactly like a stranger's."""
