"""A separate model as the reward model: its scores, its memory, the cache keys it enters, and the errors."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_styles import STYLES
from classifiers import edit_json, save_classifier, scores_by_transformers
from engine import CPU, LORA, open_roles
from runs import Listener
from safetensors.torch import load_file, save_file

from alignment_core.config import PipelineConfig
from alignment_core.errors import AlignmentError, ConfigError, ModelError, PluginError
from alignment_core.execution.build import build_here
from alignment_core.execution.stage import Job, StageCall
from alignment_core.models.memory.architecture import Architecture, Pass
from alignment_core.models.memory.dry_run import DryRun
from alignment_core.models.roles.classifier import load_classifier
from alignment_core.models.roles.logps import Budget
from alignment_core.planning.pipeline import Plan, plan_pipeline
from alignment_core.plugin_api import TokenSequence
from alignment_core.registry import load_registry
from alignment_core.stages.shared.context import ExternalRewardModel, open_data, open_renderer

PPO = {
    "name": "ppo",
    "rollouts": 2,
    "rollout_size": 4,
    "batch_size": 4,
    "epochs": 1,
    "max_new_tokens": 8,
    "learning_rate": 1e-3,
    "held_out_every": 1,
    "held_out_prompts": 2,
}
Settings = Callable[..., PipelineConfig]
STARTS = (("optimize", "value"), ("reward", "."))
"""The folders of the value model and of the reward model that it starts from."""


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture
def settings(tmp_path: Path, tiny_model: Path) -> Settings:
    """Return a function that makes settings for conversations of one to five turns, some with a system prompt."""
    rows = []
    for n in range(24):
        turns = [{"role": "system", "content": f"Count in {n}s."}] if n % 2 == 0 else []
        for turn in range(1 + n % 3):
            turns += [{"role": "user", "content": f"What is {n + turn} plus {n}?"}]
            turns += [{"role": "assistant", "content": f"It is {2 * n + turn}."}]
        answers = {"chosen": turns[-1:], "rejected": [{"role": "assistant", "content": f"Not {n}!"}]}
        rows.append({"prompt": turns[:-1], **answers})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(reward: dict[str, Any], optimizer: dict[str, Any] = PPO, **evaluation: Any) -> PipelineConfig:
        return PipelineConfig.model_validate(
            {
                "model": {"base": str(tiny_model), "load_in": "fp32", "max_length": 256, "lora": {"rank": 2}},
                "data": {"sources": [{"path": str(tmp_path / "pairs.jsonl")}], "held_out_fraction": 0.3},
                "sft": {"batch_size": 8, "learning_rate": 1e-3},
                "reward": reward,
                "optimizer": optimizer,
                "evaluation": {"max_prompts": 4, "max_new_tokens": 12, **evaluation},
                "store": str(tmp_path / "store"),
                "device": "cpu",
            }
        )

    return make


def plan_of(config: PipelineConfig) -> Plan:
    return plan_pipeline(config, load_registry())


def run_all(plan: Plan, progress: Listener) -> dict[str, Path]:
    return {name: build_here(call, progress)[0].path for name, call in plan.calls().items()}


def opened(plan: Plan, call: StageCall, progress: Listener) -> tuple[ExternalRewardModel, Any]:
    """Return the external reward model of a stage and the data that the stage reads."""
    data = build_here(plan.ingest, progress)[0].path
    job = Job(call, {"data": data}, data, data, progress)
    return ExternalRewardModel.load(job, open_renderer(job)), open_data(job)


def test_scores_in_a_ppo_run_equal_those_of_transformers(settings: Settings, classifier: Path) -> None:
    progress = Listener()
    plan = plan_of(settings({"model": str(classifier)}))
    assert plan.reward is None
    built = run_all(plan, progress)
    for name in ("evaluate", "evaluate_sft"):
        lines = [json.loads(line) for line in (built[name] / "responses.jsonl").read_text().splitlines()]
        assert len(lines) == 4
        conversations = [[*line["prompt"], {"role": "assistant", "content": line["response"]}] for line in lines]
        expected = scores_by_transformers(classifier, conversations)
        assert torch.tensor(expected).std() > 0.01
        assert [line["reward"] for line in lines] == pytest.approx(expected, abs=1e-5)
        metrics = json.loads((built[name] / "manifest.json").read_text())["metrics"]
        assert metrics["reward_mean"] == pytest.approx(sum(expected) / 4, abs=1e-5)
        assert metrics["reward_texts_cut"] == 0
    history = [json.loads(line) for line in (built["optimize"] / "metrics.jsonl").read_text().splitlines()]
    assert len([entry for entry in history if "raw_score" in entry]) == 2
    assert any("held_out_score" in entry for entry in history)


def test_the_value_model_starts_as_the_sft_model_with_a_zero_head(settings: Settings, classifier: Path) -> None:
    frozen = PPO | {"learning_rate": 1e-30, "rollouts": 1}
    built = run_all(plan_of(settings({"model": str(classifier)}, frozen)), Listener())
    value = load_file(built["optimize"] / "value" / "adapter_model.safetensors")
    head = value.pop("base_model.model.score.weight")
    assert head.abs().max() < 1e-25
    sft = load_file(built["sft"] / "adapter_model.safetensors")
    assert value.keys() == sft.keys()
    assert all(torch.equal(weight, sft[name]) for name, weight in value.items())


@pytest.mark.ci
def test_the_value_model_starts_as_the_trained_reward_model(settings: Settings) -> None:
    frozen = PPO | {"learning_rate": 1e-30, "rollouts": 1}
    built = run_all(plan_of(settings({"batch_size": 8, "learning_rate": 1e-3}, frozen)), Listener())
    value, reward = (load_file(built[stage] / path / "adapter_model.safetensors") for stage, path in STARTS)
    assert value.keys() == reward.keys()
    assert value["base_model.model.score.weight"].abs().max() > 0
    assert all((weight - reward[name]).abs().max() < 1e-25 for name, weight in value.items())


def test_scores_do_not_depend_on_batches(settings: Settings, classifier: Path) -> None:
    """Score responses of 1 to 29 tokens to different prompts in one batch, in several batches, and one by one."""
    plan = plan_of(settings({"model": str(classifier)}))
    external, data = opened(plan, plan.optimize, Listener())
    prompts = [row.sequences["prompt"].ids for row in data.train.prompts][:8]
    found = [TokenSequence((*ids, *range(60, 61 + 4 * n)), len(ids)) for n, ids in enumerate(prompts)]
    scores = [external.role(Budget(tokens)).scores(found) for tokens in (10**6, 200, 1)]
    assert scores[0].std() > 0.01
    for other in scores[1:]:
        torch.testing.assert_close(other, scores[0], rtol=1e-4, atol=1e-5)


def test_a_long_conversation_loses_its_oldest_turns_with_a_warning(
    settings: Settings, classifier: Path, tmp_path: Path
) -> None:
    short = tmp_path / "short"
    shutil.copytree(classifier, short)
    edit_json(short / "config.json", max_position_embeddings=80)
    progress = Listener()
    plan = plan_of(settings({"model": str(short)}))
    external, data = opened(plan, plan.optimize, progress)
    uncut = plan_of(settings({"model": str(classifier)}))
    whole = opened(uncut, uncut.optimize, Listener())[0]
    cut = 0
    for row in data.train.prompts:
        prompt = row.sequences["prompt"].ids
        sequence = TokenSequence((*prompt, 60, 61, 62), len(prompt))
        complete, shortened = whole.cross_tokenizer.encode(sequence), external.cross_tokenizer.encode(sequence)
        assert len(shortened) <= 80
        if len(complete) <= 80:
            assert shortened == complete
            continue
        cut += 1
        # It starts like a conversation and not in the middle of a turn.
        assert shortened[0] == complete[0]
        messages = data.train.messages(row)
        system = [messages[0]] if messages[0]["role"] == "system" else []
        text = external.cross_tokenizer._encoder.decode(shortened)
        for message in (*system, messages[-1]):
            assert message["content"] in text
        if len(messages) > 2 + len(system):
            assert messages[len(system)]["content"] not in text
    assert cut >= 3
    assert external.cross_tokenizer.truncated == cut
    message = "the reward model accepts at most 80 tokens: longer conversations lose their oldest part"
    assert progress.warnings == [message]


def test_a_single_turn_that_is_too_long_keeps_its_end(settings: Settings, classifier: Path, tmp_path: Path) -> None:
    short = tmp_path / "short"
    shutil.copytree(classifier, short)
    edit_json(short / "config.json", max_position_embeddings=12)
    plan = plan_of(settings({"model": str(short)}))
    external, data = opened(plan, plan.optimize, Listener())
    prompt = data.train.prompts[0].sequences["prompt"].ids
    sequence = TokenSequence((*prompt, *range(60, 90)), len(prompt))
    ids = external.cross_tokenizer.encode(sequence)
    external.cross_tokenizer._limit = 10**6
    assert ids == external.cross_tokenizer.encode(sequence)[-12:]


def test_sequences_that_cannot_be_converted_are_rejected(settings: Settings, classifier: Path) -> None:
    plan = plan_of(settings({"model": str(classifier)}))
    external, data = opened(plan, plan.optimize, Listener())
    with pytest.raises(PluginError, match="no record has the prompt"):
        external.cross_tokenizer.encode(TokenSequence((5, 6, 7, 8), 3))
    prompt = data.train.prompts[0].sequences["prompt"].ids
    with pytest.raises(PluginError, match="one turn"):
        external.cross_tokenizer.encode(TokenSequence((*prompt, 5, 6), len(prompt), (True, False)))


def test_pairs_and_held_out_prompts_are_converted_too(settings: Settings, classifier: Path) -> None:
    plan = plan_of(settings({"model": str(classifier)}))
    external, data = opened(plan, plan.optimize, Listener())
    for split in (data.train, data.held_out):
        assert len(split.preferences)
        for row in split.preferences:
            text = external.cross_tokenizer._encoder.decode(external.cross_tokenizer.encode(row.sequences["rejected"]))
            assert "Not " in text


def keys(plan: Plan) -> dict[str, str]:
    return {name: call.key for name, call in plan.calls().items()}


def test_keys_follow_the_content_of_the_reward_model(settings: Settings, classifier: Path, tmp_path: Path) -> None:
    first = keys(plan_of(settings({"model": str(classifier)})))
    other = tmp_path / "elsewhere"
    shutil.copytree(classifier, other)
    assert keys(plan_of(settings({"model": str(other)}))) == first

    def changed(reward: dict[str, Any]) -> set[str]:
        now = keys(plan_of(settings({"model": str(other), **reward})))
        assert now.keys() == first.keys()
        return {name for name in first if now[name] != first[name]}

    dependent = {"optimize", "evaluate", "evaluate_sft", "over_sft"}
    template = tmp_path / "template.jinja"
    template.write_text(STYLES["llama"])
    assert changed({"chat_template": str(template)}) == dependent
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        before = (other / name).read_bytes()
        with (other / name).open("ab") as file:
            file.write(b" ")
        assert changed({}) == dependent
        (other / name).write_bytes(before)
    assert changed({}) == set()


def test_a_run_that_needs_no_reward_model_does_not_depend_on_it(settings: Settings, classifier: Path) -> None:
    dpo = {"name": "dpo"}
    without, named = plan_of(settings({}, dpo)), plan_of(settings({"model": str(classifier)}, dpo))
    assert keys(without) == keys(named)
    scored = plan_of(settings({"model": str(classifier)}, dpo, reward_model=True))
    assert scored.reward is None
    differing = {name for name, key in keys(scored).items() if key != keys(named)[name]}
    assert differing == {"evaluate", "evaluate_sft", "over_sft"}
    assert "reward_model" not in scored.optimize.inputs


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("labels", ModelError, "more than one label.*3 labels"),
        ("causal", ModelError, "not a sequence classifier.*Qwen2ForCausalLM"),
        ("no folder", ModelError, "reward.model: there is no such folder"),
        ("revision", ModelError, "reward.revision: a folder has no revisions"),
        ("no model", ConfigError, "reward.revision: this setting needs `reward.model`"),
        ("template file", ModelError, "reward.chat_template: the chat template cannot be read"),
    ],
)
def test_invalid_reward_model_is_rejected_before_anything_runs(
    settings: Settings, tmp_path: Path, fault: str, error: type[AlignmentError], message: str
) -> None:
    reward: dict[str, Any] = {"model": str(save_classifier(tmp_path / "other", labels=3 if fault == "labels" else 1))}
    if fault == "causal":
        edit_json(tmp_path / "other" / "config.json", architectures=["Qwen2ForCausalLM"])
    elif fault == "no folder":
        reward["model"] = "/nowhere/at all"
    elif fault == "revision":
        reward["revision"] = "main"
    elif fault == "no model":
        reward = {"revision": "main"}
    elif fault == "template file":
        reward["chat_template"] = str(tmp_path / "missing.jinja")
    with pytest.raises(error) as found:
        plan_of(settings(reward))
    assert re.search(message, str(found.value))


def test_a_classifier_without_a_template_needs_one(settings: Settings, tmp_path: Path) -> None:
    bare = save_classifier(tmp_path / "bare", template=None)
    with pytest.raises(ModelError, match="has no chat template") as error:
        plan_of(settings({"model": str(bare)}))
    assert "reward.chat_template" in str(error.value)
    plan = plan_of(settings({"model": str(bare), "chat_template": "chatml"}))
    external, data = opened(plan, plan.optimize, Listener())
    prompt = data.train.prompts[0].sequences["prompt"].ids
    encoder = external.cross_tokenizer._encoder
    assert "assistant" in encoder.decode(external.cross_tokenizer.encode(TokenSequence((*prompt, 60), len(prompt))))


def test_missing_head_weights_are_rejected(classifier: Path, tmp_path: Path) -> None:
    """transformers would initialize the head at random and only log a warning."""
    headless = tmp_path / "headless"
    shutil.copytree(classifier, headless)
    weights = load_file(headless / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, headless / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lacks weights") as error:
        load_classifier(str(headless), revision=None, load_in="fp32", device=CPU)
    assert "score.weight" in str(error.value)


@pytest.mark.parametrize("load_in", ["fp32", "nf4", "int8", "bf16"])
def test_memory_of_the_reward_model_is_counted(tiny_model: Path, classifier: Path, load_in: Any) -> None:
    model = load_classifier(str(classifier), revision=None, load_in=load_in, device=CPU)
    roles = ("policy",)
    config = open_roles(tiny_model).model.config

    def dry(external: Any) -> DryRun:
        return DryRun(Architecture(config, load_in, LORA, roles, (), roles, CPU, external_reward=external))

    without, with_reward = dry(None), dry(model.config)
    assert without.footprint().external_reward == 0
    real = sum(p.numel() * p.element_size() for p in model.parameters())
    counted = with_reward.footprint().external_reward
    # bitsandbytes keeps its scales outside the parameters. They add a few percent.
    assert real <= counted <= 1.1 * real
    policy, reward = (Pass("policy", (TokenSequence((3,) * 512, 511),) * 8, 4096, head) for head in (False, True))
    assert with_reward.reading(policy) == without.reading(policy)
    # The input and output states of a layer are in memory, in float32 or bf16.
    assert with_reward.reading(reward) >= 2 * 4096 * model.config.hidden_size * 2


def test_a_quantized_reward_model_keeps_its_head_in_float32(classifier: Path) -> None:
    model = load_classifier(str(classifier), revision=None, load_in="nf4", device=CPU)
    assert type(model.score) is torch.nn.Linear
    assert model.score.weight.dtype == torch.float32
