"""From an image to labels: shown as a preset's paper shows it, or as it is, cut into parts where it is large."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ovrs.bench import dryrun, protocols
from ovrs.bench.cells import CLEAN
from ovrs.bench.corruptions import corrupt
from ovrs.bench.evaluate import Confusion
from ovrs.engine.arrays import as_numpy
from ovrs.engine.contract import FrozenSegmenter
from ovrs.engine.decide import DecisionRule, decide
from ovrs.engine.tiling import crop_starts
from ovrs.errors import OptionError
from ovrs.run import segmenters
from ovrs.run.segmenters import SegmenterSpec
from ovrs.scene.grid import Window

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ovrs.bench.cells import Cell
    from ovrs.bench.protocols import Protocol
    from ovrs.engine.contract import Segmenter

    Picture = NDArray[np.uint8]
    Labels = NDArray[np.unsignedinteger]
    Part = tuple[slice, slice]


def score(cell: Cell, images: Sequence[tuple[int, Picture, NDArray[np.uint8]]]) -> Confusion:
    """Confusion of images that are adapted together: number, pixels `(3, h, w)` and labels `(H, W)` of each."""
    found, protocol = Confusion.empty(len(cell.data.words.classes)), cell.row.protocol
    if protocol is None:
        for index, rgb, labels in images:
            found = found.add(predict(cell, rgb, labels.shape, index), labels)
        return found
    pictures, truths = [], []
    for index, rgb, labels in images:
        for picture, part in _pictures(cell, protocol, rgb, labels.shape, index):
            pictures.append(picture)
            truth, size = labels[part], (picture.shape[1], picture.shape[2])
            truths.append(protocols.nearest(truth, size) if protocol.labels == "resized" else truth)
    step = protocol.together
    for first in range(0, len(pictures), step):
        own = truths[first : first + step]
        guesses = _together(cell, protocol, pictures[first : first + step], [t.shape for t in own])
        for guess, truth in zip(guesses, own, strict=True):
            found = found.add(guess, truth)
    return found


def predict(cell: Cell, rgb: Picture, size: tuple[int, ...], index: int) -> Labels:
    """Labels `(H, W)` of one image at the size of its label: scores are resized before the argmax, labels never."""
    protocol, out = cell.row.protocol, np.zeros((size[0], size[1]), np.uint8)
    if protocol is not None:
        for picture, part in _pictures(cell, protocol, rgb, size, index):
            (out[part],) = _together(cell, protocol, [picture], [out[part].shape])
        return out
    shown, segmenter, rule = _shrunk(_corrupted(cell, rgb, index), cell.data.shrink), _segmenter(cell), _rule(cell)
    height, width = shown.shape[1:]
    for row, col, bottom, right in _parts(height, width, cell.part):
        piece = np.ascontiguousarray(shown[:, row:bottom, col:right])
        crops = windows((bottom - row, right - col), segmenter.geometry.crop, segmenter.geometry.stride)
        scores = as_numpy(segmenter.segment(piece, np.ones(piece.shape[1:], bool), crops).scores)
        rows = slice(round(row * size[0] / height), round(bottom * size[0] / height))
        cols = slice(round(col * size[1] / width), round(right * size[1] / width))
        target = (rows.stop - rows.start, cols.stop - cols.start)
        scores = _resized(scores, target)
        out[rows, cols] = decide(scores, np.ones(target, bool), rule)[0]
    return out


def _pictures(
    cell: Cell, protocol: Protocol, rgb: Picture, size: tuple[int, ...], index: int
) -> list[tuple[Picture, Part]]:
    """Yield an image tile by tile as the model sees it, with the part of its labels that each tile covers."""
    parts = protocols.tiles(rgb.shape[1:], protocol.tiles)
    if len(parts) > 1 and rgb.shape[1:] != size:
        raise OptionError(f"tiles need labels of the image's size, got {size} for {rgb.shape[1:]}")
    rgb, out = _corrupted(cell, rgb, index), []
    for part in parts:
        piece = rgb[:, part[0], part[1]]
        height, width = piece.shape[1:]
        new = (height, width) if protocol.resize is None else protocol.resize.size(height, width)
        new = dryrun.shown_size(new, protocol) if cell.dry_run else new
        out.append((protocols.resized(piece, new), part if len(parts) > 1 else (slice(None), slice(None))))
    return out


def _together(cell: Cell, protocol: Protocol, pictures: list[Picture], sizes: list[tuple[int, ...]]) -> list[Labels]:
    """Labels of pictures that are adapted together, each at its own size.

    The pictures stand side by side in one tile, and no window reaches over from one to the next.
    """
    heights = sorted({p.shape[1] for p in pictures})
    if len(heights) > 1:
        raise OptionError(f"images of {' and '.join(map(str, heights))} rows cannot be adapted together")
    segmenter, rule = _segmenter(cell), _rule(cell)
    edges = np.cumsum([0, *(p.shape[2] for p in pictures)]).tolist()
    crops = []
    for left, picture in zip(edges, pictures, strict=False):
        shape = (picture.shape[1], picture.shape[2])
        whole = (Window(0, 0, *shape),)
        own = whole if protocol.whole else windows(shape, segmenter.geometry.crop, segmenter.geometry.stride)
        crops += [Window(w.row_off, left + w.col_off, w.height, w.width) for w in own]
    wide = np.ascontiguousarray(np.concatenate(pictures, axis=2))
    scores = _mean_evidence(segmenter, wide, tuple(crops))
    out = []
    for left, right, size in zip(edges, edges[1:], sizes, strict=False):
        part = np.ascontiguousarray(scores[:, :, left:right])
        if part.shape[1:] != size:
            part = protocols.bilinear(part, (size[0], size[1]))
        if isinstance(segmenter, FrozenSegmenter):
            part = as_numpy(segmenter.finish(part).scores)
        out.append(decide(part, np.ones(part.shape[1:], bool), rule)[0])
    return out


def _mean_evidence(segmenter: Segmenter, rgb: Picture, crops: tuple[Window, ...]) -> NDArray[np.float32]:
    """Return the arrays that are resized to the labels: evidence before softmax of frozen models, as published, else scores."""
    valid = np.ones(rgb.shape[1:], bool)
    if isinstance(segmenter, FrozenSegmenter):
        total, hits = segmenter.evidence(rgb, valid, crops)
        return as_numpy(total / hits).astype(np.float32, copy=False)
    return as_numpy(segmenter.segment(rgb, valid, crops).scores)


def _corrupted(cell: Cell, rgb: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
    if cell.corruption == CLEAN:
        return rgb
    image = np.ascontiguousarray(np.moveaxis(rgb, 0, -1))
    return np.ascontiguousarray(np.moveaxis(corrupt(image, cell.corruption, cell.severity, index), -1, 0))


def _segmenter(cell: Cell) -> Segmenter:
    return segmenters.build(SegmenterSpec.of(cell.network(), cell.options(), cell.data.words))


def _rule(cell: Cell) -> DecisionRule:
    """Return the method's threshold, else the protocol's, else the vocabulary's."""
    words, protocol = cell.data.words, cell.row.protocol
    own = words.background.threshold if words.background else 0.0
    if protocol is not None and protocol.threshold is not None:
        own = protocol.threshold
    return DecisionRule(words.background_index, cell.options().told.get("threshold", own))


def windows(shape: tuple[int, int], crop: int, stride: int) -> tuple[Window, ...]:
    """Return the crops of an image, the last crops moved back to its border."""
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
