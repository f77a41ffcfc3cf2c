"""The papers' tables beside ours. Their figures are data with a source; ours come from results of `ovrs bench accuracy`."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, model_validator

from ovrs import yamlfile
from ovrs.bench import protocols
from ovrs.bench.accuracy import load_cells
from ovrs.bench.cells import CLEAN, ScoredFacts
from ovrs.bench.corruptions import CORRUPTIONS
from ovrs.bench.report import headline
from ovrs.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SEVERITY = 5
"""Of all corruptions in the papers' tables."""
Scores = dict[tuple[str, str], tuple[float, int]]
"""mIoU in percent and number of images by data set and corruption."""


class PaperRow(BaseModel):
    """One row of theirs, and which of ours is the same experiment."""

    model_config = yamlfile.STRICT

    theirs: tuple[float | None, ...]
    source: str = ""
    date: str = ""
    """When the figure was published, or read from a secondary list."""
    run: str | None = None
    """A preset with options, as `ovrs bench accuracy --preset` takes it."""
    also: tuple[str, ...] = ()
    """Other rows of ours to show under their own names."""
    skip: tuple[str, ...] = ()
    """Data sets that the row is not run on: their authors could not either."""


class PaperTable(BaseModel):
    """One table."""

    model_config = yamlfile.STRICT

    title: str
    source: str
    note: str = ""
    model: str
    """The catalog's model of the rows."""
    sets: dict[str, str] = {}
    """The catalog's data set of a column, where the names differ."""
    columns: tuple[str, ...]
    rows: dict[str, PaperRow]

    @model_validator(mode="after")
    def _filled(self) -> PaperTable:
        if wrong := [title for title, row in self.rows.items() if len(row.theirs) != len(self.columns)]:
            raise ValueError(f"rows of another length than the columns: {', '.join(wrong)}")
        return self

    def data_set(self, column: str) -> str:
        """Return the catalog's data set of a column; None for `mean`."""
        name = column.partition(":")[0].removesuffix("-C")
        return self.sets.get(name, name)

    @property
    def data_sets(self) -> tuple[str, ...]:
        """The catalog's data sets of all columns."""
        return tuple(dict.fromkeys(self.data_set(c) for c in self.columns if c != "mean"))

    @property
    def commands(self) -> tuple[str, ...]:
        """The commands that make ours of all rows: one for the sets that are corrupted, one for the others, each with its rows."""
        corrupted = {self.data_set(c) for c in self.columns if c.endswith("-C") or ":" in c}
        groups: dict[tuple[bool, tuple[str, ...]], list[str]] = {}
        for data in self.data_sets:
            runs = tuple(dict.fromkeys(row.run for row in self.rows.values() if row.run and data not in row.skip))
            if runs:
                groups.setdefault((data in corrupted, runs), []).append(data)
        return tuple(
            f"ovrs bench accuracy --dataset {','.join(sets)} --model {self.model} --preset {','.join(runs)}"
            + (f" --corruption all --severity {SEVERITY}" if broken else "")
            + " -o results"
            for (broken, runs), sets in groups.items()
        )


@cache
def tables() -> dict[str, PaperTable]:
    """All tables by name."""
    raw: dict[str, Any] = {}
    for file in ("papers.yaml", "papers_mlmp.yaml"):
        raw |= yamlfile.parse((resources.files("ovrs.bench") / file).read_text("utf-8"), file, OptionError).data
    return {name: PaperTable.model_validate(entry) for name, entry in raw.items()}


def side_by_side(name: str, results: Path | None) -> str:
    """Markdown: their rows, ours under each where results exist, and the commands that make ours.

    Raises:
        OptionError: No table of that name.
    """
    known = tables()
    if name not in known:
        raise OptionError(f"no table {name!r}; choose one of {', '.join(known)}")
    table = known[name]
    ours = _ours(results) if results is not None and (results / "cells").is_dir() else []
    lines = [f"# {table.title}", "", f"Theirs: {table.source}.", *([table.note] if table.note else []), ""]
    lines += ["| | " + " | ".join(table.columns) + " |", "|---" * (len(table.columns) + 1) + "|"]
    told = []
    for title, row in table.rows.items():
        lines.append(f"| {title} | " + " | ".join("–" if v is None else f"{v:g}" for v in row.theirs) + " |")
        for label, scores in _matching(table, row, ours):
            shown = [_cell(table, scores, c) for c in table.columns]
            lines.append(f"| ↳ ours, {label} | " + " | ".join("–" if v is None else f"{v:.2f}" for v in shown) + " |")
            counts = {d: n for (d, _), (_, n) in scores.items() if d in table.data_sets}
            told.append(f"Ours, {label}: {', '.join(f'{n} images of {d}' for d, n in counts.items())}.")
    lines += ["", *[f"{t}: {', '.join(filter(None, (r.source, r.date)))}." for t, r in table.rows.items() if r.source]]
    lines += ["", *(told or ["Ours: none yet. To make them:"])]
    if told:
        lines += ["Ours are other weights than theirs unless the row names them. To make all:"]
    printed = [f"    {command}" for command in table.commands] or ["None of these rows can be run here."]
    return "\n".join([*lines, "", *printed, ""])


def _ours(results: Path) -> list[tuple[ScoredFacts, float, int]]:
    return [(facts, headline(facts, score), images) for facts, score, images in load_cells(results)]


def _matching(
    table: PaperTable, row: PaperRow, ours: list[tuple[ScoredFacts, float, int]]
) -> Iterator[tuple[str, Scores]]:
    """Labels and scores of our rows that belong to one of theirs: presets as published, and what stands in `also`."""
    for wanted in filter(None, (row.run, *row.also)):
        found: dict[str, Scores] = {}
        for facts, value, images in ours:
            if facts["dataset"] in table.data_sets and _is(wanted, facts) and facts["severity"] in (0, SEVERITY):
                scores = found.setdefault(_label(wanted, facts), {})
                scores[facts["dataset"], facts["corruption"]] = (value, images)
        yield from found.items()


def _is(wanted: str, facts: ScoredFacts) -> bool:
    """Whether a cell is row `wanted`: a preset alone stands for the entry called after the set."""
    made = facts.get("preset")
    head, *rest = wanted.split("+")
    full = head if "/" in head else f"{head}/{facts.get('benchmark')}"
    return made is not None and made == "+".join([full, *rest])


def _label(wanted: str, facts: ScoredFacts) -> str:
    model = facts["model"]
    network = " ".join(filter(None, (model["model"], model.get("pretrained"))))
    changed = facts["shown"] is None and protocols.of_preset(facts["preset"].partition("+")[0], facts["benchmark"])
    marks = [
        *(["dry run with random weights"] if facts.get("dry_run") else []),
        *(["images not shown as published"] if changed else []),
    ]
    return ", ".join([f"{wanted}, {network}", *marks])


def _cell(table: PaperTable, scores: Scores, column: str) -> float | None:
    if column == "mean":
        values = [_cell(table, scores, c) for c in table.columns if c != "mean"]
        return None if None in values else float(np.mean([v for v in values if v is not None]))
    data = table.data_set(column)
    if column.endswith("-C"):
        found = [scores[data, kind][0] for kind in CORRUPTIONS if (data, kind) in scores]
        return float(np.mean(found)) if len(found) == len(CORRUPTIONS) else None
    return scores.get((data, column.partition(":")[2] or CLEAN), (None, 0))[0]
