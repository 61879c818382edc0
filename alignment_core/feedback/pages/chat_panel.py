"""The panel beside the chat: the conversations of a visitor, and the models that answer."""

from __future__ import annotations

import random
from collections.abc import Callable, MutableMapping, Sequence
from functools import partial
from typing import Any

from nicegui import ui
from nicegui.events import ValueChangeEventArguments

from alignment_core.errors import AlignmentError
from alignment_core.feedback.pages import parts
from alignment_core.feedback.pages.chat_models import ChatModels
from alignment_core.feedback.pages.chat_talk import Talk, new_talk

NOBODY = "none"
"""The choice of no second model."""

DELETED = (
    "It is removed from this list for good. Your votes on its answers stay in the feedback store, with the messages "
    "that led to them, and training uses them."
)
TAKE_BACK = "To take a thumb back, press it again before you delete."


class Panel:
    """The conversations, the newest first, and the models of the one that is open."""

    def __init__(
        self,
        models: ChatModels,
        kept: MutableMapping[str, Any],
        show: Callable[[Talk], None],
        show_models: Callable[[], None],
    ) -> None:
        """
        Args:
            models: the models that can be chosen.
            kept: what is stored for the visitor.
            show: called with the conversation that is opened.
            show_models: called when its models have changed.
        """
        self._models, self._kept, self._show, self._models_changed = models, kept, show, show_models
        kept.setdefault("talks", [])
        with ui.left_drawer(value=None).props("width=290 breakpoint=1000").classes("panel gap-3") as self._drawer:
            with ui.column().classes("w-full gap-2").props('role=region aria-label="Models"'):
                self._first = ui.select([], label="Model", on_change=self._change).classes("w-full")
                self._second = ui.select([], label="Second model", on_change=self._change).classes("w-full")
                self._blind = ui.switch("Hide names until the vote", on_change=self._change)
            ui.label("Conversations").classes("title mt-2").props('role=heading aria-level="2"')
            self._list = ui.column().classes("w-full gap-1").props('role=navigation aria-label="Conversations"')

    def toggle(self) -> None:
        """Show or hide the panel."""
        self._drawer.toggle()

    def show(self) -> None:
        """Open the conversation that the visitor had open.

        A new one is opened instead if there is none, or if the command line names other models than when the visitor
        was here last: whoever starts the page with a new model wants to hear it.
        """
        named, talk = list(self._models.first), self._find(self._kept.get("talk"))
        if talk is None or self._kept.get("named") != named:
            self._kept["named"] = named
            self._start(named)
        else:
            self._open(talk)

    def start_anew(self) -> None:
        """Open a new conversation, with the models of the one before if there is one."""
        before = self._find(self._kept.get("talk"))
        usable = before is not None and before.turns and self._usable(before)
        self._start(before.models if before is not None and usable else self._models.first)

    def _start(self, models: Sequence[str]) -> None:
        before = self._find(self._kept.get("talk"))
        talks: list[dict[str, Any]] = self._kept["talks"]
        talks[:] = [one for one in talks if one["turns"]]
        talks.insert(0, new_talk(models, blind=before is None or bool(before.data["blind"])))
        self._open(Talk(talks[0]))

    def order(self) -> list[str]:
        """Return the models of the next turn, from left to right: shuffled if their names are hidden."""
        models = list(self._talk.models)
        if self._talk.data["blind"]:
            random.shuffle(models)
        return models

    def show_list(self) -> None:
        """Show the conversations."""
        self._list.clear()
        with self._list:
            for data in self._kept["talks"]:
                talk = Talk(data)
                opened = data["id"] == self._talk.data["id"]
                title = talk.title or "New conversation"
                with ui.row().classes("w-full items-center no-wrap gap-1"):
                    entry = parts.button(title, partial(self._open, talk))
                    entry.classes("entry grow" + (" on" if opened else "")).props("align=left dense")
                    entry.props["aria-current"] = "true" if opened else "false"
                    if talk.turns:
                        parts.button(press=partial(self._ask_to_delete, talk), icon="delete", label=f"Delete {title}")

    def keep(self) -> None:
        """Keep the conversation that is open, which another tab of the visitor may have removed."""
        talks: list[MutableMapping[str, Any]] = self._kept["talks"]
        if all(one["id"] != self._talk.data["id"] for one in talks):
            talks.insert(0, self._talk.data)
        self.show_list()

    async def _ask_to_delete(self, talk: Talk) -> None:
        with ui.dialog() as dialog, ui.card().classes("gap-2"):
            ui.label("Delete this conversation?").classes("title").props('role=heading aria-level="2"')
            ui.label(talk.title).classes("words")
            ui.label(DELETED)
            ui.label(TAKE_BACK).classes("muted")
            with ui.row().classes("w-full justify-end gap-2"):
                parts.button("Cancel", lambda: dialog.submit(False), kind="edged").props("autofocus")
                parts.button("Delete", lambda: dialog.submit(True), kind="stop")
        if await dialog:
            self._delete(talk)
        dialog.delete()

    def _delete(self, talk: Talk) -> None:
        if talk.data["id"] == self._talk.data["id"]:
            self.start_anew()
        talks: list[dict[str, Any]] = self._kept["talks"]
        talks[:] = [one for one in talks if one["id"] != talk.data["id"]]
        self.show_list()

    def _open(self, talk: Talk) -> None:
        self._talk = talk
        self._kept["talk"] = talk.data["id"]
        self._show_models()
        self.show_list()
        self._show(talk)

    def _find(self, identity: object) -> Talk | None:
        found = next((one for one in self._kept["talks"] if one["id"] == identity), None)
        return None if found is None else Talk(found)

    def _usable(self, talk: Talk) -> bool:
        try:
            for reference in talk.models:
                self._models.get(reference)
        except AlignmentError:
            return False
        return True

    def _show_models(self) -> None:
        """Show the models of the conversation. It is no change by the visitor."""
        talk, self._talk = self._talk, Talk(new_talk([], blind=False))
        choices = list(dict.fromkeys([*self._models.choices(), *talk.models]))
        self._first.set_options(choices, value=talk.models[0])
        self._second.set_options([NOBODY, *choices], value=(talk.models[1:] or [NOBODY])[0])
        self._blind.value = bool(talk.data["blind"])
        self._talk = talk

    def _change(self, event: ValueChangeEventArguments[Any]) -> None:
        """Use the chosen models from the next message on."""
        if not self._talk.models:
            return
        chosen = [self._first.value] + [self._second.value] * (self._second.value not in (NOBODY, self._first.value))
        try:
            for reference in chosen:
                self._models.get(reference)
        except AlignmentError as error:
            ui.notify(str(error), type="negative", timeout=0, close_button=True, multi_line=True)
            self._show_models()
            return
        self._talk.data["models"], self._talk.data["blind"] = chosen, bool(self._blind.value)
        self._models_changed()
