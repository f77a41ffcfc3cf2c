"""Mean of two vision towers of one descent: what further training taught, without all that it took.

    python -m training.average --before WORK/before.pt --after WORK/vision.pt --out WORK/vision.pt

"Robust fine-tuning of zero-shot models" (Wortsman et al., CVPR 2022): weights halfway between a model and the same
model trained further often do better than either.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--after", type=Path, required=True)
    parser.add_argument("--share", type=float, default=0.5, help="weight of --after")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    first, second = (torch.load(p, weights_only=True) for p in (args.before, args.after))
    visual = {k: v.float().lerp(second["visual"][k].float(), args.share) for k, v in first["visual"].items()}
    scales = {k: first[k].lerp(second[k], args.share) for k in ("dense_scale", "image_scale")}
    torch.save({"visual": visual, **scales}, args.out)


if __name__ == "__main__":
    main()
