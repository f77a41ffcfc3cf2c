"""Which windows suit the bundled model: accuracy, window edges and cost of several choices, on sets it never saw.

    python -m benchmarks.windows --data DATA [--sets Ohio Kampala] [--every 1] [--out benchmarks/results/windows.json]

Rows: the ordinary windows alone, the wider ones that the model recommends, and one size more. Per set: mIoU in percent by names alone and
calibrated to the scene; straight borders (`benchmarks.borders`), as pixels per megapixel of map and as their share in overlaps
against the share of all lines that overlaps make; seconds of processor for encoding. Last lines: means over the sets.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from benchmarks import borders, record
from benchmarks.left_out import encoded
from benchmarks.sets import UNSEEN, LabelledSet
from ovrs.bench.evaluate import Confusion
from ovrs.model.adapt.scene_text import calibrate_scene
from ovrs.model.clip.build import build_clip_segmenter
from ovrs.options import MethodOptions, ModelOptions

if TYPE_CHECKING:
    from ovrs.model.clip.features import TileFeatures
    from ovrs.model.clip.segmenter import ClipSegmenter

CHOICES: dict[str, tuple[int, ...] | None] = {"ordinary alone": (), "recommended": None, "2 × 2 and 3 × 3": (2, 3)}
"""Wider windows by title; None as the model recommends."""


def labelled(frozen: ClipSegmenter, features: TileFeatures) -> np.ndarray:
    """Labels `(y, x)` of one image."""
    scores = frozen.classify(features, frozen.text, frozen.base_text, ()).scores
    return np.asarray(scores).argmax(0).astype(np.uint8)


def measured(given: LabelledSet, data: Path, wide: tuple[int, ...] | None) -> dict[str, float]:
    """Figures of one choice on one set, which is pooled as one scene."""
    model = ModelOptions(pixel_size=given.shown_pixel_size, wide=wide)
    scene: Any = build_clip_segmenter(
        model, MethodOptions.model_validate({"method": "tmpa", "prompts": "names"}), given.words
    )
    frozen, started = scene.frozen, time.process_time()
    images = encoded(given, data, frozen)
    seconds = time.process_time() - started
    pool = torch.cat([f.patches[f.patch_valid].float() for f, _ in images])
    crops = sum(f.shape[0] * f.shape[1] for f, _ in images) / frozen.geometry.crop**2
    found = calibrate_scene(pool, frozen.bank, scene.settings, crops=crops, per_crop=images[0][0].patches.shape[1])
    ways = {"names": frozen, "scene": frozen.with_text(found.text, frozen.bank.vectors, found.offsets)}
    matrices: dict[str, list[np.ndarray]] = {way: [] for way in ways}
    straight, on, lines, pixels = 0, 0.0, [], 0
    for half, labels in images:
        features = replace(half, patches=half.patches.float())
        for way, segmenter in ways.items():
            guess = labelled(segmenter, features)
            full = np.asarray(Image.fromarray(guess).resize(labels.shape[::-1], Image.Resampling.NEAREST))
            matrices[way].append(Confusion.empty(frozen.class_count).add(full, labels).matrix)
        own = borders.measure(guess, frozen.geometry.crop, frozen.geometry.stride)
        straight, on, pixels = straight + own.length, on + own.length * own.on, pixels + guess.size
        lines.append(own.lines)
    return {
        **{way: Confusion(np.sum(m, axis=0)).labelled_miou() for way, m in matrices.items()},
        "straight": straight / pixels * 1e6,
        "ratio": on / max(straight, 1) / float(np.mean(lines)),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=list(UNSEEN), default=list(UNSEEN))
    parser.add_argument("--every", type=int, default=1, help="take each n-th image of the larger sets")
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args()
    table: dict[str, dict[str, dict[str, float]]] = {}
    for title in args.sets:
        given = UNSEEN[title]
        names = [i.name for i in sorted((args.data / given.folder / "images").iterdir()) if given.only in i.name]
        images = sum(name.startswith(given.held_out) for name in names[:: given.every])
        if images > 20:
            given = replace(given, every=given.every * args.every)
        table[title] = {choice: measured(given, args.data, wide) for choice, wide in CHOICES.items()}
        for choice, own in table[title].items():
            print(f"{title}, {choice}: " + "  ".join(f"{k} {v:.1f}" for k, v in own.items()), flush=True)
    for choice in CHOICES:
        means = {k: np.mean([own[choice][k] for own in table.values()]) for k in table[title][choice]}
        print(f"mean, {choice}: " + "  ".join(f"{k} {v:.1f}" for k, v in means.items()))
    if args.out is not None:
        record.keep(args.out, table)


if __name__ == "__main__":
    main()
