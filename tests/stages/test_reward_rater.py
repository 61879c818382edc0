"""Ranking tasks ranked by a reward model: ranks follow the scores of transformers and PEFT, by a rater of kind `ai`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from classifiers import save_classifier, scores_by_transformers
from peft import AutoPeftModelForSequenceClassification

from alignment_core.artifacts import ArtifactStore
from alignment_core.config import PipelineConfig
from alignment_core.data.rendering.renderer import Renderer, load_tokenizer
from alignment_core.errors import ArtifactError, ConfigError
from alignment_core.execution.build import build_here
from alignment_core.feedback import FeedbackStore, Rater, Vote, open_feedback
from alignment_core.planning.pipeline import Plan, plan_pipeline
from alignment_core.progress import Silent
from alignment_core.registry import load_registry
from alignment_core.stages.shared.ai_rater import rank_by_reward_model

TEXTS = ("It is 4.", "I do not know, sorry!", "Of course, what would you like to know?", "Yes.")
PROMPTS = (
    ({"role": "user", "content": "What is two plus two?"},),
    ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Can you help me?"}),
    (
        {"role": "user", "content": "Can you help me?"},
        {"role": "assistant", "content": "Of course."},
        {"role": "user", "content": "Please tell me how to bake bread."},
    ),
)


@pytest.fixture
def settings(tmp_path: Path, tiny_model: Path) -> Callable[..., PipelineConfig]:
    rows = [{"prompt": f"What is {n} plus {n}?", "chosen": f"It is {2 * n}.", "rejected": "No!"} for n in range(12)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(**changes: Any) -> PipelineConfig:
        step = {"batch_size": 8, "learning_rate": 1e-2}
        ppo = {"name": "ppo", "rollouts": 1, "rollout_size": 4, "batch_size": 4, "epochs": 1, "max_new_tokens": 4}
        return PipelineConfig.model_validate(
            {
                "model": {"base": str(tiny_model), "load_in": "fp32", "max_length": 128, "lora": {"rank": 2}},
                "data": {"sources": [{"path": str(tmp_path / "pairs.jsonl")}], "held_out_fraction": 0.3},
                "sft": step,
                "reward": step,
                "optimizer": ppo,
                "store": str(tmp_path / "store"),
                "device": "cpu",
                "isolation": "inline",
                **changes,
            }
        )

    return make


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with open_feedback(str(tmp_path / "feedback.db")) as opened:
        opened.add_ranking_tasks([(prompt, [(text, "m") for text in TEXTS]) for prompt in PROMPTS])
        yield opened


def by_ai(store: FeedbackStore) -> list[Vote]:
    return [vote for vote in store.votes() if vote.rater.kind == "ai"]


def best_first(scores: Sequence[float]) -> tuple[int, ...]:
    assert len({round(score, 4) for score in scores}) == len(scores), "scores this close are ordered by rounding errors"
    return tuple(1 + sum(other > score for other in scores) for score in scores)


def test_an_external_classifier_ranks_once_by_its_scores(
    settings: Callable[..., PipelineConfig], store: FeedbackStore, tmp_path: Path
) -> None:
    classifier = save_classifier(tmp_path / "classifier")
    config = settings(reward={"model": str(classifier)})
    store.rank(Rater("Ann"), store.ranking_tasks()[0], (1, 2, 3, 4))
    assert rank_by_reward_model(store, config, load_registry(), "reward", Silent()) == 3
    votes = by_ai(store)
    for vote, prompt in zip(votes, PROMPTS, strict=True):
        conversations = [[*prompt, {"role": "assistant", "content": text}] for text in TEXTS]
        assert vote.ranks == best_first(scores_by_transformers(classifier, conversations))
    assert {vote.rater.name.startswith("reward model classifier ") for vote in votes} == {True}
    assert len(list(store.votes())) == 4
    assert rank_by_reward_model(store, config, load_registry(), "reward", Silent()) == 0


def trained(plan: Plan) -> str:
    assert plan.reward is not None
    for name, call in plan.calls().items():
        if name in ("ingest", "sft", "reward", "optimize"):
            build_here(call, Silent())
    return plan.reward.key


def test_a_trained_reward_model_ranks_by_its_scores(
    settings: Callable[..., PipelineConfig], store: FeedbackStore, tmp_path: Path
) -> None:
    config = settings()
    plan = plan_pipeline(config, load_registry())
    key = trained(plan)
    assert rank_by_reward_model(store, config, load_registry(), key[:10], Silent()) == 3
    artifact = ArtifactStore(tmp_path / "store").find(key)
    assert artifact is not None
    tokenizer = load_tokenizer(config.model.base, None)
    renderer = Renderer(tokenizer, chat_template=None, max_length=128, generation_stops=())
    model = AutoPeftModelForSequenceClassification.from_pretrained(artifact.path, num_labels=1).eval()
    model.config.pad_token_id = tokenizer.pad_token_id
    for vote, prompt in zip(by_ai(store), PROMPTS, strict=True):
        sequences = [renderer.completion(prompt, ({"role": "assistant", "content": text},)).ids for text in TEXTS]
        with torch.no_grad():
            scores = [model(input_ids=torch.tensor([ids])).logits.item() for ids in sequences]
        assert vote.ranks == best_first(scores)
        assert vote.rater == Rater(f"reward model {key[:12]}", "ai")
    # The alias of a model trained with it selects the same reward model, which has ranked every task.
    ArtifactStore(tmp_path / "store").aliases.promote("pilot", "optimize", plan.optimize.key, by="test", reason="test")
    assert rank_by_reward_model(store, config, load_registry(), "pilot", Silent()) == 0


def test_responses_that_are_too_long_are_skipped(
    settings: Callable[..., PipelineConfig], store: FeedbackStore, tmp_path: Path
) -> None:
    key = trained(plan_pipeline(settings(), load_registry()))
    prompt = ({"role": "user", "content": "Tell me a story."},)
    store.add_ranking_tasks([(prompt, [("Once upon a time. " * 40, "m"), ("No.", "m")])])
    assert rank_by_reward_model(store, settings(), load_registry(), key, Silent()) == 4
    assert [len(vote.ranks) for vote in by_ai(store)] == [4, 4, 4, 0]


def test_mistakes_are_reported(settings: Callable[..., PipelineConfig], store: FeedbackStore, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"reward\.model"):
        rank_by_reward_model(store, settings(), load_registry(), "reward", Silent())
    with pytest.raises(ArtifactError, match="there is no artifact store"):
        rank_by_reward_model(store, settings(), load_registry(), "production", Silent())
    plan = plan_pipeline(settings(), load_registry())
    build_here(plan.ingest, Silent())
    with pytest.raises(ArtifactError, match="this is no alias"):
        rank_by_reward_model(store, settings(), load_registry(), "production", Silent())
    with pytest.raises(ArtifactError, match="not a reward model"):
        rank_by_reward_model(store, settings(), load_registry(), plan.ingest.key, Silent())
