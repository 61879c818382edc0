"""The stages of the pipeline, one module each. Shared code is in `shared`."""
