"""A model as an additional rater in the feedback store: a judge endpoint or a reward model.

It is always marked as an AI rater.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from urllib.parse import urlsplit

from alignment_core.artifacts import Artifact, ArtifactStore
from alignment_core.artifacts.catalogue import resolve
from alignment_core.config import EndpointConfig, PipelineConfig
from alignment_core.errors import ArtifactError, ConfigError
from alignment_core.evaluation.judge_endpoint import Answer, Endpoint, Question
from alignment_core.execution.build import build
from alignment_core.execution.stage import StageCall
from alignment_core.feedback import FeedbackStore, Rater
from alignment_core.feedback.votes import RankingTask
from alignment_core.planning.stage_calls import StageCalls
from alignment_core.progress import Progress
from alignment_core.registry import Registry
from alignment_core.temporary import temporary_folder

ITS_OWN = "reward"
"""The reference that selects the existing reward model of the settings, `reward.model`."""
TEXTS, SCORES = "texts", "scores.jsonl"
"""The name of the input that the stage `score` reads, and the file that it writes."""
KEY_DIGITS = 12


def rank_by_endpoint(store: FeedbackStore, settings: EndpointConfig, scratch: Path, progress: Progress) -> int:
    """Rank all tasks that this rater has not ranked yet. Return their number.

    Every two responses are compared in both orders. A response is ranked by its wins minus its losses.

    Args:
        store: the feedback store.
        settings: the endpoint.
        scratch: a folder that keeps the answers of an interrupted ranking, so they are not paid for again.
        progress: receives the progress.

    Raises:
        ConfigError: the endpoint rejects the key, the model or the request, or gives no verdict.
        FeedbackError: the store cannot be used.
    """
    rater = Rater(f"{settings.model} at {urlsplit(settings.url).netloc.rpartition('@')[2]}", "ai")
    todo = _not_ranked(store, rater)
    scratch.mkdir(parents=True, exist_ok=True)
    for done, task in enumerate(todo):
        progress.step(done, len(todo))
        kept = scratch / f"{task.id}.jsonl"
        answers = Endpoint(settings, progress).compare(_questions(task), kept).answers
        store.rank(rater, task, ranks_of(len(task.responses), answers))
        kept.unlink()
    progress.step(len(todo), len(todo))
    return len(todo)


def rank_by_reward_model(
    store: FeedbackStore, config: PipelineConfig, registry: Registry, reference: str, progress: Progress
) -> int:
    """Rank all tasks that this rater has not ranked yet, the highest score first. Return their number.

    A task is skipped if one of its responses cannot be scored because it is too long or the chat template rejects it.

    Args:
        store: the feedback store.
        config: the settings of a run.
        registry: the installed plugins.
        reference: `reward` for `reward.model` in the settings, the key of a trained reward model (or a prefix of it),
            or the alias or key of a model that was trained with one.
        progress: receives the progress.

    Raises:
        ConfigError, ModelError: `reward.model` is not set or does not load, or the base model differs.
        ArtifactError: the reward model does not exist.
        FeedbackError: the store cannot be used.
    """
    calls = StageCalls.from_config(config, registry)
    if reference == ITS_OWN:
        artifact, name = None, _its_own(calls)
    else:
        artifact = _reward_model(calls, reference)
        name = artifact.key[:KEY_DIGITS]
    rater = Rater(f"reward model {name}", "ai")
    todo = _not_ranked(store, rater)
    for task, scores in zip(todo, _scores(calls, artifact, todo, progress), strict=True):
        known = [score for score in scores if score is not None]
        store.rank(rater, task, _best_first(known) if len(known) == len(scores) else None)
    return len(todo)


def _its_own(calls: StageCalls) -> str:
    """Return the name of the reward model of the settings as a rater."""
    if calls.external is None:
        raise ConfigError(
            "no reward model is set",
            where="reward.model",
            do="Set it, or choose a trained reward model from `align artifacts list --kind reward`",
        )
    model = calls.external.model
    return f"{model.name} {model.weights[-KEY_DIGITS:]}"


def _reward_model(calls: StageCalls, reference: str) -> Artifact:
    store = ArtifactStore(calls.config.store, calls.config.remote)
    entry = resolve(store, reference, run=calls.config.name)
    found: Artifact | None = entry.artifact
    if entry.artifact.kind != "reward":
        learned = entry.manifest.parents.get("reward") if entry.manifest else None
        found = store.find(learned) if learned else None
    if found is None:
        raise ArtifactError(
            "this artifact is not a reward model and was not trained with a reward model that is in the store",
            where=str(store.root),
            got=f"{entry.artifact.kind}/{entry.artifact.key}",
            do="List the reward models with `align artifacts list --kind reward`",
        )
    calls.check_same_base(found)
    return found


def _scores(
    calls: StageCalls, artifact: Artifact | None, todo: Sequence[RankingTask], progress: Progress
) -> list[list[float | None]]:
    """Return the scores of each task's responses (None: not scored). A stage computes them in its own process."""
    if not todo:
        return []
    with temporary_folder("rank") as folder:
        file = folder / "texts.jsonl"
        lines = [
            {"prompt": [dict(turn) for turn in task.prompt], "responses": [r.text for r in task.responses]}
            for task in todo
        ]
        file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        call: StageCall = calls.call(
            "score",
            calls.model_settings(texts=digest),
            {},
            inputs={TEXTS: str(file)},
            standing={"reward": artifact.key} if artifact else None,
            external=None if artifact else calls.external,
        )
        path = build(call, progress).artifact.path / SCORES
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _not_ranked(store: FeedbackStore, rater: Rater) -> list[RankingTask]:
    judged = store.judged_by(rater)
    return [task for task in store.ranking_tasks() if task.id not in judged]


def _questions(task: RankingTask) -> list[Question]:
    return [Question(task.prompt, ours.text, theirs.text) for ours, theirs in combinations(task.responses, 2)]


def ranks_of(count: int, answers: Sequence[Answer]) -> list[int]:
    """Return the ranks of `count` responses from the verdicts on every two of them.

    The verdicts are in the order of `itertools.combinations`. A comparison without a verdict counts as a tie. Equal
    scores get equal ranks.
    """
    scores = [0] * count
    for (ours, theirs), answer in zip(combinations(range(count), 2), answers, strict=True):
        scores[ours] += answer.verdict or 0
        scores[theirs] -= answer.verdict or 0
    return _best_first(scores)


def _best_first(scores: Sequence[float]) -> list[int]:
    """Return the rank of each score. The highest score has rank 1, and equal scores get equal ranks."""
    order = sorted(set(scores), reverse=True)
    return [1 + order.index(score) for score in scores]
