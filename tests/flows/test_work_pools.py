"""What a flow does with stages of other work pools: what it refuses, and when it starts and cancels their runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from stored import add_placeholder

from alignment_core.artifacts import ArtifactStore, key_of
from alignment_core.artifacts.sharing import connect, push
from alignment_core.config_file import check_config
from alignment_core.errors import AlignmentError, ArtifactError, ConfigError, StageCrashed
from alignment_core.execution.stage import StageCall, WorkPool
from alignment_core.planning.pipeline import VERSIONS
from alignment_core.progress import Silent
from alignment_flows.form.references import resolve
from alignment_flows.serve.deployments.deploy import deploy
from alignment_flows.tasks import StageRunner
from alignment_flows.work_pools import moved_stages
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
    monkeypatch.setattr("alignment_flows.tasks.check_pools", lambda calls: None)
    monkeypatch.setattr("alignment_flows.tasks.publish_report", lambda call, built: None)
    return FakeRun


pytestmark = pytest.mark.usefixtures("prefect_server")


def in_flow(work: Callable[[StageRunner], Any]) -> Any:
    @flow(name="test", persist_result=False)
    def run() -> Any:
        return work(StageRunner())

    return run(return_state=True).result()


def test_artifact_comes_over_the_remote_and_is_not_built_again(runs: type[FakeRun], call: Callable[..., Any]) -> None:
    data = call("ingest")

    def work(stage: StageRunner) -> Any:
        with stage.planned([data]):
            stage(data)
        return stage.built(data)

    built = in_flow(work)
    assert built.artifact.path.is_dir()
    assert (built.cached, built.seconds, built.listener_errors) == (False, 3.0, ("late",))
    again = in_flow(work)
    assert again.cached
    assert runs.started == ["ingest"]


def test_following_stages_start_when_what_they_read_is_built(runs: type[FakeRun], call: Callable[..., Any]) -> None:
    data = call("ingest")
    sft, reward = call("sft", data), call("reward", data)
    reference = call("reference", sft)
    optimize = call("optimize", reference, reward)
    calls = [data, sft, reward, reference, optimize]

    def work(stage: StageRunner) -> None:
        with stage.planned(calls):
            stage(data)
            assert runs.started == ["ingest"], "nothing is expected yet"
            stage.expect(calls)
            stage(sft, data)
            assert runs.started == ["ingest", "sft", "reward"], "both read only the data"
            runs.at_once = {"reward"}
            stage(reward, data)
            stage(reference, sft)
            assert runs.started == ["ingest", "sft", "reward", "reference"], "optimize waits for the reference"
            stage(optimize, reference, reward)

    in_flow(work)
    assert runs.started == ["ingest", "sft", "reward", "reference", "optimize"]
    assert runs.cancelled == []


def test_failed_stage_ends_the_flow_and_cancels_the_others(runs: type[FakeRun], call: Callable[..., Any]) -> None:
    data = call("ingest")
    sft, reward = call("sft", data), call("reward", data)
    runs.ending = {"sft": [ArtifactError("the disk is full", where="far")]}

    def work(stage: StageRunner) -> None:
        with stage.planned([data, sft, reward]):
            stage.expect([data, sft, reward])
            stage(data)
            with pytest.raises(ArtifactError, match="far: the disk is full"):
                stage(sft, data)
            with pytest.raises(ArtifactError, match="far: the disk is full"):
                stage(sft, data)  # it is not run again

    in_flow(work)
    assert runs.started == ["ingest", "sft", "reward"]
    assert runs.cancelled == ["reward"]


def test_killed_run_is_started_once_more(runs: type[FakeRun], call: Callable[..., Any]) -> None:
    killed = StageCrashed("its flow run crashed")
    killed.killed = True
    data, sft = call("ingest"), call("sft")
    runs.ending = {"ingest": [killed], "sft": [killed, killed]}

    def work(stage: StageRunner) -> None:
        with stage.planned([data, sft]):
            stage(data)
            with pytest.raises(StageCrashed):
                stage(sft)

    in_flow(work)
    assert runs.started == ["ingest", "ingest", "sft", "sft"]


def test_interrupted_flow_cancels_the_stage_that_it_waits_for(runs: type[FakeRun], call: Callable[..., Any]) -> None:
    data = call("ingest")
    runs.ending = {"ingest": [KeyboardInterrupt()]}

    def work(stage: StageRunner) -> None:
        with pytest.raises(KeyboardInterrupt), stage.planned([data]):
            stage(data)

    in_flow(work)
    assert runs.cancelled == ["ingest"]


def test_artifact_that_did_not_reach_the_remote_is_an_error(
    runs: type[FakeRun], call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = call("ingest")
    monkeypatch.setattr(runs, "_make", lambda self: None)

    def work(stage: StageRunner) -> None:
        with stage.planned([data]), pytest.raises(ArtifactError, match="in the work pool far, and the remote does not"):
            stage(data)

    in_flow(work)


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
