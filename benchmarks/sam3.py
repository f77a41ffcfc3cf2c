"""Time and memory of SAM 3 at full size, with random weights: one vision pass shared by all prompts, or one for each.

    python -m benchmarks.sam3 --prompts 1 8 32

Random weights cost the same as published ones. The unshared column is measured for `--unshared` prompts and multiplied.
"""

from __future__ import annotations

import argparse
import os
import resource
import time

import numpy as np
import torch

from ovrs.model.sam3.backend import Sam3Backend
from ovrs.model.sam3.fuse import structure
from ovrs.model.sam3.tiny import config as tiny_config


def network(tiny: bool, dtype: torch.dtype):
    from transformers import Sam3Config, Sam3Model

    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return Sam3Model(tiny_config() if tiny else Sam3Config()).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--unshared", type=int, default=1, help="prompts whose own vision pass is measured")
    parser.add_argument("--chunk", type=int, default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    os.environ.setdefault("OVRS_CACHE", "build/sam3-cache")
    device = torch.device(args.device)
    started = time.perf_counter()
    backend = Sam3Backend(network(args.tiny, getattr(torch, args.dtype)), "random", device, prompt_chunk=args.chunk)
    size = sum(p.numel() for p in backend.network.parameters())
    print(f"{size / 1e6:.1f} M parameters built and hashed in {time.perf_counter() - started:.1f} s; {memory(device)}")
    side = backend.image_size
    rgb = np.random.default_rng(0).integers(0, 255, (3, side, side), dtype=np.uint8)
    valid = np.ones((side, side), bool)
    phrases = [f"thing number {i}" for i in range(max(args.prompts))]
    bank, seconds = timed(device, lambda: backend._encode_text(phrases))
    print(f"text, {len(phrases)} phrases: {seconds:.2f} s")
    state, vision = timed(device, lambda: backend.encode_image(rgb, valid))
    print(f"vision, one pass at {side} px: {vision:.2f} s; {memory(device)}")

    def ground(image, rows):
        return backend.ground(image, bank, rows, lambda d: structure(d, "both", 0.3))

    def alone():
        for row in range(args.unshared):
            ground(backend.encode_image(rgb, valid), [row])

    _, own = timed(device, alone)
    print(f"unshared, measured for {args.unshared}: {own / args.unshared:.1f} s a prompt")
    print(
        "| prompts | shared: vision + detector, s | unshared, s (multiplied) | ratio | memory |\n|---|---|---|---|---|"
    )
    for count in args.prompts:
        _, detector = timed(device, lambda count=count: ground(state, range(count)))
        total, apart = vision + detector, own / args.unshared * count
        print(
            f"| {count} | {vision:.1f} + {detector:.1f} | {apart:.1f} | {apart / total:.1f}x | {memory(device)} |",
            flush=True,
        )


def timed(device: torch.device, work):
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return result, time.perf_counter() - started


def memory(device: torch.device) -> str:
    if device.type == "cuda":
        return f"peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB on the GPU"
    return f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB"


if __name__ == "__main__":
    main()
