"""Results of `ovrs bench accuracy` as a Parquet table, a Markdown page and plots."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ovrs import files
from ovrs.bench.accuracy import load_cells
from ovrs.bench.cells import CLEAN, CellFacts, ScoredFacts

if TYPE_CHECKING:
    from ovrs.bench.evaluate import Confusion

Scored = tuple[ScoredFacts, "Confusion", int]


def write_report(results: Path) -> list[Path]:
    """Write `accuracy.parquet`, `accuracy.md` and, where matplotlib is installed, plots; returns what was written.

    Raises:
        OptionError: No results there.
    """
    cells = load_cells(results)
    table, page = results / "accuracy.parquet", results / "accuracy.md"
    with files.atomic(table) as temporary:
        write_parquet(cells, temporary)
    files.write_text(page, markdown(cells))
    from ovrs.bench import plots

    return [table, page, *plots.write(cells, results)]


def write_parquet(cells: list[Scored], path: Path) -> None:
    """One row per (set, corruption, method, class)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for facts, score, images in cells:
        iou, square = score.iou(), score.matrix[:, :-1]
        for index, name in enumerate(facts["classes"]):
            labelled, predicted, hit = (int(v[index]) for v in (score.matrix.sum(1), square.sum(0), np.diag(square)))
            rows.append(
                {
                    "dataset": facts["dataset"],
                    "corruption": facts["corruption"],
                    "severity": facts["severity"],
                    "method": facts["row"],
                    "model": facts["model"]["model"],
                    "class": name,
                    "iou": None if np.isnan(iou[index]) else float(iou[index]),
                    "recall": hit / labelled if labelled else None,
                    "labelled_pixels": labelled,
                    "predicted_pixels": predicted,
                    "right_pixels": hit,
                    "images": images,
                    "left_out": facts.get("left_out", 0),
                    "tuned_on_labels": facts["tuned_on_labels"],
                    "dry_run": facts.get("dry_run", False),
                    "protocol": facts["protocol"],
                }
            )
    pq.write_table(pa.Table.from_pylist(rows), path)


def headline(facts: CellFacts, score: Confusion) -> float:
    """Return the mIoU in percent; for single-class tasks the IoU of that class (`docs/methods.md#agreement-with-ground-truth`)."""
    if len(facts["classes"]) == 2 and facts["classes"][0] == "background":
        return float(100 * score.iou()[1])
    return score.miou()


def markdown(cells: list[Scored]) -> str:
    """Tables like the papers': methods down, sets across; corruptions on a page part of their own."""
    lines = ["# Accuracy", "", "mIoU in percent; for one class against background the IoU of that class.", ""]
    clean = [c for c in cells if c[0]["corruption"] == CLEAN]
    for tuned in (False, True):
        part = [c for c in clean if c[0]["tuned_on_labels"] == tuned]
        if part:
            lines += [
                "## Clean" + (", constants tuned on labels of the same sets (not zero-shot)" if tuned else ""),
                "",
            ]
            lines += _table(part, "dataset")
    corrupted = [c for c in cells if c[0]["corruption"] != CLEAN]
    for name in sorted({c[0]["dataset"] for c in corrupted}):
        for severity in sorted({c[0]["severity"] for c in corrupted if c[0]["dataset"] == name}):
            part = [c for c in corrupted if c[0]["dataset"] == name and c[0]["severity"] == severity]
            lines += [f"## {name}, corrupted, severity {severity}", "", *_table(part, "corruption")]
    lines += ["## Per class, clean", ""]
    for name in sorted({c[0]["dataset"] for c in clean}):
        part = [c for c in clean if c[0]["dataset"] == name]
        classes = part[0][0]["classes"]
        if len(classes) > 30:
            continue
        lines += [f"| {name} | " + " | ".join(classes) + " |", "|---" * (len(classes) + 1) + "|"]
        lines += [f"| {_title(f)} | " + " | ".join(_number(100 * v) for v in s.iou()) + " |" for f, s, _ in part]
        lines.append("")
    return "\n".join(lines)


def _table(cells: list[Scored], across: Literal["dataset", "corruption"]) -> list[str]:
    columns = list(dict.fromkeys(c[0][across] for c in cells))
    rows: dict[str, dict[str, float]] = {}
    counts = {c[0][across]: c[2] for c in cells}
    for facts, score, _ in cells:
        rows.setdefault(_title(facts), {})[facts[across]] = headline(facts, score)
    out = ["| | " + " | ".join(f"{c} ({counts[c]})" for c in columns) + " | mean |", "|---" * (len(columns) + 2) + "|"]
    for title, values in rows.items():
        mean = float(np.mean(list(values.values()))) if len(values) == len(columns) else float("nan")
        out.append(f"| {title} | " + " | ".join(_number(values.get(c)) for c in columns) + f" | {_number(mean)} |")
    lost = {f[across]: f["left_out"] for f, _, _ in cells if f.get("left_out")}
    told = [f"Without a usable label: {', '.join(f'{n}: {k} left out' for n, k in lost.items())}.", ""] if lost else []
    return [*out, "", "In brackets: number of images. Mean over the columns.", "", *told]


def _title(facts: ScoredFacts) -> str:
    model = facts["model"]["model"]
    row = f"{facts['row']}, dry run with random weights" if facts.get("dry_run") else facts["row"]
    return row if model == "bundled" else f"{row} ({Path(model).name})"


def _number(value: float | None) -> str:
    return "–" if value is None or np.isnan(value) else f"{value:.2f}"
