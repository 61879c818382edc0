"""Two answers and a verdict, in the columns of well-known data sets: HelpSteer3, PKU-SafeRLHF, arenas, Step-DPO."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from alignment_core.config import SourceConfig
from alignment_core.data.sources.formats.context import asked, first_of, first_pair_of
from alignment_core.data.sources.parsing import shapes
from alignment_core.data.sources.parsing.judgments import preference_pair
from alignment_core.records import Conversation
from alignment_core.records.columns import is_missing
from alignment_core.records.format import BadRow, Dropped, Fields, Outcome, Reading, RecordFormat


class HelpSteer(RecordFormat):
    """NVIDIA's preferences: from -3 (the first response is much better) to 3 (the second is much better)."""

    name: ClassVar[str] = "helpsteer_preference"
    shape: ClassVar[str] = "{context, response1, response2, overall_preference: -3…3}"
    unused: ClassVar[frozenset[str]] = frozenset({"individual_preference"})

    PROMPTS: ClassVar = ("context", "prompt")
    STRENGTHS: ClassVar = ("overall_preference", "preference_strength")

    def matches(self, row: Fields) -> bool:
        return all(first_of(row, names) for names in (self.PROMPTS, self.STRENGTHS)) and self._answers(row) is not None

    def read(self, row: Fields, origin: str, source: SourceConfig) -> Iterable[Outcome]:
        column, answers, question = first_of(row, self.STRENGTHS), self._answers(row), first_of(row, self.PROMPTS)
        assert column is not None
        assert answers is not None
        assert question is not None
        strength = shapes.number(row[column], column)
        if not strength:
            yield Dropped("no_label" if strength is None else "tie", origin)
            return
        first, second = (shapes.completion(row[name], name) for name in answers)
        better, worse = (first, second) if strength < 0 else (second, first)
        yield Reading(preference_pair(asked(row, question), better, worse, abs(strength), origin))

    def _answers(self, row: Fields) -> tuple[str, str] | None:
        return first_pair_of(row, (("response1", "response2"), ("response_1", "response_2")))


class SafeRLHF(RecordFormat):
    """PKU-SafeRLHF: the better of two responses by its number. `columns: {label: …}` names another verdict."""

    name: ClassVar[str] = "safe_rlhf"
    shape: ClassVar[str] = "{prompt, response_0, response_1, better_response_id: 0|1}"

    def matches(self, row: Fields) -> bool:
        return {"prompt", "response_0", "response_1", "better_response_id"} <= set(row)

    def read(self, row: Fields, origin: str, source: SourceConfig) -> Iterable[Outcome]:
        column = source.columns.get("label", "better_response_id")
        better = shapes.number(row.get(column), column)
        if better is None or better < 0:
            yield Dropped("no_label" if better is None else "tie", origin)
            return
        if better not in (0, 1):
            raise BadRow("bad_label", f"{column} is {row[column]!r}, expected 0 or 1")
        answers = [shapes.completion(row[name], name) for name in ("response_0", "response_1")]
        chosen, rejected = answers[int(better)], answers[1 - int(better)]
        yield Reading(preference_pair(asked(row, "prompt"), chosen, rejected, None, origin))


class Arena(RecordFormat):
    """Battles of two models, as LMSYS publishes them: two conversations, or a prompt and two answers, and a winner."""

    name: ClassVar[str] = "arena"
    shape: ClassVar[str] = (
        "{conversation_a, conversation_b, winner: model_a|model_b|tie} or {prompt, response_a, response_b, winner_…}"
    )

    WINS: ClassVar = ("winner_model_a", "winner_model_b")
    WORDS: ClassVar = {
        "model_a": 0,
        "a": 0,
        "response_a": 0,
        "left": 0,
        "model_b": 1,
        "b": 1,
        "response_b": 1,
        "right": 1,
    }
    SIDES: ClassVar = (("conversation_a", "conversation_b"), ("response_a", "response_b"), ("answer_a", "answer_b"))

    def matches(self, row: Fields) -> bool:
        return self._sides(row) is not None and ("winner" in row or set(self.WINS) <= set(row))

    def read(self, row: Fields, origin: str, source: SourceConfig) -> Iterable[Outcome]:
        winner = self._winner(row)
        if winner is None:
            yield Dropped("tie", origin)
            return
        names = self._sides(row)
        assert names is not None
        if names[0] == "conversation_a":
            whole = [shapes.conversation(shapes.loaded(row[name], "["), name) for name in names]
            prompt, first, second = shapes.common_prefix(*whole)
        else:
            prompt, first, second = self._answers(row, names)
        better, worse = (second, first) if winner else (first, second)
        voter = row.get("judge")
        yield Reading(preference_pair(prompt, better, worse, None, origin), str(voter) if voter else None)

    def _winner(self, row: Fields) -> int | None:
        """Return 0 or 1, or None for a tie."""
        if "winner" not in row:
            wins = [shapes.label(row[name], name) for name in self.WINS]
            if all(wins):
                raise BadRow("bad_label", "both models are marked as the winner")
            row.get("winner_tie")  # it repeats that neither won
            return wins.index(True) if any(wins) else None
        word = str(row["winner"] or "").strip().lower()
        if word.startswith("tie") or word in ("", "both_bad", "bothbad", "both bad", "neither"):
            return None
        if word not in self.WORDS:
            raise BadRow("bad_label", f"winner is {row['winner']!r}, expected model_a, model_b or tie")
        return self.WORDS[word]

    def _sides(self, row: Fields) -> tuple[str, str] | None:
        return first_pair_of(row, self.SIDES if "prompt" in row else self.SIDES[:1])

    def _answers(self, row: Fields, names: tuple[str, str]) -> tuple[Conversation, Conversation, Conversation]:
        """Return the prompt and the answers, which may each be JSON lists with one text per round."""
        questions, *sides = (shapes.loaded(row[name], "[") for name in ("prompt", *names))
        if not isinstance(questions, list) or shapes.is_messages(questions):
            first, second = (shapes.completion(side, name) for side, name in zip(sides, names, strict=True))
            return asked(row, "prompt"), first, second
        whole = []
        for side, name in zip(sides, names, strict=True):
            if not isinstance(side, list) or len(side) != len(questions):
                raise BadRow("bad_conversation", f"{name} does not have one answer to each text of prompt")
            rounds = zip(questions, side, strict=True)
            whole.append(
                tuple(
                    shapes.turn(role, text, name, "empty_turn")
                    for turns in rounds
                    for role, text in zip(("user", "assistant"), turns, strict=True)
                )
            )
        return shapes.common_prefix(*whole)


class StepDPO(RecordFormat):
    """Step-DPO: the right and the wrong next step after steps that are right. Both sides start with these steps."""

    name: ClassVar[str] = "step_dpo"
    shape: ClassVar[str] = "{prompt, initial_reason_steps, chosen, rejected}"
    unused: ClassVar[frozenset[str]] = frozenset({"full_chosen", "full_rejected", "answer"})

    def matches(self, row: Fields) -> bool:
        return {"prompt", "initial_reason_steps", "chosen", "rejected"} <= set(row)

    def read(self, row: Fields, origin: str, source: SourceConfig) -> Iterable[Outcome]:
        begun = row["initial_reason_steps"]
        steps = "" if is_missing(begun) else shapes.text(begun, "initial_reason_steps", "empty_turn")
        sides = []
        for name in ("chosen", "rejected"):
            step = shapes.text(row[name], name, "empty_completion")
            gap = "" if not steps or steps[-1].isspace() or step[0].isspace() else "\n"
            sides.append(shapes.completion(f"{steps}{gap}{step}", name))
        yield Reading(preference_pair(asked(row, "prompt"), sides[0], sides[1], None, origin))
