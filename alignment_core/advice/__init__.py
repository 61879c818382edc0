"""Advice on a run: rules over the metrics of its stages. Pure functions, without torch and without Prefect.

rules.py      the rules that hold for every optimizer
advise.py     applies them, and asks the optimizer for its own
"""

from alignment_core.advice.advise import advise, own_advice
from alignment_core.advice.rules import RULES, Rule

__all__ = ["RULES", "Rule", "advise", "own_advice"]
