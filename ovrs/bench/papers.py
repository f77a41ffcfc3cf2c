"""The papers' tables beside ours. Their figures are data with a source; ours come from results of `ovrs bench accuracy`."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict

from ovrs.bench.accuracy import load_cells
from ovrs.bench.cells import CLEAN
from ovrs.bench.report import headline
from ovrs.errors import OptionError

if TYPE_CHECKING:
    from pathlib import Path


class PaperTable(BaseModel):
    """One table."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    source: str
    ours: str
    """The command that makes our figures."""
    columns: tuple[str, ...]
    rows: dict[str, tuple[float | None, ...]]
    match: dict[str, str]
    """Their row to our row's label."""


def tables() -> dict[str, PaperTable]:
    """All tables by name."""
    text = (resources.files("ovrs.bench") / "papers.yaml").read_text("utf-8")
    return {name: PaperTable.model_validate(entry) for name, entry in yaml.safe_load(text).items()}


def side_by_side(name: str, results: Path | None) -> str:
    """Markdown: their rows, ours under each where results exist, else the command.

    Raises:
        OptionError: No table of that name.
    """
    known = tables()
    if name not in known:
        raise OptionError(f"no table {name!r}; choose one of {', '.join(known)}")
    table = known[name]
    ours = _ours(results) if results is not None and (results / "cells").is_dir() else {}
    lines = [f"# {table.title}", "", f"Theirs: {table.source}.", ""]
    lines += ["| | " + " | ".join(table.columns) + " |", "|---" * (len(table.columns) + 1) + "|"]
    found = False
    for title, values in table.rows.items():
        lines.append(f"| {title} | " + " | ".join("–" if v is None else f"{v:g}" for v in values) + " |")
        for (label, model), scores in ours.items():
            mine = [_cell(scores, c) for c in table.columns] if label == table.match.get(title) else []
            if any(v is not None for v in mine):
                found = True
                shown = " | ".join("–" if v is None else f"{v:.2f}" for v in mine)
                lines.append(f"| ↳ ours, {label}, {model} | {shown} |")
    lines += [
        "",
        "Ours are other weights than theirs unless the row names them." if found else "Ours: none yet. To make them:",
    ]
    return "\n".join([*lines, "", f"    {table.ours}", ""])


def _ours(results: Path) -> dict[tuple[str, str], dict[tuple[str, str], float]]:
    out: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
    for facts, score, _ in load_cells(results):
        key = (facts["row"], facts["model"]["model"])
        out.setdefault(key, {})[(facts["dataset"], facts["corruption"])] = headline(facts, score)
    return out


def _cell(scores: dict[tuple[str, str], Any], column: str) -> float | None:
    if column.endswith("-C"):
        values = [v for (data, corruption), v in scores.items() if data == column[:-2] and corruption != CLEAN]
        return float(np.mean(values)) if len(values) == 15 else None
    return scores.get((column, CLEAN))
