"""Exports of every causal language model of the installed transformers: the trained model, or refused with a reason."""

from pathlib import Path
from types import ModuleType

import pytest
import transformers
from every_architecture import FEW, LANGUAGE_MODELS, VARIANTS
from exports import examine_exports
from matrix import EQUAL
from scripts import load_script

TOOL = Path(__file__).resolve().parents[3] / "docs" / "tools" / "architectures.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_script(TOOL)


def test_every_row_of_the_page_has_exports_and_none_differs(tool: ModuleType) -> None:
    _, rows = tool.recorded()
    exports = tool.recorded_exports()
    assert set(exports) == set(rows)
    assert not {name: found for name, row in exports.items() if (found := row.differences())}


@pytest.mark.ci
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", FEW)
def test_no_export_differs_silently(name: str, tmp_path: Path, tiny_model: Path, tool: ModuleType) -> None:
    found = examine_exports(name, tmp_path, tiny_model)
    assert found.differences() == {}
    assert found.merged == EQUAL
    version, _ = tool.recorded()
    assert version != transformers.__version__ or found == tool.recorded_exports()[name]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", [*LANGUAGE_MODELS, *VARIANTS])
def test_no_export_differs_silently_in_any_architecture(name: str, tmp_path: Path, tiny_model: Path) -> None:
    assert examine_exports(name, tmp_path, tiny_model).differences() == {}
