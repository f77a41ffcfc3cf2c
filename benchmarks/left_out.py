"""Names alone against TMPA and ConInfer, per image and with each set pooled as one scene, on sets the model never saw.

    python -m benchmarks.left_out --data DATA [--sets Kampala Ohio] [--set prompts=all] [--out benchmarks/results/left_out.json]

`--tau` are temperatures of ConInfer's likelihood. mIoU in percent over the classes that the labels hold; the interval is a paired bootstrap
over images of the gain over names (5 to 95 %, 2,000 draws). The last row is the leave-one-set-out choice: for each
set, the rule that gains most in the mean of the other sets.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from benchmarks.adaptation import windows
from benchmarks.record import keep
from benchmarks.sets import UNSEEN, LabelledSet
from ovrs.bench.evaluate import Confusion
from ovrs.methods.preset import parse_settings
from ovrs.model.adapt import tmpa
from ovrs.model.adapt.scene_text import calibrate_scene
from ovrs.model.clip.build import build_clip_segmenter
from ovrs.options import MethodOptions, ModelOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ovrs.model.adapt.coninfer_segmenters import ConInferSegmenter
    from ovrs.model.adapt.tmpa_segmenters import SceneTmpaSegmenter, TmpaSegmenter
    from ovrs.model.clip.features import TileFeatures
    from ovrs.model.clip.segmenter import ClipSegmenter

ROWS = ("names", "TMPA per image", "scene rule per image", "scene rule")
TAUS = (50.0,)
"""The paper's."""


def joint_rows(taus: Sequence[float]) -> dict[str, tuple[float, bool]]:
    """Titles of ConInfer's rows with temperature, and whether a set is pooled."""
    return {
        f"ConInfer τ {tau:g}{'' if pooled else ' per image'}": (tau, pooled) for tau in taus for pooled in (False, True)
    }


def encoded(given: LabelledSet, data: Path, frozen: ClipSegmenter) -> list[tuple[TileFeatures, np.ndarray]]:
    """Features and labels of all images; inputs are forgotten, features kept in half precision."""
    found = []
    for image, labels in given.pairs(data):
        rgb, geometry = np.ascontiguousarray(np.moveaxis(image, -1, 0)), frozen.geometry
        crops = windows(rgb.shape[1:], geometry.crop, geometry.stride)
        features = frozen.encode(rgb, np.ones(rgb.shape[1:], bool), crops)
        blank = torch.empty(1).expand(features.images.shape)
        found.append((replace(features, patches=features.patches.half(), images=blank), labels))
    return found


def scored(frozen: ClipSegmenter, features: TileFeatures, labels: np.ndarray) -> np.ndarray:
    """Confusion matrix of one image."""
    guess = frozen.classify(features, frozen.text, frozen.base_text, ()).scores.argmax(0).astype(np.uint8)
    full = np.asarray(Image.fromarray(guess).resize(labels.shape[::-1], Image.Resampling.NEAREST))
    return Confusion.empty(frozen.class_count).add(full, labels).matrix


def matrices(given: LabelledSet, data: Path, common: dict[str, Any], taus: Sequence[float]) -> dict[str, np.ndarray]:
    """Per row, the confusion matrices of all images `(image, label, prediction)`."""
    model = ModelOptions(pixel_size=given.shown_pixel_size)

    def build(**method: Any) -> Any:
        return build_clip_segmenter(model, MethodOptions.model_validate({**common, **method}), given.words)

    scene: SceneTmpaSegmenter = build(method="tmpa")
    tile: TmpaSegmenter = build(method="tmpa", adaptation="tile")
    frozen = scene.frozen
    images = encoded(given, data, frozen)

    def learned(part: list[TileFeatures]) -> ClipSegmenter:
        pool = torch.cat([f.patches[f.patch_valid].float() for f in part])
        crops = sum(f.shape[0] * f.shape[1] for f in part) / frozen.geometry.crop**2
        found = calibrate_scene(pool, frozen.bank, scene.settings, crops=crops, per_crop=images[0][0].patches.shape[1])
        return frozen.with_text(found.text, frozen.bank.vectors, found.offsets)

    joint: dict[float, ConInferSegmenter] = {tau: build(method="coninfer", gaussian_tau=tau) for tau in taus}
    everything = [replace(f, patches=f.patches.float()) for f, _ in images]
    mixtures = {tau: segmenter.joined(everything) for tau, segmenter in joint.items()}
    rows: dict[str, list[np.ndarray]] = {name: [] for name in (*ROWS, *joint_rows(taus))}
    whole = learned([features for features, _ in images])
    for features, (_, labels) in zip(everything, images, strict=True):
        rows["names"].append(scored(frozen, features, labels))
        own = tmpa.calibrate(features, tile.frozen.bank, tile.settings)
        rows["TMPA per image"].append(scored(frozen.with_text(own.text, own.base_text, None), features, labels))
        rows["scene rule per image"].append(scored(learned([features]), features, labels))
        rows["scene rule"].append(scored(whole, features, labels))
        for title, (tau, pooled) in joint_rows(taus).items():
            mixture = mixtures[tau] if pooled else joint[tau].joined([features])
            rows[title].append(scored(joint[tau].with_mixture(mixture), features, labels))
    return {name: np.stack(found) for name, found in rows.items()}


def gain_interval(ours: np.ndarray, base: np.ndarray) -> tuple[float, float]:
    """5 and 95 % of the gain in mIoU over resampled images."""
    random, n = np.random.default_rng(0), len(ours)
    gains = []
    for _ in range(2000):
        pick = random.integers(0, n, n)
        a, b = (Confusion(m[pick].sum(0)).labelled_miou() for m in (ours, base))
        gains.append(a - b)
    low, high = np.nanpercentile(gains, (5, 95))
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=list(UNSEEN), default=list(UNSEEN))
    parser.add_argument("--set", nargs="*", default=["prompts=names"], metavar="KEY=VALUE", help="method options")
    parser.add_argument(
        "--tau", nargs="*", type=float, default=list(TAUS), help="temperatures of ConInfer's likelihood"
    )
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args()
    table: dict[str, dict[str, Any]] = {}
    titles = (*ROWS, *joint_rows(args.tau))
    for title in args.sets:
        found = matrices(UNSEEN[title], args.data, parse_settings(args.set), args.tau)
        scores = {row: Confusion(m.sum(0)).labelled_miou() for row, m in found.items()}
        spans = {row: gain_interval(found[row], found["names"]) for row in titles[1:]}
        majority = Confusion(found["names"].sum(0)).majority_miou()
        table[title] = {"images": len(found["names"]), "majority": majority, "miou": scores, "gain_5_95": spans}
        told = "  ".join(
            f"{row} {scores[row]:.1f} ({scores[row] - scores['names']:+.1f} [{spans[row][0]:+.1f}, {spans[row][1]:+.1f}])"
            for row in titles[1:]
        )
        print(
            f"{title} ({len(found['names'])}): majority {majority:.1f}  names {scores['names']:.1f}  {told}", flush=True
        )
    gains = {row: {t: v["miou"][row] - v["miou"]["names"] for t, v in table.items()} for row in titles}
    for row in titles[1:]:
        values = list(gains[row].values())
        print(f"{row}: mean gain {np.mean(values):+.2f}, least {min(values):+.2f}")
    if len(table) > 1:
        chosen = [
            gains[max(titles, key=lambda row: np.mean([g for t, g in gains[row].items() if t != title]))][title]
            for title in table
        ]
        print(f"chosen on the other sets: mean gain {np.mean(chosen):+.2f}, least {min(chosen):+.2f}")
    if args.out is not None:
        keep(args.out, table)


if __name__ == "__main__":
    main()
