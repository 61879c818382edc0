"""The contenders of a comparison, optimizers with settings, and the settings and plans of their runs."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import yaml

from alignment_core.addresses import hide_secrets
from alignment_core.config import PipelineConfig
from alignment_core.config.yaml_text import parse
from alignment_core.config_file import check_config
from alignment_core.errors import ConfigError
from alignment_core.planning.pipeline import Plan, plan_pipeline
from alignment_core.planning.reward_parts import uses_reward_model
from alignment_core.registry import Registry, load_registry
from alignment_flows.contenders.labels import with_labels
from alignment_flows.form.trust import refuse_trust

MOST_CONTENDERS, MOST_SEEDS = 24, 20

Axis = tuple[str, list[Any]]
"""A setting and its values."""


@dataclass(frozen=True)
class Contender:
    """One of the things that are compared: an optimizer with the settings of the run.

    Attributes:
        name: the optimizer, and its values of the settings that are compared.
        optimizer: name of the optimizer.
        changes: its changed settings as `a.b=value`. Those of the optimizer start with its name.
    """

    name: str
    optimizer: str
    changes: tuple[str, ...] = ()


def contenders_of(optimizers: Sequence[str], grid: Sequence[str] = ()) -> list[Contender]:
    """Return every optimizer with every combination of the values in the grid.

    Args:
        optimizers: names of the optimizers.
        grid: strings `a.b=value,value`. A setting of one optimizer starts with its name, `kto.beta`, and only that
            optimizer gets several values of it.

    Raises:
        ConfigError: an optimizer or value is repeated, a setting has no values, or there are too many contenders.
    """
    if not optimizers or len(set(optimizers)) != len(optimizers):
        raise ConfigError(
            "an optimizer is repeated" if optimizers else "no optimizer is given",
            where="--optimizers",
            got=", ".join(optimizers) or "none",
            do="Name each optimizer once",
        )
    axes = [_axis(text) for text in grid]
    of_optimizer = {optimizer: _axes_of(optimizer, axes, optimizers) for optimizer in optimizers}
    count = sum(prod(len(values) for _, values in own) for own in of_optimizer.values())
    if count > MOST_CONTENDERS:
        raise ConfigError(
            "too many contenders: every combination of values is one, for each optimizer",
            where="--grid",
            got=count,
            expected=f"at most {MOST_CONTENDERS}",
            do="Compare fewer values, or one setting after the other",
        )
    return [
        _contender(optimizer, dict(zip((name for name, _ in own), values, strict=True)))
        for optimizer, own in of_optimizer.items()
        for values in product(*(values for _, values in own))
    ]


def _contender(optimizer: str, given: Mapping[str, Any]) -> Contender:
    public = hide_secrets(dict(given))
    shown = (f"{name.removeprefix(f'{optimizer}.')}={_text(value)}" for name, value in public.items())
    changes = tuple(f"{name}={json.dumps(value)}" for name, value in given.items())
    return Contender(" ".join([optimizer, *shown]), optimizer, changes)


def _axes_of(optimizer: str, axes: Sequence[Axis], optimizers: Sequence[str]) -> list[Axis]:
    """Return the settings that an optimizer gets values of. Those of the optimizer start with its name."""
    own = []
    for name, values in axes:
        first, _, rest = name.partition(".")
        if first in (optimizer, "optimizer"):
            own.append((f"{optimizer}.{rest}", values))
        elif first not in optimizers:
            own.append((name, values))
    for name, count in Counter(name for name, _ in own).items():
        if count > 1:
            raise ConfigError("the setting is given twice", where=f"--grid {name}", do="Give all its values at once")
    return own


def _axis(text: str) -> Axis:
    """Return a setting and its values. They are read by the code that reads `--set`, as the entries of a list."""
    name, equals, given = text.partition("=")
    where = f"--grid {name}"
    if not (name and equals):
        raise ConfigError("the values are missing", where=where.strip(), expected="--grid a.b=value,value")
    if name in ("seed", "optimizer") or name.endswith(".name"):
        do = "Use --seeds" if name == "seed" else "Use --optimizers"
        raise ConfigError("a grid cannot vary this setting", where=where, do=do)
    try:
        values = parse(f"[{given}]")
    except yaml.YAMLError as error:
        got = hide_secrets({name: given})[name]
        problem = getattr(error, "problem", None) or error
        raise ConfigError(f"the values are not valid YAML: {problem}", where=where, got=got) from error
    if not values or len(values) > MOST_CONTENDERS:
        raise ConfigError("wrong number of values", where=where, got=len(values), expected=f"1 to {MOST_CONTENDERS}")
    if len({json.dumps(value, sort_keys=True, default=str) for value in values}) < len(values):
        raise ConfigError("a value is repeated", where=where, got=given, do="Give each value once")
    return name, values


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


# --- settings -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contest:
    """What to compare.

    Attributes:
        optimizers: names of the optimizers. Empty: the one in the settings.
        changes: settings to change, for all optimizers or for one of them (`kto.learning_rate=1e-4`).
        grid: settings with several values, as for `contenders_of`.
        seeds: number of seeds, from the seed of the settings upwards.
        stop_losers: whether contenders that are clearly worse than the best get no more seeds.
    """

    optimizers: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    grid: tuple[str, ...] = ()
    seeds: int = 1
    stop_losers: bool = False

    @property
    def is_sweep(self) -> bool:
        """Whether settings or seeds are compared, and not optimizers alone."""
        return bool(self.grid) or self.seeds > 1

    def rounds(self, config: PipelineConfig) -> dict[int, dict[str, PipelineConfig]]:
        """Return, for each seed, the settings of each contender by its name.

        Raises:
            ConfigError, PluginError: an optimizer is unknown, or a setting is wrong. Nothing has been built.
        """
        if not 1 <= self.seeds <= MOST_SEEDS:
            raise ConfigError("wrong number of seeds", where="--seeds", got=self.seeds, expected=f"1 to {MOST_SEEDS}")
        contenders = contenders_of(self.optimizers or [str(config.optimizer.get("name"))], self.grid)
        first = settings_of(config, contenders, self.changes)
        seed = next(iter(first.values())).seed
        later = range(seed + 1, seed + self.seeds)
        return {seed: first} | {
            each: settings_of(config, contenders, [*self.changes, f"seed={each}"]) for each in later
        }


def settings_of(
    config: PipelineConfig, contenders: Sequence[Contender], changes: Sequence[str]
) -> dict[str, PipelineConfig]:
    """Return the settings of each contender by its name: those in the file if the file chooses its optimizer, else its
    defaults.

    If the reward model rewards the responses of any contender, it scores the responses of all of them.

    Raises:
        ConfigError, PluginError: an optimizer is unknown, or a setting is wrong. Nothing has been built.
    """
    registry, names = load_registry(), {each.optimizer for each in contenders}
    found = {each.name: _checked(config, each, names, changes, registry) for each in contenders}
    by_model = (each for each in found.values() if uses_reward_model(each.reward.by))
    if not any(registry.optimizer(each.optimizer).needs().reward for each in by_model):
        return found
    changes = ["evaluation.reward_model=true", *changes]
    return {each.name: _checked(config, each, names, changes, registry) for each in contenders}


def _checked(
    config: PipelineConfig, contender: Contender, optimizers: set[str], changes: Sequence[str], registry: Registry
) -> PipelineConfig:
    """Return the settings of a contender. An error in what distinguishes it names it and its setting."""
    common = _with_own_settings(config, contender.optimizer, optimizers, changes)
    registry.optimizer(common.optimizer)
    if not contender.changes:
        return common
    try:
        own = _with_own_settings(config, contender.optimizer, optimizers, [*changes, *contender.changes])
        registry.optimizer(own.optimizer)
    except ConfigError as error:
        hint = "If only some of the optimizers have the setting, put their name before it: --grid NAME.SETTING=…"
        do = " ".join(part for part in (error.do, hint if len(optimizers) > 1 else None) if part)
        raise ConfigError(
            error.what,
            where=f"contender `{contender.name}`: {error.where}",
            got=error.got,
            expected=error.expected,
            do=do or None,
        ) from error
    return own


def _with_own_settings(
    config: PipelineConfig, name: str, optimizers: set[str], changes: Sequence[str]
) -> PipelineConfig:
    """Return the settings with this optimizer, and with those changes that are for it or for every optimizer."""
    own = [] if config.optimizer.get("name") == name else [f"optimizer={{name: {name}}}"]
    for change in changes:
        first, dot, rest = change.partition(".")
        if not (dot and first in optimizers):
            own.append(change)
        elif first == name:
            own.append(f"optimizer.{rest}")
    changed = check_config(config.model_dump(mode="json"), own)
    refuse_trust(changed, config)
    return changed


# --- plans --------------------------------------------------------------------------------------------------------


def plans_of(rounds: Mapping[int, Mapping[str, PipelineConfig]], contest: Contest) -> dict[int, dict[str, Plan]]:
    """Return, for each seed, the plan of each contender by its name.

    Raises:
        AlignmentError: a mistake of the user. Nothing has been built.
    """
    registry = load_registry()
    plans = {
        seed: {name: plan_pipeline(each, registry) for name, each in settings.items()}
        for seed, settings in rounds.items()
    }
    first = next(iter(plans.values()))
    check_comparable(first)
    if contest.stop_losers and not next(iter(first.values())).over_sft.config["judges"]:
        raise ConfigError(
            "nobody would judge who loses",
            where="--stop-losers",
            do="Set `evaluation.reward_model: true`, or add an evaluator to `evaluation.evaluators`",
        )
    return with_labels(plans)


def check_comparable(plans: Mapping[str, Plan]) -> None:
    """Check that contenders with the same optimizer differ, and start from the same model and are judged alike.

    Raises:
        ConfigError: they do not. Nothing has been built.
    """
    starts: dict[str, tuple[str, str]] = {}
    seen: dict[str, str] = {}
    for name, plan in plans.items():
        optimizer = plan.optimize.config["optimizer"]["name"]
        first, start = starts.setdefault(optimizer, (name, plan.evaluate_sft.key))
        if plan.evaluate_sft.key != start:
            raise ConfigError(
                "the contenders would not be compared with the same SFT model, by the same judges, on the same prompts",
                where="--grid",
                got=f"{first}, {name}",
                do="Vary settings of the optimizer. For others, `align run` each value, and see `align runs`",
            )
        if (same := seen.setdefault(plan.evaluate.key, name)) != name:
            raise ConfigError(
                "the setting changes nothing that is trained or evaluated, so these contenders are the same",
                where="--grid",
                got=f"{same}, {name}",
                do="Give different values of a setting that changes the result",
            )
