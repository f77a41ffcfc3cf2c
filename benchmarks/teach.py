"""What a few labelled places are worth: the scene's calibration before and after examples, on sets the model never saw.

    python -m benchmarks.teach --data DATA [--sets Kampala Ohio] [--points 5 10 30] [--repeats 5] [--cache FOLDER]
        [--out benchmarks/results/teach.json]

A quarter of the images give examples (of sets with fewer than eight images: a quarter of 4 x 4 parts of each), so many pure
patches a class, drawn with a seed; mIoU in percent over the patches of the other three quarters. Each set is pooled as one
scene, by names alone. `--cache` keeps patches and labels, which take minutes to compute.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.left_out import encoded
from benchmarks.record import keep
from benchmarks.sets import SETS, UNSEEN, LabelledSet
from ovrs.bench.evaluate import Confusion
from ovrs.methods.preset import parse_settings
from ovrs.model.adapt.scene_text import calibrate_scene
from ovrs.model.adapt.taught import Examples, TeachSettings, teach
from ovrs.model.clip.build import build_clip_segmenter
from ovrs.model.clip.text import TextBank
from ovrs.options import MethodOptions, ModelOptions, resolved

WEAK = {
    **{name: given for name, given in UNSEEN.items() if name not in ("Czech T8",)},
    "Potsdam, one image": SETS["potsdam"],
    "Vaihingen, one image": SETS["vaihingen"],
}
PURE = 0.8
"""Share of a patch that one class must cover for it to be an example."""
MOST = 30_000
"""Patches that are scored."""


def patch_table(given: LabelledSet, data: Path) -> dict[str, Any]:
    """Patches of a set with their classes, its calibrated text, and what teaching needs."""
    model = ModelOptions(pixel_size=given.shown_pixel_size)
    method = MethodOptions.model_validate({"method": "tmpa", **parse_settings(["prompts=names"])})
    scene: Any = build_clip_segmenter(model, resolved(model, method, given.words), given.words)
    images, bank, classes = encoded(given, data, scene.frozen), scene.frozen.bank, len(given.words.classes)
    columns: list[list[np.ndarray]] = [[], [], [], []]
    patches = []
    for number, (features, labels) in enumerate(images):
        sums = [np.pad((labels == c).cumsum(0).cumsum(1), ((1, 0), (1, 0))) for c in range(classes)]
        _, _, part = next(iter(features.parts()))
        for index, crop in enumerate(part.crops):
            y, down = centres(part, crop, 0)
            x, across = centres(part, crop, 1)
            scale = labels.shape[0] / features.shape[0], labels.shape[1] / features.shape[1]
            (top, bottom), (left, right) = (
                [np.clip(((v + s * half) * f).astype(int), 0, n) for s in (-1, 1)]
                for v, half, f, n in ((y, down, scale[0], labels.shape[0]), (x, across, scale[1], labels.shape[1]))
            )
            counts = np.stack(
                [
                    s[np.ix_(bottom, right)] - s[np.ix_(top, right)] - s[np.ix_(bottom, left)] + s[np.ix_(top, left)]
                    for s in sums
                ]
            )
            area = np.maximum((bottom - top)[:, None] * (right - left)[None], 1)
            label = np.where(2 * counts.sum(0) > area, counts.argmax(0), 255)
            inside = ((y >= 0) & (y < features.shape[0]))[:, None] & ((x >= 0) & (x < features.shape[1]))[None]
            rows, cols = np.nonzero(inside & part.patch_valid[index].numpy().reshape(part.grid))
            patches.append(part.patches[index][rows * part.grid[1] + cols])
            cell = (y[rows] * 4 // features.shape[0]) * 4 + x[cols] * 4 // features.shape[1]
            found = label[rows, cols], (counts.max(0) / area)[rows, cols], np.full(len(rows), number), cell.astype(int)
            for column, values in zip(columns, found, strict=True):
                column.append(values)
    label, pure, image, cell = (np.concatenate(c) for c in columns)
    everything = torch.cat([f.patches[f.patch_valid].float() for f, _ in images])
    crops = sum(f.shape[0] * f.shape[1] for f, _ in images) / scene.geometry.crop**2
    own = calibrate_scene(everything, bank, scene.settings, crops=crops, per_crop=images[0][0].patches.shape[1])
    keep = np.sort(np.random.default_rng(0).permutation(len(label))[:MOST])
    region = image if len(images) >= 8 else image * 16 + cell
    return {
        "patches": torch.cat(patches)[keep].float(),
        "label": torch.from_numpy(label[keep].astype(np.int64)),
        "pure": torch.from_numpy(pure[keep]),
        "region": torch.from_numpy(region[keep].astype(np.int64)),
        "sample": everything[:: max(1, len(everything) // 12_000)].clone(),
        "text": own.text,
        "offsets": own.offsets,
        "vectors": bank.vectors,
        "class_of": bank.class_of,
        "scale": scene.settings.scale,
    }


def centres(part: Any, crop: Any, axis: int) -> tuple[np.ndarray, float]:
    """Centres of a crop's patches along an axis, in pixels of the image, and half of a patch's side."""
    count, given, length = part.grid[axis], part.input_shape[axis], crop.shape[axis]
    first = (crop.row_off, crop.col_off)[axis]
    to_pixels = length / part.inner[axis]
    return (
        first + ((np.arange(count) + 0.5) * given / count - part.pad[axis]) * to_pixels,
        given / count * to_pixels / 2,
    )


def score(table: dict[str, Any], text: torch.Tensor, offsets: torch.Tensor, held: np.ndarray) -> float:
    """mIoU over the patches that no example could come from."""
    queries = table["scale"] * table["patches"] @ text.T + offsets
    guess = table["class_of"][queries.argmax(dim=1)].numpy().astype(np.uint8)
    labels = np.where(held, table["label"].numpy(), 255).astype(np.uint8)
    return Confusion.empty(int(table["class_of"].max()) + 1).add(guess[None], labels[None]).labelled_miou()


def gains(
    table: dict[str, Any], points: int, repeats: int, settings: TeachSettings
) -> list[tuple[float, float, float]]:
    """Per repetition: mIoU before, after, and the strength that was chosen."""
    label, pure, region = (table[k].numpy() for k in ("label", "pure", "region"))
    classes, found = int(table["class_of"].max()) + 1, []
    bank = TextBank(table["vectors"], table["class_of"], classes, table["offsets"])
    for repeat in range(repeats):
        rng = np.random.default_rng(100 * repeat + points)
        names = np.unique(region)
        giving = np.isin(region, rng.choice(names, max(2, round(len(names) / 4)), replace=False))
        pools = [np.flatnonzero(giving & (label == c) & (pure >= PURE)) for c in range(classes)]
        chosen = np.concatenate([rng.choice(p, min(points, len(p)), replace=False) for p in pools if len(p)])
        examples = Examples(table["patches"][chosen], table["label"][chosen], table["region"][chosen])
        taught = teach(table["text"], bank, table["sample"], examples, settings, table["scale"])
        before = score(table, table["text"], table["offsets"], ~giving)
        found.append((before, score(table, taught.text, taught.offsets, ~giving), taught.strength))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=list(WEAK), default=list(WEAK))
    parser.add_argument("--points", nargs="+", type=int, default=[10], help="examples a class")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cache", type=Path, help="folder for patches and labels")
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args()
    results: dict[int, list[list[float]]] = {points: [] for points in args.points}
    kept: dict[str, dict[str, Any]] = {}
    for title in args.sets:
        file = None if args.cache is None else args.cache / f"{title.replace(' ', '_')}.pt"
        if file is not None and file.exists():
            table = torch.load(file, weights_only=True)
        else:
            table = patch_table(WEAK[title], args.data)
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                torch.save(table, file)
        for points in args.points:
            found = gains(table, points, args.repeats, TeachSettings())
            gain = [after - before for before, after, _ in found]
            results[points].append(gain)
            before = float(np.mean([b for b, _, _ in found]))
            told = {"before": before, "gain": float(np.mean(gain)), "least": min(gain), "repeats": len(gain)}
            kept.setdefault(title, {})[str(points)] = told
            strengths = " ".join(f"{s:g}" for _, _, s in found)
            print(
                f"{title}: {points} points a class, {before:.1f} -> {before + np.mean(gain):.1f} "
                f"({np.mean(gain):+.1f}, least {min(gain):+.1f}); strengths {strengths}",
                flush=True,
            )
    if args.out is not None:
        keep(args.out, kept)
    for points, sets in results.items():
        means = [np.mean(s) for s in sets]
        print(
            f"{points} points: mean gain {np.mean(means):+.2f}, least set {min(means):+.2f}, "
            f"least repetition {min(min(s) for s in sets):+.2f}"
        )


if __name__ == "__main__":
    main()
