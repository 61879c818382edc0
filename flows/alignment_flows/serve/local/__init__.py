"""Run flows in this process.

runs.py         runs of the flows, and what a finished run of the pipeline is
settings.py     settings with what they refer to, and an unpacked base model, before a run is recorded
server.py       the Prefect server that records a run
event_loop.py   calls from a notebook
"""
