"""Prompts and adaptation on labelled images: every row of the papers' comparison, clean and corrupted.

    python -m benchmarks.adaptation --data DATA --sets czortho dubai [--rows all|text] [--corruption all --severity 3 5]

The image is one tile: no blending between tiles, so that rows differ by the method alone. Methods that only change the
text share one encoding of each image. One line per set, corruption and row; `--out` keeps them as JSON. The mean is
over the classes that the labels hold, because a few images may lack some.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from benchmarks.record import keep
from benchmarks.sets import SETS, LabelledSet, renamed
from ovrs.bench.corruptions import CORRUPTIONS, corrupt
from ovrs.bench.evaluate import Confusion
from ovrs.engine.arrays import as_numpy
from ovrs.engine.tiling import crop_starts
from ovrs.model.adapt import tmpa
from ovrs.model.adapt.tmpa_segmenters import TmpaSegmenter
from ovrs.model.clip.build import build_clip_segmenter
from ovrs.model.clip.segmenter import ClipSegmenter
from ovrs.options import MethodOptions, ModelOptions
from ovrs.scene.grid import Window

if TYPE_CHECKING:
    from ovrs.model.clip.features import TileFeatures
    from ovrs.words.vocabulary import Vocabulary

TEXT_ROWS: dict[str, dict[str, Any]] = {
    "names": {"method": "none", "prompts": "names"},
    "+ synonyms": {"method": "none", "prompts": "synonyms"},
    "+ descriptions": {"method": "none", "prompts": "all"},
    "fixed alpha 0.02": {"method": "tmpa", "adaptation": "tile", "prompts": "all", "steps": 0},
    "fixed alpha 0.1": {"method": "tmpa", "adaptation": "tile", "prompts": "all", "steps": 0, "alpha_init": 0.1},
    "TMPA": {"method": "tmpa", "adaptation": "tile", "prompts": "all"},
    "TMPA + shift": {"method": "tmpa_shift", "prompts": "all"},
    "names, scene rule": {"method": "tmpa", "prompts": "names"},
}
STUDY_ROWS: dict[str, dict[str, Any]] = {
    f"start {start}, {steps} steps of {rate}, absent {absent}, shares x{shares}": {
        "method": "tmpa",
        "adaptation": "tile",
        "prompts": "all",
        "alpha_init": start,
        "steps": steps,
        "lr": rate,
        "absent": absent,
        "keep_shares": shares,
    }
    for start in (0.02, 0.05, 0.1)
    for steps, rate in ((0, 0.01), (1, 0.01), (3, 0.003), (3, 0.01), (10, 0.01))
    for absent in ("text", "mean")
    for shares in ((0.0, 10.0, 100.0, 1000.0) if steps else (0.0,))
}
NORM_ROWS: dict[str, dict[str, Any]] = {
    "TENT": {"method": "tent", "prompts": "all"},
    "TPT": {"method": "tpt", "prompts": "all"},
    "CLIPArTT": {"method": "clipartt", "prompts": "all"},
    "WATT": {"method": "watt", "prompts": "all"},
    "MLMP": {"method": "mlmp", "prompts": "all"},
}
DENSE_ROWS = {
    f"dense {v}": {"method": "none", "prompts": "all", "dense": v}
    for v in ("vanilla", "maskclip", "sclip", "clearclip", "naclip", "gem")
}
GROUPS = {"text": TEXT_ROWS, "study": STUDY_ROWS, "norms": NORM_ROWS, "dense": DENSE_ROWS}


@dataclass
class Row:
    """A segmenter under test."""

    name: str
    segmenter: Any
    shares_features: bool

    def scores(self, rgb: np.ndarray, crops: tuple[Window, ...], features: TileFeatures | None) -> np.ndarray:
        if features is None or not self.shares_features:
            return as_numpy(self.segmenter.segment(rgb, np.ones(rgb.shape[1:], bool), crops).scores)
        if isinstance(self.segmenter, ClipSegmenter):
            return as_numpy(self.segmenter.classify(features, self.segmenter.text, self.segmenter.base_text, ()).scores)
        frozen = self.segmenter.frozen
        found = tmpa.calibrate(features, frozen.bank, self.segmenter.settings)
        return as_numpy(frozen.classify(features, found.text, found.base_text, ()).scores)


def build_rows(
    table: dict[str, dict[str, Any]], words: Vocabulary, model: ModelOptions, common: dict[str, Any]
) -> list[Row]:
    rows = []
    for name, given in table.items():
        segmenter = build_clip_segmenter(model, MethodOptions.model_validate({**common, **given}), words)
        shared = isinstance(segmenter, ClipSegmenter | TmpaSegmenter) and "dense" not in given
        rows.append(Row(name, segmenter, shared))
    return rows


def windows(shape: tuple[int, int], crop: int, stride: int) -> tuple[Window, ...]:
    size = (min(crop, shape[0]), min(crop, shape[1]))
    return tuple(
        Window(r, c, *size) for r in crop_starts(shape[0], crop, stride) for c in crop_starts(shape[1], crop, stride)
    )


def evaluate(
    rows: list[Row], pairs: list[tuple[np.ndarray, np.ndarray]], change: Callable[[np.ndarray, int], np.ndarray]
) -> dict[str, Confusion]:
    """One confusion matrix per row over all images."""
    geometry = rows[0].segmenter.geometry
    first = rows[0].segmenter
    frozen = first if isinstance(first, ClipSegmenter) else first.frozen
    found = {row.name: Confusion.empty(first.class_count) for row in rows}
    for index, (image, labels) in enumerate(pairs):
        rgb = np.ascontiguousarray(np.moveaxis(change(image, index), -1, 0))
        crops = windows(rgb.shape[1:], geometry.crop, geometry.stride)
        shared = [r for r in rows if r.shares_features]
        features = frozen.encode(rgb, np.ones(rgb.shape[1:], bool), crops) if shared else None
        for row in rows:
            guess = row.scores(rgb, crops, features).argmax(0).astype(np.uint8)
            size = (labels.shape[1], labels.shape[0])
            full = np.asarray(Image.fromarray(guess).resize(size, Image.Resampling.NEAREST))
            found[row.name] = found[row.name].add(full, labels)
    return found


def cut(pairs: list[tuple[np.ndarray, np.ndarray]], side: int | None) -> list[tuple[np.ndarray, np.ndarray]]:
    """The middle of every image, `side` shown pixels."""
    if side is None:
        return pairs
    out = []
    for image, labels in pairs:
        sy, sx = labels.shape[0] / image.shape[0], labels.shape[1] / image.shape[1]
        h, w = min(side, image.shape[0]), min(side, image.shape[1])
        y, x = (image.shape[0] - h) // 2, (image.shape[1] - w) // 2
        part = labels[round(y * sy) : round((y + h) * sy), round(x * sx) : round((x + w) * sx)]
        out.append((np.ascontiguousarray(image[y : y + h, x : x + w]), part))
    return out


def nearest_colour(given: LabelledSet, data: Path, pairs: list[tuple[np.ndarray, np.ndarray]]) -> Confusion:
    """The class whose mean colour in the training images is nearest: what knowing the colours alone is worth."""
    classes = len(given.words.classes)
    total, count = np.zeros((classes, 3)), np.zeros(classes)
    for image, labels in given.pairs(data, held=False):
        small = np.asarray(Image.fromarray(labels).resize((image.shape[1], image.shape[0]), Image.Resampling.NEAREST))
        for c in range(classes):
            total[c] += image[small == c].sum(0)
            count[c] += (small == c).sum()
    means = total / np.maximum(count, 1)[:, None]
    score = Confusion.empty(classes)
    for image, labels in pairs:
        guess = np.linalg.norm(image[:, :, None] - means, axis=-1).argmin(-1).astype(np.uint8)
        full = np.asarray(Image.fromarray(guess).resize(labels.shape[::-1], Image.Resampling.NEAREST))
        score = score.add(full, labels)
    return score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=["czortho", "dubai"])
    parser.add_argument("--model", default="bundled")
    parser.add_argument(
        "--zoom", type=float, help="how many times windows are enlarged; default as the model recommends"
    )
    parser.add_argument("--stride", type=int, help="shown pixels between windows; default as the model recommends")
    parser.add_argument("--turned", action=argparse.BooleanOptionalAction, help="show wider windows turned")
    parser.add_argument("--wide", type=int, nargs="*", help="wider windows, in crops; default as the model recommends")
    parser.add_argument("--shrink", type=float, default=1.0, help="show images at so many times fewer pixels a side")
    parser.add_argument("--rows", nargs="+", choices=[*GROUPS, "paraphrases", "colour"], default=["text"])
    parser.add_argument("--corruption", nargs="+", default=["none"], choices=["none", "all", *CORRUPTIONS])
    parser.add_argument("--severity", nargs="+", type=int, default=[5])
    parser.add_argument("--side", type=int, help="only the middle of each image, this many shown pixels")
    parser.add_argument("--images", type=int, help="only so many images, evenly spread")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="method options for every row")
    parser.add_argument(
        "--seen", action="store_true", help="images of the training regions instead: to choose settings by"
    )
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args()
    torch.manual_seed(0)
    from ovrs.methods.preset import parse_settings

    common = parse_settings(args.set)
    kept: dict[str, dict[str, Any]] = {}
    names = list(CORRUPTIONS) if args.corruption == ["all"] else args.corruption
    for title in args.sets:
        given = SETS[title]
        pairs = cut(list(given.pairs(args.data, held=not args.seen, shrink=args.shrink)), args.side)
        if args.images:
            pairs = [pairs[i] for i in np.linspace(0, len(pairs) - 1, min(args.images, len(pairs))).round().astype(int)]
        print(f"\n{title}: {len(pairs)} images; {', '.join(given.words.class_names)}", flush=True)
        shown = given.shown_pixel_size and given.shown_pixel_size * args.shrink
        wide = None if args.wide is None else tuple(args.wide)
        model = ModelOptions(
            model=args.model, zoom=args.zoom, stride=args.stride, wide=wide, turned=args.turned, pixel_size=shown
        )
        table = {k: v for group in args.rows if group in GROUPS for k, v in GROUPS[group].items()}
        rows = build_rows(table, given.words, model, common)
        if "paraphrases" in args.rows:
            plain = {"method": "none", "prompts": "names"}
            rows += build_rows({"own names": plain}, given.words, model, common)
            for k, other in enumerate(given.paraphrases):
                rows += build_rows({f"paraphrase {k + 1}": plain}, renamed(given.words, other), model, common)
        for name in names:
            for severity in args.severity if name != "none" else [0]:
                change = (
                    (lambda image, _: image)
                    if name == "none"
                    else (lambda image, i, n=name, s=severity: corrupt(image, n, s, i))
                )
                found = evaluate(rows, pairs, change) if rows else {}
                if "colour" in args.rows and name == "none":
                    found["nearest mean colour"] = nearest_colour(given, args.data, pairs)
                    majority = next(iter(found.values())).majority_miou()
                    print(f"{'majority class':34} {majority:6.2f}")
                report(name, severity, found)
                condition = name if name == "none" else f"{name} {severity}"
                scores = {row: score.labelled_miou() for row, score in found.items()}
                if found:
                    scores["majority class"] = next(iter(found.values())).majority_miou()
                kept.setdefault(title, {"images": len(pairs)})[condition] = scores
                if args.out is not None:
                    keep(args.out, kept)


def report(corruption: str, severity: int, found: dict[str, Confusion]) -> None:
    if corruption != "none":
        print(f"{corruption} {severity}")
    for name, score in found.items():
        each = " ".join(f"{100 * v:5.1f}" for v in score.iou())
        print(f"{name:34} {score.labelled_miou():6.2f} {score.accuracy():6.2f}   {each}", flush=True)


if __name__ == "__main__":
    main()
