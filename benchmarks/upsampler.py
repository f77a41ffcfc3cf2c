"""Eight score maps from 14 x 14 to 224 x 224 through the joint bilateral upsampler: time, memory and error by rank.

    python -m benchmarks.upsampler [--threads 2]

ViT-B/16's 512 channels, smooth random features and image, random weights near the trained ones' size. The reference
upsamples all channels. Every rank of the basis that gives the pixels' lengths is compared with it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.speed import NAMES
from ovrs.model.clip.inputs import CropInputs
from ovrs.model.clip.jbu import Jbu
from ovrs.model.clip.upsample import JointBilateral
from ovrs.scene.grid import Window


def material() -> tuple:
    torch.manual_seed(0)
    net = Jbu("jbu_one", 512).eval().requires_grad_(False)
    net.fixup_proj[1].weight.mul_(0.3)
    smooth = F.interpolate(torch.randn(1, 3, 20, 20), (224, 224), mode="bicubic")
    low = F.interpolate(torch.randn(1, 512, 5, 5), (14, 14), mode="bicubic") + 0.2 * torch.randn(1, 512, 14, 14)
    everywhere = torch.ones(224, 224, dtype=torch.bool)
    inputs = CropInputs(
        smooth, (0, 0), (224, 224), (Window(0, 0, 224, 224),), everywhere, torch.ones_like(smooth[:, :1])
    )
    text = F.normalize(torch.randn(len(NAMES), 512), dim=-1)
    return net, low, inputs.features(low.flatten(2).transpose(1, 2), torch.zeros(1, 512), (14, 14)), text


def peak() -> float:
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def child(rank: int | None) -> dict[str, float]:
    net, _, features, text = material()
    before = peak()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        with torch.no_grad():
            JointBilateral(net, rank)(features, text, text, 0.0)
        times.append(time.perf_counter() - start)
    return {"seconds": min(times), "mb": peak() - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.child is not None:
        print(json.dumps(child(args.child or None)))
        return
    net, low, features, text = material()
    start = time.perf_counter()
    with torch.no_grad():
        want = torch.einsum("md,bdhw->bmhw", text, F.normalize(net(low, features.images), dim=1))
    print(f"all 512 channels: {time.perf_counter() - start:.2f} s")
    print(f"{'rank':>5} {'seconds':>8} {'MB':>6} {'largest error':>14} {'same labels %':>14}")
    for rank in (0, 64, 32, 16, 8):
        command = [sys.executable, "-m", "benchmarks.upsampler", "--child", str(rank), "--threads", str(args.threads)]
        cost = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        with torch.no_grad():
            found = JointBilateral(net, rank or None)(features, text, text, 0.0)
        same = (found.argmax(1) == want.argmax(1)).float().mean()
        error = float((found - want).abs().max())
        print(
            f"{rank or 'full':>5} {cost['seconds']:8.2f} {cost['mb']:6.0f} {error:14.1e} {100 * same:14.3f}", flush=True
        )


if __name__ == "__main__":
    main()
