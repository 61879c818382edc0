"""The page `align chat`: a conversation with the production model, with thumbs for its answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from nicegui import app, background_tasks, run, ui

from alignment_core.config import ChatConfig
from alignment_core.errors import AlignmentError
from alignment_core.feedback.pages import web
from alignment_core.feedback.pages.chat_model import ChatModel
from alignment_core.feedback.store import FeedbackStore
from alignment_core.feedback.votes import Rater, Response

Turn = dict[str, Any]


def chat_page(model: ChatModel, store: FeedbackStore, settings: ChatConfig) -> Callable[[], None]:
    """Return a function that builds the page for each visitor."""

    def page() -> None:
        if web.visitor():
            _Chat(model, store, settings)
        else:
            web.ask_for_name()

    return page


class _Chat:
    """One visitor's conversation. It is stored per visitor and survives a reload and a restart.

    An assistant turn also holds `model`, the key of the model that wrote it, and the visitor's vote as `up` and
    `comment`.
    """

    def __init__(self, model: ChatModel, store: FeedbackStore, settings: ChatConfig) -> None:
        self._model, self._store, self._settings = model, store, settings
        self._client = ui.context.client
        self._rater = Rater(web.visitor())
        app.storage.user.setdefault("turns", [])
        self._turns: list[Turn] = app.storage.user["turns"]
        self._answering: asyncio.Task[None] | None = None
        with ui.header().classes("items-center justify-between"):
            self._name = ui.label(model.label).props('data-testid="model"')
            ui.button("New conversation", on_click=self._start_anew).props("flat color=white no-caps")
        self._list = ui.column().classes("page gap-2 pb-4")
        with ui.footer().classes("bg-white dark:bg-black"), ui.row().classes("page items-end no-wrap"):
            self._input = ui.textarea(placeholder="Your message").props("autogrow outlined dense rows=1")
            self._input.props('aria-label="Your message" autofocus').classes("grow")
            self._send_button = ui.button(icon="send").props('aria-label="Send"')
            web.on_submit(self._input, self._send, self._send_button)
            self._stop_button = ui.button(icon="stop", on_click=self._stop).props('aria-label="Stop" color=negative')
        self._idle()
        for place in range(len(self._turns)):
            self._show(place)
        self._offer_answer()
        ui.timer(5.0, self._look_for_promotion)

    # --- input ----------------------------------------------------------------------------------------------------

    def _send(self, text: str) -> None:
        text = text.strip()
        if not text:
            return
        if self._answering is not None:
            ui.notify("Wait for the answer, or stop it. Your message was not sent yet.", timeout=4000)
            return
        self._input.value = ""
        self._turns.append({"role": "user", "content": text})
        self._show(len(self._turns) - 1)
        self._answer()

    def _stop(self) -> None:
        if self._answering is not None:
            self._answering.cancel()

    def _start_anew(self) -> None:
        self._stop()
        self._turns.clear()
        self._list.clear()

    def _answer(self) -> None:
        self._answering = background_tasks.create(self._stream_answer())
        self._send_button.visible, self._stop_button.visible = False, True

    def _idle(self) -> None:
        self._answering = None
        self._send_button.visible, self._stop_button.visible = True, False

    async def _stream_answer(self) -> None:
        """Show an answer while it is generated. A stopped answer is kept."""
        with self._list, ui.card().classes("w-full") as card:
            label = ui.label("…").classes("words")
        text = model = ""
        try:
            async with aclosing(self._model.answer(self._messages())) as answer:
                async for partial in answer:
                    text, model = partial.text, partial.model
                    label.text = text
                    self._to_end()
        except asyncio.CancelledError:
            pass  # the visitor pressed stop
        except AlignmentError as error:
            with self._list:
                ui.notify(str(error), type="negative", timeout=0, close_button=True, multi_line=True)
        card.delete()
        if text.strip() and self._turns:  # a new conversation may have started meanwhile
            self._turns.append({"role": "assistant", "content": text, "model": model})
            self._show(len(self._turns) - 1)
        self._name.text = self._model.label
        self._idle()
        self._offer_answer()

    def _messages(self) -> list[Turn]:
        system = [{"role": "system", "content": self._settings.system}] if self._settings.system else []
        return [*system, *({"role": turn["role"], "content": turn["content"]} for turn in self._turns)]

    async def _vote(self, place: int, up: bool | None, comment: str) -> None:
        turn = self._turns[place]
        prompt = tuple(self._messages()[: place + (1 if self._settings.system else 0)])

        def save() -> None:
            response: Response = self._store.add_response(prompt, turn["content"], turn["model"])
            self._store.thumb(self._rater, response, up, comment)

        try:
            await run.io_bound(save)
        except AlignmentError as error:
            ui.notify(str(error), type="negative", timeout=0, close_button=True, multi_line=True)
            return
        turn["up"], turn["comment"] = up, comment

    # --- display --------------------------------------------------------------------------------------------------

    def _show(self, place: int) -> None:
        turn = self._turns[place]
        with self._list:
            if turn["role"] == "user":
                with ui.card().classes("self-end bg-blue-1 dark:bg-blue-10"):
                    ui.label(turn["content"]).classes("words").props('data-testid="question"')
            else:
                with ui.card().classes("w-full gap-1"):
                    ui.label(turn["content"]).classes("words").props('data-testid="answer"')
                    self._show_thumbs(place)
        self._to_end()

    def _show_thumbs(self, place: int) -> None:
        turn = self._turns[place]

        @ui.refreshable
        def thumbs() -> None:
            async def press(up: bool) -> None:
                await self._vote(place, None if turn.get("up") is up else up, turn.get("comment", ""))
                thumbs.refresh()

            async def save_comment(comment: str) -> None:
                await self._vote(place, turn.get("up"), comment)
                ui.notify("Comment saved.", type="positive", timeout=1500)

            with ui.row().classes("items-center w-full"):
                for icon, up, name in (("thumb_up", True, "Good answer"), ("thumb_down", False, "Bad answer")):
                    pressed = turn.get("up") is up
                    button = ui.button(icon=icon, on_click=lambda up=up: press(up))
                    button.props(f'flat round dense aria-label="{name}" aria-pressed="{str(pressed).lower()}"')
                    button.props("color=primary" if pressed else "color=grey")
                if turn.get("up") is not None:
                    comment = ui.input(placeholder="What was good or bad? (optional)", value=turn.get("comment", ""))
                    web.on_submit(comment.props('dense aria-label="Comment"').classes("grow"), save_comment)

        thumbs()

    def _offer_answer(self) -> None:
        """Offer to answer the last message if it has no answer, after a restart or an error."""
        if not self._turns or self._turns[-1]["role"] != "user" or self._answering is not None:
            return

        def again() -> None:
            offer.delete()
            self._answer()

        with self._list:
            offer = ui.button("Retry", icon="refresh", on_click=again).props("flat no-caps")

    def _look_for_promotion(self) -> None:
        try:
            self._model.refresh()
        except AlignmentError:
            return  # the next answer reports the error
        self._name.text = self._model.label

    def _to_end(self) -> None:
        self._client.run_javascript("window.scrollTo(0, document.body.scrollHeight)")
