"""Findings for people: Markdown, CSV, and a part of the report's page."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

from ovrs import files
from ovrs.assess.findings import dump, to_json
from ovrs.errors import OptionError
from ovrs.export import target
from ovrs.export.marks import FINDINGS_COLUMNS, XML_MARK
from ovrs.export.product import FINDINGS
from ovrs.export.rendering import rendered
from ovrs.export.stats import harmless

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ovrs.assess.findings import Findings
    from ovrs.store.map import Map

_FIGURES = (("user", "user's accuracy"), ("producer", "producer's accuracy"), ("f1", "F1"), ("iou", "IoU"))


def check_files(mapped: Map, paths: Sequence[Path], reference: str, *, overwrite: bool) -> None:
    """Refuse files that findings may not be written to, before the work.

    Raises:
        OptionError: Another suffix, two equal paths, the reference itself, or a file that is no product of ovrs.
        OutputError: The folder cannot be written.
    """
    target.check_distinct({f"-o {p}": p for p in paths})
    for path in paths:
        target.check(mapped, path, FINDINGS, overwrite=overwrite)
        if target.same_file(path, _local(reference)):
            raise OptionError(f"{path} is the reference; choose another name")


def _local(reference: str) -> Path:
    from pathlib import Path

    return Path(reference.partition("|")[0])


def write(findings: Findings, path: Path) -> Path:
    """Write findings as `.json`, `.md` or `.csv`, whole or not at all."""
    writers = {".json": to_json, ".md": markdown, ".csv": table}
    files.write_text(path, writers[path.suffix.lower()](findings))
    return path


def markdown(findings: Findings) -> str:
    """Return a page of Markdown: figures, areas, matrix, reliability, warnings."""
    told = dump(findings)
    lines = [XML_MARK, f"# Accuracy of {findings.map_name}", "", *_headline(told), ""]
    for title, entries in (("Warnings", told["warnings"]), ("About the reference", told["remarks"])):
        if entries:
            lines += [f"## {title}", "", *(f"* {entry}" for entry in entries), ""]
    for title, rows in _tables(told):
        lines += [f"## {title}", "", *_piped(rows), ""]
    return "\n".join(lines)


def section(told: dict[str, Any]) -> str:
    """Return the same as HTML for the report, from the content of `FILE.json`; no script."""
    warned = [*told["warnings"], *told["remarks"]]
    return rendered("accuracy.html", headline=_headline(told), warnings=warned, tables=_tables(told))


def table(findings: Findings) -> str:
    """One line for each figure of each class: `measure,class,value,low,high`."""
    told = dump(findings)
    stream = io.StringIO()
    rows = csv.writer(stream, lineterminator="\n")
    rows.writerow(FINDINGS_COLUMNS)

    def add(measure: str, name: str, figure: dict[str, Any] | None) -> None:
        if figure is not None and figure["value"] is not None:
            rows.writerow([measure, harmless(name), *(_number(figure[k]) for k in ("value", "low", "high"))])

    add("overall accuracy", "all classes", told["overall"])
    for entry in told["per_class"]:
        for key, title in _FIGURES:
            add(title, entry["class"], entry[key])
        add("share of area", entry["class"], entry["share"] if told["estimator"] else None)
        add("hectares", entry["class"], entry["hectares"])
        rows.writerow(["hectares on the map", harmless(entry["class"]), _number(entry["mapped_hectares"]), "", ""])
    trusted = told["reliability"]
    if trusted is not None:
        rows.writerow(["expected calibration error", "", _number(trusted["error"]), "", ""])
        rows.writerow(["temperature", "", _number(trusted["temperature"]), "", ""])
    return stream.getvalue()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _headline(told: dict[str, Any]) -> list[str]:
    what = (
        f"{told['points']} points" if told["points"] else f"the pixels of a {told['kind'].removesuffix('s')} reference"
    )
    how = f"; estimators: {told['estimator']}" if told["estimator"] else "; figures hold for the reference alone"
    lines = [f"Against {what} ({told['reference']}){how}.", f"Overall accuracy {_figure(told['overall'])}."]
    trusted = told["reliability"]
    if trusted is not None:
        line = f"Expected calibration error of the confidence {trusted['error']:.3f}"
        if trusted["temperature"] is not None:
            where = "on points held out" if trusted["held_out"] else "on the same pixels"
            line += f"; at temperature {trusted['temperature']:.3g} {trusted['calibrated_error']:.3f} ({where})"
        lines.append(line + ".")
    return lines


def _figure(figure: dict[str, Any], scale: float = 100, digits: int = 1) -> str:
    """Return a figure with half of its interval, or with both bounds where the interval is not symmetrical."""
    if figure["value"] is None:
        return "–"
    value = f"{figure['value'] * scale:.{digits}f}"
    if figure["low"] is None:
        return value
    low, high = figure["low"] * scale, figure["high"] * scale
    if figure.get("exact") or abs((low + high) / 2 - figure["value"] * scale) > 0.5 * 10**-digits:
        return f"{value} [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{value} ± {(high - low) / 2:.{digits}f}"


def _tables(told: dict[str, Any]) -> list[tuple[str, list[list[str]]]]:
    names, entries = told["classes"], told["per_class"]
    found = [
        (
            "Classes, percent with 95 % intervals",
            [
                ["class", *(title for _, title in _FIGURES)],
                *([e["class"], *(_figure(e[k]) for k, _ in _FIGURES)] for e in entries),
            ],
        )
    ]
    if told["estimator"]:
        rows = [["class", "hectares on the map", "hectares by the reference"]]
        rows += [
            [e["class"], f"{e['mapped_hectares']:,.2f}", "–" if e["hectares"] is None else _figure(e["hectares"], 1, 2)]
            for e in entries
        ]
        found.append(("Areas with 95 % intervals", rows))
    if told["matrix_points"] is not None:
        found.append(("Points: map in rows, reference in columns", _matrix(names, told["matrix_points"], "{:d}")))
    shares = [[100 * v for v in row] for row in told["matrix_shares"]]
    title = "Percent of the area" if told["estimator"] or not told["points"] else "Percent of the points"
    found.append((f"{title}: map in rows, reference in columns", _matrix(names, shares, "{:.2f}")))
    trusted = told["reliability"]
    if trusted is not None:
        rows = [
            [
                "confidence",
                "percent of the area" if told["estimator"] or not told["points"] else "percent of the points",
                "mean confidence",
                "percent right",
            ]
        ]
        rows += [
            [
                f"{b['low']:.1f}–{b['high']:.1f}",
                f"{100 * b['share']:.1f}",
                f"{b['confidence']:.2f}",
                f"{100 * b['accuracy']:.1f}",
            ]
            for b in trusted["bins"]
        ]
        found.append(("Reliability of the confidence", rows))
    return found


def _matrix(names: Sequence[str], values: Sequence[Sequence[float]], form: str) -> list[list[str]]:
    rows = [["map \\ reference", *names, "sum"]]
    rows += [[n, *(form.format(v) for v in row), form.format(sum(row))] for n, row in zip(names, values, strict=True)]
    return [
        *rows,
        ["sum", *(form.format(sum(c)) for c in zip(*values, strict=True)), form.format(sum(map(sum, values)))],
    ]


def _piped(rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]
