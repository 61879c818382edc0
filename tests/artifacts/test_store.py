"""The artifact store: published artifacts are complete, damaged ones are moved aside, and a key is built once."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from alignment_core.artifacts import Artifact, ArtifactStore, Manifest, key_of
from alignment_core.artifacts.layout import check_store
from alignment_core.artifacts.manifest import write_manifest
from alignment_core.errors import ArtifactError
from alignment_core.progress import Silent, Stopped

KEY = key_of(stage="sft", version=1, config={"seed": 3}, parents={})


def manifest(**fields: object) -> Manifest:
    return Manifest.model_validate(
        {"kind": "sft", "key": KEY, "version": 1, "config": {"seed": 3}, "parents": {}, **fields}
    )


def publish(store: ArtifactStore, text: str = "weights") -> Artifact:
    with store.building("sft", KEY, Silent()) as building:
        assert building.found is None
        (building.out / "deep").mkdir()
        (building.out / "deep" / "adapter.txt").write_text(text)
        return building.publish(manifest(metrics={"loss": 0.5}))


def fail_half_way(store: ArtifactStore) -> None:
    with store.building("sft", KEY, Silent()) as building:
        (building.out / "half").write_text("half")
        (building.checkpoints / "step-10").write_text("state")
        raise KeyError


def test_published_artifact_is_found_with_its_manifest(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "store")
    assert store.find(KEY) is None
    artifact = publish(store)
    assert store.find(KEY) == artifact
    assert artifact.path == tmp_path / "store" / "sft" / KEY
    assert (artifact.path / "deep" / "adapter.txt").read_text() == "weights"
    # printf weights | sha256sum
    digest = "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
    record = json.loads((artifact.path / "manifest.json").read_text())["files"]["deep/adapter.txt"]
    assert record == {"sha256": digest, "size": 7}
    assert artifact.manifest().metrics == {"loss": 0.5}
    assert {"alignment-flows", "torch"} <= artifact.manifest().packages.keys()


def test_key_already_built_is_returned(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    artifact = publish(store)
    with store.building("sft", KEY, Silent()) as building:
        assert building.found == artifact


def test_failed_build_keeps_checkpoints_and_publishes_nothing(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    with pytest.raises(KeyError):
        fail_half_way(store)
    assert store.find(KEY) is None
    with store.building("sft", KEY, Silent()) as building:
        assert list(building.out.iterdir()) == []
        assert (building.checkpoints / "step-10").read_text() == "state"
        building.publish(manifest())
    assert not (tmp_path / ".building" / KEY).exists()


def change_byte(folder: Path) -> None:
    path = folder / "deep" / "adapter.txt"
    path.write_text("wEights")


def drop_file(folder: Path) -> None:
    (folder / "deep" / "adapter.txt").unlink()


def drop_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def cut_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:100])


def change_metric(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace("0.5", "0.4"))


def forget_files(folder: Path) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "files": {}}))


def change_setting(folder: Path) -> None:
    write_manifest(folder, manifest(config={"seed": 4}))


def change_parent(folder: Path) -> None:
    write_manifest(folder, manifest(parents={"data": "c" * 32}))


def add_file(folder: Path) -> None:
    (folder / "deep" / "adapter_model.bin").write_text("others")


def link_out(folder: Path) -> None:
    change = folder / "deep" / "adapter.txt"
    change.rename(folder.parent / "elsewhere")
    change.symlink_to(folder.parent / "elsewhere")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (change_metric, "manifest.json cannot be read: it was changed after the artifact was made"),
        (forget_files, "manifest.json cannot be read: it was changed after the artifact was made"),
        (change_setting, "manifest.json cannot be read: its settings and parents give the key"),
        (change_parent, "manifest.json cannot be read: its settings and parents give the key"),
        (add_file, "deep/adapter_model.bin is not in manifest.json"),
        (link_out, "deep/adapter.txt is a link"),
        (change_byte, "deep/adapter.txt does not match"),
        (drop_file, "deep/adapter.txt is missing"),
        (drop_manifest, "manifest.json is missing"),
        (cut_manifest, "manifest.json cannot be read"),
    ],
)
def test_damaged_artifact_is_moved_aside_and_rebuilt(tmp_path: Path, damage: object, reason: str) -> None:
    store = ArtifactStore(tmp_path)
    artifact = publish(store)
    damage(artifact.path)  # type: ignore[operator]
    warnings: list[str] = []
    assert store.find(KEY, warnings.append) is None
    assert len(warnings) == 1
    assert reason in warnings[0]
    assert [path.name for path in (tmp_path / "quarantined").iterdir()] == [f"{KEY}.1"]
    assert publish(store) == artifact
    assert store.find(KEY) == artifact


def test_damage_found_by_the_builder_is_a_warning(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    change_byte(publish(store).path)

    class Listener(Silent):
        warnings: list[str] = []  # noqa: RUF012 -- one test, one listener

        def warn(self, message: str) -> None:
            self.warnings.append(message)

    with store.building("sft", KEY, Listener()) as building:
        assert building.found is None
    assert len(Listener.warnings) == 1


def test_two_threads_build_one_key_once(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    built: list[bool] = []

    def work() -> None:
        with store.building("sft", KEY, Silent()) as building:
            built.append(building.found is None)
            if building.found is None:
                time.sleep(0.2)
                building.publish(manifest())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(built) == [False, False, False, True]


def test_waiting_for_another_builder_can_be_stopped(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)

    class Stopping(Silent):
        stopping = True

    with (
        store.building("sft", KEY, Silent()),
        pytest.raises(Stopped),
        store.building("sft", KEY, Stopping()),
    ):
        pytest.fail("two builders hold the same lock")


BUILDER = """
    import sys, time
    from pathlib import Path
    from alignment_core.artifacts import ArtifactStore
    from alignment_core.progress import Silent
    with ArtifactStore(Path(sys.argv[1])).building("sft", sys.argv[2], Silent()) as building:
        (building.checkpoints / "step-1").write_text("state")
        (building.out / "half").write_text("half")
        print("building", flush=True)
        time.sleep(60)
"""


def test_killed_builder_frees_the_lock_and_leaves_its_checkpoints(tmp_path: Path) -> None:
    builder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(BUILDER), str(tmp_path), KEY], stdout=subprocess.PIPE, text=True
    )
    with builder:
        assert builder.stdout is not None
        assert builder.stdout.readline() == "building\n"
        builder.kill()
    started = time.monotonic()
    with ArtifactStore(tmp_path).building("sft", KEY, Silent()) as building:
        assert time.monotonic() - started < 1
        assert building.found is None
        assert list(building.out.iterdir()) == []
        assert (building.checkpoints / "step-1").read_text() == "state"


def test_unwritable_store_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = ArtifactStore(tmp_path / "file")
    with pytest.raises(ArtifactError, match="cannot be written"), store.building("sft", KEY, Silent()):
        pytest.fail("a file was used as the store")


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, where nobody can create a folder")
def test_store_that_cannot_be_created_is_found_before_a_run(tmp_path: Path) -> None:
    check_store(tmp_path / "new" / "store", [("sft", KEY)])
    assert list(tmp_path.iterdir()) == [], "nothing is left of the attempt"
    with pytest.raises(ArtifactError, match=r"/proc/new/store: the artifact store cannot be created\. got /proc: "):
        check_store(Path("/proc/new/store"), [("sft", KEY)])


def test_every_flipped_bit_of_a_manifest_is_noticed(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    artifact = publish(store)
    path = artifact.path / "manifest.json"
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ (1 << place % 8)]) + content[place + 1 :])
        assert store.fault(artifact) is not None, f"byte {place}"
    path.write_bytes(content)
    (artifact.path / ".DS_Store").write_text("a desktop's")
    assert store.fault(artifact) is None
