"""The schema of the quick form: few settings in a fixed order, none of them nullable."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import ValidationError, is_valid_schema, validate

from alignment_core.registry import load_registry
from alignment_flows.form.quick_fields import COMMON, OWN
from alignment_flows.quick import quick
from alignment_flows.serve.deployments.declared import recipe


@cache
def schema() -> dict[str, Any]:
    made: dict[str, Any] = parameter_schema(quick).model_dump()
    return made


def test_form_has_few_fields_in_the_order_of_thought() -> None:
    is_valid_schema(schema())
    fields = schema()["properties"]
    order = sorted(fields, key=lambda name: fields[name]["position"])
    assert order == ["name", "data", "model", "optimizer", "card", "memory_gb", "config"]
    assert all(field["description"] for field in fields.values())
    assert schema()["required"] == ["config"]


def test_every_optimizer_has_a_short_tab_without_nullable_fields() -> None:
    tabs = {tab["properties"]["name"]["const"]: tab for tab in schema()["properties"]["optimizer"]["anyOf"]}
    assert tabs.keys() == {plugin.name for plugin in load_registry().plugins if plugin.kind == "optimizer"}
    for tab in tabs.values():
        assert len(tab["properties"]) <= 1 + OWN + len(COMMON)
        assert [field["position"] for field in tab["properties"].values()] == list(range(len(tab["properties"])))
        assert tab["required"] == ["name"]
    assert list(tabs["kto"]["properties"]) == ["name", "beta", "desirable_weight", "undesirable_weight", *COMMON[1:]]
    assert {"rollouts", "kl_coef", *COMMON} <= tabs["ppo"]["properties"].keys()
    assert "schedule" not in tabs["ppo"]["properties"]
    assert tabs["kto"]["properties"]["desirable_weight"]["type"] == "number"
    drawn = [{**field, "if": {}, "then": {}, "else": {}} for field in schema()["properties"].values()]
    assert '"null"' not in json.dumps(drawn)
    assert "oneOf" not in json.dumps(drawn)


@pytest.mark.parametrize(
    ("values", "field", "message"),
    [
        ({"optimizer": {"name": "dpo", "beta": -1}}, "optimizer.beta", "-1 is less than or equal to the minimum of 0"),
        ({"optimizer": {"name": "kto", "beta": "x"}}, "optimizer", "is not valid under any of the given schemas"),
        ({"optimizer": {"name": "kot"}}, "optimizer", "is not valid under any of the given schemas"),
        ({"optimizer": {"name": "kto", "margin_scale": 1}}, "optimizer", "'margin_scale' was unexpected"),
        ({"card": "gpu"}, "card", "'gpu' does not match"),
        ({"memory_gb": -1}, "memory_gb", "-1 is less than the minimum of 0"),
    ],
)
def test_server_refuses_a_wrong_value_and_names_the_field(values: dict[str, Any], field: str, message: str) -> None:
    given = recipe("gpu-16gb-kto-llama3.2-3b")["quick"]
    validate(given, schema(), raise_on_error=True)
    with pytest.raises(ValidationError) as refused:
        validate({**given, **values}, schema(), raise_on_error=True)
    assert f"field '{field}'" in str(refused.value)
    assert message in str(refused.value)


def test_settings_that_the_form_does_not_show_are_accepted_from_the_json_view() -> None:
    given = recipe("gpu-8gb-ppo-qwen2.5-0.5b")["quick"]
    validate({**given, "optimizer": {"name": "ppo", "clip": 0.1}}, schema(), raise_on_error=True)
