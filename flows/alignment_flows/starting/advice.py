"""Recommend an optimizer by what the data are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from alignment_core.errors import ConfigError
from alignment_flows.starting.answers import Answers

Goal = Literal["prefer", "solve", "imitate"]
GOALS: dict[Goal, str] = {
    "prefer": "answer as people prefer",
    "solve": "give right answers, which a rule checks",
    "imitate": "answer like the demonstrations",
}


@dataclass(frozen=True)
class Contents:
    """What a source of feedback holds: rows of each kind as they are in the files, without what is converted.

    Attributes:
        pairs, labels, demonstrations, prompts: number of rows of each kind.
        comparisons: pairs to train with, those converted from labels included.
        liked, disliked: labels of each class that are learned from, those converted from pairs included.
        conversations: prompts with everything that belongs to them, by which data are split.
        answers: the column with the right answers, if there is one.
    """

    pairs: int
    labels: int
    demonstrations: int
    prompts: int
    comparisons: int
    liked: int
    disliked: int
    conversations: int
    answers: Answers | None = None

    @classmethod
    def of(cls, report: Mapping[str, Any], answers: Answers | None) -> "Contents":
        """Return the contents by a data report."""

        def given(kind: str) -> int:
            return sum(counts.get(f"{kind} given", 0) for counts in report["conversions"].values())

        return cls(
            pairs=given("preferences"),
            labels=given("feedback"),
            demonstrations=given("demonstrations"),
            prompts=given("prompts"),
            comparisons=report["rows"]["train"]["preferences"],
            liked=report["balance"]["desirable"],
            disliked=report["balance"]["undesirable"],
            conversations=sum(counts["prompts"] for counts in report["rows"].values()),
            answers=answers,
        )

    def in_words(self) -> str:
        """Return the counts of the kinds that there are."""
        labels = f"{self.labels:,} answers with a thumb or rating ({self.good_share():.0f} % good)"
        kinds = {
            f"{self.pairs:,} pairs of a better and a worse answer": self.pairs,
            labels: self.labels,
            f"{self.demonstrations:,} demonstrations": self.demonstrations,
            f"{self.prompts:,} prompts without an answer": self.prompts,
        }
        return ", ".join(words for words, count in kinds.items() if count) or "nothing that can be used"

    def good_share(self) -> float:
        """Return the share of the labels that are good, in percent."""
        return 100 * self.liked / max(1, self.liked + self.disliked)


@dataclass(frozen=True)
class Advice:
    """What learns from the data.

    Attributes:
        optimizer: name of the optimizer.
        goal: what the model learns.
        because: why, in a sentence or two.
        sft: whether the model learns the demonstrations first.
        reward: the evaluators that reward answers, with their settings; empty if no reward is needed.
        first: what has to be done before the first run; empty if nothing.
        keep: columns that the reward reads.
    """

    optimizer: str
    goal: Goal
    because: str
    sft: bool = False
    reward: tuple[Mapping[str, Any], ...] = ()
    first: str = ""
    keep: tuple[str, ...] = ()


JUDGE: Mapping[str, Any] = {"name": "llm_judge", "url": "http://localhost:8000/v1", "model": "qwen3"}
NEEDS_A_JUDGE = (
    "The reward is the grade of a language model: enter its address and name under `reward.by`. Without "
    "one, let people judge instead: `align sample` and `align rank` collect their votes, from which KTO or DPO learns"
)


def recommend(contents: Contents, goal: Goal | None, *, instruct: bool) -> Advice:
    """Recommend an optimizer.

    Args:
        contents: what the data hold.
        goal: what the model shall learn. None: what the data are best for.
        instruct: whether the base model already follows instructions.

    Raises:
        ConfigError: the data do not serve the goal.
    """
    goal = goal or _goal_of(contents)
    if goal == "prefer":
        return _prefer(contents, instruct=instruct)
    return _solve(contents, instruct=instruct) if goal == "solve" else _imitate(contents)


def _goal_of(contents: Contents) -> Goal:
    if contents.pairs or contents.labels:
        return "prefer"
    return "solve" if contents.answers is not None or not contents.demonstrations else "imitate"


def _prefer(contents: Contents, *, instruct: bool) -> Advice:
    sft = not instruct
    if contents.pairs and contents.pairs >= contents.labels:
        because = (
            f"your data are pairs of a better and a worse answer ({contents.pairs:,}). DPO learns from them directly: "
            "one classification loss, stable and fast, no reward model"
        )
        return Advice("dpo", "prefer", because, sft)
    if not contents.labels:
        raise _unserved("prefer", contents, "pairs, rankings, thumbs or ratings")
    if not contents.liked or not contents.disliked:
        raise _unserved("prefer", contents, "good and bad answers: a model cannot learn what is better from one class")
    because = (
        f"your data are single answers marked good or bad ({contents.labels:,}, {contents.good_share():.0f} % good). "
        "KTO needs no pairs, balances unequal classes and tolerates noisy labels"
    )
    return Advice("kto", "prefer", because, sft)


def _solve(contents: Contents, *, instruct: bool) -> Advice:
    answers, sft = contents.answers, bool(contents.demonstrations) and not instruct
    if not contents.conversations:
        raise _unserved("solve", contents, "prompts")
    if answers is None:
        because = (
            "your data are prompts without right answers that a rule could check, so a judge must grade the model's "
            "answers. GRPO compares several answers to each prompt and needs no reward model and no value model"
        )
        return Advice("grpo", "solve", because, sft, (JUDGE,), NEEDS_A_JUDGE)
    because = (
        f"your prompts have right answers in the column `{answers.column}`, so the rule `{answers.rule}` is the "
        "reward. GRPO compares several answers to each prompt and needs no reward model, no value model and no votes"
    )
    rule = {"name": answers.rule, "fact": answers.column}
    return Advice("grpo", "solve", because, sft, (rule,), keep=(answers.column,))


def _imitate(contents: Contents) -> Advice:
    if not contents.demonstrations:
        raise _unserved("imitate", contents, "demonstrations")
    because = (
        f"your data are demonstrations only ({contents.demonstrations:,}). SFT imitates them. They do not say what "
        "would be better, so for GRPO, which continues from there, a judge must grade answers"
    )
    return Advice("grpo", "imitate", because, True, (JUDGE,), NEEDS_A_JUDGE)


def _unserved(goal: Goal, contents: Contents, expected: str) -> ConfigError:
    return ConfigError(
        f"the data do not show how to {GOALS[goal]}",
        where="--goal",
        got=contents.in_words(),
        expected=expected,
        do="Add such data, or choose another goal",
    )
