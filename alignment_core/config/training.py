"""Training: optimizer steps, SFT and the reward model."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from alignment_core.config.base import Fraction, Moments, Settings
from alignment_core.config.places import Place

REWARD_MODEL = "reward_model"
"""The judge that is the reward model, in `reward.by` and in the names of metrics."""


class StepSettings(Settings):
    """Settings of the optimizer steps, shared by every stage that trains."""

    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate of AdamW."""
    batch_size: int = Field(32, ge=1)
    """Rows per optimizer step. Memory does not depend on it."""
    epochs: int = Field(1, ge=1, le=100_000)
    """Passes over the rows."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate after the warmup: `cosine` decays to 10 % of the peak, `linear` decays to 0, `constant` stays."""
    warmup_fraction: Fraction = 0.1
    """Share of the steps in which the learning rate rises linearly from 0 to its peak."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay."""
    adamw: Moments = "32bit"
    """Precision of AdamW's two moments. `paged_8bit` (bitsandbytes) saves 6 bytes per trained weight and pages moments
    that do not fit on the GPU to RAM."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradient clipping: the gradients of each trained role are scaled down to at most this Euclidean norm."""
    max_loss_growth: float | None = Field(4.0, gt=1)
    """Stop the training as diverged if the mean loss of the last 5 steps exceeds this factor times (1 + the mean of the
    first 5). Null: never."""


class SFTConfig(StepSettings):
    """Supervised fine-tuning on demonstrations. Chosen responses of pairs and thumbs-up responses also count."""

    learning_rate: float = Field(2e-4, gt=0)
    """Peak learning rate of AdamW."""


class RewardConfig(StepSettings):
    """The reward of responses, and the reward model: trained with the Bradley–Terry loss, or an existing one."""

    model: Place | None = None
    """Existing reward model: a sequence classifier with one label, as a folder in Hugging Face format or a Hub id.
    Unset: a reward model is trained."""
    revision: str | None = None
    """Branch, tag or commit of `model` on the Hub. Resolved to a commit before anything is cached. Unset: the default
    branch."""
    trust_remote_code: SkipJsonSchema[bool] = False
    """Run the code (`*.py`) that `model` brings along, as `model.trust_remote_code` does for the base model."""
    chat_template: Place | None = None
    """Chat template for `model`: a Jinja file or the name of a built-in template. Unset: the template of its
    tokenizer."""

    by: list[dict[str, Any]] = Field(default_factory=lambda: [{"name": REWARD_MODEL}], min_length=1)
    """What rewards the responses that an optimizer samples: `reward_model`, installed evaluators, or several of them.
    Each is given as `name` and its settings, with a `weight` (1 if unset). The reward is the weighted sum. A reward
    model is trained only if it is among them."""
    normalise: bool = True
    """Measure rewards as deviations from the mean of the first rollout, in units of its standard deviation. The
    starting model samples that rollout, so `kl_coef` means the same for every reward."""
    clip: float | None = Field(None, gt=0)
    """Rewards are clipped to ± this, after normalization. Unset: not clipped."""

    centering: float = Field(0.01, ge=0)
    """Weight of the term (r_chosen + r_rejected)², which keeps the scores centered at zero (arXiv 2312.09244)."""
