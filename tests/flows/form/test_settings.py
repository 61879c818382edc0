"""The schema from which Prefect draws its forms and with which its server validates a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import pytest
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import ValidationError, is_valid_schema, validate
from pydantic import Field

from alignment_core.config import GateConfig, PipelineConfig, Settings
from alignment_core.discovery.installed import Plugin
from alignment_core.errors import ConfigError
from alignment_core.plugin_api import AlignmentOptimizer
from alignment_core.registry import Registry, load_registry
from alignment_flows.form import settings
from alignment_flows.form.fields import JOINER, plain_text
from alignment_flows.form.off_tabs import NULL, OFF, TAB, with_off, without_off
from alignment_flows.form.settings import read_settings
from alignment_flows.pipeline import align
from alignment_flows.single_stage import stage

CONFIG = {"model": {"base": "a/model"}, "data": {"sources": [{"path": "feedback.jsonl"}]}}


@cache
def schema() -> dict[str, Any]:
    """Return the schema of the pipeline with the installed plugins."""
    return new_schema()


def new_schema() -> dict[str, Any]:
    made: dict[str, Any] = parameter_schema(align).model_dump()
    return made


def optimizers(made: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the optimizer tabs by the name that each one sets."""
    tabs = made["definitions"]["PipelineConfig"]["properties"]["optimizer"]["anyOf"]
    return {tab["properties"]["name"]["const"]: tab for tab in tabs}


def v1_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the reduced schema that V1's form sends to the server. It keeps only a few keywords of each field."""
    keywords = (
        "anyOf",
        "const",
        "default",
        "enum",
        "items",
        "maxItems",
        "minItems",
        "properties",
        "required",
        "type",
        "$ref",
    )
    reduced = {key: schema[key] for key in keywords if key in schema}
    if "properties" in reduced:
        reduced["properties"] = {name: v1_schema(field) for name, field in reduced["properties"].items()}
    if "definitions" in schema:
        reduced["definitions"] = {name: v1_schema(group) for name, group in schema["definitions"].items()}
    return reduced


def refusal(config: dict[str, Any]) -> str:
    """Return the server's error for a run with these settings."""
    with pytest.raises(ValidationError) as refused:
        validate({"config": {**CONFIG, **config}}, schema(), raise_on_error=True)
    return str(refused.value)


def test_every_setting_of_every_optimizer_is_a_typed_field() -> None:
    tabs = optimizers(schema())
    installed = {plugin.name: plugin for plugin in load_registry().plugins if plugin.kind == "optimizer"}
    assert tabs.keys() == installed.keys()
    for name, tab in tabs.items():
        assert tab["properties"].keys() == installed[name].cls.model_fields.keys()
        assert "name" in tab["required"]
        for setting, field in tab["properties"].items():
            assert field["title"]
            default = installed[name].cls.model_fields[setting].default
            # Beside a tab `Off`, the default is in the other tab.
            shown = {"default": None, **field.get("anyOf", [{}])[0], **field}[
                "default"
            ]  # beside a tab `Off`, in its own
            assert shown == (list(default) if isinstance(default, tuple) else default)
            assert setting == "name" or field["description"]
            assert {"type", "anyOf", "enum"} & field.keys()
    assert tabs["dpo"]["title"] == "DPO"
    assert tabs["dpo"]["properties"]["beta"] == {
        "type": "number", "default": 0.1, "title": "Beta", "position": 1,
        "description": "Strength of the KL penalty. Larger values stay closer to the SFT model. (> 0, default 0.1)",
    }  # fmt: skip
    assert tabs["dpo"]["properties"]["label_smoothing"]["description"].endswith("(≥ 0, < 0.5, default 0)")
    assert tabs["dpo"]["properties"]["length_normalised"]["description"].endswith("(default off)")
    assert tabs["dpo"]["properties"]["sft_weight"]["title"] == "SFT Weight"


def test_fields_have_positions_because_a_database_does_not_keep_their_order() -> None:
    for tab in optimizers(schema()).values():
        assert [field["position"] for field in tab["properties"].values()] == list(range(len(tab["properties"])))
        assert next(iter(tab["properties"])) == "name"


def test_schema_works_in_both_forms() -> None:
    for flow in (align, stage):
        made = parameter_schema(flow).model_dump()
        is_valid_schema(made)
        text = json.dumps(made)
        assert "oneOf" not in text
        assert "discriminator" not in text
        for definition in made["definitions"].values():
            assert all(field.get("title") for field in definition["properties"].values())


def test_only_a_choice_that_means_something_offers_null() -> None:
    """An empty field means its default, so a plain setting whose default is null needs no such choice."""
    made = schema()
    groups = [*made["definitions"].values(), *optimizers(made).values()]
    fields = {name: field for group in groups for name, field in group["properties"].items()}
    offered = {name: field for name, field in fields.items() if NULL in field.get("anyOf", ())}
    assert {"near_duplicates", "win_rate_over_sft", "max_loss_growth"} <= offered.keys()
    for field in offered.values():
        assert field["default"] is not None


def test_group_that_may_be_null_has_a_tab_and_null_is_accepted() -> None:
    """The interfaces write 'Property is type "None"' for null."""
    settings = schema()["definitions"]["PipelineConfig"]["properties"]
    measures = optimizers(schema())["ppo"]["properties"]["held_out_measure"]["anyOf"]
    assert [tab["title"] for tab in measures[:1]] == ["Off"]
    assert "wordlist" in {tab["properties"]["name"]["const"] for tab in measures[1:]}
    assert settings["gate"]["anyOf"] == [TAB, {"$ref": "#/definitions/GateConfig"}]
    assert settings["sft"]["anyOf"] == [{"$ref": "#/definitions/SFTConfig"}, TAB]
    assert all("default" not in settings[name] for name in ("gate", "sft"))
    nulls = {"memory_gb": None, "gate": None, "sft": None, "evaluation": {"lm_eval": None}, "model": {"base": "x"}}
    for made in (schema(), v1_schema(schema())):
        for given in (nulls, with_off(nulls), {"gate": {"judge": None}}):
            validate({"config": {**CONFIG, **given}}, made, raise_on_error=True)
    assert "'on' is not of type 'object'" in refusal({"gate": "on"})
    wrong = refusal({"gate": {"win_rate_over_sft": 2}})
    assert "'config.gate.win_rate_over_sft'" in wrong
    assert "2 is greater than the maximum of 1" in wrong
    assert "'config.gate'" in refusal({"gate": {**OFF, "win_rate_over_sft": 0.6}})


NULLS = {"sft": None, "gate": {"win_rate_over_sft": None}, "evaluation": {"endpoint": None}, "memory_gb": None}


def test_off_in_the_form_is_null_in_the_settings() -> None:
    optimizer = {"name": "ppo", "held_out_measure": OFF}
    validate({"config": {**CONFIG, "optimizer": optimizer}}, schema(), raise_on_error=True)
    assert read_settings({**CONFIG, "optimizer": optimizer}, ()).optimizer["held_out_measure"] is None
    shown = with_off({**CONFIG, **NULLS})
    assert shown == {**CONFIG, **NULLS, "sft": OFF, "evaluation": {"endpoint": OFF}}
    assert without_off(shown) == {**CONFIG, **NULLS}
    assert read_settings(shown, ()) == PipelineConfig.model_validate({**CONFIG, **NULLS})


def test_an_empty_group_in_the_form_has_its_defaults() -> None:
    """Otherwise the interfaces would open the tab `Off`."""
    shown = with_off({**CONFIG, "gate": {}})
    assert shown["gate"] == GateConfig().model_dump(mode="json")


@pytest.mark.parametrize("name", ["dpo", "grpo", "kto", "online_dpo", "ppo", "rloo"])
def test_values_from_a_form_are_accepted(name: str) -> None:
    chosen = load_registry().optimizer({"name": name}).model_dump(mode="json", exclude_none=True)
    validate({"config": {**CONFIG, "optimizer": chosen}}, schema(), raise_on_error=True)
    validate({"config": {**CONFIG, "optimizer": {"name": name}}}, schema(), raise_on_error=True)


@pytest.mark.parametrize(
    ("optimizer", "field", "message"),
    [
        ({"name": "dpo", "beta": -1}, "optimizer.beta", "-1 is less than or equal to the minimum of 0"),
        ({"name": "kto", "beta": -1}, "optimizer.beta", "-1 is less than or equal to the minimum of 0"),
        ({"name": "kto", "beta": "strong"}, "optimizer.beta", "'strong' is not of type 'number'"),
        ({"name": "ppo", "clip": 1.5}, "optimizer.clip", "1.5 is greater than or equal to the maximum of 1"),
        ({"name": "kto", "epochs": 0}, "optimizer.epochs", "0 is less than the minimum of 1"),
        ({"name": "kto", "label_smoothing": 0.1}, "optimizer", "'label_smoothing' was unexpected"),
        ({"name": "kot"}, "optimizer.name", "'kot' is not one of ['dpo', 'grpo', 'kto', 'online_dpo', 'ppo', 'rloo']"),
        ({"beta": 0.1}, "optimizer", "'name' is a required property"),
    ],
)
def test_server_refuses_a_wrong_optimizer_value_and_names_the_field(
    optimizer: dict[str, Any], field: str, message: str
) -> None:
    error = refusal({"optimizer": optimizer})
    assert f"field 'config.{field}'" in error
    assert message in error


def test_server_refuses_wrong_values_elsewhere() -> None:
    assert "field 'config.sft.epochs'" in refusal({"sft": {"epochs": 0}})
    assert "('sede' was unexpected)" in refusal({"sede": 1})
    assert "field 'config.memory_gb'. Failure reason: -1 is less than or equal to the minimum of 0" in refusal(
        {"memory_gb": -1}
    )


@pytest.mark.parametrize(
    ("config", "field", "message"),
    [
        ({"evaluation": {"evaluators": [{"name": "wordlits"}]}}, "evaluation.evaluators[0].name", "is not one of"),
        ({"evaluation": {"evaluators": [{"name": "wordlist", "wantd": []}]}}, "evaluation.evaluators[0]", "'wantd'"),
        (
            {"evaluation": {"evaluators": [{"name": "wordlist", "wanted": 3}]}},
            "evaluation.evaluators[0].wanted",
            "3 is",
        ),
        ({"rank": {"by": {"name": "wordlist", "wantd": []}}}, "rank.by", "'wantd' was unexpected"),
        ({"reward": {"by": [{"name": "numeric_mtach"}]}}, "reward.by[0].name", "is not one of"),
        ({"reward": {"by": [{"name": "reward_model", "epochs": 2}]}}, "reward.by[0]", "'epochs' was unexpected"),
        ({"reward": {"by": [{"name": "regex", "pattern": "a", "weight": "b"}]}}, "reward.by[0].weight", "'b' is not"),
        ({"listeners": [{"name": "jsonl", "path": 3}]}, "listeners[0].path", "3 is not of type 'string'"),
        ({"listeners": [{"path": "x"}]}, "listeners[0]", "'name' is a required property"),
    ],
)
def test_server_refuses_a_wrong_plugin_value_and_names_the_field(
    config: dict[str, Any], field: str, message: str
) -> None:
    error = refusal(config)
    assert f"field 'config.{field}'" in error
    assert message in error


@pytest.mark.parametrize(
    "config",
    [
        {"optimizer": {"name": "kto", "beta": -1}},
        {"optimizer": {"name": "kto", "desirable_weight": 0}},
        {"optimizer": {"name": "kto", "label_smoothing": 0.1}},
        {"memory_gb": -1},
        {"data": {"sources": [{"path": "x"}], "near_duplicates": 2}},
    ],
)
def test_server_refuses_values_that_v1_does_not_check(config: dict[str, Any]) -> None:
    assert validate({"config": {**CONFIG, **config}}, v1_schema(schema())) == []
    assert "config." in refusal(config)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("`beta` times\n  x * y", "beta times x * y"),
        ("# *a* __b__ ~~c~~", f"{JOINER}# ∗a∗ ˍˍbˍˍ ∼∼c∼∼"),
        ("r_chosen and <eos>", f"r_chosen and <{JOINER}eos>"),
        ("a < b, ![x](y) &lt; \\*", f"a < b, ![x]{JOINER}(y) &{JOINER}lt; \\{JOINER}∗"),
        ("1. one", f"{JOINER}1. one"),
        ('src="http://x.y"', f'src="http:{JOINER}//x.y"'),
    ],
)
def test_text_is_the_same_with_markdown_and_without(text: str, shown: str) -> None:
    assert plain_text(text) == shown


class Odd(AlignmentOptimizer):
    """An optimizer with a setting that no form can show."""

    name: Literal["odd"] = "odd"
    rule: Callable[[int], int] | None = None


class Inner(Settings):
    """A group that may contain itself."""

    low: float = Field(0.2, gt=0)
    deeper: Inner | None = None


class Nested(AlignmentOptimizer):
    """An optimizer with groups of settings."""

    name: Literal["nested"] = "nested"
    first: Inner = Inner()
    second: Inner = Inner()


class Narrow(AlignmentOptimizer):
    """An optimizer whose settings are a subset of DPO's."""

    name: Literal["narrow"] = "narrow"
    beta: float = 0.1


def with_plugins(monkeypatch: pytest.MonkeyPatch, *classes: type[AlignmentOptimizer]) -> None:
    registry = load_registry()
    like = next(plugin for plugin in registry.plugins if plugin.name == "dpo")
    more = [
        Plugin(c.model_fields["name"].default, "optimizer", "x", "1", c, like.distribution, like.entry_point)
        for c in classes
    ]
    monkeypatch.setattr(settings, "load_registry", lambda: Registry([*registry.plugins, *more], []))


def test_plugin_without_a_schema_does_not_break_the_form_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_plugins(monkeypatch, Odd)
    tabs = optimizers(new_schema())
    assert tabs["odd"]["properties"].keys() == {"name"}
    assert "beta" in tabs["dpo"]["properties"]
    validate({"config": {**CONFIG, "optimizer": {"name": "odd", "rule": "int"}}}, new_schema(), raise_on_error=True)


def test_groups_of_settings_are_drawn_in_their_tab_and_validated(monkeypatch: pytest.MonkeyPatch) -> None:
    with_plugins(monkeypatch, Nested)
    made = new_schema()
    is_valid_schema(made)
    fields = optimizers(made)["nested"]["properties"]
    for group in (fields["first"], fields["second"]):
        assert group["properties"]["low"]["description"] == "(> 0, default 0.2)"
        assert "exclusiveMinimum" not in group["properties"]["low"]
    wrong = {"config": {**CONFIG, "optimizer": {"name": "nested", "second": {"deeper": {"low": -1}}}}}
    with pytest.raises(ValidationError, match=r"config\.optimizer\.second"):
        validate(wrong, made, raise_on_error=True)


def test_tab_comes_before_tabs_that_contain_all_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both forms open the first of the tabs that match the most of the given settings."""
    with_plugins(monkeypatch, Narrow)
    names = list(optimizers(new_schema()))
    assert names.index("narrow") < names.index("dpo")


# --- reading the settings in the flow -----------------------------------------------------------------------------


def test_plain_values_and_changes_become_settings() -> None:
    config = read_settings(CONFIG, ["optimizer={name: kto}", "seed=7"])
    assert (config.optimizer, config.seed) == ({"name": "kto"}, 7)
    assert read_settings(config, ["seed=8"]).seed == 8
    assert read_settings(config, ()) is config
    assert "seed" not in CONFIG
    assert PipelineConfig.model_validate(CONFIG).seed == 0


def test_error_in_plain_values_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="modle: unknown setting"):
        read_settings({**CONFIG, "modle": {}}, ())
