"""Every causal language model of the installed transformers: equal to plain peft, or refused with a reason."""

from pathlib import Path
from types import ModuleType

import pytest
import transformers
from every_architecture import FEW, LANGUAGE_MODELS, VARIANTS
from matrix import EQUAL, examine
from scripts import load_script

TOOL = Path(__file__).resolve().parents[3] / "docs" / "tools" / "architectures.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_script(TOOL)


def test_the_page_shows_what_was_found(tool: ModuleType) -> None:
    version, rows = tool.recorded()
    assert tool.PAGE.read_text(encoding="utf-8") == tool.page(version, rows, tool.recorded_exports())
    assert not {name: found for name, row in rows.items() if (found := row.differences())}
    if version == transformers.__version__:  # another one has other architectures
        assert set(rows) == {*LANGUAGE_MODELS, *VARIANTS}


@pytest.mark.ci
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", FEW)
def test_nothing_differs_silently(name: str, tmp_path: Path, tool: ModuleType) -> None:
    found = examine(name, tmp_path)
    assert found.differences() == {}
    assert (found.logps, found.step, found.responses, found.plan) == (EQUAL,) * 4
    version, rows = tool.recorded()
    assert version != transformers.__version__ or found == rows[name]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", [*LANGUAGE_MODELS, *VARIANTS])
def test_nothing_differs_silently_in_any_architecture(name: str, tmp_path: Path) -> None:
    assert examine(name, tmp_path).differences() == {}
