"""The run form in a browser: the fields it shows, the values it refuses, and the run it starts."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from annotated_types import Ge, Gt, Le, Lt
from browser import BrowserPage
from playwright.sync_api import expect
from prefect_pages import INTERFACES, Field, Interface
from served import ALIGN, Served

from alignment_core.config import GateConfig
from alignment_core.registry import load_registry
from alignment_flows.form.off_tabs import OFF
from alignment_flows.form.settings import read_settings

pytestmark = [pytest.mark.ci, pytest.mark.timeout(3600)]

ROOT = Path(__file__).resolve().parents[3]
SIGNS = {Ge: "≥", Gt: ">", Le: "≤", Lt: "<"}
JOINER = "\u2060"


@pytest.fixture(params=INTERFACES)
def interface(request: pytest.FixtureRequest, prefect_page: BrowserPage, served: Served) -> Interface:
    return INTERFACES[request.param](prefect_page, served)


def expected_texts(info: Any) -> list[str]:
    """Return the texts that a form must show for a setting, from the plugin's declaration."""
    texts = [info.description.replace("`", "").replace("\n", " ")]
    texts += [f"{SIGNS[type(bound)]} {value:g}" for bound in info.metadata for value in asdict(bound).values()]
    default = info.default
    if isinstance(default, bool):
        default = "on" if default else "off"
    return [*texts, f"default {default:g}" if isinstance(default, int | float) else f"default {default}"]


def holds(field: Field, default: Any) -> bool:
    """Return whether the field contains a setting's default in a widget of its type."""
    if default is None:
        return field.value == "" if field.kind in ("number", "text") else "Off" in field.value
    if isinstance(default, bool):
        return (field.kind, field.value) == ("switch", "on" if default else "off")
    if isinstance(default, int | float):
        return field.kind == "number" and float(field.value) == default
    return str(default) in field.value


@pytest.mark.slow
def test_every_setting_of_every_optimizer_is_a_field_of_its_tab_only(interface: Interface, deployed_run: str) -> None:
    interface.open_form(deployed_run)
    for plugin in load_registry().plugins:
        if plugin.kind != "optimizer":
            continue
        title = plugin.cls.model_config["title"]
        interface.choose(title)
        fields = {field.title.lower().replace(" ", "_"): field for field in interface.fields(title)}
        assert fields.keys() == plugin.cls.model_fields.keys()
        for name, info in plugin.cls.model_fields.items():
            field = fields[name]
            if name == "name":
                assert (field.kind, field.value) == ("text", plugin.name)
                continue
            shown = field.text.replace(JOINER, "")
            texts = expected_texts(info)
            if name in (*plugin.cls.evaluators, *plugin.cls.pair_evaluators):  # null is the tab `Off`
                texts = [text.replace("null:", "Off:").replace("default None", "default off") for text in texts]
            assert all(text in shown for text in texts), (name, shown, texts)
            # The deployment sets other values for DPO, the optimizer that it selects.
            assert plugin.name == "dpo" or holds(field, info.default), (name, field, info.default)


def test_wrong_value_is_refused_and_the_page_names_the_field(
    interface: Interface, deployed_run: str, served: Served
) -> None:
    before = served.post("flow_runs/count")
    interface.open_form(deployed_run)
    interface.choose("KTO")
    interface.set_number("Beta", "-1")
    interface.refused("Beta", "config.optimizer.beta", "-1 is less than or equal to the minimum of 0")
    interface.set_number("Beta", "0.2")
    interface.set_number("Near Duplicates", "1.5")
    interface.refused("Near Duplicates", "config.data.near_duplicates", "1.5 is greater than the maximum of 1")
    assert served.post("flow_runs/count") == before


def test_run_is_configured_started_followed_and_read(
    prefect_page: BrowserPage, deployed_run: str, served: Served
) -> None:
    """The run in V1 builds every stage. The same run in V2 finds them all cached."""
    shown = prefect_page.page.get_by_text
    for name, (ends, task) in {"v1": ("Completed", "Completed"), "v2": ("Nothing new", "Cached")}.items():
        interface = INTERFACES[name](prefect_page, served)
        interface.open_form(deployed_run)
        interface.choose("KTO")
        interface.set_number("Beta", "0.23")
        interface.set_number("Epochs", "3")
        run = interface.submit()
        interface.open_run(run)
        interface.wait_for_end(ends)
        assert served.state(run)["type"] == "COMPLETED", served.log(run)
        interface.show("Task Runs")
        for stage in ("ingest", "sft", "reference", "kto", "evaluate sft", "evaluate kto"):
            shown(re.compile(rf"^{stage} · tiny-llama\w* · [0-9a-f]{{4}}$")).first.wait_for()
        shown(task, exact=True).last.wait_for()
        prefect_page.picture(f"{name}-run")

        interface.open_report(run, "optimize-report")
        assert prefect_page.page.get_by_role("heading", level=1).last.inner_text().startswith("kto · tiny-llama")
        assert prefect_page.page.get_by_role("row", name=re.compile("^optimizer.beta ")).inner_text().split() == [
            "optimizer.beta", "0.23",
        ]  # fmt: skip
        if name == "v1":
            curves = prefect_page.page.get_by_role("img", name="curves")
            assert curves.evaluate("image => image.decode().then(() => image.naturalWidth)") > 300
        interface.open_report(run, "run-report")
        shown("AutoPeftModelForCausalLM.from_pretrained").first.wait_for()
        expect(prefect_page.page.get_by_role("row", name=re.compile("^optimize "))).to_have_count(1)


SCREENS = 2 * 1080
"""Height of two screens, in pixels."""


def test_quick_form_fits_on_two_screens_and_starts_the_run(
    interface: Interface, deployed_run: str, served: Served
) -> None:
    """The run has its own number of epochs in each interface, so that it trains."""
    epochs = {"": "2", "/v2": "4"}[interface.path]
    interface.open_form(deployed_run.replace("align/", "quick/"))
    interface.choose("KTO")
    assert "Warmup Fraction" not in {field.title for field in interface.fields("KTO")}
    assert interface.height() < SCREENS
    assert interface.browser.page.get_by_text("Property is type").count() == 0
    interface.set_number("Epochs", epochs)
    interface.browser.picture("quick-form")
    run = interface.submit()
    interface.open_run(run)
    interface.wait_for_end("Completed")
    assert served.state(run)["type"] == "COMPLETED", served.log(run)
    assert any("kto · tiny-llama" in report for report in served.reports(run))


def test_settings_that_may_be_null_are_switched_on_and_off(
    interface: Interface, deployed_run: str, served: Served
) -> None:
    interface.open_form(deployed_run)
    interface.browser.picture("complete-form")
    interface.choose_in("Gate", "Gate")
    interface.choose_in("SFT", "Off")
    assert interface.browser.page.get_by_text("Property is type").count() == 0
    run = interface.submit()
    sent = served.get(f"flow_runs/{run}")["parameters"]["config"]
    served.delete(f"flow_runs/{run}")
    assert (sent["sft"], sent["gate"]["win_rate_over_sft"], sent["sample"]) == (OFF, 0.5, OFF), sent
    settings = read_settings(sent, ())
    assert settings.sft is None
    assert settings.gate == GateConfig()


# --- a plugin that is installed later -----------------------------------------------------------------------------

ODD = '''
from enum import Enum
from typing import Literal
from pydantic import BaseModel, ConfigDict, Field
from alignment_core.plugin_api import AlignmentOptimizer, Needs, hookimpl

class Norm(Enum):
    TOKEN = "token"
    SEQUENCE = "sequence"

class Clip(BaseModel):
    low: float = Field(0.2, gt=0, lt=1, description="Lower end.")

class Odd(AlignmentOptimizer):
    """An *odd* one."""
    model_config = ConfigDict(title='Odd & "quoted" <i>')
    name: Literal["odd"] = "odd"
    marked: float = Field(0.5, ge=0, le=1, description="# Of *a* and __init__, `code`, ~~out~~, [x](http://cdn.example.com).")
    tagged: str = Field("<eos>", description='Ends at <eos>; <img src="http://cdn.example.com/a.png">, "it\\'s" &lt;')
    pictured: int = Field(1, description="![x](http://cdn.example.com/b.png)\\n\\n- one\\n- two")
    long: int = Field(3, description="A very long text. " * 40)
    nothing: float | None = Field(None, gt=0, description="Unset.")
    norm: Norm = Field(Norm.TOKEN, description="An enum.")
    words: list[str] = Field(["please", "thanks"], description="A list.")
    clip: Clip = Field(Clip(), description="A group.")

    def needs(self): return Needs(preferences=True)
    def batches(self, run): ...
    def loss(self, run, micro): ...

@hookimpl
def alignment_optimizers():
    return [Odd]
'''
AS_WRITTEN = {
    "Marked": "# Of ∗a∗ and ˍˍinitˍˍ, code, ∼∼out∼∼, [x](http://cdn.example.com). (≥ 0, ≤ 1, default 0.5)",
    "Tagged": 'Ends at <eos>; <img src="http://cdn.example.com/a.png">, "it\'s" &lt; (default <eos>)',
    "Pictured": "![x](http://cdn.example.com/b.png) - one - two (default 1)",
    "Long": f"{'A very long text. ' * 40}(default 3)",
    "Nothing": "Unset. (> 0, default None)",
    "Norm": "An enum. (default token)",
    "Words": 'A list. (default ["please", "thanks"])',
    "Clip": "A group.",
}


def install_odd(site: Path) -> None:
    """Install a distribution with texts that could break a page."""
    (site / "odd_plugin.py").write_text(ODD)
    info = site / "odd_plugin-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-plugin\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[alignment_core]\nodd = odd_plugin\n")


@pytest.fixture(scope="session")
def with_plugins(served: Served, deployed_run: str) -> str:
    """Deploy the run again after `pip install` of the example with IPO and of a plugin with odd texts."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    example = ROOT / "examples" / "alignment-zoo"
    site = Path(served.variables["PYTHONPATH"])
    subprocess.run([*pip, "--target", str(site), str(example)], check=True, capture_output=True)
    install_odd(site)
    config = served.deployment(deployed_run)["parameters"]["config"]
    done = served.run(ALIGN, "deploy", Path(config["store"]).with_name("run.yaml"))
    assert done.returncode == 0, done.stderr
    return deployed_run


def test_plugin_installed_later_has_its_tab(interface: Interface, with_plugins: str) -> None:
    interface.open_form(with_plugins)
    interface.choose("IPO")
    fields = {field.title: field for field in interface.fields("IPO")}
    assert "Label Smoothing" not in fields
    assert (fields["Tau"].kind, float(fields["Tau"].value)) == ("number", 0.1)
    assert "(> 0, default 0.1)" in fields["Tau"].text

    interface.choose('Odd & "quoted" <i>')
    odd = {field.title: field for field in interface.fields('Odd & "quoted" <i>')}
    assert {title: odd[title].text.replace(JOINER, "") for title in AS_WRITTEN} == AS_WRITTEN
    assert (odd["Tagged"].kind, odd["Tagged"].value) == ("text", "<eos>")
    assert "token" in odd["Norm"].value
    interface.choose("KTO")
    assert "Tau" not in {field.title for field in interface.fields("KTO")}


@pytest.mark.slow
def test_run_with_a_plugin_installed_later(interface: Interface, with_plugins: str, served: Served) -> None:
    tau = {"": "0.21", "/v2": "0.22"}[interface.path]
    interface.open_form(with_plugins)
    interface.choose("IPO")
    interface.set_number("Tau", tau)
    run = interface.submit()
    interface.open_run(run)
    interface.wait_for_end("Completed")
    assert served.state(run)["type"] == "COMPLETED", served.log(run)
    interface.open_report(run, "optimize-report")
    page = interface.browser.page
    assert page.get_by_role("heading", level=1).last.inner_text().startswith("ipo · tiny-llama")
    rows = {
        name: page.get_by_role("row", name=re.compile(f"^{name} ")).inner_text().split()[1]
        for name in ("optimizer.name", "optimizer.tau", "plugin.package")
    }
    assert rows == {"optimizer.name": "ipo", "optimizer.tau": tau, "plugin.package": "alignment-zoo"}
