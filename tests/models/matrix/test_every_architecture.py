"""Every causal language model of the installed transformers: equal to plain peft, or refused with a reason."""

from pathlib import Path

import pytest
from every_architecture import LANGUAGE_MODELS, VARIANTS
from matrix import EQUAL, examine
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

FEW = (
    "qwen3_moe", "mixtral", "qwen3_next", "gemma4_text", "gpt_oss", "deepseek_v3", "phimoe", "phi3 longrope", "falcon_h1",
    "granitemoehybrid",
)  # fmt: skip


@pytest.mark.ci
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", FEW)
def test_nothing_differs_silently(name: str, tmp_path: Path) -> None:
    found = examine(name, tmp_path)
    assert found.differences() == {}
    assert (found.logps, found.step, found.responses, found.plan) == (EQUAL,) * 4


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", [*LANGUAGE_MODELS, *VARIANTS])
def test_nothing_differs_silently_in_any_architecture(name: str, tmp_path: Path) -> None:
    assert examine(name, tmp_path).differences() == {}


def test_every_causal_model_is_tried_or_left_out_with_a_reason() -> None:
    """A new version of transformers brings new architectures, which must appear in one of the two lists."""
    assert len(LANGUAGE_MODELS) > 100
    assert set(LANGUAGE_MODELS) <= set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
