"""What a run tells machines: a line of JSON for each event, counters for Prometheus' node exporter and OpenTelemetry.

`OVRS_LOG=json` makes each line of the log a JSON object. `OVRS_METRICS=FOLDER` keeps a text file per map there, as node
exporter's textfile collector reads them. Where OpenTelemetry's package is installed, the same counters go to its meter.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import time
from collections import Counter
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from ovrs import files
from ovrs.redact import redacted

log = logging.getLogger(__name__)

FIELDS = ("scene", "map", "block", "status", "attempt", "seconds", "worker", "pixels", "error")
"""What the record of a block adds to its line, where it is known."""
WRITE_SECONDS = 5.0
"""How often a file of metrics is written."""
OLD_SECONDS = 7 * 86400.0
"""Files of metrics without a change for so long are removed."""


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, and the fields of a block."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as one line of JSON."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": when,
            "level": record.levelname,
            "logger": record.name,
            "message": redacted(record.getMessage()),
        }
        line |= {name: value for name in FIELDS if (value := getattr(record, name, None)) is not None}
        if record.exc_info:
            line["traceback"] = redacted(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False, default=str)


def wants_json() -> bool:
    """Whether `OVRS_LOG` asks for lines of JSON."""
    return os.environ.get("OVRS_LOG", "") == "json"


def log_as_json() -> None:
    """Write what ovrs logs to standard error as lines of JSON, if `OVRS_LOG` asks for it: for workers and flows."""
    logger = logging.getLogger("ovrs")
    if wants_json() and not any(isinstance(h.formatter, JsonLines) for h in logger.handlers):
        handler = logging.StreamHandler()
        handler.setFormatter(JsonLines())
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


class Counters:
    """Counts of one map while it is made. A file that cannot be written is a warning, once."""

    def __init__(self, out: str, total: int, finished: int) -> None:
        """Begin to count.

        Args:
            out: The map.
            total: Number of its blocks.
            finished: Those that were done before.
        """
        self.out, self.name = redacted(out), Path(out).name.removesuffix(".zarr")
        self.total, self.finished = total, finished
        self.blocks, self.pixels = Counter[str](), 0
        self.stages: dict[str, float] = {}
        folder = os.environ.get("OVRS_METRICS")
        self.folder = Path(folder) if folder else None
        self._meter = _meter()
        self._written = 0.0

    def count(self, *, status: str, pixels: int, stages: dict[str, float]) -> None:
        """Add one block that came to its end; `stages` holds seconds."""
        self.blocks[status] += 1
        self.finished += status in ("done", "empty")
        self.pixels += pixels
        for stage, seconds in stages.items():
            self.stages[stage] = self.stages.get(stage, 0.0) + seconds
        if self._meter is not None:
            self._meter(status, pixels, stages)
        if time.monotonic() - self._written > WRITE_SECONDS:
            self.write()

    def write(self) -> None:
        """Write the file of metrics, if a folder is named."""
        if self.folder is None:
            return
        self._written = time.monotonic()
        mark = sha256(self.out.encode()).hexdigest()[:8]
        file = self.folder / f"ovrs-{re.sub(r'[^A-Za-z0-9_.]+', '_', self.name)[:80]}-{mark}.prom"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for other in self.folder.glob("ovrs-*.prom"):
                if time.time() - other.stat().st_mtime > OLD_SECONDS:
                    other.unlink(missing_ok=True)
            files.write_text(file, self.text(), sweep=False)
        except OSError as error:
            log.warning("no metrics are written: %s", error)
            self.folder = None

    def text(self) -> str:
        """Return the counters in the text format of Prometheus."""
        label = 'map="' + self.out.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") + '"'
        blocks = [f'{{{label},status="{k}"}} {v}' for k, v in sorted(self.blocks.items())]
        stages = [f'{{{label},stage="{k}"}} {v:.3f}' for k, v in sorted(self.stages.items())]
        plan = [f'{{{label},state="all"}} {self.total}', f'{{{label},state="finished"}} {self.finished}']
        found = [
            *_family("ovrs_blocks_total", "counter", "Blocks that came to their end in this process.", blocks),
            *_family("ovrs_pixels_total", "counter", "Classified pixels.", [f"{{{label}}} {self.pixels}"]),
            *_family("ovrs_stage_seconds_total", "counter", "Seconds of work by stage.", stages),
            *_family("ovrs_map_blocks", "gauge", "Blocks of the map.", plan),
            *_family("ovrs_map_seen_seconds", "gauge", "Time of this file.", [f"{{{label}}} {time.time():.0f}"]),
        ]
        return "\n".join(found) + "\n"


def _family(name: str, kind: str, told: str, samples: list[str]) -> list[str]:
    return [f"# HELP {name} {told}", f"# TYPE {name} {kind}", *(name + sample for sample in samples)] if samples else []


def _meter() -> Any:
    """Return the meter with OpenTelemetry's counters; None where its package is absent."""
    if importlib.util.find_spec("opentelemetry") is None:
        return None
    from opentelemetry import metrics

    meter = metrics.get_meter("ovrs")
    blocks = meter.create_counter("ovrs.blocks", "1", "blocks that came to their end")
    pixels = meter.create_counter("ovrs.pixels", "1", "classified pixels")
    seconds = meter.create_counter("ovrs.stage.seconds", "s", "seconds of work by stage")

    def add(status: str, count: int, stages: dict[str, float]) -> None:
        blocks.add(1, {"status": status})
        pixels.add(count)
        for stage, spent in stages.items():
            seconds.add(spent, {"stage": stage})

    return add
