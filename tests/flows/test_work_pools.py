"""What a flow does with stages of other work pools: what it refuses, and when it starts and cancels their runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from stored import add_placeholder

from alignment_core.artifacts import ArtifactStore, key_of
from alignment_core.artifacts.sharing import connect, push
from alignment_core.config_file import check_config
from alignment_core.errors import AlignmentError, ArtifactError, ConfigError, StageCrashed
from alignment_core.execution.build import StageResult
from alignment_core.execution.stage import StageCall, WorkPool
from alignment_core.planning.pipeline import VERSIONS
from alignment_core.progress import Silent
from alignment_flows.form.references import resolve
from alignment_flows.serve.deployments.deploy import deploy
from alignment_flows.work_pools import moved_stages
from alignment_flows.work_pools.moved_stages import MovedStages
from alignment_flows.work_pools.outcome import Outcome
from alignment_flows.work_pools.pools import check_pools

FAR = WorkPool(name="far", store=Path("store"))


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    (tmp_path / "remote").mkdir()
    (tmp_path / "store").mkdir()
    store = ArtifactStore(tmp_path / "store", f"file://{tmp_path / 'remote'}")
    connect(store)
    return store


@pytest.fixture
def call(store: ArtifactStore) -> Callable[..., StageCall]:
    """Return a function that makes the call of a stage, in the work pool `far` unless `pool` is None."""

    def make(stage: str, *parents: StageCall, pool: WorkPool | None = FAR, **config: Any) -> StageCall:
        keys = {parent.stage: parent.key for parent in parents}
        key = key_of(stage=stage, version=VERSIONS[stage], config=config, parents=keys)
        runtime: Any = {"store": store.root, "remote": store.remote and store.remote.address, "pool": pool}
        fields: dict[str, Any] = {"config": config, "parents": keys, "inputs": {}, "runtime": runtime}
        return StageCall(stage=stage, key=key, label=stage, **fields)

    return make


class FakeRun:
    """The run of a stage on a machine that shares the remote. `ending` says how the runs of each stage end."""

    started: ClassVar[list[str]] = []
    cancelled: ClassVar[list[str]] = []
    ending: ClassVar[dict[str, list[BaseException]]] = {}
    at_once: ClassVar[set[str]] = set()
    machine: ClassVar[ArtifactStore]

    def __init__(self, call: StageCall, remote: str) -> None:
        self.call = call
        self.started.append(call.label)

    def has_completed(self) -> bool:
        if self.call.label in self.at_once:
            self._make()
        return self.call.label in self.at_once

    def follow(self, progress: Any, meanwhile: Callable[[], None]) -> Outcome:
        meanwhile()
        if errors := self.ending.get(self.call.label):
            raise errors.pop(0)
        self._make()
        meanwhile()
        return Outcome(seconds=3.0, listener_errors=("late",))

    def _make(self) -> None:
        if self.machine.find(self.call.key) is None:
            add_placeholder(self.machine, self.call)
            push(self.machine, self.call.key, Silent())

    def cancel(self) -> None:
        self.cancelled.append(self.call.label)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, store: ArtifactStore) -> type[FakeRun]:
    assert store.remote is not None
    (tmp_path / "machine").mkdir()
    FakeRun.machine = ArtifactStore(tmp_path / "machine", store.remote.address)
    FakeRun.started, FakeRun.cancelled, FakeRun.ending, FakeRun.at_once = [], [], {}, set()
    monkeypatch.setattr(moved_stages, "ChildRun", FakeRun)
    return FakeRun


def ask(moved: MovedStages, *calls: StageCall) -> list[StageResult]:
    """Ask for stages as a flow does, one after the other."""
    built = []
    for call in calls:
        built.append(moved.build(call, Shown()))
        moved.note_built(call.key)
    return built


class Shown(Silent):
    """Progress of a stage that can also show another run's page."""

    def show(self, percent: float, description: str) -> None:
        pass


def test_artifact_comes_over_the_remote_and_is_not_built_again(runs: type[FakeRun], call: Callable[..., Any]) -> None:
    (built,) = ask(MovedStages(), call("ingest"))
    assert built.artifact.path.is_dir()
    assert (built.cached, built.seconds, built.listener_errors) == (False, 3.0, ("late",))
    (again,) = ask(MovedStages(), call("ingest"))
    assert again.cached
    assert runs.started == ["ingest"]


def test_what_a_stage_reads_is_in_the_remote_before_it_starts(
    runs: type[FakeRun], call: Callable[..., Any], store: ArtifactStore
) -> None:
    data = call("ingest", pool=None)
    add_placeholder(store, data)
    assert store.remote is not None
    assert not store.remote.holds(data.key)
    ask(MovedStages(), call("sft", data))
    assert store.remote.holds(data.key)
    with pytest.raises(ArtifactError, match="neither this store nor its remote holds the artifact"):
        ask(MovedStages(), call("sft", call("ingest", pool=None, other=1)))
    assert runs.started == ["sft"]


def test_following_stages_start_when_what_they_read_is_built(runs: type[FakeRun], call: Callable[..., Any]) -> None:
    data = call("ingest")
    sft, reward = call("sft", data), call("reward", data)
    reference = call("reference", sft)
    optimize = call("optimize", reference, reward)
    moved = MovedStages()
    ask(moved, data)
    assert runs.started == ["ingest"], "nothing is expected yet"
    moved.expect([data, sft, reward, reference, optimize])
    ask(moved, sft)
    assert runs.started == ["ingest", "sft", "reward"], "both read only the data"
    moved.start_following()
    assert runs.started == ["ingest", "sft", "reward", "reference"]
    runs.at_once = {"reference"}
    moved.start_following()
    assert len(runs.started) == 4, "the reward model that optimize reads is not built yet"
    runs.at_once = {"reference", "reward"}
    moved.start_following()
    assert runs.started == ["ingest", "sft", "reward", "reference", "optimize"]
    ask(moved, reward, reference, optimize)
    assert len(runs.started) == 5
    moved.cancel()
    assert runs.cancelled == [], "all of them have ended"


def test_stage_in_place_is_never_started_and_holds_back_what_reads_it(
    runs: type[FakeRun], call: Callable[..., Any], store: ArtifactStore
) -> None:
    data = call("ingest", pool=None)
    sft = call("sft", data)
    moved = MovedStages()
    moved.expect([data, sft])
    moved.start_following()
    assert runs.started == []
    add_placeholder(store, data)
    moved.note_built(data.key)
    moved.start_following()
    assert runs.started == ["sft"]


def test_what_was_built_before_is_not_started_ahead(
    runs: type[FakeRun], call: Callable[..., Any], store: ArtifactStore
) -> None:
    data = call("ingest")
    sft = call("sft", data)
    ask(MovedStages(), data)
    moved = MovedStages()
    moved.expect([data, sft])
    moved.start_following()
    moved.start_following()
    assert runs.started == ["ingest", "sft"], "the data are in the store, so the first call starts what reads them"


def test_server_that_does_not_answer_delays_what_follows(
    runs: type[FakeRun], call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Away(FakeRun):
        def __init__(self, call: StageCall, remote: str) -> None:
            raise httpx.ConnectError("connection refused")

    data = call("ingest")
    moved = MovedStages()
    ask(moved, data)
    moved.expect([data, call("sft", data)])
    monkeypatch.setattr(moved_stages, "ChildRun", Away)
    moved.start_following()
    monkeypatch.setattr(moved_stages, "ChildRun", runs)
    moved.start_following()
    assert runs.started == ["ingest", "sft"]


def test_run_that_goes_on_after_another_error_is_cancelled(runs: type[FakeRun], call: Callable[..., Any]) -> None:
    moved, sft = MovedStages(), call("sft")
    runs.ending = {"sft": [RuntimeError("a bug"), ArtifactError("the disk is full", where="far")]}
    with pytest.raises(RuntimeError):
        ask(moved, sft)
    moved.cancel()
    assert runs.cancelled == ["sft"]
    with pytest.raises(ArtifactError):
        ask(moved, sft)
    moved.cancel()
    assert runs.cancelled == ["sft"], "an error of the stage means that its run has ended"


def test_error_is_raised_where_the_flow_asks_and_the_others_are_cancelled_at_its_end(
    runs: type[FakeRun], call: Callable[..., Any]
) -> None:
    data = call("ingest")
    sft, reward = call("sft", data), call("reward", data)
    runs.ending = {"sft": [ArtifactError("the disk is full", where="far")]}
    moved = MovedStages()
    moved.expect([data, sft, reward])
    ask(moved, data)
    with pytest.raises(ArtifactError, match="far: the disk is full"):
        ask(moved, sft)
    moved.cancel()
    assert runs.cancelled == ["reward"]


def test_stage_whose_run_was_killed_is_started_anew(runs: type[FakeRun], call: Callable[..., Any]) -> None:
    data, moved = call("ingest"), MovedStages()
    runs.ending = {"ingest": [StageCrashed("its flow run crashed")]}
    with pytest.raises(StageCrashed):
        ask(moved, data)
    ask(moved, data)
    assert runs.started == ["ingest", "ingest"]


def test_interrupted_flow_cancels_the_stage_that_it_waits_for(runs: type[FakeRun], call: Callable[..., Any]) -> None:
    moved = MovedStages()
    runs.ending = {"ingest": [KeyboardInterrupt()]}
    with pytest.raises(KeyboardInterrupt):
        ask(moved, call("ingest"))
    moved.cancel()
    assert runs.cancelled == ["ingest"]


def test_artifact_that_did_not_reach_the_remote_is_an_error(
    runs: type[FakeRun], call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "_make", lambda self: None)
    with pytest.raises(ArtifactError, match="in the work pool far, and the remote does not"):
        ask(MovedStages(), call("ingest"))


@pytest.mark.usefixtures("prefect_server")
def test_pool_or_deployment_that_is_missing_is_refused(call: Callable[..., Any]) -> None:
    def refusal(pool: str) -> str:
        with pytest.raises(ConfigError) as raised:
            check_pools([call("sft", pool=None), call("ingest", pool=WorkPool(name=pool, store=Path()))])
        return str(raised.value)

    check_pools([call("sft", pool=None)])
    advice = (
        "Run `align deploy --pool nowhere` with this server, and start a worker: `prefect worker start --pool nowhere"
    )
    assert "where.ingest: the Prefect server" in refusal("nowhere")
    assert "has no such work pool. got nowhere" in refusal("nowhere")
    assert advice in refusal("nowhere")
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="empty", type="process"))
        assert "no deployment `build/empty`, so it runs no stages" in refusal("empty")
        (outcome,) = deploy(pools=["empty"])
        assert (outcome.name, outcome.created) == ("build/empty", True)
        check_pools([call("ingest", pool=WorkPool(name="empty", store=Path()))])
        deployment = client.read_deployment_by_name("build/empty")
        path = {"id": str(deployment.id)}
        client.request("PATCH", "/deployments/{id}", path_params=path, json={"work_pool_name": "cpu"})
    assert "got cpu, expected empty" in refusal("empty")


def test_secret_in_a_call_is_refused(call: Callable[..., Any]) -> None:
    data = call("ingest")
    source = {"sources": [{"path": "postgresql://ann:s3cret@db/votes"}]}
    with pytest.raises(ConfigError, match=r"would store a secret .* got inputs\.sources\.0\.path") as raised:
        check_pools([data.model_copy(update={"inputs": source})])
    assert "s3cret" not in str(raised.value)


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize(
    ("where", "refused"), [({}, False), ({"sft": "far"}, True), ({"ingest": "far"}, True)], ids=str
)
def test_secret_block_for_listeners_stays_in_place(where: dict[str, str], refused: bool) -> None:
    """Only what would come to a stage in another pool is refused: any stage tells listeners, only `ingest` reads."""
    tracker = {"name": "tracker", "headers": {"x": "{{ prefect.blocks.secret.absent }}"}}
    given = {"model": {"base": "some/model"}, "data": {"sources": [{"path": "rows.jsonl"}]}, "where": where}
    expected = "stages in other work pools would show it" if refused else "Prefect has no such block"
    with pytest.raises(ConfigError, match=expected):
        resolve(check_config({**given, "listeners": [tracker]}))
    votes = {**given, "feedback": "{{ prefect.blocks.secret.absent }}"}
    expected = "stages in other work pools would show it" if "ingest" in where else "Prefect has no such block"
    with pytest.raises(ConfigError, match=expected):
        resolve(check_config(votes))


def test_outcome_carries_the_error_of_the_stage() -> None:
    error = StageCrashed("out of memory", where="sft", do="Lower it")
    error.killed = True
    told = Outcome.model_validate_json(Outcome.failure(error).model_dump_json())
    with pytest.raises(StageCrashed) as raised:
        told.raise_error()
    assert (str(raised.value), raised.value.killed) == (str(error), True)
    Outcome().raise_error()
    with pytest.raises(AlignmentError, match="wrong"):
        Outcome.failure(ConfigError("wrong")).raise_error()
