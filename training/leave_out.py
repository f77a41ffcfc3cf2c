"""Leave one set out: train on the others, score the one that was left out, and write the table.

    python -m training.leave_out --work DIR --minutes 1 --resume --out DIR [--device cuda]

Every choice about the training is made on this table: the mean over left-out sets, the worst, and the spread over seeds
(`--seeds`). Scores are patch-level mIoU with plain names (`training.material.Material.score`), before and after.
"""

from __future__ import annotations

import copy
import json

import numpy as np

from training.train_vision import parser, train

FOLDS: tuple[tuple[str, ...], ...] = (
    ("czortho",),
    ("dubai",),
    ("hand", "roads"),  # pictures of the same two cities
    ("kampala",),
    ("fields",),
    ("naip",),
    ("flood",),
)


def main() -> None:
    told = parser()
    told.add_argument("--seeds", type=int, default=1)
    args = told.parse_args()
    folder = args.out or args.work / "left_out"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in range(args.seed, args.seed + args.seeds):
        for fold in FOLDS:
            own = copy.copy(args)
            own.hold, own.seed, own.out = list(fold), seed, folder / f"{fold[0]}_{seed}"
            own.out.mkdir(exist_ok=True)
            scores = train(own)
            rows += [{"set": s, "seed": seed, **{k: v[s] for k, v in scores.items()}} for s in fold]
            (folder / "left_out.json").write_text(json.dumps(rows, indent=1) + "\n")
    gains = [row["after"] - row["before"] for row in rows]
    print(
        f"left out: mean {np.mean([r['after'] for r in rows]):.1f}, gain {np.mean(gains):+.2f}, least {min(gains):+.2f}"
    )


if __name__ == "__main__":
    main()
