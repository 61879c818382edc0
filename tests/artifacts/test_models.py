"""Which trained model a reference names, how far it has come, and what may be promoted without being named."""

from __future__ import annotations

from pathlib import Path

import pytest
from stored import add, named

from alignment_core.artifacts import ArtifactStore
from alignment_core.artifacts.models import Standing, find_model, promote
from alignment_core.errors import ArtifactError

SFT = named("1", "sft")
OLD = named("2", "optimize", {"sft": SFT})
NEW = named("3", "optimize", {"sft": SFT})
OTHER = named("4", "optimize", {"sft": SFT})
SAMPLED = named("5", "sft")
EVALUATED = named("6", "evaluate", {"policy": NEW})
VERDICT = named("8", "gate", {"policy": EVALUATED})
SECOND_VERDICT = named("9", "gate", {"policy": EVALUATED}, second=True)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    """Two models of the run `kto`, one of the run `dpo`, and the SFT model that `align sample` made last."""
    store = ArtifactStore(tmp_path / "store")
    for day, (key, run) in enumerate(((SFT, "kto"), (OTHER, "dpo"), (OLD, "kto"), (NEW, "kto"), (SAMPLED, "kto")), 1):
        add(store, key, f"2026-01-0{day}", run=run)
    return store


def judge(store: ArtifactStore, key: str, created: str, *, passed: bool) -> None:
    add(store, key, created, metrics={"passed": passed})


@pytest.mark.parametrize(
    ("reference", "run", "key"),
    [
        ("latest", None, NEW),
        ("latest", "dpo", OTHER),
        ("kto", None, NEW),
        ("dpo", None, OTHER),
        (SAMPLED[:8], None, SAMPLED),
    ],
    ids=["not the newer SFT model", "of a run", "a run", "another run", "an SFT model by its key"],
)
def test_a_reference_names_the_newest_aligned_model(
    store: ArtifactStore, reference: str, run: str | None, key: str
) -> None:
    assert find_model(store, reference, run=run).key == key


def test_an_alias_goes_before_a_run_of_its_name(store: ArtifactStore) -> None:
    promote(store, OLD, "dpo", by="", reason="")
    assert find_model(store, "dpo").key == OLD


def test_a_run_whose_name_could_be_a_key(store: ArtifactStore) -> None:
    add(store, beef := named("a", "optimize"), "2026-02-01", run="beef")
    assert find_model(store, "beef").key == beef


def test_latest_of_a_run_without_a_model(store: ArtifactStore) -> None:
    with pytest.raises(ArtifactError, match=r"the run `ppo` has no aligned model .* expected one of the runs kto, dpo"):
        find_model(store, "latest", run="ppo")


def test_standing(store: ArtifactStore) -> None:
    assert find_model(store, SAMPLED).standing is Standing.UNALIGNED
    assert find_model(store, NEW).standing is Standing.UNGATED
    add(store, EVALUATED)
    judge(store, VERDICT, "2026-01-05", passed=True)
    assert find_model(store, NEW).standing is Standing.PASSED
    assert find_model(store, OLD).standing is Standing.UNGATED, "the verdict is on another model"
    judge(store, SECOND_VERDICT, "2026-01-06", passed=False)
    assert find_model(store, NEW).standing is Standing.REFUSED, "the newest verdict counts"


def test_promoting_what_no_gate_passed_needs_its_name(store: ArtifactStore) -> None:
    add(store, EVALUATED)
    for created, passed, why in ((None, None, "was not judged by a gate"), ("2026-01-05", False, "did not pass")):
        if created is not None:
            judge(store, VERDICT, created, passed=bool(passed))
        with pytest.raises(ArtifactError, match=rf"`latest` is promoted only if .* {why}.*`align promote {NEW[:12]}`"):
            promote(store, "latest", "production", by="", reason="")
    for reference, key in (("kto", NEW), (OLD, OLD), (SAMPLED, SAMPLED)):
        change, model = promote(store, reference, "production", by="", reason="")
        assert change.key == key
        assert model.warning is not None
    assert model.warning == f"the model sft/{SAMPLED[:12]} of the run `kto` is an SFT model, and was not aligned"


def test_latest_that_passed_is_promoted_without_a_warning(store: ArtifactStore) -> None:
    add(store, EVALUATED)
    judge(store, VERDICT, "2026-01-05", passed=True)
    change, model = promote(store, "latest", "production", by="", reason="")
    assert (change.key, model.warning) == (NEW, None)
