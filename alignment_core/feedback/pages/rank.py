"""The page `align rank`: blind ranking of responses to a prompt, by keyboard or by tapping."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from inspect import isawaitable

from nicegui import app, run, ui
from nicegui.events import GenericEventArguments

from alignment_core.errors import AlignmentError
from alignment_core.feedback.pages import parts, rank_parts, web
from alignment_core.feedback.pages.rank_session import Order, Session, Verdict
from alignment_core.feedback.pages.visitor import ask_for_name, name_button, visitor
from alignment_core.feedback.store import FeedbackStore
from alignment_core.feedback.votes import RankingTask, Rater


def rank_page(
    store: FeedbackStore, guidelines: str | None = None, end: web.EndButton | None = None
) -> Callable[[], None]:
    """Return a function that builds the page for each visitor.

    Args:
        store: where the prompts and responses are, and the rankings go.
        guidelines: what the raters should prefer, or None.
        end: a button that ends the page, or None.
    """

    def page() -> None:
        if visitor():
            _Ranking(store, guidelines, end)
        else:
            ask_for_name()

    return page


class _Ranking:
    def __init__(self, store: FeedbackStore, guidelines: str | None, end: web.EndButton | None) -> None:
        self._session = Session(store, Rater(visitor()))
        self._guidelines = guidelines or ""
        self._order, self._tied = Order(0), False
        self._turn, self._errors = asyncio.Lock(), 0
        self._team_shown = False
        with ui.header(), ui.row().classes("page items-center no-wrap gap-2"):
            parts.title("Rank")
            self._progress = ui.label().classes("muted whitespace-nowrap").props('data-testid="progress"')
            self._bar = ui.linear_progress(show_value=False).classes("grow").props('aria-label="Ranked"')
            parts.button(press=lambda: self._in_turn(self._toggle_help), icon="help_outline", label="How to rank (?)")
            parts.button(press=lambda: self._in_turn(self._toggle_team), icon="groups", label="All raters (T)")
            name_button()
            if end is not None:
                end.show()
        self._area = ui.column().classes("page gap-2 pb-4").props("role=main")
        with ui.footer(), ui.row().classes("page items-center gap-1") as self._buttons:
            self._save = self._button("Save", "check", self._submit, "main")
            self._tie = self._button("Tie", "drag_handle", self._toggle_tie, "edged")
            self._button("All bad", "thumb_down", self._reject, "edged")
            self._button("Edit best", "edit", self._open_editor)
            self._button("Skip", "skip_next", self._skip)
            self._icon("Remove last pick", "backspace", self._take_back)
            self._icon("Undo last vote", "undo", self._undo)
        keyboard = ui.keyboard(repeating=False, ignore=["input", "select", "textarea"])
        keyboard.on("key", self._key, js_handler=rank_parts.KEY_HANDLER)
        self._next()

    def _button(self, name: str, icon: str, press: Callable[[], object], kind: parts.Kind = "plain") -> ui.button:
        button = parts.button(name, lambda: self._in_turn(press), icon=icon, kind=kind)
        return button.props("dense padding='4px 10px'")

    def _icon(self, name: str, icon: str, press: Callable[[], object]) -> None:
        parts.button(press=lambda: self._in_turn(press), icon=icon, label=name)

    async def _key(self, event: GenericEventArguments) -> None:
        """Do what a key asks for. `place` is the response that has the focus, if one has it."""
        key, place = str(event.args["key"]), event.args["place"]
        presses: dict[str, Callable[[], object]] = {
            "=": self._toggle_tie,
            "backspace": self._take_back,
            "b": self._reject,
            "e": self._open_editor,
            "s": self._skip,
            "u": self._undo,
            "?": self._toggle_help,
            "t": self._toggle_team,
        }
        if key.isdecimal() and key != "0":
            await self._in_turn(lambda: self._name(int(key) - 1))
        elif key in ("enter", " ") and place is not None:
            await self._in_turn(lambda: self._name_or_submit(int(place)))
        elif key == "enter":
            await self._in_turn(self._submit)
        elif key in presses:
            await self._in_turn(presses[key])

    async def _in_turn(self, press: Callable[[], object]) -> None:
        """Do what a key or button asks for after those before it, which may still be saving a vote.

        So no key is lost. A second `Skip` or `All bad` is refused, because nobody has seen the prompt that it would
        judge, and so is what was pressed before an error was shown.
        """
        if press in (self._skip, self._reject) and self._turn.locked():
            what = "skipped" if press == self._skip else "rejected"
            ui.notify(f"The last vote is still being saved: this prompt was not {what}. Press again.", timeout=4000)
            return
        errors = self._errors
        async with self._turn:
            if self._team_shown and press not in (self._toggle_team, self._toggle_help):
                return
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

    async def _name_or_submit(self, place: int) -> None:
        """Pick the response that has the focus, or save if it has its rank."""
        if self._order.rank_of(place) is None:
            self._name(place)
        else:
            await self._submit()

    def _toggle_tie(self) -> None:
        self._tied = not self._tied and bool(self._order.groups)
        self._show_ranks()

    def _take_back(self) -> None:
        self._order.take_back()
        self._show_ranks()

    def _open_editor(self) -> None:
        if self._session.current is not None and not self._editor.open():
            ui.notify("Pick the best response first, then edit it.", timeout=2000)

    def _toggle_help(self) -> None:
        hidden = app.storage.user.get("guidelines read") == self._guidelines
        app.storage.user["guidelines read"] = None if hidden else self._guidelines
        self._help.visible = hidden
        ui.run_javascript("window.scrollTo(0, 0)")

    async def _toggle_team(self) -> None:
        """Show how far all raters are instead of the prompt, or the prompt again."""
        self._team_shown = not self._team_shown
        self._buttons.visible = self._task_area.visible = not self._team_shown
        self._team_area.visible = self._team_shown
        if self._team_shown:
            progress, found = await asyncio.to_thread(self._session.team)
            self._team_area.clear()
            with self._team_area:
                rank_parts.show_team(progress, self._session.total, found)

    async def _submit_from(self, task: RankingTask, field: ui.input | ui.textarea, text: str) -> None:
        """Save after Enter in a text field, unless its prompt has gone from the page meanwhile."""
        if task is self._session.current:
            field.value = text
            await self._submit()

    async def _submit(self) -> None:
        ranks = self._order.ranks()
        if self._session.current is None:
            return
        if ranks is None:
            ui.notify(f"Pick {self._order.missing()} more: only the last one may be left out.", timeout=2000)
            return
        edited = self._editor.text()
        if edited and ranks[self._editor.place] != 1:
            number = self._editor.place + 1
            ui.notify(f"You edited response {number}. Rank it first, or discard the edit.", timeout=4000)
            return
        await self._save_vote(Verdict(ranks, comment=self._comment.value, edited=edited))

    async def _reject(self) -> None:
        if self._session.current is not None and self._editor.text():
            ui.notify("You edited a response. Rank it first and save, or discard the edit.", timeout=4000)
        else:
            await self._save_vote(Verdict(bad=True, comment=self._comment.value))

    async def _skip(self) -> None:
        await self._save_vote(Verdict(comment=self._comment.value))

    async def _undo(self) -> None:
        undone: list[Verdict | None] = []
        if await self._write(lambda: undone.append(self._session.undo())) and undone[0] is not None:
            self._next()
            self._comment.value = undone[0].comment
            if undone[0].edited and undone[0].ranks is not None:
                self._name(undone[0].ranks.index(1))
                self._editor.open(undone[0].edited)

    async def _save_vote(self, verdict: Verdict) -> None:
        if self._session.current is not None and await self._write(lambda: self._session.submit(verdict)):
            self._next()

    async def _write(self, vote: Callable[[], object]) -> bool:
        """Save a vote in a thread, since the database may wait for a writer. Return whether it was saved."""
        try:
            await run.io_bound(vote)
        except AlignmentError as error:
            self._errors += 1
            message = f"{error} The vote was not saved: press the key again."
            ui.notify(message, type="negative", timeout=0, close_button=True, multi_line=True)
            return False
        return True

    # --- display --------------------------------------------------------------------------------------------------

    def _next(self) -> None:
        session, current = self._session, self._session.current
        self._progress.text = f"{session.judged} of {session.total} ranked"
        self._bar.value = session.judged / session.total if session.total else 1.0
        self._order, self._tied = Order(len(current.responses) if current else 0), False
        self._area.clear()
        with self._area:
            self._help = rank_parts.instructions(self._guidelines, lambda: self._in_turn(self._toggle_help))
            self._help.visible = app.storage.user.get("guidelines read") != self._guidelines
            with ui.column().classes("w-full gap-2") as self._task_area:
                if current is None:
                    self._show_end()
                else:
                    self._show(current)
            self._team_area = ui.column().classes("w-full gap-2")
            self._team_area.visible = False
        self._show_ranks()
        ui.run_javascript("window.scrollTo(0, 0)")

    def _show(self, task: RankingTask) -> None:
        rank_parts.show_prompt(task.prompt)
        self._badges: list[ui.label] = []
        self._cards: list[ui.card] = []
        shown = self._session.shown(task)
        for place, index in enumerate(shown):
            with ui.card().classes("w-full cursor-pointer") as card:
                card.props(f'role=button tabindex=0 data-place={place} data-testid="response"')
                card.on("click", lambda place=place: self._in_turn(lambda: self._name_in(task, place)))
                with ui.row().classes("w-full no-wrap items-start"):
                    ui.label(str(place + 1)).classes("number text-lg")
                    ui.label(task.responses[index].text).classes("words grow").props('data-testid="words"')
                    self._badges.append(ui.label().classes("rank text-lg"))
            self._cards.append(card)
        self._editor = rank_parts.Editor([task.responses[index].text for index in shown])
        self._comment = ui.input("Comment (optional)").props("outlined dense").classes("w-full comment")
        self._save_with(task, self._comment, web.ENTER)
        self._save_with(task, self._editor.field, web.CTRL_ENTER)

    def _save_with(self, task: RankingTask, field: ui.input | ui.textarea, press: str) -> None:
        """Let a key press in a text field save, too."""
        web.on_submit(field, lambda text: self._in_turn(lambda: self._submit_from(task, field, text)), press=press)

    def _show_end(self) -> None:
        if self._session.total:
            ui.label("All responses are ranked. Thank you!").classes("text-xl")
        else:
            ui.label("There is nothing to rank yet. Run `align sample CONFIG` to sample responses.").classes("text-xl")
        for line in self._session.agreement():
            ui.label(f"You agree with {line}").props('data-testid="agreement"')
        if self._session.total:
            parts.button("All raters", lambda: self._in_turn(self._toggle_team), icon="groups", kind="edged")

    def _show_ranks(self) -> None:
        if self._session.current is not None:
            for place, (badge, card) in enumerate(zip(self._badges, self._cards, strict=True)):
                rank = self._order.rank_of(place)
                badge.text = f"rank {rank}" if rank else ""
                badge.visible = rank is not None
                card.classes(add="chosen" if rank else "", remove="" if rank else "chosen")
                card.props["aria-label"] = f"Response {place + 1}" + (f", rank {rank}" if rank else ", not ranked")
            self._editor.follow(self._order.groups[0][0] if self._order.groups else None)
        self._save.enabled = self._order.ranks() is not None and self._session.current is not None
        self._tie.classes(add="on" if self._tied else "", remove="" if self._tied else "on")
        self._tie.props(f"aria-pressed={str(self._tied).lower()}")
