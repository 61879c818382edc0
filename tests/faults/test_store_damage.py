"""Every kind of damage to every path of a store: no command ends in a traceback, and no run trains for nothing.

The stages of the runs here only write a file, because the store does not look at what it holds.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from command import align_here
from powers import permissions_count
from stored import add_placeholder

from alignment_core.artifacts import ArtifactStore
from alignment_core.artifacts.catalogue import resolve
from alignment_core.artifacts.models import promote, rollback
from alignment_core.artifacts.prune import prune
from alignment_core.config import PipelineConfig
from alignment_core.config_file import check_config
from alignment_core.errors import AlignmentError, ArtifactError
from alignment_core.execution.build import hold_leases
from alignment_core.inference.trained_model import open_trained_model
from alignment_core.planning.pipeline import Plan, plan_pipeline
from alignment_core.registry import load_registry


@dataclass(frozen=True)
class World:
    """A store that holds a run except its last stages, and another folder, `outside`, that no command may touch."""

    root: Path
    plan: Plan
    settings: PipelineConfig

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def outside(self) -> Path:
        return self.root / "outside"


def build_missing(plan: Plan) -> list[str]:
    """Build the missing stages as the flow does. Return their kinds."""
    calls, built = plan.calls(), []
    with hold_leases(calls.values()):
        for call in calls.values():
            store = ArtifactStore(call.runtime.store)
            if store.find(call.key, warn=lambda _: None) is not None:
                continue
            with hold_leases([call]):
                built.append(call.stage)
                add_placeholder(store, call)
    return built


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> World:
    """Return the undamaged world."""
    root = tmp_path_factory.mktemp("pristine")
    pairs = [{"prompt": f"What is {n}?", "chosen": "Yes.", "rejected": "No."} for n in range(8)]
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    settings = check_config(
        {
            "model": {"base": str(tiny_model), "load_in": "fp32", "max_length": 128},
            "data": {"sources": [{"path": str(root / "pairs.jsonl")}]},
            "store": str(root / "store"),
        }
    )
    plan = plan_pipeline(settings, load_registry())
    build_missing(plan)
    store = ArtifactStore(root / "store")
    for kind in ("sft", "optimize"):
        promote(store, getattr(plan, kind).key, "production", by="", reason="")
    last = plan.evaluate
    shutil.rmtree(store.root / "evaluate" / last.key)
    for folder in ("checkpoints", "out"):
        (store.root / ".building" / last.key / folder).mkdir(parents=True)
    (store.root / ".building" / last.key / "checkpoints" / "step-10").write_text("state")
    (store.root / ".leases" / "0123").write_text("[]")
    (store.root / ".remote").mkdir()
    (store.root / "quarantined").mkdir()
    (store.root / "quarantined" / f"{last.key}.1").mkdir()
    (store.root / ".trash" / "left").mkdir(parents=True)
    return World(root, plan, settings)


PATHS = (
    ".", ".building", ".locks", ".aliases", ".leases", "quarantined", ".trash", "optimize", "evaluate",
    "optimize/{optimize}", "optimize/{optimize}/manifest.json", "optimize/{optimize}/weights", "ingest/{ingest}",
    ".aliases/production.jsonl", ".aliases/.lock", ".aliases/production.new", ".leases/.gate", ".leases/0123",
    ".remote/address", ".locks/{evaluate}", ".building/{evaluate}", ".building/{evaluate}/checkpoints",
    ".building/{evaluate}/out", "quarantined/{evaluate}.1", ".trash/left",
)  # fmt: skip


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def missing(path: Path, outside: Path) -> None:
    remove(path)


def empty(path: Path, outside: Path) -> None:
    folder = path.is_dir()
    remove(path)
    path.mkdir() if folder else path.write_bytes(b"")


def junk(path: Path, outside: Path) -> None:
    remove(path)
    path.write_bytes(b'\xff\xfe\0{"action": ')


def text(path: Path, outside: Path) -> None:
    remove(path)
    path.write_text('{"action": "rollback", "kind": "sft", "key": 3}\n[]\n')


def folder(path: Path, outside: Path) -> None:
    remove(path)
    (path / "inner").mkdir(parents=True)


def dangling(path: Path, outside: Path) -> None:
    remove(path)
    path.symlink_to(outside / "nothing")


def moved_out(path: Path, outside: Path) -> None:
    if path.exists():
        path.rename(outside / "moved")
    else:
        (outside / "moved").mkdir()
    path.symlink_to(outside / "moved")


def unreadable(path: Path, outside: Path) -> None:
    if not path.exists():
        path.write_text("")
    path.chmod(0)


def unwritable(path: Path, outside: Path) -> None:
    if not path.exists():
        path.write_text("")
    path.chmod(0o555 if path.is_dir() else 0o444)


def pipe(path: Path, outside: Path) -> None:
    """Put a pipe there that nobody writes to: whoever opens it as a file waits for ever."""
    remove(path)
    os.mkfifo(path)


DAMAGES = (missing, empty, junk, text, folder, dangling, moved_out, unreadable, unwritable, pipe)


def plan_and_build(world: World) -> None:
    """Plan and build. A problem with the store is found by the plan."""
    plan = plan_pipeline(world.settings.model_copy(update={"store": world.store}), load_registry())
    try:
        build_missing(plan)
    except AlignmentError as error:
        raise AssertionError(f"found after the plan: {error}") from error


def open_model(world: World) -> None:
    key = resolve(ArtifactStore(world.store), "production", ("optimize", "sft")).artifact.key
    open_trained_model(world.store, key)


def give_back(world: World) -> None:
    rollback(ArtifactStore(world.store), "production", by="", reason="")


def give(world: World) -> None:
    promote(ArtifactStore(world.store), world.plan.sft.key, "candidate", by="", reason="")  # type: ignore[union-attr]


def clean(world: World) -> None:
    prune(ArtifactStore(world.store))


def command(*arguments: str) -> Callable[[World], None]:
    def run(world: World) -> None:
        done = align_here(*arguments, "--store", world.store)
        if done.returncode == 2:
            raise ArtifactError(done.stderr)
        assert done.returncode in (0, 1)

    run.__name__ = " ".join(arguments)
    return run


READING = (
    command("artifacts", "list"), command("artifacts", "verify"), command("artifacts", "prune", "--dry-run"),
    command("artifacts", "show", "latest"), command("artifacts", "lineage", "production"),
)  # fmt: skip
WRITING = (open_model, give, give_back, clean, plan_and_build)


def problem_of(run: Callable[[World], None], world: World) -> AlignmentError | None:
    try:
        run(world)
    except AlignmentError as error:
        return error
    return None


def contents(folder: Path) -> dict[str, bytes | None]:
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    return {name: path.read_bytes() if path.is_file() else None for name, path in sorted(found.items())}


@pytest.fixture
def copied(pristine: World, tmp_path: Path) -> Iterator[Callable[[], World]]:
    """Return a function that copies the pristine world."""

    def copy() -> World:
        root = tmp_path / f"world-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(pristine.store, root / "store")
        (root / "outside").mkdir()
        return World(root, pristine.plan, pristine.settings)

    yield copy
    for path in [tmp_path, *tmp_path.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)


def examine(copied: Callable[[], World], pristine: World, place: str, damage: Callable[[Path, Path], None]) -> None:
    keys = {name: call.key for name, call in pristine.plan.calls().items()}
    world: World | None = None
    for run in (*READING, *WRITING):
        if world is None or run in WRITING:
            world = copied()
            damage(world.store / place.format(**keys), world.outside)
            before = contents(world.outside)
        with permissions_count():
            problem = problem_of(run, world)
        if problem is not None:
            assert str(world.store) in str(problem), (run.__name__, str(problem))
            assert problem.do or problem.expected or not problem.where, (run.__name__, str(problem))
        # The store itself may be a link.
        assert place == "." or contents(world.outside) == before, f"{run.__name__} changed a file outside of the store"


@pytest.mark.parametrize("damage", [junk, dangling, unreadable], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize(
    "place", [".building", ".aliases/production.jsonl", "optimize/{optimize}", ".locks/{evaluate}"]
)
def test_some_damage_is_named_or_moved_aside(
    copied: Callable[[], World], pristine: World, place: str, damage: Callable[[Path, Path], None]
) -> None:
    examine(copied, pristine, place, damage)


@pytest.mark.parametrize("place", ["optimize/{optimize}/manifest.json", "optimize/{optimize}/weights", ".leases/0123"])
def test_nobody_waits_for_a_pipe(copied: Callable[[], World], pristine: World, place: str) -> None:
    examine(copied, pristine, place, pipe)


@pytest.mark.parametrize(
    "name", ["../../../outside/secret", "{outside}/secret", "./weights", "a//b", "..", "", "/dev/zero"]
)
def test_names_of_files_that_lead_elsewhere_are_refused(copied: Callable[[], World], name: str) -> None:
    """Somebody who can write to the store can compute the digest of a manifest, but sends no reader out of it."""
    world = copied()
    (world.outside / "secret").write_text("s")
    artifact = ArtifactStore(world.store).find(world.plan.optimize.key)
    assert artifact is not None
    manifest = json.loads((artifact.path / "manifest.json").read_text())
    record = {"sha256": hashlib.sha256(b"s").hexdigest(), "size": 1}
    manifest["files"][name.format(outside=world.outside)] = record
    written = json.dumps({**manifest, "digest": ""})
    digest = hashlib.sha256(written.encode()).hexdigest()
    (artifact.path / "manifest.json").write_text(f'"digest": "{digest}"'.join(written.rsplit('"digest": ""', 1)))
    fault = ArtifactStore(world.store).fault(artifact)
    assert fault is not None
    assert fault.endswith("is no name of a file")


@pytest.mark.ci
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("place", PATHS)
def test_damage_is_named_or_moved_aside(
    copied: Callable[[], World], pristine: World, place: str, damage: Callable[[Path, Path], None]
) -> None:
    examine(copied, pristine, place, damage)


def make_read_only(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)


def test_run_that_finds_everything_works_in_a_read_only_store(copied: Callable[[], World]) -> None:
    world = copied()
    plan = plan_pipeline(world.settings.model_copy(update={"store": world.store}), load_registry())
    assert "evaluate" in build_missing(plan)
    make_read_only(world.store)
    before = contents(world.store)
    with permissions_count():
        with pytest.raises(PermissionError):
            (world.store / "new").touch()
        plan = plan_pipeline(world.settings.model_copy(update={"store": world.store}), load_registry())
        assert build_missing(plan) == []
        for name in ("list", "verify"):
            assert align_here("artifacts", name, "--store", world.store).returncode == 0
        # It already has the alias.
        assert align_here("promote", plan.optimize.key, "--store", world.store).returncode == 0
    assert contents(world.store) == before


def test_read_only_store_without_every_stage_is_named_by_the_plan(copied: Callable[[], World]) -> None:
    world = copied()
    make_read_only(world.store)
    with permissions_count(), pytest.raises(ArtifactError, match="does not hold every stage of this run"):
        plan_pipeline(world.settings.model_copy(update={"store": world.store}), load_registry())


def test_unreadable_artifact_is_not_taken_for_a_damaged_one(copied: Callable[[], World]) -> None:
    world = copied()
    artifact = world.store / "optimize" / world.plan.optimize.key
    (artifact / "weights").chmod(0)
    with permissions_count():
        with pytest.raises(ArtifactError, match=r"weights: the artifact cannot be read. got Permission denied"):
            ArtifactStore(world.store).find(world.plan.optimize.key)
        done = align_here("artifacts", "verify", "--store", world.store)
    assert done.returncode == 1
    assert "weights cannot be read: Permission denied" in done.stdout.replace("\n", " ")
    assert artifact.is_dir()


@pytest.mark.parametrize("arguments", [("list",), ("verify",), ("prune",), ("prune", "--dry-run"), ("show", "latest")])
def test_mistyped_store_is_not_an_empty_one(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = align_here("artifacts", *arguments, "--store", tmp_path / "mistyped")
    assert done.returncode == 2
    assert done.stderr.startswith(f"align: {tmp_path / 'mistyped'}: there is no artifact store.")
    assert list(tmp_path.iterdir()) == []
