"""A mistake or an attack in a config file or in `--set` is one paragraph that names its place, found in no time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from alignment_core.config_file import load_config
from alignment_core.errors import ConfigError

SETTINGS = "model: {base: x}\ndata: {sources: [{path: y}]}\n"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
SECONDS = 5


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(SETTINGS)
    return path


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (BOMB, "more than 100000 values"),
        ("x: &x [*x]", r":3: invalid YAML: a value contains itself"),
        ("x: &x {y: *x}", "a value contains itself"),
        ("x: " + "[" * 3000 + "]" * 3000, "more than 50 levels"),
        ("x: " + "{a: " * 3000 + "}" * 3000, "more than 50 levels"),
        ("? [a]\n: b", "a key is not plain text"),
        ("seed: 1\nseed: 2", ":4: invalid YAML: `seed` appears twice"),
        ("seed: !!int abc", "this is no valid int"),
        ("seed: !!float abc", "this is no valid float"),
        ("seed: !!bool abc", "this is no valid bool"),
        ("seed: !!timestamp abc", "values of the kind timestamp are not read"),
        ("seed: 2024-99-99", "seed: invalid value. got '2024-99-99'"),
        ("seed: " + "9" * 5000, "this is no valid int"),
        ("seed: 0x" + "f" * 5000, "seed: the number is too large.* got a number of 20000 bits"),
        ("name: " + "x" * 2_000_000, "expected at most 1000000"),
    ],
)
def test_mistakes_in_a_file(file: Path, text: str, problem: str) -> None:
    file.write_text(SETTINGS + text + "\n")
    started = time.process_time()
    with pytest.raises(ConfigError, match=problem) as error:
        load_config(file)
    assert time.process_time() - started < SECONDS
    assert str(error.value).startswith(str(file))


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("sft.learning_rate=.inf", "sft.learning_rate: the number is too large, infinite or no number. got inf"),
        ("optimizer.beta=.nan", "optimizer.beta: the number is too large, infinite or no number. got nan"),
        ("optimizer.any.deep=99999999999999999999", "optimizer.any.deep: the number is too large"),
        ("seed=-1", "seed: invalid value. got -1"),
        ("seed=9007199254740992", "seed: invalid value"),
        ("store=/dev/null", "store: /dev/null is not a folder"),
        *(
            (f"feedback=postgresql://{address}", "feedback: host and port cannot be read")
            for address in ("[", "u:p@[::1/x", "u@h:99999/x", "h:port/x", "a b/x")
        ),
        ("store=s3://bucket/x", "store: the store is a folder on this machine, not an address"),
        ('model.base="a\\0b"', "model.base: the text contains a null character"),
        ("device=gpu", "device: unknown device 'gpu', expected auto, cpu, cuda or cuda:N"),
        ("device=mps", "device: 'mps' is not supported: only NVIDIA GPUs are"),
        ("device=xpu:0", "device: 'xpu:0' is not supported: only NVIDIA GPUs are"),
        ("sft.epochs=1000000000000000000", "sft.epochs: invalid value"),
        ("model.max_length=1000000000000", "model.max_length: invalid value"),
        ("x=&a [*a]", "--set x: the value is not valid YAML: a value contains itself"),
        *(
            (
                f"listeners=[{{name: tracker, options: {{a: !!{kind} {value}}}}}]",
                f"values of the kind {kind} are not read",
            )
            for kind, value in (("binary", "aGk="), ("timestamp", "2020-01-01"), ("set", "{x}"), ("omap", "[a: 1]"))
        ),
        ("name=!!binary aGk=", "values of the kind binary are not read"),
        ("optimizer.postgresql://u:s@h/d=1", "--set optimizer.postgresql: this is not the name of a setting. got ':'"),
        ("store=host=h password=s", "store: the path looks like an address with a password"),
        ("seed=!!int abc", "--set seed: the value is not valid YAML: this is no valid int"),
        ("a." * 3000 + "b=1", "more than 50 levels"),
    ],
)
def test_mistakes_in_the_command_line(file: Path, override: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load_config(file, [override])


@pytest.mark.parametrize(
    "address",
    ["h", "/name", "h:/name", "u:a[b/c]@h:5432/name", "u:a@b@[::1]:5432/name", "/name?host=/run/x", "${HOST}/x"],
)
def test_addresses_of_databases_are_welcome(file: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOST", "u@h:5432")
    load_config(file, [f"feedback=postgresql://{address}"])


def test_aliases_and_dates_are_welcome(file: Path) -> None:
    file.write_text(SETTINGS + "name: 2026-11-30\nsft: &steps {epochs: 2}\nreward: {<<: *steps, centering: 0}\n")
    settings = load_config(file, ["device=cuda:1"])
    assert settings.sft is not None
    assert (settings.name, settings.sft.epochs, settings.reward.epochs) == ("2026-11-30", 2, 2)
