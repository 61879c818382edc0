"""The page `align chat`: conversations with a model, or with two side by side, with votes on their answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing, suppress
from typing import Any

from nicegui import app, background_tasks, run, ui

from alignment_core.config import ChatConfig
from alignment_core.errors import AlignmentError
from alignment_core.feedback.pages import parts, web
from alignment_core.feedback.pages.chat_models import ChatModels
from alignment_core.feedback.pages.chat_panel import Panel
from alignment_core.feedback.pages.chat_talk import RANKS, Talk
from alignment_core.feedback.pages.chat_turn import TurnView
from alignment_core.feedback.pages.visitor import ask_for_name, name_button, visitor
from alignment_core.feedback.store import FeedbackStore
from alignment_core.feedback.votes import Rater

TO_END = """
const far = document.documentElement.scrollHeight - window.innerHeight - window.scrollY;
if (FORCED || far < 240) window.scrollTo(0, document.documentElement.scrollHeight);
"""
"""Scroll to the end, unless the visitor has scrolled up to read."""
HINT = "Ask the model something. The next model learns from your thumbs, and from your choices between two answers."


def chat_page(
    models: ChatModels, store: FeedbackStore, settings: ChatConfig, end: web.EndButton | None = None
) -> Callable[[], None]:
    """Return a function that builds the page for each visitor.

    Args:
        models: the models that visitors can choose.
        store: where the votes go.
        settings: the chat settings.
        end: a button that ends the page, or None.
    """

    def page() -> None:
        if visitor():
            _Chat(models, store, settings, end)
        else:
            ask_for_name()

    return page


class _Chat:
    """One visitor's conversations. They are stored per visitor, and survive a reload and a restart."""

    def __init__(
        self, models: ChatModels, store: FeedbackStore, settings: ChatConfig, end: web.EndButton | None
    ) -> None:
        self._models, self._store, self._system = models, store, settings.system
        self._client, self._rater = ui.context.client, Rater(visitor())
        self._panel = Panel(models, app.storage.user, self._open, self._show_names)
        self._answering: dict[int, asyncio.Task[None]] = {}
        self._views: list[TurnView] = []
        with ui.header(), ui.row().classes("page wide items-center no-wrap gap-2"):
            parts.button(press=self._panel.toggle, icon="menu", label="Conversations and models")
            parts.title("Chat").classes("gt-xs")
            self._names = ui.row().classes("grow gap-x-3 gap-y-0 muted")
            parts.button(press=self._panel.start_anew, icon="add_comment", label="New conversation")
            name_button()
            if end is not None:
                end.show()
        self._list = ui.column().classes("page wide gap-3 pb-4").props("role=main")
        with ui.footer(), ui.row().classes("page items-end no-wrap gap-2"):
            self._input = ui.textarea(placeholder="Your message").props("autogrow outlined dense rows=1")
            self._input.props('aria-label="Your message" autofocus').classes("grow")
            self._send_button = parts.button(icon="send", kind="main", label="Send")
            web.on_submit(self._input, self._send, self._send_button)
            self._stop_button = parts.button(press=self._stop, icon="stop", kind="stop", label="Stop")
        self._status = ui.label().classes("hidden-text").props("role=status")
        self._panel.show()
        ui.timer(5.0, self._look_for_promotion)

    # --- input ----------------------------------------------------------------------------------------------------

    def _open(self, talk: Talk) -> None:
        """Show a conversation. An answer that is being generated is stopped and kept."""
        self._stop()
        self._talk, self._answering = talk, {}
        self._list.clear()
        with self._list:
            self._hint = ui.label(HINT).classes("muted")
            self._hint.visible = not talk.turns
            self._views = [self._view(place) for place in range(len(talk.turns))]
        self._show_names()
        self._refresh()
        self._to_end(forced=True)

    def _send(self, text: str) -> None:
        text = text.strip()
        if not text:
            return
        if self._answering:
            ui.notify("Wait for the answer, or stop it. Your message was not sent yet.", timeout=4000)
            return
        if self._views and self._views[-1].editing:
            ui.notify("Save or cancel your edit first. Your message was not sent yet.", timeout=4000)
            return
        self._input.value = ""
        self._hint.visible = False
        self._talk.ask(text, self._panel.order())
        with self._list:
            self._views.append(self._view(len(self._talk.turns) - 1))
        if len(self._views) > 1:
            self._views[-2].show()  # what was the last turn can be compared no more
        self._panel.keep()
        self._to_end(forced=True)
        self._answer()

    def _stop(self) -> None:
        for task in self._answering.values():
            task.cancel()

    def _regenerate(self) -> None:
        self._talk.regenerate()
        self._views[-1].show()
        self._answer()

    # --- answers --------------------------------------------------------------------------------------------------

    def _answer(self) -> None:
        """Fill the open slots of the last turn."""
        for slot in self._talk.open_slots():
            stream = self._stream(self._talk, self._views[-1], len(self._talk.turns) - 1, slot)
            self._answering[slot] = background_tasks.create(stream)
        self._refresh()

    async def _stream(self, talk: Talk, view: TurnView, place: int, slot: int) -> None:
        """Show an answer while it is generated. A stopped answer is kept."""
        turn, text, key, label = talk.turns[place], "", "", ""
        try:
            await self._models.make_room([one["model"] for one in turn["slots"] if one["answer"] is None])
            model = self._models.get(turn["slots"][slot]["model"])
            messages = talk.messages(place, self._system)
            async with aclosing(model.answer(messages, lambda reason: view.wait(slot, reason))) as answer:
                async for partial in answer:
                    text, key, label = partial.text, partial.model, model.label
                    view.stream(slot, text)
                    self._to_end()
        except asyncio.CancelledError:
            pass  # the visitor pressed stop, or opened another conversation
        except AlignmentError as error:
            with self._list:
                _complain(error)
        if text.strip():
            talk.answer(place, slot, text, key=key, label=label)
        if talk is not self._talk:
            return
        self._answering.pop(slot, None)
        self._status.text = "The answer is complete." if text.strip() else "There is no answer."
        if not self._answering:
            self._give_up_empty()
        self._show_names()
        self._refresh()
        self._to_end()

    def _give_up_empty(self) -> None:
        """Show one answer alone if another one, asked for in addition to it, failed."""
        turn = self._talk.turns[-1]
        if any(one["answer"] is not None and not one["model"] for one in turn["slots"]):
            for slot in self._talk.open_slots():
                self._talk.give_up(slot)

    # --- votes ----------------------------------------------------------------------------------------------------

    async def _thumb(self, place: int, number: int, up: bool | None, comment: str) -> bool:
        answer, prompt = self._talk.turns[place]["answers"][number], self._prompt(place)

        def save() -> None:
            response = self._store.add_response(prompt, answer["content"], answer["key"])
            self._store.thumb(self._rater, response, up, comment)

        if saved := await _saved(save):
            answer["up"], answer["comment"] = up, comment
        return saved

    async def _vote(self, vote: str) -> None:
        """Note which of the two answers of the last turn is better, and save it as a comparison.

        It is noted first, so that a message that is sent while it is saved follows the chosen answer.
        """
        place = len(self._talk.turns) - 1
        turn, prompt = self._talk.turns[place], self._prompt(place)
        found = [turn["answers"][slot["answer"]] for slot in turn["slots"]]
        answers = [(one["content"], one["key"]) for one in found]
        self._talk.choose(vote)
        self._refresh()
        if not await _saved(lambda: self._store.compare(self._rater, prompt, answers, RANKS[vote])):
            turn["vote"] = None
            self._refresh()

    async def _edit(self, slot: int, text: str) -> None:
        """Let the conversation go on with an edited answer, and save it as better than the original."""
        place = len(self._talk.turns) - 1
        turn, prompt = self._talk.turns[place], self._prompt(place)
        answer = turn["answers"][turn["slots"][slot]["answer"]]
        if text.strip() not in ("", answer["content"].strip()):
            original = [(answer["content"], answer["key"])]
            self._talk.edit(slot, text.strip())
            self._refresh()
            await _saved(lambda: self._store.compare(self._rater, prompt, original, (1,), edited=text))
        else:
            self._refresh()

    def _prompt(self, place: int) -> tuple[dict[str, Any], ...]:
        return tuple(self._talk.messages(place, self._system))

    # --- display --------------------------------------------------------------------------------------------------

    def _view(self, place: int) -> TurnView:
        return TurnView(
            self._talk, place, thumb=self._thumb, vote=self._vote, edit=self._edit, regenerate=self._regenerate,
            retry=self._answer, busy=lambda: bool(self._answering),
        )  # fmt: skip

    def _refresh(self) -> None:
        """Show the last turn, and the button that fits."""
        busy = bool(self._answering)
        self._send_button.visible, self._stop_button.visible = not busy, busy
        if self._views:
            self._views[-1].show()

    def _look_for_promotion(self) -> None:
        for reference in self._talk.models:
            with suppress(AlignmentError):  # the next answer reports the error
                self._models.get(reference).refresh()
        self._show_names()

    def _show_names(self) -> None:
        found = []
        for reference in self._talk.models:
            with suppress(AlignmentError):
                found.append(self._models.get(reference).label)
        if found == [label.text for label in self._names.default_slot.children if isinstance(label, ui.label)]:
            return
        self._names.clear()
        with self._names:
            for name in found:
                ui.label(name).props('data-testid="model"')

    def _to_end(self, *, forced: bool = False) -> None:
        self._client.run_javascript(TO_END.replace("FORCED", str(forced).lower()))


def _complain(error: AlignmentError) -> None:
    ui.notify(str(error), type="negative", timeout=0, close_button=True, multi_line=True)


async def _saved(save: Callable[[], object]) -> bool:
    """Save a vote in a thread, since the database may wait for a writer. Return whether it was saved."""
    try:
        await run.io_bound(save)
    except AlignmentError as error:
        _complain(error)
        return False
    return True
