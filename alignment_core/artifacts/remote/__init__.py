"""The remote of a store: objects in a bucket or a shared folder, the truth among the machines that share it."""
