"""Labels that tell apart the stages of several contenders and seeds of a comparison."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from alignment_core.planning.pipeline import Plan

OF_MODEL = ("optimize", "evaluate", "over_sft", "over_production", "gate", "lm_eval")
"""Stages that make, read or judge the model of a contender."""

Plans = Mapping[int, Mapping[str, Plan]]
"""For each seed, the plan of each contender by its name."""


def with_labels(plans: Plans) -> dict[int, dict[str, Plan]]:
    """Return the plans with the contender in the labels of its own stages, and the seed in those of one seed alone."""
    seeds: dict[str, set[int]] = defaultdict(set)
    for seed, of_seed in plans.items():
        for plan in of_seed.values():
            for call in plan.calls().values():
                seeds[call.key].add(seed)
    several = len(plans) > 1

    def labelled(plan: Plan, contender: str, seed: int) -> Plan:
        changed, optimizer = {}, plan.optimize.config["optimizer"]["name"]
        for field, call in plan.calls().items():
            name, dot, rest = call.label.partition(" · ")
            if field in OF_MODEL:
                words = [contender if word == optimizer else word for word in name.split(" ")]
                name = " ".join(words if contender in words else [*words, "of", contender])
            if several and len(seeds[call.key]) == 1:
                name = f"{name}, seed {seed}"
            changed[field] = call.model_copy(update={"label": f"{name}{dot}{rest}"})
        return replace(plan, **changed)

    return {
        seed: {name: labelled(plan, name, seed) for name, plan in of_seed.items()} for seed, of_seed in plans.items()
    }
