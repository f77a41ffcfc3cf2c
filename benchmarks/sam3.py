"""Time and memory of SAM 3 at full size, with random weights: one vision pass shared by all prompts, or one for each.

    python -m benchmarks.sam3 --prompts 1 8 32
    python -m benchmarks.sam3 --classes 5 20 50 --present 5 --size small --threads 1 [--out benchmarks/results/sam3.json]

Random weights cost the same as published ones. The unshared column is measured for `--unshared` prompts and multiplied.

With `--classes`, decoding all classes is compared with decoding those that the small pass finds (`decode` present). Which ones
are there is planted: the decoder's presence is put high for `--present` of them. Agreement is of labels, where a class is sure.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks import record
from ovrs.model.sam3.backend import Sam3Backend
from ovrs.model.sam3.fuse import segearth, structure
from ovrs.model.sam3.tiny import config as tiny_config


def network(size: str, dtype: torch.dtype):
    from transformers import Sam3Config, Sam3Model

    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        own = {"full": Sam3Config, "middle": middle_config, "small": small_config, "tiny": tiny_config}[size]()
        return Sam3Model(own).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


def middle_config():
    """The full detector on windows of 672 px behind a vision tower of a quarter of the layers."""
    from transformers import Sam3Config

    own = Sam3Config()
    vision = own.vision_config.backbone_config
    vision.image_size, vision.num_hidden_layers, vision.global_attn_indexes = 672, 8, [3, 7]
    own.text_config.num_hidden_layers = 4
    return own


def small_config():
    """The full detector on windows of 336 px: 576 places, and 256 in the small pass, the full network's share of 4 to 9."""
    own = middle_config()
    vision = own.vision_config.backbone_config
    vision.image_size, vision.num_hidden_layers, vision.global_attn_indexes, vision.window_size = 336, 4, [1, 3], 8
    own.text_config.num_hidden_layers = 2
    return own


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--unshared", type=int, default=1, help="prompts whose own vision pass is measured")
    parser.add_argument("--chunk", type=int, default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--size", default="full", choices=["full", "middle", "small", "tiny"])
    parser.add_argument("--classes", type=int, nargs="+", help="compare decoding all with decoding what is there")
    parser.add_argument("--present", type=int, default=5, help="classes that are there")
    parser.add_argument("--threads", type=int, help="of the processor; PyTorch's own number if not given")
    parser.add_argument("--out", type=Path, help="JSON of the table of --classes")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    os.environ.setdefault("OVRS_CACHE", "build/sam3-cache")
    device = torch.device(args.device)
    started = time.perf_counter()
    backend = Sam3Backend(network(args.size, getattr(torch, args.dtype)), "random", device, prompt_chunk=args.chunk)
    size = sum(p.numel() for p in backend.network.parameters())
    print(f"{size / 1e6:.1f} M parameters built and hashed in {time.perf_counter() - started:.1f} s; {memory(device)}")
    side = backend.image_size
    rgb = np.random.default_rng(0).integers(0, 255, (3, side, side), dtype=np.uint8)
    valid = np.ones((side, side), bool)
    if args.classes:
        compare(backend, rgb, valid, args)
        return
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


class Planted(torch.nn.Module):
    """The decoder with a known answer: presence is high for the first `present` phrases of the bank."""

    def __init__(self, inner, bank, present: int) -> None:
        super().__init__()
        self.inner, self.present, self.key = inner, present, self.mean(bank.tokens, bank.mask)

    @staticmethod
    def mean(tokens, mask):
        return (tokens.float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    def forward(self, *, text_features, text_mask, **more):
        out = self.inner(text_features=text_features, text_mask=text_mask, **more)
        words = self.mean(text_features[:, :-1], text_mask[:, :-1])  # without the token of geometry
        rows = torch.cdist(words, self.key).argmin(dim=1)
        logits = torch.where(rows < self.present, 6.0, -8.0).to(out.presence_logits)
        out.presence_logits = logits[None, :, None].expand_as(out.presence_logits)
        return out


def compare(backend: Sam3Backend, rgb, valid, args) -> None:
    """One table: decoder passes and seconds with all classes decoded, and with those alone that are there."""
    device, inner = backend.device, backend.network.detr_decoder
    rows, load = [], os.getloadavg()[0]
    clock = (
        time.perf_counter if device.type == "cuda" else time.process_time
    )  # seconds of all cores: others may work too
    print("| classes | decode | vision, s | small passes | decoder passes | detector, s | total, s | agreement |")
    print("|---|---|---|---|---|---|---|---|")
    for count in args.classes:
        bank = backend._encode_text([f"thing number {i}" for i in range(count)])
        backend.network.detr_decoder = Planted(inner, bank, args.present)
        labels = {}
        for decode, floor in (("all", None), ("present", 0.01)):
            backend.present_floor, before = floor, dict(backend.passes)
            state, vision = timed(device, lambda c=count: backend.encode_image(rgb, valid, phrases=c), clock)
            (masks,), detector = timed(
                device, lambda s=state, b=bank, c=count: backend.ground(s, b, range(c), scored), clock
            )
            done = {k: v - before.get(k, 0) for k, v in backend.passes.items()}
            labels[decode] = (masks.argmax(0), masks.amax(0) > 0.01)
            same = (labels["all"][0] == labels[decode][0])[labels["all"][1]].float().mean()
            print(
                f"| {count} | {decode} | {vision:.2f} | {done.get('small_decoder', 0)} | {done['decoder']} "
                f"| {detector:.2f} | {vision + detector:.2f} | {same:.4f} |",
                flush=True,
            )
            rows.append({
                "classes": count, "present": args.present, "decode": decode, "small_passes": done.get("small_decoder", 0),
                "decoder_passes": done["decoder"], "vision_seconds": round(vision, 2), "detector_seconds": round(detector, 2),
                "agreement": round(float(same), 4),
            })  # fmt: skip
    if args.out:
        facts = {
            "size": args.size,
            "pixels": backend.image_size,
            "parameters": sum(p.numel() for p in backend.network.parameters()),
            "device": str(device),
            "dtype": args.dtype,
            "prompt_chunk": backend.prompt_chunk,
            "seconds": "of computing" if clock is time.process_time else "on the clock",
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "load": [round(load, 1), round(os.getloadavg()[0], 1)],
            "torch": torch.__version__,
        }
        record.keep(args.out, {**facts, "rows": rows}, bundled=False)


def scored(detection):
    """SegEarth-OV3's rule at the size of the masks."""
    return segearth(detection, detection.semantic.shape[-2:], 0.3)


def timed(device: torch.device, work, clock=time.perf_counter):
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = clock()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return result, clock() - started


def memory(device: torch.device) -> str:
    if device.type == "cuda":
        return f"peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB on the GPU"
    return f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB"


if __name__ == "__main__":
    main()
