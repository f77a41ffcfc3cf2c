"""Score methods on labelled sets: global confusion matrices, resumable image by image (`docs/methods.md` 8).

Each image is adapted to on its own, as in the papers; an image larger than `part` pixels is cut into parts. A cell is one
set under one corruption with one method; its images are kept as small files, so an interrupted run goes on.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from ovrs import files
from ovrs.bench.corruptions import CORRUPTIONS, corrupt
from ovrs.bench.evaluate import Confusion
from ovrs.engine import execute
from ovrs.engine.decide import DecisionRule, decide
from ovrs.engine.tiling import crop_starts
from ovrs.errors import OptionError
from ovrs.methods import preset
from ovrs.options import MethodOptions, ModelOptions, RunOptions
from ovrs.options import build as build_options
from ovrs.provenance import NUMERICS, canonical
from ovrs.run import segmenters
from ovrs.run.segmenters import SegmenterSpec
from ovrs.scene.grid import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from ovrs.bench.layouts import LabelledSet, Sample

log = logging.getLogger(__name__)

PROTOCOL = 1
"""Counted up when the same options would give other numbers."""
CLEAN = "clean"


@dataclass(frozen=True)
class Row:
    """One method with its options."""

    label: str
    method: dict[str, Any] = field(hash=False)
    tuned_on_labels: bool = False


@dataclass(frozen=True)
class Cell:
    """One set, one corruption, one method."""

    data: LabelledSet
    row: Row
    model: ModelOptions
    corruption: str
    severity: int
    part: int

    def facts(self) -> dict[str, Any]:
        """What decides the numbers."""
        method = self.options()
        return {
            "protocol": PROTOCOL,
            "numerics": NUMERICS,
            "dataset": self.data.name,
            "split": self.data.split,
            "held_out": list(self.data.held_out),
            "shrink": self.data.shrink,
            "classes": list(self.data.words.class_names),
            "vocabulary": self.data.words.digest(),
            "corruption": self.corruption,
            "severity": self.severity,
            "part": self.part,
            "row": self.row.label,
            "tuned_on_labels": self.row.tuned_on_labels,
            "model": self.shown_model().model_dump(mode="json"),
            "method": method.model_dump(mode="json", exclude_unset=True),
        }

    def shown_model(self) -> ModelOptions:
        """The model, told how large the pixels that it is shown are."""
        own = self.data.pixel_size
        return self.model.told(None if own is None else own * self.data.shrink)

    def options(self) -> MethodOptions:
        model = self.model.model_dump(exclude_unset=True)
        return build_options(model=model, method=self.row.method).method

    def folder(self, results: Path) -> Path:
        digest = hashlib.sha256(canonical(self.facts()).encode()).hexdigest()[:12]
        return results / "cells" / f"{self.data.name}-{self.corruption}-{digest}"


def parse_row(text: str) -> Row:
    """`tmpa`, or `none+prompts=names`: a method with options.

    Raises:
        OptionError: An option that does not exist.
    """
    name, *rest = text.split("+")
    return Row(text, {"method": name, **preset.parse_settings(rest)})


def preset_row(name: str) -> Row:
    """A preset as a row; label-tuned ones say so."""
    return Row(name, preset.method_options(name), preset.load(name.partition("/")[0]).tuned_on_labels)


def corruptions(text: str) -> list[str]:
    """`none`, `all` (clean and the fifteen), or names separated by commas.

    Raises:
        OptionError: An unknown name.
    """
    if text == "all":
        return [CLEAN, *CORRUPTIONS]
    names = [CLEAN if n.strip() in ("none", CLEAN) else n.strip() for n in text.split(",")]
    wrong = [n for n in names if n != CLEAN and n not in CORRUPTIONS]
    if wrong:
        raise OptionError(f"no corruption {', '.join(wrong)}; choose all, none or of {', '.join(CORRUPTIONS)}")
    return names


@dataclass(frozen=True)
class _Work:
    """What a worker does for one image. Picklable."""

    cell: Cell
    folder: Path

    def __call__(self, item: tuple[int, Sample]) -> str | None:
        """Score one image; returns why it was left out, if it was."""
        index, sample = item
        target = self.folder / _file_name(sample)
        rgb, labels = self.cell.data.read(sample)
        if abs(rgb.shape[1] * labels.shape[1] / (rgb.shape[2] * labels.shape[0]) - 1) > 0.02:
            return f"{sample.name}: image {rgb.shape[1:]} and label {labels.shape} differ in shape"
        guess = predict(self.cell, rgb, labels.shape, index)
        found = Confusion.empty(len(self.cell.data.words.classes)).add(guess, labels)
        _write(target, found, index)
        return None


def predict(cell: Cell, rgb: NDArray[np.uint8], size: tuple[int, ...], index: int) -> NDArray[np.unsignedinteger]:
    """Labels `(H, W)` of one image at the size of its label: scores are resized before the argmax, labels never."""
    if cell.corruption != CLEAN:
        image = np.ascontiguousarray(np.moveaxis(rgb, 0, -1))
        rgb = np.ascontiguousarray(np.moveaxis(corrupt(image, cell.corruption, cell.severity, index), -1, 0))
    shown = _shrunk(rgb, cell.data.shrink)
    method, words = cell.options(), cell.data.words
    segmenter = segmenters.build(SegmenterSpec(cell.shown_model(), method, words))
    own = words.background.threshold if words.background else 0.0
    rule = DecisionRule(words.background_index, own if method.threshold is None else method.threshold)
    out = np.zeros((size[0], size[1]), np.uint8)
    height, width = shown.shape[1:]
    for row, col, bottom, right in _parts(height, width, cell.part):
        piece = np.ascontiguousarray(shown[:, row:bottom, col:right])
        crops = windows((bottom - row, right - col), segmenter.geometry.crop, segmenter.geometry.stride)
        scores = segmenter.segment(piece, np.ones(piece.shape[1:], bool), crops).scores
        rows = slice(round(row * size[0] / height), round(bottom * size[0] / height))
        cols = slice(round(col * size[1] / width), round(right * size[1] / width))
        target = (rows.stop - rows.start, cols.stop - cols.start)
        scores = _resized(scores, target)
        out[rows, cols] = decide(scores, np.ones(target, bool), rule)[0]
    return out


def windows(shape: tuple[int, int], crop: int, stride: int) -> tuple[Window, ...]:
    """The crops of an image, the last ones moved back to its border."""
    size = (min(crop, shape[0]), min(crop, shape[1]))
    return tuple(
        Window(r, c, *size) for r in crop_starts(shape[0], crop, stride) for c in crop_starts(shape[1], crop, stride)
    )


def _parts(height: int, width: int, part: int) -> list[tuple[int, int, int, int]]:
    down, across = -(-height // part), -(-width // part)
    rows = [round(i * height / down) for i in range(down + 1)]
    cols = [round(i * width / across) for i in range(across + 1)]
    return [(rows[i], cols[j], rows[i + 1], cols[j + 1]) for i in range(down) for j in range(across)]


def _shrunk(rgb: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    if factor == 1:
        return rgb
    from PIL import Image

    size = (round(rgb.shape[2] / factor), round(rgb.shape[1] / factor))
    image = Image.fromarray(np.ascontiguousarray(np.moveaxis(rgb, 0, -1)))
    return np.ascontiguousarray(np.moveaxis(np.asarray(image.resize(size, Image.Resampling.BOX)), -1, 0))


def _resized(scores: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    if scores.shape[1:] == size:
        return scores
    from PIL import Image

    bilinear = Image.Resampling.BILINEAR
    return np.stack([np.asarray(Image.fromarray(s).resize((size[1], size[0]), bilinear)) for s in scores])


def _file_name(sample: Sample) -> str:
    return f"{sample.image.stem}-{hashlib.sha256(sample.name.encode()).hexdigest()[:8]}.npz"


def _write(target: Path, found: Confusion, index: int) -> None:
    rows, cols = np.nonzero(found.matrix)  # mostly zeros when there are many classes
    with files.atomic(target, sweep=False) as temporary:
        np.savez(temporary, rows=rows, cols=cols, counts=found.matrix[rows, cols], index=np.array(index))


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
    samples = list(enumerate(cell.data.samples()))
    if images is not None and images < len(samples):
        samples = [samples[i] for i in np.linspace(0, len(samples) - 1, images).round().astype(int)]
    files.sweep_folder(folder)
    files.write_text(folder / "cell.json", json.dumps(cell.facts(), indent=1) + "\n")
    missing = [s for s in samples if not (folder / _file_name(s[1])).exists()]
    options = RunOptions(executor="dask" if workers > 1 else "serial", workers=workers)
    done, left_out = len(samples) - len(missing), []
    for reason in execute.run(options, _Work(cell, folder), missing):
        done += 1
        if reason is not None:
            log.warning("left out: %s", reason)
            left_out.append(reason)
        if progress is not None:
            progress(folder.name, done, len(samples))
    names = [_file_name(s) for _, s in samples]
    summary = {"images": [n for n in names if (folder / n).exists()], "left_out": left_out}
    files.write_text(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    return total(folder, summary["images"], len(cell.data.words.classes))


def total(folder: Path, names: Sequence[str], classes: int) -> Confusion:
    """Sum of the named images' confusion matrices."""
    matrix = np.zeros((classes, classes + 1), np.int64)
    for name in names:
        with np.load(folder / name) as kept:
            matrix[kept["rows"], kept["cols"]] += kept["counts"]
    return Confusion(matrix)


def load_cells(results: Path) -> list[tuple[dict[str, Any], Confusion, int]]:
    """Facts, confusion and number of images of every scored cell.

    Raises:
        OptionError: The folder holds none.
    """
    found = []
    for file in sorted(results.glob("cells/*/summary.json")):
        facts = yaml.safe_load((file.parent / "cell.json").read_text("utf-8"))
        names = json.loads(file.read_text("utf-8"))["images"]
        found.append((facts, total(file.parent, names, len(facts["classes"])), len(names)))
    if not found:
        raise OptionError(f"{results} holds no results; `ovrs bench accuracy … -o {results}` makes some")
    return found
