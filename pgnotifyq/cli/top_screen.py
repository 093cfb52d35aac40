"""What `top` shows: a state, how keys change it, and how it is drawn. It asks no database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
from rich.layout import Layout
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pgnotifyq.cli.output import shown
from pgnotifyq.ledger.explaining import span

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from pgnotifyq.cli.doctor import Finding
    from pgnotifyq.ledger.glance import Glance
    from pgnotifyq.ledger.look import WorkerRow

PANES = ("queues", "running", "waiting", "dead")
LISTS = PANES[1:]
WIDTH_MIN, HEIGHT_MIN = 60, 18
QUEUES_HEIGHT_MIN, FINDINGS_HEIGHT = 6, 4  # with their frames; so that each list has three rows
HELP = "Tab ↑↓ choose  [c]ancel [p]ause/resume [r]equeue [e]xplain [s]tack  [q]uit"


@attrs.frozen
class Wish:
    """What a key asks for: a verb, and what it is about."""

    verb: str  # cancel, pause, resume, requeue, explain, stack or quit
    target: str = ""  # a job's id, or a queue's name

    @property
    def question(self) -> str:
        """The question that is asked before the act."""
        what = "queue" if self.verb in {"pause", "resume"} else "job"
        return f"{self.verb} {what} {self.target}? [y]es, any other key: no"


@attrs.define
class State:
    """What is shown now."""

    title: str
    glance: Glance | None = None
    before: Glance | None = None  # the look before, for rates
    workers: list[WorkerRow] = attrs.field(factory=list)
    findings: list[Finding] | None = None  # None: doctor has not looked yet
    trouble: str | None = None  # why the last look failed
    pane: str = "running"
    listed: str = "running"  # which of the lists is shown
    chosen: dict[str, str] = attrs.field(factory=dict)  # by pane: the id or name of the chosen row
    asked: Wish | None = None  # waits for a yes
    said: str = ""  # what became of the last wish
    popup: tuple[str, list[str]] | None = None  # title and lines, over everything
    scrolled: int = 0  # lines of the popup that are above the screen

    def rows(self, pane: str) -> list[dict[str, Any]]:
        """Return the rows of a pane."""
        return [] if self.glance is None else getattr(self.glance, pane)

    def place(self, pane: str) -> int:
        """Return which row of a pane is chosen."""
        rows, wanted = self.rows(pane), self.chosen.get(pane)
        return next((place for place, row in enumerate(rows) if _key(pane, row) == wanted), 0)

    def row(self) -> dict[str, Any] | None:
        """Return the chosen row; None: the pane is empty."""
        rows = self.rows(self.pane)
        return rows[self.place(self.pane)] if rows else None

    def press(self, key: str) -> Wish | None:
        """Change what is shown, as a key asks. Return what is to be done; None: nothing."""
        if self.popup is not None:
            self._scroll(key)
            return None
        if self.asked is not None:
            wish, self.asked = self.asked, None
            if key in {"y", "Y"}:
                return wish
            self.said = "not done" if key != "q" else ""
            return Wish("quit") if key == "q" else None
        self.said = ""
        match key:
            case "q":
                return Wish("quit")
            case "tab" | "backtab":
                self._turn(1 if key == "tab" else -1)
            case "up" | "k":
                self._move(-1)
            case "down" | "j":
                self._move(1)
            case "pageup" | "pagedown":
                self._move(-10 if key == "pageup" else 10)
            case _:
                return self._wish(key)
        return None

    def _turn(self, step: int) -> None:
        self.pane = PANES[(PANES.index(self.pane) + step) % len(PANES)]
        if self.pane in LISTS:
            self.listed = self.pane

    def _move(self, step: int) -> None:
        if rows := self.rows(self.pane):
            place = min(max(self.place(self.pane) + step, 0), len(rows) - 1)
            self.chosen[self.pane] = _key(self.pane, rows[place])

    def _scroll(self, key: str) -> None:
        assert self.popup is not None
        steps = {"up": -1, "k": -1, "down": 1, "j": 1, "pageup": -10, "pagedown": 10}
        if key not in steps:
            self.popup, self.scrolled = None, 0
            return
        self.scrolled = min(max(self.scrolled + steps[key], 0), len(self.popup[1]) - 1)

    def _wish(self, key: str) -> Wish | None:
        """Return what a letter asks for. If that changes something, ask the user first."""
        row = self.row()
        verbs = {"c": "cancel", "p": "pause", "r": "requeue", "e": "explain", "enter": "explain", "s": "stack"}
        verb = verbs.get(key)
        if verb is None:
            return None
        if row is None:
            self.said = f"there is nothing in {self.pane} to {verb}"
            return None
        queue = row["queue_name"]
        if verb == "pause":
            paused = {each["queue_name"] for each in self.rows("queues") if each["is_paused"]}
            self.asked = Wish("resume" if queue in paused else "pause", queue)
            return None
        fits = {"cancel": {"running", "waiting"}, "requeue": {"dead"}, "explain": set(LISTS), "stack": {"running"}}[verb]
        if self.pane not in fits:
            self.said = f"{verb} is for what is in {' or '.join(sorted(fits))}"
            return None
        wish = Wish(verb, row["id"])
        if verb in {"explain", "stack"}:
            return wish
        self.asked = wish
        return None

    # drawing

    def draw(self, width: int, height: int) -> RenderableType:
        """Return the screen, for a terminal of a size."""
        if width < WIDTH_MIN or height < HEIGHT_MIN:
            return Text(f"top needs {WIDTH_MIN} x {HEIGHT_MIN}, not {width} x {height}. q: quit")
        if self.popup is not None:
            title, lines = self.popup
            body = Text("\n".join(lines[self.scrolled :]), overflow="fold")
            return Panel(body, title=title, subtitle="↑↓ scroll, any other key: back", height=height)
        queues_height = max(QUEUES_HEIGHT_MIN, height // 3)
        layout, upper = Layout(), Layout(name="upper", size=queues_height)
        upper.split_row(Layout(self._queues(queues_height - 3), ratio=3), Layout(self._workers(queues_height - 3), ratio=2))
        list_height = height - queues_height - FINDINGS_HEIGHT - 2
        layout.split_column(
            Layout(self._head(), size=1),
            upper,
            Layout(self._list(list_height - 3, width), size=list_height),
            Layout(self._findings(FINDINGS_HEIGHT - 2), size=FINDINGS_HEIGHT),
            Layout(self._foot(), size=1),
        )
        return layout

    def _head(self) -> Text:
        if self.trouble is not None:
            return Text(shown(self.trouble), style="bold red", no_wrap=True, overflow="ellipsis")
        text = Text(no_wrap=True, overflow="ellipsis")
        if self.glance is not None:
            enqueued, ended = (self._rate(each) for each in ("enqueued", "ended"))
            text.append(f"{enqueued} enqueued/s  {ended} ended/s  {self.glance.running_all} running  ", style="bold")
        text.append(self.title)
        return text

    def _rate(self, what: str) -> str:
        if self.glance is None or self.before is None:
            return "-"
        now, then = self.glance.counted, self.before.counted
        seconds = now["at"] - then["at"]
        return f"{max(now[what] - then[what], 0) / seconds:.1f}" if seconds > 0 else "-"

    def _queues(self, room: int) -> Panel:
        table = _table("queue", "due", "later", "runs", "oldest")
        rows, first = self._visible("queues", room)
        for place, row in enumerate(rows, first):
            more = "+" if row["is_more"] else ""
            oldest = "" if row["oldest_due_seconds"] is None else span(row["oldest_due_seconds"])
            name = f"{row['queue_name']} (paused)" if row["is_paused"] else row["queue_name"]
            cells = [name, f"{row['due']}{more}", f"{row['later']}{more}", str(row["running"]), oldest]
            self._add(table, "queues", place, cells)
        return self._panel(table, "queues")

    def _workers(self, room: int) -> Panel:
        table = _table("worker", "busy", "state")
        for row in self.workers[:room]:
            state = row.state if row.listening == "push" or row.state != "running" else "polling"
            table.add_row(shown(f"{row.host}:{row.pid}"), f"{row.running}/{row.slots}", "asleep" if row.is_asleep else state)
        left = len(self.workers) - room
        return Panel(table, title=f"workers ({left} more)" if left > 0 else "workers", title_align="left")

    def _list(self, room: int, width: int) -> Panel:
        pane = self.listed
        rows, first = self._visible(pane, room)
        if pane == "running":
            table = _table("job", "type", "queue", "for", "progress")
            for place, row in enumerate(rows, first):
                word = "stopping" if row["label"] == "stopping" else ""
                cells = [_short(row["id"]), row["job_type"], row["queue_name"], span(row["seconds"]), _progress(row, word, width)]
                self._add(table, pane, place, cells)
            return self._panel(table, pane)
        table = _table("job", "type", "queue", "for" if pane == "waiting" else "died", "tries", "error")
        for place, row in enumerate(rows, first):
            error = (row["error_message"] or "").partition("\n")[0]
            since = span(row["seconds"]) + ("" if pane == "waiting" else " ago")
            self._add(
                table, pane, place, [_short(row["id"]), row["job_type"], row["queue_name"], since, str(row["attempts"]), error]
            )
        return self._panel(table, pane)

    def _visible(self, pane: str, room: int) -> tuple[Sequence[dict[str, Any]], int]:
        """Return the rows that there is room for, the chosen one too, and the first one's place."""
        rows = self.rows(pane)
        first = max(0, min(self.place(pane) - room // 2, len(rows) - room))
        return rows[first : first + max(room, 1)], first

    def _add(self, table: Table, pane: str, place: int, cells: Sequence[str | RenderableType]) -> None:
        style = "reverse" if self.pane == pane and self.place(pane) == place else None
        table.add_row(*(shown(cell) if isinstance(cell, str) else cell for cell in cells), style=style)

    def _panel(self, table: Table, pane: str) -> Panel:
        rows = self.rows(pane)
        tabs = [pane] if pane == "queues" else list(LISTS)
        words = []
        for each in tabs:
            count = len(self.rows(each))
            words.append(f"[bold]{each} {count}[/]" if each == pane else f"[dim]{each} {count}[/]")
        is_chosen = self.pane == pane
        body: RenderableType = table if rows else Text("nothing", style="dim")
        return Panel(body, title="  ".join(words), title_align="left", border_style="bold" if is_chosen else "dim")

    def _findings(self, room: int) -> Panel:
        if self.findings is None:
            return Panel(Text("doctor is looking", style="dim"), title="doctor", title_align="left")
        bad = [each for each in self.findings if each.verdict != "ok"]
        bad.sort(key=lambda each: each.verdict != "fail")
        text = Text(no_wrap=True, overflow="ellipsis")
        for each in bad[:room]:
            text.append(f"{each.verdict} ", style="bold red" if each.verdict == "fail" else "yellow")
            text.append(f"{shown(each.what)}\n")
        title = f"doctor: {len(bad)} finding(s)" if bad else "doctor: all is well"
        return Panel(text, title=title, title_align="left")

    def _foot(self) -> Text:
        if self.asked is not None:
            return Text(self.asked.question, style="bold reverse", no_wrap=True)
        return Text(shown(self.said) or HELP, style="bold" if self.said else "dim", no_wrap=True, overflow="ellipsis")


def _key(pane: str, row: dict[str, Any]) -> str:
    key: str = row["queue_name"] if pane == "queues" else row["id"]
    return key


def _table(*columns: str) -> Table:
    table = Table(box=None, expand=True, pad_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        is_number = name in {"due", "later", "runs", "oldest", "busy", "for", "died", "tries"}
        ratio = {"error": 3, "progress": 3, "type": 2, "queue": 2, "worker": 2}.get(name)
        table.add_column(name, justify="right" if is_number else "left", no_wrap=True, overflow="ellipsis", ratio=ratio)
    return table


def _short(job_id: str) -> str:
    """Return the end of an id: ids of one moment begin alike."""
    return "…" + job_id[-8:]


def _progress(row: dict[str, Any], word: str, width: int) -> RenderableType:
    if row["progress"] is None:
        return Text(shown(word or row["message"] or ""), style="bold yellow" if word else "")
    grid = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=1.0, completed=row["progress"], width=max(6, width // 10))
    grid.add_row(bar, Text(shown(f"{row['progress']:4.0%} {word or row['message'] or ''}"), no_wrap=True, overflow="ellipsis"))
    return grid
