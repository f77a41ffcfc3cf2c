"""Do windows show in a map? Straight class borders where windows overlap, against elsewhere.

    python -m benchmarks.borders --store MAP.zarr [--store OTHER.zarr] [--length 25]

A straight border is a run of at least `--length` pixels along one pixel line, with the same two classes on its sides all
along. Overlaps are the lines between the start of a window and the end of the one before it, where the blend changes hands;
for windows that overlap by more than half, only the lines beside their starts and ends. Printed: length of straight borders,
the share of it that lies in overlaps, the share of all lines that overlaps make, and their ratio. The same ratio for every
shift that leads overlaps to other lines gives what chance explains (2.5 to 97.5 %).
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ovrs.engine.tiling import crop_starts
from ovrs.run.rundir import RunDir
from ovrs.run.verify import plan_of
from ovrs.store.map import open_map


@dataclass(frozen=True)
class Borders:
    """Result of one map."""

    length: int
    """Pixels of straight borders, both directions."""
    on: float
    """Share of them in overlaps."""
    lines: float
    """Share of all lines that lie in overlaps."""
    low: float
    """2.5 % of the ratio when the lines are shifted."""
    high: float

    @property
    def ratio(self) -> float:
        return self.on / self.lines if self.lines else float("nan")

    @property
    def by_chance(self) -> bool:
        return self.low <= self.ratio <= self.high


def straight(labels: np.ndarray, axis: int, shortest: int) -> np.ndarray:
    """Pixels of straight borders on each line before row (axis 0) or column (axis 1) i; index 0 is unused."""
    lines = np.moveaxis(labels, axis, 0).astype(np.int64)
    found = np.zeros(len(lines), np.int64)
    for index in range(1, len(lines)):
        one, other = lines[index - 1], lines[index]
        pair = np.where((one != other) & (one != 255) & (other != 255), one * 256 + other, -1)
        ends = np.flatnonzero(np.diff(pair, prepend=-2, append=-2))
        runs = np.diff(ends)
        found[index] = runs[(runs >= shortest) & (pair[ends[:-1]] >= 0)].sum()
    return found


def overlaps(size: int, crop: int, stride: int) -> np.ndarray:
    """Whether each line lies between the start of a window and the end of the one before it, bool `(size,)`."""
    inside = np.zeros(size, bool)
    for before, after in itertools.pairwise(crop_starts(size, crop, stride)):
        end = min(size, before + crop + 1)
        if 2 * (crop - stride) <= stride:
            inside[after:end] = True
        else:
            inside[after - 1 : after + 2] = inside[end - 2 : end + 1] = True
    return inside


def measure(labels: np.ndarray, crop: int, stride: int, shortest: int = 25) -> Borders:
    """Straight borders of a map `(y, x)` whose windows have a side and a stride in pixels."""
    sums = [straight(labels, axis, shortest) for axis in (0, 1)]
    zones = [overlaps(n, crop, stride) for n in labels.shape]
    total, lines = sum(int(s.sum()) for s in sums), sum(int(z.sum()) for z in zones) / sum(labels.shape)

    def share(shift: int) -> float:
        return sum(int(s[np.roll(z, shift)].sum()) for s, z in zip(sums, zones, strict=True)) / max(total, 1)

    apart = [s for s in range(1, stride) if all(np.mean(z & np.roll(z, s)) < 0.02 for z in zones)]
    ratios = [share(shift) / lines for shift in apart or range(1, stride)] if lines else [float("nan")]
    low, high = np.percentile(ratios, (2.5, 97.5))
    return Borders(total, share(0), lines, float(low), float(high))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, action="append", required=True)
    parser.add_argument("--length", type=int, default=25, help="pixels from which a border counts as straight")
    args = parser.parse_args()
    for store in args.store:
        geometry = plan_of(RunDir(store).description()).geometry
        with open_map(store) as mapped:
            found = measure(np.asarray(mapped.label[:]), geometry.crop, geometry.stride, args.length)
        verdict = "as by chance" if found.by_chance else "beyond chance"
        print(
            f"{store.name}: windows of {geometry.crop} px every {geometry.stride}; {found.length} px of straight borders, "
            f"{100 * found.on:.1f} % in overlaps, which are {100 * found.lines:.1f} % of lines: ratio {found.ratio:.2f}, "
            f"chance [{found.low:.2f}, {found.high:.2f}], {verdict}"
        )


if __name__ == "__main__":
    main()
