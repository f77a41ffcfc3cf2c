"""Plots of results: bars per corruption and confusion matrices; qualitative panels of a few images."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from ovrs.bench.cells import CLEAN, Cell, ScoredFacts
from ovrs.bench.predict import predict

if TYPE_CHECKING:
    from pathlib import Path

    from ovrs.bench.evaluate import Confusion

log = logging.getLogger(__name__)


def write(cells: list[tuple[ScoredFacts, Confusion, int]], results: Path) -> list[Path]:
    """All plots of a results folder; none, with a warning, without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        log.warning('no plots: matplotlib is not installed (pip install "ovrs[bench]")')
        return []
    mpl.use("Agg")
    written = []
    for name in dict.fromkeys(facts["dataset"] for facts, _, _ in cells):
        mine = [c for c in cells if c[0]["dataset"] == name]
        if any(c[0]["corruption"] != CLEAN for c in mine):
            written.append(_bars(mine, results / f"{name}-corruptions.png"))
        written += [
            _confusion(facts, score, results / f"{name}-confusion-{_slug(facts['row'])}.png")
            for facts, score, _ in mine
            if facts["corruption"] == CLEAN and len(facts["classes"]) <= 30
        ]
    return written


def _bars(cells: list[tuple[ScoredFacts, Confusion, int]], path: Path) -> Path:
    from matplotlib import pyplot as plt

    corruptions = list(dict.fromkeys(c[0]["corruption"] for c in cells))
    rows = list(dict.fromkeys(c[0]["row"] for c in cells))
    values = {(c[0]["row"], c[0]["corruption"]): c[1].miou() for c in cells}
    figure, axes = plt.subplots(figsize=(max(6, 0.9 * len(corruptions)), 4), layout="constrained")
    width = 0.8 / len(rows)
    for index, row in enumerate(rows):
        heights = [values.get((row, c), np.nan) for c in corruptions]
        axes.bar(np.arange(len(corruptions)) + index * width, heights, width, label=row)
    axes.set_xticks(np.arange(len(corruptions)) + 0.4 - width / 2, corruptions, rotation=45, ha="right")
    axes.set_ylabel("mIoU, %")
    axes.set_title(cells[0][0]["dataset"])
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _confusion(facts: ScoredFacts, score: Confusion, path: Path) -> Path:
    from matplotlib import pyplot as plt

    names = facts["classes"]
    matrix = score.matrix[:, :-1]
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = 2.2 + 0.5 * len(names)
    figure, axes = plt.subplots(figsize=(side + 0.8, side), layout="constrained")
    image = axes.imshow(share, vmin=0, vmax=1, cmap="Blues")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    for i, j in np.ndindex(share.shape):
        axes.text(
            j, i, f"{100 * share[i, j]:.0f}", ha="center", va="center", color="white" if share[i, j] > 0.5 else "black"
        )
    axes.set_xlabel("predicted")
    axes.set_ylabel("labelled")
    axes.set_title(f"{facts['dataset']}: {facts['row']}")
    figure.colorbar(image, label="share of the labelled class")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def panels(cells: list[Cell], results: Path, count: int) -> Path:
    """Image, label and every method's map of `count` images of one set, side by side (all cells of the same set)."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    data = cells[0].data
    samples = data.samples()
    chosen = [int(i) for i in np.linspace(0, len(samples) - 1, min(count, len(samples))).round()]
    palette = np.array([*data.words.colours, *[(40, 40, 40)] * (256 - len(data.words.colours))], np.uint8)
    figure, grid = plt.subplots(
        len(chosen),
        2 + len(cells),
        figsize=(3 * (2 + len(cells)), 3 * len(chosen)),
        squeeze=False,
        layout="constrained",
    )
    for axes_row, index in zip(grid, chosen, strict=True):
        rgb, labels = data.read(samples[index])
        pictures = [np.moveaxis(rgb, 0, -1), palette[labels]]
        pictures += [palette[predict(cell, rgb, labels.shape, index)] for cell in cells]
        for axes, picture, title in zip(
            axes_row, pictures, ["image", "label", *(c.row.label for c in cells)], strict=True
        ):
            axes.imshow(picture)
            axes.set_title(title, fontsize=9)
            axes.axis("off")
    path = results / f"{data.name}-panels.png"
    figure.savefig(path, dpi=90)
    plt.close(figure)
    return path


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text)
