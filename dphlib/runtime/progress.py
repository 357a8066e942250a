"""How far a loop is, told where its reader is: a bar in a terminal or in Jupyter, lines in a log, a file for a driver.

    with Progress("train", 60, "iterations") as progress:
        progress.update(12, "reward 0.41")

- A terminal and a notebook have one bar, which is updated in place. Jupyter's is plain HTML: it needs no widgets.
- A log gets a line at each tenth of the whole, none in the first ten seconds, and after five minutes without one.
- In a worker (`jobs`) it reports to the parent, which shows it, and hands on what a run `measured` to `hearing`.
- Where `DPH_PROGRESS_FILE` names a file, a row of JSON in it is all: `report.notebooks` shows that.
"""

from __future__ import annotations

import html
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from dphlib.runtime.files import say, write_json

PROGRESS_FILE = "DPH_PROGRESS_FILE"
_MESSAGE_EVERY_S = 0.5
"""Between two rows of the file, two messages of a worker, two states of a notebook's bar."""
_QUIET_S, _TENTHS, _HEARTBEAT_S = 10.0, 10, 300.0
"""Of a log: no line before, lines in all, and the longest silence."""


def duration(seconds: float) -> str:
    """A time as a person says it.

    >>> duration(42), duration(190), duration(7500)
    ('42 s', '3 min 10 s', '2 h 5 min')
    """
    hours, rest = divmod(round(seconds), 3600)
    if hours:
        return f"{hours} h {rest // 60} min"
    return f"{rest // 60} min {rest % 60} s" if rest >= 60 else f"{rest} s"


def _roughly(seconds: float) -> str:
    return duration(seconds) if not 60 <= seconds < 3600 else f"{round(seconds / 60)} min"


@dataclass(frozen=True, slots=True)
class Moment:
    """A loop at one time.

    Args:
        label: what the loop does.
        done: steps; a fraction counts one that is under way, and is never shown.
        total: steps in all; 0 where that is not known.
        unit: what a step is, plural.
        elapsed_s: since the loop began.
        note: what it is at, such as a method and its present reward.
    """

    label: str
    done: float = 0.0
    total: int = 0
    unit: str = ""
    elapsed_s: float = 0.0
    note: str = ""

    @property
    def share(self) -> float:
        return self.done / self.total if self.total else 0.0

    @property
    def ended(self) -> bool:
        return bool(self.total) and self.done >= self.total

    @property
    def count(self) -> str:
        """Whole steps.

        >>> Moment("train", 3.7, 43, "runs").count
        '3 of 43 runs'
        """
        return f"{int(self.done)} of {self.total} {self.unit}".rstrip() if self.total else ""

    @property
    def left(self) -> str:
        """The time left at this pace, "" where none can be told."""
        if not 0 < self.share < 1:
            return ""
        return f"about {_roughly(self.elapsed_s * (1 - self.share) / self.share)} left"

    def __str__(self) -> str:
        parts = (self.count, duration(self.elapsed_s), self.left, self.note)
        return f"{self.label}: {' · '.join(part for part in parts if part)}"


class Viewer(Protocol):
    """Where moments are shown. `show` may leave out one that comes too soon, but never the end of a loop."""

    def show(self, moment: Moment) -> None: ...

    def close(self) -> None: ...


class Lines:
    """Lines on stderr, of which each says something new."""

    def __init__(self) -> None:
        self._label, self._tenths, self._told, self._shown_s = "", 0, False, time.monotonic()

    def show(self, moment: Moment) -> None:
        if moment.label != self._label:
            self._label, self._tenths, self._told = moment.label, 0, False
        now, tenths = time.monotonic(), int(moment.share * _TENTHS)
        silent_s = now - self._shown_s
        further = tenths > self._tenths and min(moment.elapsed_s, silent_s) >= _QUIET_S
        if (self._told if moment.ended else further) or silent_s >= _HEARTBEAT_S:
            self._tenths, self._told, self._shown_s = tenths, True, now
            say(str(moment))

    def close(self) -> None:
        pass


class Bar:
    """One bar on a terminal's stderr; what is printed meanwhile stands above it. It stays where a long loop ended."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress
        from rich.table import Column

        words = ("description", "fields[count]", "fields[left]")
        first, *others = (TextColumn(f"{{task.{word}}}", markup=False) for word in words)
        note = TextColumn(
            "{task.fields[note]}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
        )
        self._bar = RichProgress(first, BarColumn(20), *others, note, console=Console(stderr=True), expand=True)
        self._task = self._bar.add_task("", total=None, count="", left="", note="")
        self._last = Moment("")

    def show(self, moment: Moment) -> None:
        self._last = moment
        self._bar.update(
            self._task,
            description=moment.label,
            completed=moment.done,
            total=moment.total or None,
            count=moment.count,
            left=moment.left or duration(moment.elapsed_s),
            note=moment.note,
        )
        self._bar.start()

    def close(self) -> None:
        self._bar.live.transient = not self._last.ended or self._last.elapsed_s < _QUIET_S
        self._bar.stop()


class Cell:
    """One bar below a notebook's cell."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._shown_s = 0.0

    def show(self, moment: Moment) -> None:
        now = time.monotonic()
        if self._handle and not moment.ended and now - self._shown_s < _MESSAGE_EVERY_S:
            return
        self._shown_s = now
        text = str(moment)
        bar = f'<progress max="1" value="{moment.share:.4f}" style="width:12em"></progress>'
        content = {"text/html": f"{bar} {html.escape(text)}", "text/plain": text}
        if self._handle:
            self._handle.update(content, raw=True)
            return
        from IPython.display import display

        self._handle = display(content, raw=True, display_id=True)

    def close(self) -> None:
        pass


class File:
    """A file that holds the present moment as JSON; `read` gives it back."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._shown_s = -_MESSAGE_EVERY_S

    def show(self, moment: Moment) -> None:
        now = time.monotonic()
        if moment.ended or not moment.done or now - self._shown_s >= _MESSAGE_EVERY_S:
            self._shown_s = now
            write_json(self._path, asdict(moment), durable=False)

    def close(self) -> None:
        pass


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return getattr(shell, "kernel", None) is not None


def interactive() -> bool:
    """Whether somebody watches this notebook while it runs: our driver executes notebooks for later readers."""
    return in_notebook() and not os.environ.get(PROGRESS_FILE)


def viewer() -> Viewer:
    """The viewer for whoever reads this process."""
    if path := os.environ.get(PROGRESS_FILE):
        return File(Path(path))
    if in_notebook():
        return Cell()
    return Bar() if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" else Lines()


class Progress:
    """Shows how far a loop is; see the module's head.

    Args:
        label: what the loop does.
        total: its steps.
        unit: what a step is, plural.
    """

    def __init__(self, label: str, total: int, unit: str = "") -> None:
        self._moment = Moment(label, 0, total, unit)
        self._view: Viewer | None = None
        self._started = time.monotonic()

    def __enter__(self) -> Progress:
        self._started = time.monotonic()
        if not _send and self._moment.total:
            self._view = viewer()
            self._view.show(self._moment)
        return self

    def update(self, done: float, note: str = "") -> None:
        """`done` steps are done; a fraction counts one that is under way. `note` says what it is at."""
        if _send:
            report(done, self._moment.total)
        elif self._view and not self._moment.ended:
            elapsed_s = time.monotonic() - self._started
            self._moment = replace(self._moment, done=done, elapsed_s=elapsed_s, note=note)
            self._view.show(self._moment)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.update(self._moment.total)
        if self._view:
            self._view.close()


# --- In a worker ---------------------------------------------------------------------------------

_send: Callable[[Mapping[str, Any]], None] | None = None  # set in a worker: its way to the parent
_sent: dict[str, float] = {}


def begin_job(send: Callable[[Mapping[str, Any]], None]) -> None:
    """In a worker: a job begins, whose progress goes to the parent by `send`."""
    global _send
    _send = send
    _sent.clear()


def report(done: float, total: float) -> None:
    """Reports to the parent how far this job is, at most twice a second; outside a worker it does nothing."""
    _message("progress", done >= total, {"done": done, "total": total})


def tell(note: str) -> None:
    """Tells the parent what this job is at, such as a method and its reward; outside a worker it does nothing."""
    _message("note", True, {"note": note})


def announce(line: str) -> None:
    """Says that something begins: a line in a terminal or a log, in a worker a note, in a notebook nothing."""
    if _send:
        tell(line)
    elif not (in_notebook() or os.environ.get(PROGRESS_FILE)):
        say(line)


def _message(kind: str, now: bool, content: Mapping[str, Any]) -> None:
    time_s = time.monotonic()
    if _send and (now or kind not in _sent or time_s - _sent[kind] >= _MESSAGE_EVERY_S):
        _sent[kind] = time_s
        _send({"kind": kind, **content})


# --- What a run measures --------------------------------------------------------------------------

Hearer = Callable[[str, str, int, Mapping[str, float]], None]
"""Called with a run's method and name, an iteration, and numbers of it by name."""
_hearer: Hearer | None = None


@contextmanager
def hearing(hearer: Hearer) -> Iterator[None]:
    """Calls `hearer` in this process with what runs measure, its workers' too."""
    global _hearer
    before, _hearer = _hearer, hearer
    try:
        yield
    finally:
        _hearer = before


def measured(method: str, run: str, iteration: int, values: Mapping[str, float]) -> None:
    """Hands an iteration's numbers to `hearing`'s function, in a worker to the parent's."""
    if _send:
        _send({"kind": "measured", "method": method, "run": run, "iteration": iteration, "values": dict(values)})
    elif _hearer:
        _hearer(method, run, iteration, values)
