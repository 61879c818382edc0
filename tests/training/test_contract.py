"""Optimizers that break the contract of a step: each error names the method, the plugin, the place and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch

from alignment_core.errors import PluginError
from alignment_core.plugin_api import AlignmentOptimizer, LossOutput, Needs, Row, StepBatch, TokenSequence
from alignment_core.testing.tiny_run import Watch, open_run, train_until_end
from alignment_core.training.demand import Layout, trace_training
from alignment_core.training.loop import train
from alignment_core.training.rows import Rows

Batches = Callable[[Any], Any]
Loss = Callable[[Any, Any], Any]


class Misfit(AlignmentOptimizer):
    """An optimizer whose methods a test replaces."""

    name: Literal["misfit"] = "misfit"
    yielded: ClassVar[Batches]
    returned: ClassVar[Loss]
    announced: ClassVar[Any]

    def needs(self) -> Needs:
        return Needs(preferences=True)

    def batches(self, run: Any) -> Any:
        return type(self).yielded(run)

    def loss(self, run: Any, micro: Any) -> Any:
        return type(self).returned(run, micro)

    def total_steps(self, run: Any) -> Any:
        return type(self).announced


def good_batches(run: Any) -> Iterator[StepBatch]:
    for rows in run.shuffled(run.preferences, 4, 1):
        yield StepBatch(rows)


def good_loss(run: Any, micro: Any) -> LossOutput:
    return LossOutput(-run.policy.logps(micro.sequences("chosen")).sum() / micro.denominators["rows"])


@pytest.fixture
def misfit(monkeypatch: pytest.MonkeyPatch) -> Callable[..., type[Misfit]]:
    def make(yielded: Batches = good_batches, returned: Loss = good_loss, announced: Any = 3) -> type[Misfit]:
        for name, value in {"yielded": yielded, "returned": returned}.items():
            monkeypatch.setattr(Misfit, name, staticmethod(value), raising=False)
        monkeypatch.setattr(Misfit, "announced", announced, raising=False)
        return Misfit

    return make


def error_of(optimizer: AlignmentOptimizer, folder: Path) -> str:
    with pytest.raises(PluginError) as error:
        train(optimizer, open_run(optimizer), folder, 1e9)
    return str(error.value)


def metrics(**values: Any) -> Loss:
    return lambda run, micro: LossOutput(good_loss(run, micro).loss, values)


def reading(read: Callable[[Any], Any]) -> Loss:
    def loss(run: Any, micro: Any) -> Any:
        read(micro)
        return good_loss(run, micro)

    return loss


def steps(*made: Any) -> Batches:
    return lambda run: iter(made)


LONE = Row("lone", {"chosen": TokenSequence((1, 2, 3), 1)}, {"margin": 1.0, "steps": (1.0, 2.0)})
LOSS = f"`loss` of the optimizer `misfit` ({__name__}), step 1, row"
BATCHES = f"`batches` of the optimizer `misfit` ({__name__})"
FIRST = f"{BATCHES}, step 1: "


@pytest.mark.parametrize(
    ("returned", "parts"),
    [
        (lambda run, micro: 1 / 0, [LOSS, "raised ZeroDivisionError: division by zero. The last", "in <lambda>"]),
        (lambda run, micro: None, [LOSS, "the loss is not a `LossOutput`. got NoneType"]),
        (lambda run, micro: LossOutput(0.5), [LOSS, "differentiable scalar. got float", "Return a tensor."]),  # type: ignore[arg-type]
        (lambda run, micro: LossOutput(torch.zeros(())), [LOSS, "got shape (), requires_grad False", "`detach`"]),
        (
            lambda run, micro: LossOutput(run.policy.logps(micro.sequences("chosen"))),
            [LOSS, "got shape (4,), requires_grad True", "a sum over the micro-batch"],
        ),
        (metrics(loss=0.0), [LOSS, "the metric `loss` has the name of a metric that the training loop reports"]),
        (metrics(grad_norm_mine=0.0), ["the metric `grad_norm_mine` has the name"]),
        (metrics(rewards=torch.zeros(3)), [LOSS, "the metric `rewards` is not a number. got shape (3,)"]),
        (metrics(state="good"), ["the metric `state` is not a number. got str"]),
        (lambda run, micro: LossOutput(good_loss(run, micro).loss, [1]), ["the metrics are not a mapping. got list"]),  # type: ignore[arg-type]
        (reading(lambda micro: micro.values("margn")), [LOSS, "got margn, expected one of margin", "`margin`?"]),
        (reading(lambda micro: micro.sequences("choosen")), ["has no sequence of this name", "Did you mean `chosen`?"]),
        (reading(lambda micro: micro.denominators["row"]), ["no denominator of this name", "Did you mean `rows`?"]),
        (reading(lambda micro: micro.constants["z0"]), [LOSS, "no constant of this name. got z0, expected none."]),
        (reading(lambda micro: micro.token_values("margin")), ["one number per row", 'micro.values("margin")']),
    ],
)  # fmt: skip
def test_loss(misfit: Callable[..., type[Misfit]], tmp_path: Path, returned: Loss, parts: list[str]) -> None:
    message = error_of(misfit(returned=returned)(), tmp_path)
    assert [part for part in parts if part not in message] == [], message


def test_value_per_token_is_not_read_as_a_value(misfit: Callable[..., type[Misfit]], tmp_path: Path) -> None:
    made = misfit(steps(StepBatch([LONE])), reading(lambda micro: micro.values("steps")))
    assert 'one number per token, not one per row. Read it with `micro.token_values("steps")`' in error_of(
        made(), tmp_path
    )


def backward_and_again(run: Any, micro: Any) -> LossOutput:
    output = good_loss(run, micro)
    output.loss.backward()  # type: ignore[no-untyped-call]
    return output


def backward_of_another(run: Any, micro: Any) -> LossOutput:
    good_loss(run, micro).loss.backward()  # type: ignore[no-untyped-call]
    return good_loss(run, micro)


@pytest.mark.parametrize("returned", [backward_and_again, backward_of_another])
def test_backward_inside_the_loss(misfit: Callable[..., type[Misfit]], tmp_path: Path, returned: Loss) -> None:
    message = error_of(misfit(returned=returned)(), tmp_path)
    assert message.startswith(LOSS)
    assert ": it calls `backward`, but only the training loop may do so. Return the loss in a `LossOutput`" in message


def test_tensor_of_an_earlier_step(misfit: Callable[..., type[Misfit]], tmp_path: Path) -> None:
    kept: list[torch.Tensor] = []

    def keeping(run: Any, micro: Any) -> LossOutput:
        kept.append(good_loss(run, micro).loss)
        return LossOutput(sum(kept, start=torch.zeros(())))

    message = error_of(misfit(returned=keeping)(), tmp_path)
    assert "step 2, rows" in message
    assert "that of an earlier step, if it uses a tensor that was stored without `detach()`" in message


def test_setting_that_is_changed(tmp_path: Path) -> None:
    class Changing(Misfit):
        seen: float = 0.0

        def loss(self, run: Any, micro: Any) -> Any:
            self.seen = 1.0  # type: ignore[misc]

        def batches(self, run: Any) -> Any:
            return good_batches(run)

        def total_steps(self, run: Any) -> int:
            return 3

    message = error_of(Changing(), tmp_path)
    assert "it raised ValidationError" in message
    assert "Settings are fixed. Keep what changes in `run.state`. The last lines of the traceback:\n" in message
    assert "self.seen = 1.0" in message


def failing_later(run: Any) -> Iterator[StepBatch]:
    yield StepBatch(run.preferences[:4])
    raise KeyError("rollout")


def moving_the_step(run: Any) -> Iterator[StepBatch]:
    for batch in good_batches(run):
        yield batch
        run.step += 1


@pytest.mark.parametrize(
    ("yielded", "parts"),
    [
        (lambda run: [StepBatch(run.preferences[:4])], ["it does not yield its batches. got list", "`yield` each"]),
        (lambda run: None, [BATCHES, "it does not yield its batches. got NoneType, expected a generator."]),
        (steps(None), [FIRST + "it does not yield a `StepBatch`. got NoneType, expected StepBatch(rows)."]),
        (steps([LONE]), [FIRST + "it does not yield a `StepBatch`. got list"]),
        (steps(StepBatch([])), [FIRST + "a step without rows. expected at least one row. Leave the step out"]),
        (steps(StepBatch(["row"])), [FIRST + "it yields something else than rows with sequences. got str"]),  # type: ignore[list-item]
        (steps(StepBatch([Row("bare", {})])), ["got a row 'bare' without sequences"]),
        (steps(StepBatch([Row("r", {"chosen": (1, 2)})])), ["got tuple as the sequence `chosen` of the row 'r'"]),  # type: ignore[dict-item]
        (steps(StepBatch([Row("r", {"chosen": TokenSequence([1, 2], 1)})])), ["got list as the ids of the sequence"]),  # type: ignore[arg-type]
        (steps(StepBatch([Row("r", LONE.sequences, {"margin": "big"})])), ["got text as the value `margin` of"]),  # type: ignore[dict-item]
        (lambda run: iter(run.generate(run.preferences, max_new_tokens=3)), ["has no sequence `prompt`. got the row"]),
        (moving_the_step, [f"{BATCHES}, step 2: it changes `run.step`, which only the training loop may do"]),
        (steps(StepBatch([LONE], {"tokens": 0.0})), ["`tokens` of a step is not usable. got 0.0", "number above 0"]),
        (steps(StepBatch([LONE], {"tokens": float("nan")})), ["the denominator `tokens`", "got nan"]),
        (steps(StepBatch([LONE], {}, {"z0": torch.ones(())})), ["`z0`", "got Tensor", "Use `float(…)` of a tensor"]),  # type: ignore[dict-item]
        (failing_later, [f"{BATCHES}, step 2: it raised KeyError: 'rollout'", "in failing_later"]),
        (lambda run: iter([run.feedback[0]]), [f"{BATCHES}: ", "it did not declare", "feedback"]),
    ],
)  # fmt: skip
def test_batches(misfit: Callable[..., type[Misfit]], tmp_path: Path, yielded: Batches, parts: list[str]) -> None:
    message = error_of(misfit(yielded)(), tmp_path)
    assert [part for part in parts if part not in message] == [], message


@pytest.mark.parametrize(
    ("announced", "got"), [(2.5, "got 2.5"), (None, "got None"), (-1, "got -1"), (True, "got True")]
)
def test_total_steps(misfit: Callable[..., type[Misfit]], tmp_path: Path, announced: Any, got: str) -> None:
    message = error_of(misfit(announced=announced)(), tmp_path)
    where = f"`total_steps` of the optimizer `misfit` ({__name__}): it does not return a number of steps. "
    assert message.startswith(f"{where}got {announced}")


@pytest.mark.parametrize(
    ("state", "part"),
    [
        ({"seen": {1, 2}}, "run.state['seen']: the optimizer's state cannot be saved. got Object of type set"),
        ({"sums": [torch.ones(2)]}, "run.state['sums']: the optimizer's state cannot be saved. got Object of"),
        ({"counts": [{3: 1.0}]}, "run.state['counts']: the optimizer's state cannot be saved. got the key 3, which is"),
        ({7: 1.0}, "run.state[7]: the optimizer's state cannot be saved. got the key 7"),
    ],
)  # fmt: skip
def test_state(misfit: Callable[..., type[Misfit]], tmp_path: Path, state: dict[Any, Any], part: str) -> None:
    def batches(run: Any) -> Iterator[StepBatch]:
        run.state.update(state)
        yield from good_batches(run)

    assert part in error_of(misfit(batches)(), tmp_path)


@pytest.mark.parametrize(
    ("reported", "part"),
    [
        ({"score": torch.ones(2)}, "the metric `score` cannot be reported. got Tensor, expected a number"),
        ({"step": 3.0}, "the metric `step` cannot be reported. got the name of the step's number"),
    ],
)
def test_reported_metrics(
    misfit: Callable[..., type[Misfit]], tmp_path: Path, reported: dict[str, Any], part: str
) -> None:
    def batches(run: Any) -> Iterator[StepBatch]:
        run.report(reported)
        yield from good_batches(run)

    message = error_of(misfit(batches)(), tmp_path)
    assert message.startswith(FIRST)
    assert part in message


@pytest.mark.parametrize(
    ("broken", "part"),
    [
        ({"returned": lambda run, micro: 1 / 0}, LOSS),
        ({"yielded": steps(StepBatch([]))}, FIRST + "a step without rows"),
        ({"announced": "3"}, "it does not return a number of steps. got '3'"),
    ],
)
def test_the_forecast_says_the_same(misfit: Callable[..., type[Misfit]], broken: dict[str, Any], part: str) -> None:
    """`align plan` runs `batches` and `loss` without models, and an error in them has the same form."""
    optimizer = misfit(**broken)()
    rows = Rows(preferences=open_run(optimizer).preferences)
    with pytest.raises(PluginError) as error:
        trace_training(optimizer, rows, Layout(packs=True, call_cost=0), 100, trained=("policy",))
    assert part in str(error.value)


def rates(run: Any) -> list[float]:
    return [entry["learning_rate"] for entry in run.history]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [1.0, 1.0, 1.0, 1.0]), ("linear", [1.0, 0.5, 0.0, 0.0]), ("cosine", [1.0, 0.55, 0.1, 0.1])],
)
def test_batches_may_go_on_after_the_announced_steps(
    misfit: Callable[..., type[Misfit]], tmp_path: Path, schedule: str, expected: list[float]
) -> None:
    """Two steps are announced and four are yielded. The learning rate stays at the end of its schedule."""
    four = [StepBatch([LONE])] * 4
    optimizer = misfit(steps(*four), announced=2)(schedule=schedule, warmup_fraction=0, learning_rate=1.0)
    run = open_run(optimizer)
    train(optimizer, run, tmp_path, 1e9)
    assert run.step == 4
    assert rates(run) == pytest.approx(expected)


def test_batches_may_end_before_the_announced_steps(misfit: Callable[..., type[Misfit]], tmp_path: Path) -> None:
    """Four steps are announced and two are yielded. The learning rate is then halfway."""
    optimizer = misfit(steps(*[StepBatch([LONE])] * 2), announced=4)(schedule="linear", warmup_fraction=0)
    run = open_run(optimizer)
    train(optimizer, run, tmp_path, 1e9)
    assert run.step == 2
    assert rates(run) == pytest.approx([optimizer.learning_rate, 0.75 * optimizer.learning_rate])
    assert list(tmp_path.glob("checkpoint-*"))


def test_metrics_of_the_step_before_survive_a_resume(misfit: Callable[..., type[Misfit]], tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []

    def looking(run: Any) -> Iterator[StepBatch]:
        for batch in good_batches(run):
            seen.append(dict(run.metrics))
            yield batch

    optimizer = misfit(looking)(batch_size=4, epochs=1)
    train_until_end(optimizer, open_run(optimizer, Watch(die_after=2)), tmp_path, save_every_step=True)
    resumed = open_run(optimizer)
    train_until_end(optimizer, resumed, tmp_path)
    # The killed process built the batches of steps 1 and 2, and was killed when step 2 was done but not saved.
    before_first, before_second, again, before_third = seen
    assert before_first == {}
    assert before_second == again == {name: value for name, value in resumed.history[0].items() if name != "step"}
    assert before_third == {name: value for name, value in resumed.history[1].items() if name != "step"}
