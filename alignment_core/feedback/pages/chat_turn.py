"""One turn on the chat page: the question, its answers beside each other, and what a visitor can do with them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from nicegui import ui

from alignment_core.feedback.pages import parts, web
from alignment_core.feedback.pages.chat_talk import Answer, Talk

VOTES = (("first", "A is better"), ("second", "B is better"), ("tie", "Equally good"), ("bad", "Both are bad"))
COPY = """async () => {
    const text = getHtmlElement(ID).textContent;
    if (navigator.clipboard) {
        await navigator.clipboard.writeText(text);
    } else {  // on an address without TLS
        const field = document.body.appendChild(Object.assign(document.createElement("textarea"), {value: text}));
        field.select();
        document.execCommand("copy");
        field.remove();
    }
    emit();
}"""


class TurnView:
    """One turn of a conversation on the page.

    Attributes:
        editing: whether an answer is being edited.
    """

    def __init__(
        self,
        talk: Talk,
        place: int,
        *,
        thumb: Callable[[int, int, bool | None, str], Awaitable[bool]],
        vote: Callable[[str], Awaitable[None]],
        edit: Callable[[int, str], Awaitable[None]],
        regenerate: Callable[[], None],
        retry: Callable[[], None],
        busy: Callable[[], bool],
    ) -> None:
        """
        Args:
            talk: the conversation.
            place: which of its turns.
            thumb: saves a thumb for an answer, given by turn and answer, and returns whether it could.
            vote: saves which of the two answers is better.
            edit: saves the edited answer of a slot.
            regenerate: asks for another answer.
            retry: asks for the answers that are missing.
            busy: returns whether an answer is being generated.
        """
        self._talk, self._place, self._turn = talk, place, talk.turns[place]
        self._thumb, self._vote, self._edit = thumb, vote, edit
        self._regenerate, self._retry, self._busy = regenerate, retry, busy
        self._texts: dict[int, str] = {}
        self._waits: dict[int, tuple[str, int]] = {}
        with ui.column().classes("w-full gap-2"):
            with ui.card().classes("self-end mine"):
                ui.label(self._turn["question"]).classes("words").props('data-testid="question"')
            self._row = ui.row().classes("w-full gap-2 items-stretch")
            self._tools = ui.row().classes("w-full items-center gap-1")
            self._clock = ui.timer(1.0, self._tick, active=False)
        self.show()

    def show(self) -> None:
        """Show the answers as they are now."""
        self.editing = False
        self._row.clear()
        self._labels: dict[int, ui.label] = {}
        with self._row:
            for number, slot in enumerate(self._turn["slots"]):
                with ui.column().classes("answer gap-0"):
                    if slot["answer"] is not None:
                        self._show_answer(number, slot["answer"])
                    elif self._busy() and self._is_last():
                        self._show_open(number)
        self._tools.clear()
        with self._tools:
            self._show_tools()

    def wait(self, slot: int, reason: str) -> None:
        """Say what an answer waits for."""
        self._waits[slot] = (reason, 0)
        self._clock.active = True
        self._show_wait(slot)

    def stream(self, slot: int, text: str) -> None:
        """Show the beginning of an answer."""
        self._texts[slot] = text
        if text and (label := self._labels.get(slot)) is not None:
            self._waits.pop(slot, None)
            label.text = text
            label.classes(remove="muted")

    def _is_last(self) -> bool:
        return self._place == len(self._talk.turns) - 1

    def _tick(self) -> None:
        for slot, (reason, seconds) in list(self._waits.items()):
            self._waits[slot] = (reason, seconds + 1)
            self._show_wait(slot)
        self._clock.active = bool(self._waits) and self._busy()

    def _show_wait(self, slot: int) -> None:
        reason, seconds = self._waits[slot]
        if (label := self._labels.get(slot)) is not None:
            label.text = f"Waiting for the model: {reason}" + (f" ({seconds} s)" if seconds else "") + " …"

    def _show_open(self, number: int) -> None:
        with ui.card().classes("w-full"):
            self._labels[number] = ui.label().classes("words muted")
        if number in self._texts:
            self.stream(number, self._texts[number])
        elif number in self._waits:
            self._show_wait(number)
        else:
            self.wait(number, "your message is sent")

    def _show_answer(self, slot: int, number: int) -> None:
        answer = self._turn["answers"][number]
        self._texts.pop(slot, None)
        self._waits.pop(slot, None)
        with ui.card().classes("w-full gap-1 grow") as card:
            if len(self._turn["slots"]) > 1:
                ui.label("AB"[slot]).classes("number")
            words = ui.label(answer["content"]).classes("words").props('data-testid="answer"')
            ui.space()
            if not self._talk.hides_names(self._place):
                kept = len(self._turn["slots"]) > 1 and self._talk.kept(self._place) == number
                goes_on = " · the conversation goes on with this one" * kept
                ui.label(answer["label"] + goes_on).classes("muted text-sm").props('data-testid="author"')
                card.classes("chosen" if kept else "")
            self._show_buttons(card, words, slot, number)

    def _show_buttons(self, card: ui.card, words: ui.label, slot: int, number: int) -> None:
        answer: Answer = self._turn["answers"][number]

        @ui.refreshable
        def buttons() -> None:
            async def press(up: bool) -> None:
                await self._thumb(
                    self._place, number, None if answer.get("up") is up else up, answer.get("comment", "")
                )
                buttons.refresh()

            async def save_comment(comment: str) -> None:
                if await self._thumb(self._place, number, answer.get("up"), comment):
                    ui.notify("Comment saved.", type="positive", timeout=1500)

            with ui.row().classes("items-center w-full gap-1"):
                for icon, up, name in (("thumb_up", True, "Good answer"), ("thumb_down", False, "Bad answer")):
                    pressed = answer.get("up") is up
                    if not answer["edited"]:
                        button = parts.button(press=partial(press, up), icon=icon, label=name)
                        button.props(f'aria-pressed="{str(pressed).lower()}"').classes("on" if pressed else "")
                copy = parts.button(icon="content_copy", label="Copy")
                script = COPY.replace("ID", str(words.id))
                copy.on("click", lambda: ui.notify("Copied.", timeout=1500), js_handler=script)
                if self._is_last() and not self._busy():
                    parts.button(press=lambda: self._show_editor(card, slot, answer), icon="edit", label="Edit answer")
                if answer.get("up") is not None:
                    comment = ui.input(placeholder="What was good or bad? (optional)", value=answer.get("comment", ""))
                    web.on_submit(comment.props('dense aria-label="Comment"').classes("grow"), save_comment)

        buttons()

    def _show_editor(self, card: ui.card, slot: int, answer: dict[str, Any]) -> None:
        """Replace an answer by a field with its text."""
        self.editing = True
        self._tools.clear()
        card.clear()
        with card:
            field = ui.textarea("Your better version", value=answer["content"]).props("outlined autogrow autofocus")
            field.classes("w-full")
            with ui.row().classes("items-center gap-2"):
                save = parts.button("Save", kind="main")
                parts.button("Cancel", self.show, kind="edged")
                ui.label("It counts as better than the original, and the conversation goes on with it.").classes(
                    "muted"
                )
            web.on_submit(field, lambda text: self._edit(slot, text), save, press=web.CTRL_ENTER)

    def _show_tools(self) -> None:
        """Show the votes on two answers, and the buttons for another or a missing one."""
        if not self._is_last() or self._busy():
            return
        answered = [slot["answer"] for slot in self._turn["slots"] if slot["answer"] is not None]
        if len(answered) < len(self._turn["slots"]):
            parts.button("Retry", self._retry, icon="refresh", kind="edged")
        if self._talk.can_compare(self._place):
            ui.label("Which is better?").classes("mr-2")
            for vote, text in VOTES:
                pressed = self._turn["vote"] == vote
                button = parts.button(text, partial(self._vote, vote), kind="edged").props("dense padding='2px 10px'")
                button.props(f'aria-pressed="{str(pressed).lower()}"').classes("on" if pressed else "")
        elif len(answered) > 1:
            ui.label("Both answers are the same.").classes("muted")
        if answered and (self._turn["vote"] is not None or not self._talk.can_compare(self._place)):
            parts.button("Regenerate", self._regenerate, icon="refresh")
