"""What the ranking page shows besides the responses: instructions, the prompt, the editor, and the other raters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nicegui import ui

from alignment_core.feedback.pages import parts
from alignment_core.feedback.rankings import Disagreement, Progress
from alignment_core.records import Conversation

STEPS = (
    "Read the prompt and all responses. Their order is random, and nobody sees which model wrote them.",
    "Pick the best response, then the next best, and so on. The last one may be left out.",
    "Responses of equal worth are a tie. If none of them is acceptable, press “All bad”.",
    "If you can write a better one, pick the best, edit it and save: your text then ranks first.",
)
KEYS = (
    ("1 … 9", "pick the next best"),
    ("=", "tie with the last pick"),
    ("Enter", "save"),
    ("Backspace", "remove the last pick"),
    ("B", "all bad"),
    ("E", "edit the best"),
    ("C", "comment"),
    ("S", "skip"),
    ("U", "undo"),
    ("T", "all raters"),
    ("?", "this help"),
)

KEY_HANDLER = """(e) => {
    if (e.action !== "keydown" || e.ctrlKey || e.metaKey || e.altKey) return;
    const key = e.key.toLowerCase(), focus = document.activeElement;
    const place = focus?.dataset?.place ?? null;
    if ((key === "enter" || key === " ") && place === null && focus?.matches("button, a, [tabindex]")) return;
    if (key === " " && place !== null) e.event.preventDefault();
    // A field gets the focus here, so that what is typed next goes into it and is no command.
    const field = {c: ".comment input", e: ".editor.ready textarea"}[key];
    const found = field && document.querySelector(field);
    if (found) {
        e.event.preventDefault();
        found.closest(".editor")?.classList.add("open");
        found.focus();
    }
    emit({key, place});
}"""
"""Send a key of the page to the server. A button that has the focus keeps its own Enter and space bar."""


def instructions(guidelines: str, close: Callable[[], object]) -> ui.card:
    """Add the instructions, with a button that hides them."""
    with ui.card().classes("w-full gap-2") as card:
        ui.label("How to rank").classes("title").props('role=heading aria-level="2"')
        if guidelines:
            ui.label(guidelines).classes("words guidelines").props('data-testid="guidelines"')
        with ui.element("ol").classes("steps"):
            for step in STEPS:
                with ui.element("li"):
                    ui.label(step)
        with ui.row().classes("gt-xs gap-x-4 gap-y-1 muted"):
            for key, does in KEYS:
                with ui.row().classes("gap-1 items-baseline no-wrap"):
                    with ui.element("kbd"):
                        ui.label(key)
                    ui.label(does)
        parts.button("Got it", close, kind="edged")
    return card


def show_prompt(prompt: Conversation) -> None:
    """Add the messages of a prompt."""
    for message in prompt:
        with ui.row().classes("w-full no-wrap items-start"):
            ui.label(message["role"]).classes("role mt-1")
            ui.label(message["content"]).classes("words font-medium").props('data-testid="prompt"')


class Editor:
    """A field with the text of the best response, to make it better. It is hidden until it is opened.

    Attributes:
        place: the response whose text it holds, in display order.
        field: the field.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts, self._opened = texts, False
        self.place = 0
        with ui.column().classes("editor w-full gap-1") as self._box:
            self.field = ui.textarea("Your better version").props("outlined rows=5").classes("w-full")
            with ui.row().classes("items-center gap-2"):
                parts.button("Discard edit", self.discard, kind="edged").props("dense padding='2px 10px'")
                ui.label("It ranks first when you save. Ctrl + Enter saves.").classes("muted")

    def follow(self, best: int | None) -> None:
        """Hold the text of another response, unless the editor is open."""
        self._box.classes(add="ready" if best is not None else "", remove="" if best is not None else "ready")
        if not self._opened and best is not None:
            self.place, self.field.value = best, self._texts[best]

    def open(self, text: str = "") -> bool:
        """Show the editor, with a text if there is one. Return False if there is no best response yet."""
        if "ready" not in self._box.classes:
            return False
        self._opened = True
        self._box.classes(add="open")
        self.field.value = text or self.field.value
        self.field.run_method("focus")
        return True

    def discard(self) -> None:
        """Hide the editor and drop what was written."""
        self._opened = False
        self._box.classes(remove="open")
        self.field.value = self._texts[self.place]

    def text(self) -> str:
        """Return what the rater wrote; empty if it is the response as it was."""
        changed = self._opened and self.field.value.strip() not in ("", self._texts[self.place].strip())
        return self.field.value if changed else ""


def show_team(progress: Sequence[Progress], total: int, disagreements: Sequence[Disagreement]) -> None:
    """Add the progress of each rater, and where rankings contradict this rater's.

    Args:
        progress: how far each rater is.
        total: the number of ranking tasks.
        disagreements: where others contradict this rater.
    """
    ui.label("Progress").classes("title").props('role=heading aria-level="2"')
    for one in progress:
        with ui.row().classes("w-full no-wrap items-center gap-3").props('data-testid="rater"'):
            name = one.rater.name + (" (AI)" if one.rater.kind == "ai" else "")
            ui.label(name).classes("words w-1/3")
            bar = ui.linear_progress(min(one.done / total, 1.0) if total else 0.0, show_value=False).classes("grow")
            bar.props["aria-label"] = f"Progress of {name}"
            said = [f"{one.done} of {total}"]
            said += [f"{one.bad} all bad"] * bool(one.bad) + [f"{one.skipped} skipped"] * bool(one.skipped)
            ui.label(", ".join(said)).classes("muted text-right w-1/3")
    ui.label("Where raters disagree with you").classes("title mt-4").props('role=heading aria-level="2"')
    ui.label("Only prompts that you have ranked are shown, because others' votes could influence yours.").classes(
        "muted"
    )
    if not disagreements:
        ui.label("Nobody has ranked two responses in the opposite order from you.")
    for found in disagreements:
        _show_disagreement(found)


def _show_disagreement(found: Disagreement) -> None:
    with ui.card().classes("w-full gap-2").props('data-testid="disagreement"'):
        ui.label(found.task.prompt[-1]["content"]).classes("words font-medium")
        for place, response in enumerate(found.task.responses):
            with ui.row().classes("w-full items-start gap-2"):
                ui.label(response.text).classes("words grow basis-60")
                with ui.row().classes("gap-1"):
                    for rater, ranks in found.ranks.items():
                        ui.label(f"{rater}: {ranks[place]}").classes("role")
        pairs = "1 pair of responses is" if found.opposed == 1 else f"{found.opposed} pairs of responses are"
        ui.label(f"{pairs} ranked in both orders.").classes("muted")
