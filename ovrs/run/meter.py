"""How far a run is, in tiles: a bar on a terminal, a line every ten seconds elsewhere, lines of JSON for programs.

Tiles are counted as they are scored where this process computes; those of other processes count when their block is done.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ovrs.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ovrs.engine.tiling import Plan
    from ovrs.run.rundir import BlockRecord

FORMS = ("auto", "json", "none")
LINE_SECONDS = 10.0
"""Between two lines where there is no terminal."""
JSON_SECONDS = 1.0
"""Between two lines of JSON."""
_BAR_SECONDS = 0.25


class _Count:
    """Tiles that this process scored."""

    def __init__(self) -> None:
        self.value, self._lock = 0, threading.Lock()

    def one_more(self) -> None:
        with self._lock:
            self.value += 1


_tiles = _Count()


def tick() -> None:
    """Count a tile of this process."""
    _tiles.one_more()


class Meter:
    """The progress of one run. Called with each block's record, as `ovrs.pipeline.map` calls its `progress`."""

    def __init__(self) -> None:
        self.total = 0
        """Tiles of the blocks that are to be computed; one that two blocks touch counts twice."""
        self.blocks = (0, 0)
        """Done, and all."""
        self._begun = time.monotonic()
        self._first = self._settled = self._skipped = 0
        self._pitch = 0
        self._of: dict[str, int] = {}

    def begin(self, plan: Plan, names: list[str]) -> None:
        """Take what is to be done; called before the first block."""
        if not names:
            return
        self._of = tiles_by_block(plan, names)
        self._first, self._settled, self._skipped = _tiles.value, 0, 0
        self._begun, self._pitch = time.monotonic(), plan.geometry.pitch
        self.blocks = (plan.block_count - len(names), plan.block_count)
        self.total = sum(self._of.values())

    def __call__(self, record: BlockRecord, done: int, total: int) -> None:
        """Take note of a block that has ended; `done` and `total` count blocks."""
        tiles = self._of.get(record.name, 0)
        self._settled += tiles
        if record.finished:
            self._skipped += max(0, tiles - record.tiles)
        self.blocks = (done, total)

    @property
    def done(self) -> int:
        """Tiles."""
        return min(self.total, max(self._settled, _tiles.value - self._first + self._skipped))

    @property
    def seconds(self) -> float:
        """Since the first block began."""
        return time.monotonic() - self._begun

    @property
    def seconds_left(self) -> float | None:
        """None before the first tile."""
        return self.seconds / self.done * (self.total - self.done) if self.done else None

    @property
    def speed(self) -> str:
        """Megapixels per second."""
        return f"{self.done * self._pitch**2 / 1e6 / max(self.seconds, 1e-6):.2f} Mpx/s"

    @property
    def line(self) -> str:
        """For people."""
        left = self.seconds_left
        after = (
            "" if left is None else f", about {left:.0f} s left" if left < 120 else f", about {left / 60:.0f} min left"
        )
        share = 100 * self.done / max(self.total, 1)
        return f"mapping: {self.done} of {self.total} tiles ({share:.0f} %), {self.speed}{after}"

    @property
    def json(self) -> str:
        """For programs: one object in one line."""
        left = self.seconds_left
        facts = {
            "event": "progress",
            "tiles": self.done,
            "tiles_total": self.total,
            "blocks": self.blocks[0],
            "blocks_total": self.blocks[1],
            "seconds": round(self.seconds, 1),
            "seconds_left": None if left is None else round(left, 1),
        }
        return json.dumps(facts)


def tiles_by_block(plan: Plan, names: list[str]) -> dict[str, int]:
    """How many tiles each block touches."""
    rows, cols = plan.block_shape
    down = [len({t.row for t in plan.tiles_of(plan.block(r, 0).core)}) for r in range(rows)]
    across = [len({t.col for t in plan.tiles_of(plan.block(0, c).core)}) for c in range(cols)]
    places = {name: tuple(map(int, name.split("_"))) for name in names}
    return {name: down[row] * across[col] for name, (row, col) in places.items()}


@contextmanager
def metered(form: str = "auto") -> Iterator[Meter]:
    """Yield a meter that is shown on standard error while inside.

    Args:
        form: `auto` (a bar on a terminal, else a line every ten seconds), `json` (a line of JSON every second and at the
            end), or `none`.

    Raises:
        OptionError: Another word.
    """
    if form not in FORMS:
        raise OptionError(f"--progress is one of {', '.join(FORMS)}, got {form!r}")
    meter = Meter()
    if form == "none":
        yield meter
    elif form == "auto" and sys.stderr.isatty():
        with _bar(meter):
            yield meter
    elif form == "auto":
        with _repeated(lambda: _say(meter.line) if meter.total else None, LINE_SECONDS):
            yield meter
    else:
        with _repeated(lambda: _say(meter.json) if meter.total else None, JSON_SECONDS):
            yield meter
        _say(meter.json)


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


@contextmanager
def _repeated(show: Callable[[], object], seconds: float) -> Iterator[None]:
    """Call `show` again and again from a thread while inside."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(seconds):
            show()

    thread = threading.Thread(target=work, name="ovrs-meter", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def _bar(meter: Meter) -> Iterator[None]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tiles  {task.fields[blocks]} blocks  {task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("mapping", total=None, blocks="", speed="")

        def show() -> None:
            if meter.total:
                blocks = f"{meter.blocks[0]}/{meter.blocks[1]}"
                bar.update(task, completed=meter.done, total=meter.total, blocks=blocks, speed=meter.speed)

        with _repeated(show, _BAR_SECONDS):
            yield
        show()
        bar.refresh()
