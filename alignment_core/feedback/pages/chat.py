"""The page `align chat`: a conversation with a model, or with two side by side, with thumbs for their answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from typing import Any

from nicegui import app, background_tasks, run, ui

from alignment_core.config import ChatConfig
from alignment_core.errors import AlignmentError
from alignment_core.feedback.pages import web
from alignment_core.feedback.pages.chat_model import ChatModel
from alignment_core.feedback.store import FeedbackStore
from alignment_core.feedback.votes import Rater, Response

Turn = dict[str, Any]


def chat_page(
    models: Sequence[ChatModel], store: FeedbackStore, settings: ChatConfig, end: web.EndButton | None = None
) -> Callable[[], None]:
    """Return a function that builds the page for each visitor.

    Args:
        models: the models that answer each message, from left to right.
        store: where the thumbs go.
        settings: the chat settings.
        end: a button that ends the page, or None.
    """

    def page() -> None:
        if web.visitor():
            _Chat(models, store, settings, end)
        else:
            web.ask_for_name()

    return page


class _Chat:
    """One visitor's conversation. It is stored per visitor and models, and survives a reload and a restart.

    A turn is a question and its answers by the reference of the model. An answer also holds `model`, the key of the
    model that wrote it, and the visitor's vote as `up` and `comment`. Each model sees only its own answers.
    """

    def __init__(
        self, models: Sequence[ChatModel], store: FeedbackStore, settings: ChatConfig, end: web.EndButton | None
    ) -> None:
        self._models, self._store, self._settings = models, store, settings
        self._client = ui.context.client
        self._rater = Rater(web.visitor())
        conversation = " beside ".join(model.reference for model in models)
        self._turns: list[Turn] = app.storage.user.setdefault("turns", {}).setdefault(conversation, [])
        self._answering: dict[str, asyncio.Task[None]] = {}
        self._rows: list[ui.row] = []
        self._width = "page wide" if len(models) > 1 else "page"
        with ui.header().classes("justify-center"), ui.row().classes(f"{self._width} items-center no-wrap gap-2"):
            self._names = [ui.label(one.label).classes("grow basis-0").props('data-testid="model"') for one in models]
            ui.button("New conversation", on_click=self._start_anew).props("flat color=white no-caps")
            if end is not None:
                end.show()
        self._list = ui.column().classes(f"{self._width} gap-2 pb-4")
        with ui.footer().classes("bg-white dark:bg-black"), ui.row().classes("page items-end no-wrap"):
            self._input = ui.textarea(placeholder="Your message").props("autogrow outlined dense rows=1")
            self._input.props('aria-label="Your message" autofocus').classes("grow")
            self._send_button = ui.button(icon="send").props('aria-label="Send"')
            web.on_submit(self._input, self._send, self._send_button)
            self._stop_button = ui.button(icon="stop", on_click=self._stop).props('aria-label="Stop" color=negative')
        self._show_buttons()
        for turn in self._turns:
            self._show(turn)
        self._offer_answer()
        ui.timer(5.0, self._look_for_promotion)

    # --- input ----------------------------------------------------------------------------------------------------

    def _send(self, text: str) -> None:
        text = text.strip()
        if not text:
            return
        if self._answering:
            ui.notify("Wait for the answer, or stop it. Your message was not sent yet.", timeout=4000)
            return
        self._input.value = ""
        self._turns.append({"question": text, "answers": {}})
        self._show(self._turns[-1])
        self._answer()

    def _stop(self) -> None:
        for task in self._answering.values():
            task.cancel()

    def _start_anew(self) -> None:
        self._stop()
        self._turns.clear()
        self._rows.clear()
        self._list.clear()

    def _answer(self) -> None:
        """Let every model answer the last message that has not answered it."""
        place = len(self._turns) - 1
        for model in self._models:
            if model.reference not in self._turns[place]["answers"]:
                self._answering[model.reference] = background_tasks.create(self._stream_answer(model, place))
        self._show_buttons()

    def _show_buttons(self) -> None:
        self._send_button.visible, self._stop_button.visible = not self._answering, bool(self._answering)

    async def _stream_answer(self, model: ChatModel, place: int) -> None:
        """Show an answer while it is generated. A stopped answer is kept."""
        turn, cell = self._turns[place], self._cell(place, model)
        with cell, ui.card().classes("w-full"):
            label = ui.label("…").classes("words")
        text = key = ""
        try:
            async with aclosing(model.answer(self._messages(model, place))) as answer:
                async for partial in answer:
                    text, key = partial.text, partial.model
                    label.text = text
                    self._to_end()
        except asyncio.CancelledError:
            pass  # the visitor pressed stop
        except AlignmentError as error:
            with self._list:
                ui.notify(str(error), type="negative", timeout=0, close_button=True, multi_line=True)
        cell.clear()
        if text.strip() and any(turn is one for one in self._turns):  # a new conversation may have started meanwhile
            turn["answers"][model.reference] = {"content": text, "model": key}
            self._show_answer(place, model)
        self._show_names()
        del self._answering[model.reference]
        self._show_buttons()
        self._offer_answer()

    def _messages(self, model: ChatModel, place: int) -> list[Turn]:
        """Return the conversation with a model up to the question at `place`."""
        messages = [{"role": "system", "content": self._settings.system}] if self._settings.system else []
        for turn in self._turns[:place]:
            messages.append({"role": "user", "content": turn["question"]})
            if (answer := turn["answers"].get(model.reference)) is not None:
                messages.append({"role": "assistant", "content": answer["content"]})
        return [*messages, {"role": "user", "content": self._turns[place]["question"]}]

    async def _vote(self, place: int, model: ChatModel, up: bool | None, comment: str) -> None:
        answer = self._turns[place]["answers"][model.reference]
        prompt = tuple(self._messages(model, place))

        def save() -> None:
            response: Response = self._store.add_response(prompt, answer["content"], answer["model"])
            self._store.thumb(self._rater, response, up, comment)

        try:
            await run.io_bound(save)
        except AlignmentError as error:
            ui.notify(str(error), type="negative", timeout=0, close_button=True, multi_line=True)
            return
        answer["up"], answer["comment"] = up, comment

    # --- display --------------------------------------------------------------------------------------------------

    def _show(self, turn: Turn) -> None:
        """Show a question, and its answers beside each other."""
        with self._list:
            with ui.card().classes("self-end bg-blue-1 dark:bg-blue-10"):
                ui.label(turn["question"]).classes("words").props('data-testid="question"')
            with ui.row().classes("w-full gap-2 items-start") as row:
                for _ in self._models:
                    ui.column().classes("answer gap-0")
        self._rows.append(row)
        place = len(self._rows) - 1
        for model in self._models:
            if model.reference in turn["answers"]:
                self._show_answer(place, model)
        self._to_end()

    def _cell(self, place: int, model: ChatModel) -> ui.element:
        """Return the place of a model's answer on the page."""
        columns: list[ui.element] = list(self._rows[place].default_slot.children)
        return columns[self._models.index(model)]

    def _show_answer(self, place: int, model: ChatModel) -> None:
        answer = self._turns[place]["answers"][model.reference]
        with self._cell(place, model), ui.card().classes("w-full gap-1"):
            ui.label(answer["content"]).classes("words").props('data-testid="answer"')
            self._show_thumbs(place, model)
        self._to_end()

    def _show_thumbs(self, place: int, model: ChatModel) -> None:
        answer = self._turns[place]["answers"][model.reference]

        @ui.refreshable
        def thumbs() -> None:
            async def press(up: bool) -> None:
                await self._vote(place, model, None if answer.get("up") is up else up, answer.get("comment", ""))
                thumbs.refresh()

            async def save_comment(comment: str) -> None:
                await self._vote(place, model, answer.get("up"), comment)
                ui.notify("Comment saved.", type="positive", timeout=1500)

            with ui.row().classes("items-center w-full"):
                for icon, up, name in (("thumb_up", True, "Good answer"), ("thumb_down", False, "Bad answer")):
                    pressed = answer.get("up") is up
                    button = ui.button(icon=icon, on_click=lambda up=up: press(up))
                    button.props(f'flat round dense aria-label="{name}" aria-pressed="{str(pressed).lower()}"')
                    button.props("color=primary" if pressed else "color=grey")
                if answer.get("up") is not None:
                    comment = ui.input(placeholder="What was good or bad? (optional)", value=answer.get("comment", ""))
                    web.on_submit(comment.props('dense aria-label="Comment"').classes("grow"), save_comment)

        thumbs()

    def _offer_answer(self) -> None:
        """Offer to answer the last message if an answer is missing, after a restart or an error."""
        if not self._turns or len(self._turns[-1]["answers"]) == len(self._models) or self._answering:
            return

        def again() -> None:
            offer.delete()
            self._answer()

        with self._list:
            offer = ui.button("Retry", icon="refresh", on_click=again).props("flat no-caps")

    def _look_for_promotion(self) -> None:
        for model in self._models:
            with suppress(AlignmentError):  # the next answer reports the error
                model.refresh()
        self._show_names()

    def _show_names(self) -> None:
        for label, model in zip(self._names, self._models, strict=True):
            label.text = model.label

    def _to_end(self) -> None:
        self._client.run_javascript("window.scrollTo(0, document.body.scrollHeight)")
