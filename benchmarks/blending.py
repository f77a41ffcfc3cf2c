"""The engine alone: blending and deciding of scores that are there already, in memory, in megapixels per second.

    python -m benchmarks.blending [--against TREE] [--repeats 5] [--out RESULTS.json]

Segmenters give the same array for every tile, so that only the engine is timed: adapted per tile with 6 and 20 classes,
frozen with 36 and 66 queries. Crops of frozen ones fade into each other, as by default, or their weights are uneven all
over. `--against` names another checkout of the repository; both are measured in turns, each in
a process of its own, with one thread, and the least of their processor times counts. `equal` says whether labels and confidence
of the two are the same, on scores that differ from tile to tile.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np

CASES = {
    "6 classes, adapted": (6, ""),
    "20 classes, adapted": (20, ""),
    "36 queries": (36, "fading"),
    "66 queries": (66, "fading"),
    "36 queries, uneven": (36, "uneven"),
}
"""Channels, and the weights of a frozen segmenter's crops."""
ROOT = Path(__file__).parents[1]


def fading(geometry) -> np.ndarray:
    """Sum of the weights of a tile's crops, as `ovrs.engine.tiling.taper` gives them; another tree may keep that elsewhere, `(side, side)`."""
    ramp = geometry.crop - geometry.stride
    rise = 0.5 - 0.5 * np.cos(np.pi * (np.arange(ramp) + 0.5) / ramp)
    one = np.ones(geometry.crop)
    one[:ramp] = rise
    one[geometry.crop - ramp :] = rise[::-1]
    line = np.zeros(geometry.tile)
    for start in range(0, geometry.tile - geometry.crop + 1, geometry.stride):
        line[start : start + geometry.crop] += one
    return np.outer(line, line).astype(np.float32)


class Given:
    """A segmenter whose answers are made beforehand, one for each of four tiles in turn."""

    def __init__(self, channels: int, geometry, weights: str) -> None:
        self.class_count = self.channels = channels
        self.geometry = geometry
        rng = np.random.default_rng(0)
        side = geometry.tile
        self.scores = [rng.random((channels, side, side), np.float32) for _ in range(4)]
        self.weight = rng.uniform(0.1, 4, (side, side)).astype(np.float32)
        if weights == "fading":
            self.weight = fading(geometry)

    def of(self, rgb):
        index = int(rgb[0, 0, 0]) % len(self.scores)
        return self.scores[index][:, : rgb.shape[1], : rgb.shape[2]]

    def segment(self, rgb, valid, crops):
        from ovrs.engine.contract import TileScores

        return TileScores(self.of(rgb))

    def describe(self):
        return {}


class GivenFrozen(Given):
    """The same, without adaptation."""

    def evidence(self, rgb, valid, crops):
        return self.of(rgb), self.weight[: rgb.shape[1], : rgb.shape[2]]

    def finish(self, evidence):
        from ovrs.engine.contract import TileScores

        return TileScores(evidence)


class Scene:
    """Pixels in memory."""

    def __init__(self, side: int) -> None:
        self.rgb = np.random.default_rng(1).integers(0, 255, (3, side, side), np.uint8)

    def read(self, window):
        rows, cols = slice(window.row_off, window.row_end), slice(window.col_off, window.col_end)
        rgb = self.rgb[:, rows, cols]
        return SimpleNamespace(rgb=rgb, valid=np.ones(rgb.shape[1:], bool))


def measured(name: str) -> dict[str, float | str]:
    """Megapixels per second of one block of 8 x 8 tiles, its peak memory, and a digest of what came out."""
    from ovrs.engine.block import map_block
    from ovrs.engine.decide import DecisionRule
    from ovrs.engine.tiling import Plan, TileGeometry

    channels, weights = CASES[name]
    geometry = TileGeometry(crop=224, stride=112)
    segmenter = (GivenFrozen if weights else Given)(channels, geometry, weights)
    scene = Scene(3584)
    plan = Plan(height=3584, width=3584, geometry=geometry, block_pitches=8)
    pixels = scene.read(plan.block(0, 0).read)
    started = time.process_time()  # of one thread: others on the machine do not count
    found = map_block(scene, segmenter, plan, plan.block(0, 0), DecisionRule(), pixels=pixels)
    seconds = time.process_time() - started
    tracemalloc.start()
    map_block(scene, segmenter, plan, plan.block(0, 0), DecisionRule(), pixels=pixels)
    peak = tracemalloc.get_traced_memory()[1]
    digest = hashlib.sha256(found.label.tobytes() + found.confidence.tobytes()).hexdigest()[:16]
    return {"seconds": seconds, "mpx_s": found.label.size / 1e6 / seconds, "peak_mb": peak / 1e6, "pixels": digest}


def in_tree(tree: Path, name: str) -> dict[str, float | str]:
    """`measured` with another checkout's engine, in a process of its own."""
    code = f"import sys; sys.path.insert(0, {str(tree)!r}); import runpy; runpy.run_path({__file__!r}, run_name='blending')['tell']({name!r})"
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    found: dict[str, float | str] = json.loads(done.stdout.splitlines()[-1])
    return found


def tell(name: str) -> None:
    print(json.dumps(measured(name)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="Another checkout to compare with.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    trees = {"here": ROOT, **({"against": args.against.absolute()} if args.against else {})}
    best: dict[str, dict[str, dict]] = {name: {} for name in CASES}
    for _ in range(args.repeats):
        for name in CASES:
            for which, tree in trees.items():
                found = in_tree(tree, name)
                if which not in best[name] or found["seconds"] < best[name][which]["seconds"]:
                    best[name][which] = found
    print("| case | Mpx/s | peak MB | against: Mpx/s | peak MB | faster by | equal |\n|---|---|---|---|---|---|---|")
    for name, found in best.items():
        here, other = found["here"], found.get("against")
        line = f"| {name} | {here['mpx_s']:.1f} | {here['peak_mb']:.0f} |"
        if other:
            found["ratio"] = other["seconds"] / here["seconds"]
            found["equal"] = other["pixels"] == here["pixels"]
            line += f" {other['mpx_s']:.1f} | {other['peak_mb']:.0f} | {found['ratio']:.2f} | {found['equal']} |"
        print(line)
    if args.out:
        args.out.write_text(json.dumps(best, indent=1) + "\n")


if __name__ == "__main__":
    main()
