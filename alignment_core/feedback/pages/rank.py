"""The page `align rank`: blind ranking of responses to a prompt, by keyboard or by tapping."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from inspect import isawaitable

from nicegui import run, ui
from nicegui.events import KeyEventArguments

from alignment_core.errors import AlignmentError
from alignment_core.feedback.pages import web
from alignment_core.feedback.pages.rank_session import Order, Session
from alignment_core.feedback.store import FeedbackStore
from alignment_core.feedback.votes import RankingTask, Rater

KEYS = (
    ("1 … 9", "pick the best response, then the next best"),
    ("=", "tie the next pick with the last one"),
    ("Backspace", "remove the last pick"),
    ("Enter", "save the ranking"),
    ("S", "skip this prompt"),
    ("U", "undo the last ranking"),
)


def rank_page(store: FeedbackStore, end: web.EndButton | None = None) -> Callable[[], None]:
    """Return a function that builds the page for each visitor.

    Args:
        store: where the prompts and responses are, and the rankings go.
        end: a button that ends the page, or None.
    """

    def page() -> None:
        if web.visitor():
            _Ranking(store, end)
        else:
            web.ask_for_name()

    return page


class _Ranking:
    def __init__(self, store: FeedbackStore, end: web.EndButton | None) -> None:
        self._session = Session(store, Rater(web.visitor()))
        self._order = Order(0)
        self._tied = False
        self._turn, self._errors = asyncio.Lock(), 0
        with ui.header().classes("items-center justify-between"):
            self._progress = ui.label().props('data-testid="progress"')
            self._bar = ui.linear_progress(show_value=False, color="white").classes("w-32")
            if end is not None:
                end.show()
        self._area = ui.column().classes("page gap-2 pb-4")
        with ui.footer().classes("bg-white dark:bg-black"), ui.row().classes("page items-center gap-1"):
            self._save = self._button("Save", "check", self._submit)
            self._tie = self._button("Tie", "drag_handle", self._toggle_tie).props("outline")
            self._button("Remove last", "backspace", self._take_back).props("flat")
            self._button("Skip", "skip_next", self._skip).props("flat")
            self._button("Undo", "undo", self._undo).props("flat")
        ui.keyboard(self._key, repeating=False)
        self._next()

    def _button(self, name: str, icon: str, press: Callable[[], object]) -> ui.button:
        button = ui.button(name, icon=icon, on_click=lambda: self._in_turn(press))
        return button.props("no-caps dense padding='4px 10px'")

    async def _key(self, event: KeyEventArguments) -> None:
        if not event.action.keydown or event.modifiers.ctrl or event.modifiers.meta or event.modifiers.alt:
            return
        key = event.key.name.lower()
        presses: dict[str, Callable[[], object]] = {
            "=": self._toggle_tie,
            "backspace": self._take_back,
            "enter": self._submit,
            "s": self._skip,
            "u": self._undo,
        }
        if key.isdecimal() and key != "0":
            await self._in_turn(lambda: self._name(int(key) - 1))
        elif key in presses:
            await self._in_turn(presses[key])

    async def _in_turn(self, press: Callable[[], object]) -> None:
        """Do what a key or button asks for after those before it, which may still be saving a vote.

        So no key is lost. A second `Skip` is refused, because nobody has seen the prompt that it would skip, and so is
        what was pressed before an error was shown.
        """
        if press == self._skip and self._turn.locked():
            ui.notify("The last vote is still being saved: this prompt was not skipped. Press again.", timeout=4000)
            return
        errors = self._errors
        async with self._turn:
            if errors == self._errors and isawaitable(done := press()):
                await done

    # --- input ----------------------------------------------------------------------------------------------------

    def _name(self, place: int) -> None:
        self._order.name(place, tied=self._tied)
        self._tied = False
        self._show_ranks()

    def _name_in(self, task: RankingTask, place: int) -> None:
        """Pick a response that was clicked, unless its prompt has gone from the page meanwhile."""
        if task is self._session.current:
            self._name(place)

    def _toggle_tie(self) -> None:
        self._tied = not self._tied and bool(self._order.groups)
        self._show_ranks()

    def _take_back(self) -> None:
        self._order.take_back()
        self._show_ranks()

    async def _submit(self) -> None:
        ranks = self._order.ranks()
        if ranks is None:
            ui.notify("Pick the responses first, starting with the best.", timeout=2000)
        else:
            await self._save_vote(lambda: self._session.submit(ranks))

    async def _skip(self) -> None:
        await self._save_vote(lambda: self._session.submit(None))

    async def _undo(self) -> None:
        await self._save_vote(self._session.undo, undoes=True)

    async def _save_vote(self, vote: Callable[[], object], *, undoes: bool = False) -> None:
        """Save a vote in a thread, since the database may wait for a writer."""
        if self._session.current is None and not undoes:
            return
        try:
            await run.io_bound(vote)
        except AlignmentError as error:
            self._errors += 1
            message = f"{error} The vote was not saved: press the key again."
            ui.notify(message, type="negative", timeout=0, close_button=True, multi_line=True)
            return
        self._next()

    # --- display --------------------------------------------------------------------------------------------------

    def _next(self) -> None:
        session, current = self._session, self._session.current
        self._progress.text = f"{session.judged} of {session.total} ranked"
        self._bar.value = session.judged / session.total if session.total else 1.0
        self._order, self._tied = Order(len(current.responses) if current else 0), False
        self._area.clear()
        with self._area:
            if current is None:
                self._show_end()
            else:
                self._show(current)
        self._show_ranks()
        ui.run_javascript("window.scrollTo(0, 0)")

    def _show(self, task: RankingTask) -> None:
        for message in task.prompt:
            with ui.row().classes("w-full no-wrap"):
                ui.badge(message["role"], color="grey").classes("mt-1")
                ui.label(message["content"]).classes("words").props('data-testid="prompt"')
        self._badges: list[ui.badge] = []
        for place, index in enumerate(self._session.shown(task)):
            with ui.card().classes("w-full cursor-pointer") as card:
                card.props(f'role=button tabindex=0 aria-label="Response {place + 1}" data-testid="response"')
                card.on("click", lambda place=place: self._in_turn(lambda: self._name_in(task, place)))
                with ui.row().classes("w-full no-wrap items-start"):
                    ui.badge(str(place + 1), color="grey-7").classes("text-lg")
                    ui.label(task.responses[index].text).classes("words grow").props('data-testid="words"')
                    self._badges.append(ui.badge("", color="primary").classes("text-lg"))
        with ui.row().classes("gt-xs gap-3 text-grey-7"):
            for key, does in KEYS:
                ui.label(f"{key}: {does}")

    def _show_end(self) -> None:
        if self._session.total:
            ui.label("All responses are ranked. Thank you!").classes("text-xl")
        else:
            ui.label("There is nothing to rank yet. Run `align sample CONFIG` to sample responses.").classes("text-xl")
        for line in self._session.agreement():
            ui.label(f"You agree with {line}").props('data-testid="agreement"')

    def _show_ranks(self) -> None:
        if self._session.current is not None:
            for place, badge in enumerate(self._badges):
                rank = self._order.rank_of(place)
                badge.text = f"rank {rank}" if rank else ""
                badge.visible = rank is not None
        self._save.enabled = self._order.ranks() is not None and self._session.current is not None
        self._tie.props("outline" if not self._tied else "", remove="outline" if self._tied else "")
