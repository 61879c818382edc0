"""Stages that run in other work pools than their flow: their flow runs, and what these tell the one that waits."""
