"""The settings of a run: frozen, typed, and with every default in this one place.

The docstring under a field is its description in the Prefect run form, in `align plugins list` and in the docs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Moments = Literal["32bit", "paged_8bit"]
LoadIn = Literal["nf4", "int8", "bf16", "fp32"]
Supervision = Literal["demonstrations", "preferences", "feedback", "prompts"]


class Settings(BaseModel):
    """A frozen group of settings; an unknown name is an error, and docstrings are descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class LoraConfig(Settings):
    """The shape of every adapter: SFT, policy, reward and value model."""

    rank: int = Field(16, ge=1, le=1024)
    """Rank of the two LoRA factors."""
    alpha: float = Field(32, gt=0)
    """Scale: the update is multiplied by alpha / rank (rsLoRA: alpha / sqrt(rank))."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout probability on the adapters' input."""
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """Names of the linear layers that get an adapter; `all-linear` is every one but the output head."""
    rslora: bool = False
    """Rank-stabilised scaling (arXiv 2312.03732)."""
    dora: bool = False
    """Weight-decomposed adapters (arXiv 2402.09353): slower, and not loadable in vLLM or llama.cpp."""


class ModelConfig(Settings):
    """The base model that every stage shares."""

    base: str
    """Folder of a model in Hugging Face format, or a hub id."""
    revision: str | None = None
    """Hub branch, tag or commit; resolved to a commit before anything is cached."""
    load_in: LoadIn = "nf4"
    """Precision of the frozen base: nf4 (QLoRA), int8, bf16 or fp32."""
    max_length: int = Field(1024, ge=16)
    """Longest sequence in tokens, prompt and completion together."""
    chat_template: str | None = None
    """File with a Jinja chat template, or the name of a built-in one; unset: the tokenizer's own."""
    lora: LoraConfig = LoraConfig()
    """Shape of the adapters."""


class SourceConfig(Settings):
    """One file, folder, glob, URL or hub data set of raw feedback."""

    path: str
    """File, folder, glob pattern, fsspec URL, hub data set as `hf://owner/name`, or feedback store (`.db`, URL)."""
    revision: str | None = None
    """Hub branch, tag or commit; resolved to a commit before anything is cached."""
    subset: str | None = None
    """Configuration of a hub data set that has several."""
    split: str = "train"
    """Split of a hub data set."""
    format: str | None = None
    """Name of the record format; unset: detected from the first records."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Map from our column (`prompt`, `completion`, `chosen`, `rejected`, `label`, …) to the file's, for any table."""
    threshold: float | None = None
    """A scalar rating at or above this is a thumbs up; unset: such ratings need one and are refused."""
    max_pairs: int | None = Field(None, ge=1)
    """At most this many pairs of one ranking, the widest gaps first; unset: all (SHP: 5 of one post)."""
    desirable: list[str] = Field(default_factory=list)
    """Values of the label column that mean thumbs up, all others down; unset: true/false, 1/0, 👍/👎 and the like."""
    weight: float = Field(1.0, gt=0)
    """Share of this source's rows that is used; above 1 repeats them."""
    votes_after: int = Field(0, ge=0)
    """Of a feedback store: only votes with a higher number."""
    votes_before: int | None = Field(None, ge=0)
    """Of a feedback store: only votes with a number up to this, those of them that are still in force."""
    votes_upto: int | None = Field(None, ge=0)
    """Of a feedback store: the votes that were in force at this number; unset: those of now."""


class DataConfig(Settings):
    """What people gave: one or more sources, each serving as many roles as its records allow."""

    sources: list[SourceConfig] = Field(min_length=1)
    """Sources that are read and mixed."""
    held_out_fraction: float = Field(0.05, gt=0, lt=1)
    """Share of prompts kept away from training, chosen by a hash of the prompt."""
    max_bad_fraction: Fraction = 0.05
    """The stage fails when a larger share of the rows has to be quarantined, over-long ones not counted."""
    near_duplicates: float | None = Field(0.8, gt=0, le=1)
    """Jaccard similarity of word triples from which texts are near-duplicates; null looks for exact ones only."""


class StepSettings(Settings):
    """How weights are updated; the same in every stage that trains."""

    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate of AdamW."""
    batch_size: int = Field(32, ge=1)
    """Rows in one optimizer step; memory does not depend on it."""
    epochs: int = Field(1, ge=1)
    """Passes over the rows."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up: to 10 % by a cosine, to 0 linearly, or not at all."""
    warmup_fraction: Fraction = 0.1
    """Share of the steps in which the learning rate rises from 0."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay."""
    adamw: Moments = "32bit"
    """Bits of AdamW's two moments; paged_8bit (bitsandbytes) saves 6 bytes per trained weight, and what the GPU has no
    room for waits in the machine's memory."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this Euclidean norm."""
    max_loss_growth: float | None = Field(4.0, gt=1)
    """Training stops where the mean loss of 5 steps exceeds this many times (1 + that of the first 5); null: never."""


class SFTConfig(StepSettings):
    """Supervised fine-tuning on demonstrations (a pair's chosen and a desirable response also serve as one)."""

    learning_rate: float = Field(2e-4, gt=0)
    """Peak learning rate of AdamW."""


class RewardConfig(StepSettings):
    """The reward model: trained by Bradley–Terry on preference pairs, or one that exists (`model`)."""

    model: str | None = None
    """Sequence classifier with one label to take instead of training one: folder in Hugging Face format, or hub id."""
    revision: str | None = None
    """Hub branch, tag or commit of `model`; resolved to a commit before anything is cached."""
    chat_template: str | None = None
    """Jinja file or built-in name of the template that `model` reads; unset: its tokenizer's own."""

    centering: float = Field(0.01, ge=0)
    """Weight of (r_chosen + r_rejected)², which keeps the scores around zero (arXiv 2312.09244)."""


class SampleConfig(Settings):
    """Several responses to each prompt: the SFT model's, ranked in the run by `rank`; else people's to rank."""

    responses_per_prompt: int = Field(4, ge=2)
    """Responses sampled for each prompt."""
    max_prompts: int | None = Field(None, ge=1)
    """At most this many prompts; unset: all."""
    max_new_tokens: int = Field(256, ge=1)
    """Longest response in tokens."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature."""


class RankConfig(Settings):
    """Turn sampled responses into preference pairs by an evaluator that stands in for people."""

    by: dict[str, Any]
    """An installed evaluator by `name`, with its settings."""
    label_noise: float = Field(0.0, ge=0, lt=0.5)
    """Probability that a comparison is recorded the wrong way round, as people do."""


class EndpointConfig(Settings):
    """A judge behind an OpenAI-compatible address; it sees each two responses in both orders."""

    url: str
    """Address up to the version, e.g. http://localhost:8000/v1; `/chat/completions` is added."""
    model: str
    """Name of the model that judges."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the key, sent as a bearer token and never stored; where it is unset, none is sent."""
    timeout_seconds: float = Field(60, gt=0)
    """Longest wait for one answer."""
    retries: int = Field(4, ge=0)
    """Further tries after a time-out, a refusal for too many requests, or a fault of the server."""
    parallel: int = Field(4, ge=1)
    """Requests at a time."""
    instruction: str = (
        "Compare two responses of an assistant to the same conversation. Prefer the one that is more helpful, correct "
        "and harmless; length alone is no merit. Answer with one word: A, B, or TIE."
    )
    """What the judge is told; the conversation and the responses follow. It must ask for A, B or TIE."""


class LmEvalConfig(Settings):
    """Tasks of lm-eval, for the SFT model and the aligned one (`pip install "alignment-flows[lm-eval]"`)."""

    tasks: list[str] = Field(min_length=1)
    """Names of tasks, groups or tags, as `lm-eval ls tasks` shows them."""
    include_path: Path | None = None
    """Folder with tasks of one's own in lm-eval's YAML; null: lm-eval's alone."""
    limit: int | None = Field(None, ge=1)
    """At most this many documents of each task; null: all."""
    num_fewshot: int | None = Field(None, ge=0)
    """Examples in the prompt; null: as the task has it."""
    batch_size: int = Field(8, ge=1)
    """Requests in one forward pass. It changes no result."""


class EvaluationConfig(Settings):
    """What is measured on the held-out prompts, for the SFT model, the aligned one, and the one in production."""

    max_prompts: int = Field(64, ge=1)
    """At most this many held-out prompts are answered."""
    max_new_tokens: int = Field(128, ge=1)
    """Longest response in tokens."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature."""
    reward_model: bool = False
    """Score the responses by the reward model, training one if the optimizer needs none."""
    evaluators: list[dict[str, Any]] = Field(default_factory=list)
    """Installed evaluators by `name`, each with its settings; each also judges which of two responses is better."""
    judge_fraction: float | None = Field(None, gt=0, lt=1)
    """Share of the training prompts whose judgements train a second reward model that only judges; the optimizer and
    its own reward model learn from the others. Unset: there is no such judge."""
    endpoint: EndpointConfig | None = None
    """A judge behind an OpenAI-compatible address; null: none."""
    safety: SourceConfig | None = None
    """Prompts that every model answers besides, for `gate.max_safety_drop`; null: none."""
    lm_eval: LmEvalConfig | None = None
    """Tasks of lm-eval; null: none."""


class GateConfig(Settings):
    """What a model must show to become `candidate`; null switches a rule off."""

    judge: str | None = None
    """Whose verdicts count: `endpoint`, `judge` (the second reward model), an evaluator's name, or `reward`; unset: the
    first of these that there is."""
    win_rate_over_sft: Fraction | None = 0.5
    """The lower end of the win rate's 95 % interval against the SFT model must be above this."""
    win_rate_over_production: Fraction | None = 0.5
    """The same against the model that has the alias `production`, where there is one."""
    max_kl: float | None = Field(None, gt=0)
    """Highest KL from the reference, nats per response."""
    max_length_ratio: float | None = Field(None, gt=0)
    """Longest mean response, as a multiple of the SFT model's."""
    max_perplexity_ratio: float | None = Field(None, gt=0)
    """Highest perplexity on held-out demonstrations, as a multiple of the SFT model's (the alignment tax)."""
    max_safety_drop: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """By evaluator: how far its mean score on the safety prompts may be below that of the SFT model and of the model in
    production."""
    to_production: bool = False
    """A model that passes becomes `production` as well; otherwise `align promote` makes it that."""


class ChatConfig(Settings):
    """How the model in production answers on the page `align chat`."""

    max_new_tokens: int = Field(512, ge=1)
    """Longest answer in tokens."""
    temperature: float = Field(1.0, ge=0)
    """Sampling temperature; 0 always takes the likeliest token."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Smallest set of tokens whose probability reaches this; 1 keeps all."""
    system: str | None = None
    """System prompt of every conversation; null: none."""


class RetrainConfig(Settings):
    """The recurring retrain on the votes of the feedback store, by `align retrain`."""

    min_votes: int = Field(50, ge=1)
    """With fewer new votes than this nothing is done."""
    replay: float = Field(0.5, ge=0, lt=1)
    """Share of older data among the pairs and labelled responses that the optimizer learns from."""
    start: Literal["promoted", "sft"] = "promoted"
    """What the policy starts from, and is held to: the model in production, which has then seen the older votes, or the
    SFT model, which learns from all votes anew."""


class PipelineConfig(Settings):
    """A whole run, from raw records to an evaluated adapter."""

    name: str = Field("align", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run; it does not enter any cache key."""
    model: ModelConfig
    """The base model."""
    data: DataConfig
    """The feedback."""
    sft: SFTConfig | None = SFTConfig()
    """Supervised fine-tuning; null skips it (an instruct model)."""
    sample: SampleConfig | None = None
    """Sample responses for ranking, in a run with `rank`, else by `align sample`; null uses the data's own
    preferences."""
    rank: RankConfig | None = None
    """Rank the sampled responses; needs `sample`."""
    reward: RewardConfig = RewardConfig()
    """The reward model; trained only when something needs it and `reward.model` names none."""
    optimizer: dict[str, Any] = Field(default_factory=lambda: {"name": "dpo"})
    """`name` chooses the installed optimizer; the rest are its own settings."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Held-out evaluation."""
    gate: GateConfig | None = None
    """What decides whether the model becomes `candidate`; null: nothing does, and no alias changes."""
    retrain: RetrainConfig = RetrainConfig()
    """The recurring retrain on people's votes."""
    chat: ChatConfig = ChatConfig()
    """Answers on the page `align chat`."""
    listeners: list[dict[str, Any]] = Field(default_factory=list)
    """Installed listeners by `name`, each with its settings: told how every stage goes; no result depends on them."""
    store: Path = Path("./artifacts")
    """Folder of the artifact store."""
    feedback: str = "./feedback.db"
    """The feedback store: an SQLite file, or `postgresql://user:password@host/name`."""
    seed: int = 0
    """Seed of every random stream."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    token_budget: Literal["auto"] | Annotated[int, Field(ge=64)] = "auto"
    """Tokens (padding included) in one forward pass; `auto`: at most 4096, as memory allows. It changes no result."""
    gradient_checkpointing: Literal["auto"] | bool = "auto"
    """Recompute activations in backward instead of keeping them; `auto`: where memory would not suffice otherwise."""
    memory_gb: float | None = Field(None, gt=0)
    """GiB that a stage may be planned to take on its device; unset: 90 % of what is free when it starts."""
    isolation: Literal["process", "inline"] = "process"
    """Run each stage in a process of its own, or inside the flow's (tests)."""
    checkpoint_seconds: float = Field(120, gt=0)
    """At most this much work is lost when a stage is killed."""
