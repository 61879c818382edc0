"""A reward model that ranks what people rank: by the scores of transformers and peft themselves, and marked as AI."""

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
from alignment_core.data.rendering import Renderer, load_tokenizer
from alignment_core.errors import ArtifactError, ConfigError
from alignment_core.feedback import FeedbackStore, Rater, Vote, open_feedback
from alignment_core.progress import Silent
from alignment_core.registry import load_registry
from alignment_core.stages.ai_rater import rank_by_reward_model
from alignment_core.stages.build import run_here
from alignment_core.stages.plan import Plan, make_plan

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
        opened.add_rankables([(prompt, [(text, "m") for text in TEXTS]) for prompt in PROMPTS])
        yield opened


def by_ai(store: FeedbackStore) -> list[Vote]:
    return [vote for vote in store.votes() if vote.rater.kind == "ai"]


def best_first(scores: Sequence[float]) -> tuple[int, ...]:
    assert len({round(score, 4) for score in scores}) == len(scores), "or the order would be a matter of rounding"
    return tuple(1 + sum(other > score for other in scores) for score in scores)


def test_an_external_classifier_ranks_by_its_scores_and_once(
    settings: Callable[..., PipelineConfig], store: FeedbackStore, tmp_path: Path
) -> None:
    classifier = save_classifier(tmp_path / "classifier")
    config = settings(reward={"model": str(classifier)})
    store.rank(Rater("Ann"), store.rankables()[0], (1, 2, 3, 4))
    assert rank_by_reward_model(store, config, load_registry(), "reward", Silent()) == 3
    votes = by_ai(store)
    for vote, prompt in zip(votes, PROMPTS, strict=True):
        told = [[*prompt, {"role": "assistant", "content": text}] for text in TEXTS]
        assert vote.ranks == best_first(scores_by_transformers(classifier, told))
    assert {vote.rater.name.startswith("reward model classifier ") for vote in votes} == {True}
    assert len(list(store.votes())) == 4
    assert rank_by_reward_model(store, config, load_registry(), "reward", Silent()) == 0


def trained(plan: Plan) -> str:
    assert plan.reward is not None
    for name, call in plan.calls().items():
        if name in ("ingest", "sft", "reward", "optimize"):
            run_here(call, Silent())
    return plan.reward.key


def test_a_trained_reward_model_ranks_by_its_scores(
    settings: Callable[..., PipelineConfig], store: FeedbackStore, tmp_path: Path
) -> None:
    config = settings()
    plan = make_plan(config, load_registry())
    key = trained(plan)
    assert rank_by_reward_model(store, config, load_registry(), key[:10], Silent()) == 3
    artifact = ArtifactStore(tmp_path / "store").find(key)
    assert artifact is not None
    tokenizer = load_tokenizer(config.model.base, None)
    renderer = Renderer(tokenizer, chat_template=None, max_length=128, generation_stops=())
    model = AutoPeftModelForSequenceClassification.from_pretrained(artifact.path, num_labels=1).eval()
    model.config.pad_token_id = tokenizer.pad_token_id
    for vote, prompt in zip(by_ai(store), PROMPTS, strict=True):
        told = [renderer.completion(prompt, ({"role": "assistant", "content": text},)).ids for text in TEXTS]
        with torch.no_grad():
            scores = [model(input_ids=torch.tensor([ids])).logits.item() for ids in told]
        assert vote.ranks == best_first(scores)
        assert vote.rater == Rater(f"reward model {key[:12]}", "ai")
    # Named by the model that learned from it, it is the same rater, who has ranked everything.
    ArtifactStore(tmp_path / "store").aliases.promote("pilot", "optimize", plan.optimize.key, by="test", reason="test")
    assert rank_by_reward_model(store, config, load_registry(), "pilot", Silent()) == 0


def test_what_is_too_long_for_it_is_skipped(
    settings: Callable[..., PipelineConfig], store: FeedbackStore, tmp_path: Path
) -> None:
    key = trained(make_plan(settings(), load_registry()))
    prompt = ({"role": "user", "content": "Tell me a story."},)
    store.add_rankables([(prompt, [("Once upon a time. " * 40, "m"), ("No.", "m")])])
    assert rank_by_reward_model(store, settings(), load_registry(), key, Silent()) == 4
    assert [len(vote.ranks) for vote in by_ai(store)] == [4, 4, 4, 0]


def test_mistakes_are_said_in_words(
    settings: Callable[..., PipelineConfig], store: FeedbackStore, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"reward\.model"):
        rank_by_reward_model(store, settings(), load_registry(), "reward", Silent())
    with pytest.raises(ArtifactError, match="no artifact has this alias"):
        rank_by_reward_model(store, settings(), load_registry(), "production", Silent())
    plan = make_plan(settings(), load_registry())
    run_here(plan.ingest, Silent())
    with pytest.raises(ArtifactError, match="no reward model"):
        rank_by_reward_model(store, settings(), load_registry(), plan.ingest.key, Silent())
