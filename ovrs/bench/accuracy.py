"""Score methods on labelled sets: global confusion matrices, resumable image by image (`docs/methods.md#agreement-with-ground-truth`).

Each image is adapted to on its own, unless a preset's protocol adapts several together. The result of each group of images
is kept as a small file, so an interrupted run goes on.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml

from ovrs import files
from ovrs.bench.evaluate import Confusion
from ovrs.bench.predict import score
from ovrs.engine import execute
from ovrs.errors import CatalogError, OptionError
from ovrs.options import RunOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ovrs.bench.cells import Cell, ScoredFacts
    from ovrs.bench.layouts import Sample

    Group = tuple[tuple[int, Sample], ...]
    """Images that are adapted together, each with its number in the set."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Work:
    """What a worker does for the images of one group. Picklable."""

    cell: Cell
    folder: Path

    def __call__(self, group: Group) -> list[str]:
        """Score the images; returns why some were left out."""
        read, left_out = [], []
        for index, sample in group:
            rgb, labels = self.cell.data.read(sample)
            if abs(rgb.shape[1] * labels.shape[1] / (rgb.shape[2] * labels.shape[0]) - 1) > 0.02:
                left_out.append(f"{sample.name}: image {rgb.shape[1:]} and label {labels.shape} differ in shape")
            else:
                read.append((index, rgb, labels))
        if read:
            _write(self.folder / _file_name(group), score(self.cell, read), left_out)
        return left_out


def _file_name(group: Group) -> str:
    names = "\n".join(sample.name for _, sample in group)
    return f"{group[0][1].image.stem}-{hashlib.sha256(names.encode()).hexdigest()[:8]}.npz"


def _write(target: Path, found: Confusion, left_out: list[str]) -> None:
    rows, cols = np.nonzero(found.matrix)  # mostly zeros when there are many classes
    with files.atomic(target, sweep=False) as temporary:
        np.savez(temporary, rows=rows, cols=cols, counts=found.matrix[rows, cols], left_out=np.array(left_out, str))


def _left_out(file: Path) -> list[str]:
    with np.load(file) as kept:
        return [str(v) for v in kept["left_out"]] if "left_out" in kept else []


def run_cell(
    cell: Cell,
    results: Path,
    *,
    images: int | None = None,
    workers: int = 1,
    progress: Callable[[str, int, int], None] | None = None,
) -> Confusion:
    """Score every image of a cell that has no result yet, and add all up.

    Args:
        cell: What to score.
        results: Folder of all results.
        images: Only so many images, evenly spread.
        workers: Processes.
        progress: Called with the cell's name, images done and images in all.
    """
    folder = cell.folder(results)
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    labelled, unlabelled = cell.data.find()
    if not labelled:
        raise CatalogError(unlabelled[0])
    samples = list(enumerate(labelled))
    if images is not None and images < len(samples):
        samples = [samples[i] for i in np.linspace(0, len(samples) - 1, images).round().astype(int)]
    step = cell.row.protocol.together if cell.row.protocol else 1
    groups = {_file_name(g): g for g in (tuple(samples[i : i + step]) for i in range(0, len(samples), step))}
    files.sweep_folder(folder)
    files.write_text(folder / "cell.json", json.dumps(cell.facts(), indent=1) + "\n")
    kept = [name for name in groups if (folder / name).exists()]
    left_out = [*unlabelled, *(reason for name in kept for reason in _left_out(folder / name))]
    if unlabelled:
        log.warning("%d images of %s are left out: %s", len(unlabelled), cell.data.name, unlabelled[0])
    missing = [group for name, group in groups.items() if name not in kept]
    options = RunOptions(executor="dask" if workers > 1 else "serial", workers=workers)
    done = sum(len(groups[name]) for name in kept)
    for reasons in execute.run(options, _Work(cell, folder), missing):
        done += step
        for reason in reasons:
            log.warning("left out: %s", reason)
            left_out.append(reason)
        if progress is not None:
            progress(folder.name, min(done, len(samples)), len(samples))
    names = [name for name in groups if (folder / name).exists()]
    count = sum(len(groups[name]) - len(_left_out(folder / name)) for name in names)
    summary = {"images": names, "count": count, "left_out": left_out}
    files.write_text(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    return total(folder, names, len(cell.data.words.classes))


def total(folder: Path, names: Sequence[str], classes: int) -> Confusion:
    """Sum of the named images' confusion matrices."""
    matrix = np.zeros((classes, classes + 1), np.int64)
    for name in names:
        with np.load(folder / name) as kept:
            matrix[kept["rows"], kept["cols"]] += kept["counts"]
    return Confusion(matrix)


def load_cells(results: Path) -> list[tuple[ScoredFacts, Confusion, int]]:
    """Facts, confusion and number of images of every scored cell; the facts also count the images left out.

    Raises:
        OptionError: The folder holds none.
    """
    found = []
    for file in sorted(results.glob("cells/*/summary.json")):
        facts = yaml.safe_load((file.parent / "cell.json").read_text("utf-8"))
        summary = json.loads(file.read_text("utf-8"))
        facts["left_out"] = len(summary["left_out"])
        names = summary["images"]
        found.append((facts, total(file.parent, names, len(facts["classes"])), summary.get("count", len(names))))
    if not found:
        raise OptionError(f"{results} holds no results; `ovrs bench accuracy … -o {results}` makes some")
    return found
