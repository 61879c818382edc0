"""Check that the sources keep the columns that the evaluators of a run read."""

from __future__ import annotations

from collections.abc import Iterator

from alignment_core.config import PipelineConfig
from alignment_core.errors import ConfigError
from alignment_core.planning.reward_parts import reward_parts
from alignment_core.plugin_api import AlignmentOptimizer, Evaluator, PairEvaluator
from alignment_core.registry import Registry


def check_facts(config: PipelineConfig, optimizer: AlignmentOptimizer, registry: Registry) -> None:
    """Check that some source keeps every column that an evaluator needs.

    Raises:
        ConfigError: none does.
        PluginError: an evaluator is not installed.
    """
    kept = sorted({column for source in config.data.sources for column in source.keep})
    for where, evaluator in _evaluators(config, optimizer, registry):
        if missing := [fact for fact in evaluator.needed_facts() if fact not in kept]:
            raise ConfigError(
                f"the evaluator `{evaluator.name}` reads a column that no source keeps",
                where=where,
                got=f"kept columns {', '.join(kept)}" if kept else "no kept columns",
                expected=", ".join(missing),
                do=f"Set `data.sources[].keep: [{', '.join([*kept, *missing])}]`",
            )


def _evaluators(
    config: PipelineConfig, optimizer: AlignmentOptimizer, registry: Registry
) -> Iterator[tuple[str, Evaluator | PairEvaluator]]:
    for index, part in enumerate(reward_parts(config.reward.by, registry)):  # checked also where nothing is rewarded
        if optimizer.needs().reward and part.evaluator is not None:
            yield f"reward.by.{index}", part.evaluator
    for setting, evaluator in registry.evaluators_of(optimizer).items():
        yield f"optimizer.{setting}", evaluator
    for setting, pairs in registry.pair_evaluators_of(optimizer).items():
        yield f"optimizer.{setting}", pairs
    if config.rank is not None:
        yield "rank.by", registry.evaluator(config.rank.by, where="rank.by")
    for index, raw in enumerate(config.evaluation.evaluators):
        where = f"evaluation.evaluators.{index}"
        yield where, registry.evaluator(raw, where=where)
