"""What a run achieved, from the manifests of its stages.

result.py       the facts of one run
sentences.py    the same in words: one source for the terminal and for the pages
leaderboard.py  the runs of a store, and the settings in which they differ
"""
