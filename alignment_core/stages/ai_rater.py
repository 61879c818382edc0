"""A model as one more rater of what people rank, always marked as such: behind an address, or a reward model."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from urllib.parse import urlsplit

from alignment_core.artifacts import Artifact, ArtifactStore
from alignment_core.artifacts.catalogue import resolve
from alignment_core.config import EndpointConfig, PipelineConfig
from alignment_core.errors import ArtifactError, ConfigError
from alignment_core.evaluation.endpoint import Answer, Endpoint, Question
from alignment_core.feedback import FeedbackStore, Rater
from alignment_core.feedback.votes import Rankable
from alignment_core.progress import Progress
from alignment_core.registry import Registry
from alignment_core.stages.base import StageCall
from alignment_core.stages.build import build
from alignment_core.stages.calls import Calls

ITS_OWN = "reward"
"""What names the reward model of the settings, `reward.model`."""
TEXTS, SCORES = "texts", "scores.jsonl"
"""What the stage `score` reads, among its inputs, and writes."""
KEY_DIGITS = 12


def rank_by_endpoint(store: FeedbackStore, settings: EndpointConfig, scratch: Path, progress: Progress) -> int:
    """Rank whatever this rater has not ranked yet; returns how much that was.

    Every two responses are compared, in both orders. Their ranks follow from how many comparisons each won less lost.

    Args:
        store: the feedback store.
        settings: the endpoint.
        scratch: a folder that keeps answers of an interrupted ranking, so that they are not paid for again.
        progress: where to report.

    Raises:
        ConfigError: the address refuses the key, the model or the request, or gives no verdict.
        FeedbackError: the store cannot be used.
    """
    rater = Rater(f"{settings.model} at {urlsplit(settings.url).netloc.rpartition('@')[2]}", "ai")
    todo = _not_ranked(store, rater)
    scratch.mkdir(parents=True, exist_ok=True)
    for done, rankable in enumerate(todo):
        progress.step(done, len(todo))
        kept = scratch / f"{rankable.id}.jsonl"
        answers = Endpoint(settings, progress).compare(_questions(rankable), kept).answers
        store.rank(rater, rankable, ranks_of(len(rankable.responses), answers))
        kept.unlink()
    progress.step(len(todo), len(todo))
    return len(todo)


def rank_by_reward_model(
    store: FeedbackStore, config: PipelineConfig, registry: Registry, reference: str, progress: Progress
) -> int:
    """Rank whatever this rater has not ranked yet, the highest score first; returns how much that was.

    Responses of which one cannot be scored, because it is too long or its chat template refuses it, are skipped.

    Args:
        store: the feedback store.
        config: the settings of a run.
        registry: the installed plugins.
        reference: `reward` for the settings' `reward.model`; or a trained reward model by its key or the beginning of
            it, or by the alias or key of a model that was trained with it.
        progress: where to report.

    Raises:
        ConfigError, ModelError: the settings name no reward model, or one that does not load; or the base differs.
        ArtifactError: there is no such reward model.
        FeedbackError: the store cannot be used.
    """
    calls = Calls.of(config, registry)
    if reference == ITS_OWN:
        artifact, name = None, _its_own(calls)
    else:
        artifact = _reward_model(calls, reference)
        name = artifact.key[:KEY_DIGITS]
    rater = Rater(f"reward model {name}", "ai")
    todo = _not_ranked(store, rater)
    for rankable, scores in zip(todo, _scores(calls, artifact, todo, progress), strict=True):
        known = [score for score in scores if score is not None]
        store.rank(rater, rankable, _best_first(known) if len(known) == len(scores) else None)
    return len(todo)


def _its_own(calls: Calls) -> str:
    """What the reward model of the settings is called as a rater."""
    if calls.external is None:
        raise ConfigError(
            "the settings name no reward model of their own",
            where="reward.model",
            do="Set it, or name one that was trained: `align artifacts list --kind reward`",
        )
    model = calls.external.model
    return f"{model.name} {model.weights[-KEY_DIGITS:]}"


def _reward_model(calls: Calls, reference: str) -> Artifact:
    store = ArtifactStore(calls.config.store)
    entry = resolve(store, reference)
    found: Artifact | None = entry.artifact
    if entry.artifact.kind != "reward":
        learned = entry.manifest.parents.get("reward") if entry.manifest else None
        found = store.find(learned) if learned else None
    if found is None:
        raise ArtifactError(
            "this is no reward model, and was trained with none that is here",
            where=str(store.root),
            got=f"{entry.artifact.kind}/{entry.artifact.key}",
            do="See which there are by `align artifacts list --kind reward`",
        )
    calls.refuse_other_base(found)
    return found


def _scores(
    calls: Calls, artifact: Artifact | None, todo: Sequence[Rankable], progress: Progress
) -> list[list[float | None]]:
    """Scores of each rankable's responses (None: not to be scored), from a stage, whose process loads the model."""
    if not todo:
        return []
    with tempfile.TemporaryDirectory(prefix="align-rank-") as folder:
        file = Path(folder) / "texts.jsonl"
        lines = [
            {"prompt": [dict(turn) for turn in rankable.prompt], "responses": [r.text for r in rankable.responses]}
            for rankable in todo
        ]
        file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        call: StageCall = calls.call(
            "score",
            calls.loads(texts=digest),
            {},
            inputs={TEXTS: str(file)},
            standing={"reward": artifact.key} if artifact else None,
            external=None if artifact else calls.external,
        )
        path = build(call, progress).artifact.path / SCORES
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _not_ranked(store: FeedbackStore, rater: Rater) -> list[Rankable]:
    judged = store.judged_by(rater)
    return [rankable for rankable in store.rankables() if rankable.id not in judged]


def _questions(rankable: Rankable) -> list[Question]:
    return [Question(rankable.prompt, ours.text, theirs.text) for ours, theirs in combinations(rankable.responses, 2)]


def ranks_of(count: int, answers: Sequence[Answer]) -> list[int]:
    """Ranks from the verdicts on every two of `count` responses, in the order of `itertools.combinations`.

    A comparison without a verdict counts as a tie. Equal scores are equal ranks.
    """
    scores = [0] * count
    for (ours, theirs), answer in zip(combinations(range(count), 2), answers, strict=True):
        scores[ours] += answer.verdict or 0
        scores[theirs] -= answer.verdict or 0
    return _best_first(scores)


def _best_first(scores: Sequence[float]) -> list[int]:
    """The rank of each score: 1 is the highest, equal scores are equal ranks."""
    order = sorted(set(scores), reverse=True)
    return [1 + order.index(score) for score in scores]
