"""The built-in evaluators: rules and programs that score responses."""
