"""Do tile or block lines show in a map? Class changes across them against changes elsewhere.

    python -m benchmarks.seams [--store MAP.zarr] [--size 8192]

For each family of lines: share of label changes across the lines, over the share across all other pixel borders. The
same ratio for 64 random offsets of the same lines gives the range that chance explains (2.5 to 97.5 %). Tiles are groups
of crops, so tile and block lines always are crop lines, which have borders of their own (and lie on the patch grid);
the last columns therefore compare each family with itself moved to other crop lines.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ovrs import options, pipeline
from ovrs.demo.synth import World, write_scene
from ovrs.engine.tiling import Plan, crop_starts
from ovrs.run.rundir import RunDir
from ovrs.run.verify import plan_of
from ovrs.store.map import open_map
from ovrs.words import vocabulary


@dataclass(frozen=True)
class Seams:
    """Result for one family of lines."""

    name: str
    lines: int
    ratio: float
    low: float
    high: float
    crop_low: float
    """Smallest and largest ratio of the same lines moved to other crop lines; NaN for crop lines themselves."""
    crop_high: float

    @property
    def inside(self) -> bool:
        return self.low <= self.ratio <= self.high


def changes(labels: np.ndarray, axis: int) -> np.ndarray:
    """Share of pixels whose class differs from the previous row (axis 0) or column (axis 1); index 0 is unused."""
    lines = np.moveaxis(labels, axis, 0)
    valid = (lines[1:] != 255) & (lines[:-1] != 255)
    share = ((lines[1:] != lines[:-1]) & valid).sum(axis=1) / np.maximum(valid.sum(axis=1), 1)
    return np.concatenate([[np.nan], share])


def ratio(shares: list[np.ndarray], lines: list[list[int]]) -> float:
    """Mean share on the lines over the mean share elsewhere, both axes together."""
    on = np.concatenate([s[np.asarray(at, int)] for s, at in zip(shares, lines, strict=True)])
    off = np.concatenate([np.delete(s, [0, *at]) for s, at in zip(shares, lines, strict=True)])
    return float(on.mean() / off.mean())


def moved_ratio(shares: list[np.ndarray], lines: list[list[int]], offset: int) -> float:
    """The ratio of the same lines moved by `offset` pixels, around the end of each axis."""
    return ratio(shares, [[(p + offset) % len(s) or 1 for p in at] for s, at in zip(shares, lines, strict=True)])


def measure(labels: np.ndarray, plan: Plan, draws: int = 64, seed: int = 0) -> list[Seams]:
    """Ratios for tile lines, block lines and crop lines of a finished map."""
    shares = [changes(labels, 0), changes(labels, 1)]
    lengths, g = labels.shape, plan.geometry
    crops = [[s for s in crop_starts(n, g.crop, g.stride) if s] for n in lengths]
    crop_ends = [sorted({s + g.crop for s in [0, *c] if s + g.crop < n}) for c, n in zip(crops, lengths, strict=True)]
    tiles = [plan.tile_lines(n) for n in lengths]
    tile_ends = [
        [s + g.tile - g.pitch for s in at if s + g.tile - g.pitch < n] for at, n in zip(tiles, lengths, strict=True)
    ]
    blocks = [list(range(plan.block_size, n, plan.block_size)) for n in lengths]
    families = {
        "tile starts": tiles,
        "tile ends": tile_ends,
        "block lines": blocks,
        "crop lines (all)": [sorted({*a, *b}) for a, b in zip(crops, crop_ends, strict=True)],
    }
    rng = np.random.default_rng(seed)
    out = []
    for name, lines in families.items():
        if not any(lines):
            continue
        shifted = [moved_ratio(shares, lines, int(rng.integers(1, lengths[0]))) for _ in range(draws)]
        low, high = np.percentile(shifted, (2.5, 97.5))
        period = plan.block_size if name == "block lines" else g.pitch
        others = [] if "crop" in name else [moved_ratio(shares, lines, k) for k in range(g.stride, period, g.stride)]
        bounds = (min(others), max(others)) if others else (float("nan"), float("nan"))
        out.append(Seams(name, sum(map(len, lines)), ratio(shares, lines), float(low), float(high), *bounds))
    return out


def main() -> None:
    """Map a generated scene with TMPA (or take a store) and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--size", type=int, default=8192)
    parser.add_argument("--method", default="tmpa")
    parser.add_argument("--block", type=int, default=8)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = args.store
        if out is None:
            scene, out = Path(folder) / "scene.tif", Path(folder) / "map.zarr"
            write_scene(scene, height=args.size, width=args.size, world=World(seed=21))
            pipeline.map_scene(
                scene,
                vocabulary.load("demo"),
                out,
                options.build(method={"method": args.method}, run={"block_pitches": args.block}),
            )
        labels = open_map(out).label[:]
        print(f"{labels.shape[0]} x {labels.shape[1]} labels, {json.dumps(RunDir(out).description().plan.dump())}")
        print(f"{'lines':18} {'count':>5} {'ratio':>7} {'2.5 %':>7} {'97.5 %':>7} {'':8} {'other crop lines':>16}")
        for s in measure(labels, plan_of(RunDir(out).description())):
            verdict = "inside" if s.inside else "OUTSIDE"
            print(
                f"{s.name:18} {s.lines:5} {s.ratio:7.3f} {s.low:7.3f} {s.high:7.3f} {verdict:8} {s.crop_low:7.3f} .. {s.crop_high:5.3f}"
            )


if __name__ == "__main__":
    main()
