"""Seconds and memory per 448 x 448 image of every method, against a plain per-image implementation of the same equations.

    python -m benchmarks.speed [--methods none tent mlmp ...] [--steps 10] [--threads 2] [--device cpu]
        [--out benchmarks/results/speed.json]

ViT-B/16 geometry with random weights: the cost does not depend on them. The image is four crops of 224 px. The plain
implementation takes one crop after the other, lets gradients flow to every weight as the released codes do, upsamples
features instead of scores, encodes every prompt of every patch, and runs the encoder again in each step of TMPA. Each
measurement has a process of its own; memory is its peak above that of the loaded model.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.record import keep

NAMES = ["road", "building", "water", "tree", "car", "grass", "bare soil", "field"]
CROP, SIDE = 224, 448
METHODS = ("none", "tent", "mlmp", "tpt", "clipartt", "watt", "tmpa", "jbu_one")


def model() -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """CLIP ViT-B/16 with random weights, the image's crops and the classes' vectors."""
    import open_clip

    torch.manual_seed(0)
    clip = open_clip.create_model("ViT-B-16").eval()
    return clip, torch.randn(4, 3, CROP, CROP), F.normalize(torch.randn(len(NAMES), 512), dim=-1)


def tokenizer():
    import open_clip

    return open_clip.get_tokenizer("ViT-B-16")


def to_pixels(scores: torch.Tensor) -> torch.Tensor:
    """`(B, N, M)` to `(B, M, 224, 224)`."""
    return F.interpolate(scores.transpose(1, 2).unflatten(-1, (14, 14)), (CROP, CROP), mode="bilinear")


def ours(method: str, steps: int, device: str) -> float:
    from ovrs.methods.norms import Clipartt, Mlmp, Watt
    from ovrs.methods.tmpa import Tmpa
    from ovrs.methods.tpt import Tpt
    from ovrs.model.adapt import mlmp, pseudo, tmpa, tpt
    from ovrs.model.clip.dense import dense_tokens
    from ovrs.model.clip.jbu import Jbu
    from ovrs.model.clip.text import TextBank, encode_sentences
    from ovrs.model.clip.upsample import JointBilateral

    paper: dict[str, Any] = {"dense": "naclip", "logit_scale": 100.0}
    clip, images, text = model()
    clip.requires_grad_(False)
    clip, images, text = clip.to(device), images.to(device), text.to(device)
    visual, stack = clip.visual, text[None].expand(7, -1, -1).contiguous()
    bank = TextBank(text, torch.arange(len(NAMES), device=device), len(NAMES))
    start = clock(device)
    if method in ("tent", "mlmp"):
        layers = {"layers": 1, "image_weight": 0.0} if method == "tent" else {}
        prompts = stack[:1] if method == "tent" else stack
        found = mlmp.adapt(visual, images, prompts, text, Mlmp(**paper, steps=steps, **layers), sets=1)
        to_pixels(found.patches @ text.T)
    elif method == "clipartt":
        encode = lambda s: encode_sentences(clip, tokenizer(), s)  # noqa: E731
        settings = Clipartt(**paper, steps=steps)
        to_pixels(pseudo.clipartt(visual, images, text, NAMES, encode, settings, sets=1).patches @ text.T)
    elif method == "watt":
        settings = Watt(**paper, lr=1e-3, rounds=1)
        to_pixels(pseudo.watt(visual, images, stack, settings, sets=1).patches @ text.T)
    else:
        with torch.no_grad():
            tokens = dense_tokens(visual, images, "segearth")
        inputs = crop_inputs_of(images)
        features = inputs.features(tokens.patches, tokens.cls, tokens.grid)
        if method == "tpt":
            learner = tpt.PromptLearner(clip, tokenizer(), NAMES)
            text = tpt.tune(learner, [features.patches.flatten(0, 1)], Tpt(logit_scale=100.0, steps=steps)).text[0]
        if method == "tmpa":
            text = tmpa.calibrate(features, bank, Tmpa(logit_scale=50, cls_weight=-0.3)).text
        with torch.no_grad():
            if method == "jbu_one":
                JointBilateral(Jbu("jbu_one", 512).to(device))(features, text, text, -0.3)
            else:
                to_pixels(features.patches @ text.T)
    return clock(device) - start


def crop_inputs_of(images: torch.Tensor):
    from ovrs.model.clip.inputs import CropInputs
    from ovrs.scene.grid import Window

    crops = tuple(Window(y, x, CROP, CROP) for y in (0, CROP) for x in (0, CROP))
    everywhere = torch.ones(SIDE, SIDE, dtype=torch.bool, device=images.device)
    return CropInputs(
        images, (0, 0), (images.shape[-2], images.shape[-1]), crops, everywhere, torch.ones_like(images[:, :1])
    )


def plain(method: str, steps: int, device: str) -> float:
    """One crop after the other, straight from the equations."""
    clip, images, text = model()
    clip, images, text = clip.to(device), images.to(device), text.to(device)
    stack = text[None].expand(7, -1, -1)
    start = clock(device)
    for image in images[:, None]:
        if method in ("tent", "mlmp", "clipartt", "watt"):
            plain_norms(method, clip, image, text, stack, steps)
        elif method == "tpt":
            plain_tpt(clip, image, steps)
        elif method == "tmpa":
            plain_tmpa(clip.visual, image, text)
        elif method == "jbu_one":
            plain_jbu(clip.visual, image, text)
        else:
            with torch.no_grad():
                classify_features(plain_tokens(clip.visual, image)[0], text)
    return clock(device) - start


def plain_tokens(visual, image, depths=(11,)):
    """Projected features of the chosen branches (segearth in the last block), and of the last block's class token."""
    x = visual.conv1(image).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(1, 1, -1), x], 1) + visual.positional_embedding
    x = visual.ln_pre(x)
    branches = []
    for depth, block in enumerate(visual.transformer.resblocks):
        y = block.ln_1(x)
        branch = block.attn(y, y, y, need_weights=False)[0]
        if depth in depths:
            branches.append(self_self(block.attn, y) if depth == 11 else branch)
        x = x + branch
        x = x + block.mlp(block.ln_2(x))
    fused = torch.stack(branches).mean(0)
    project = lambda t: F.normalize(visual.ln_post(t) @ visual.proj, dim=-1)  # noqa: E731
    return project(fused)[:, 1:], project(x[:, :1]), [project(b)[:, 1:] for b in branches]


def self_self(attn, y):
    q, k, v = F.linear(y, attn.in_proj_weight, attn.in_proj_bias).chunk(3, -1)
    q, k, v = (t.view(1, -1, 12, 64).transpose(1, 2) for t in (q, k, v))
    mixed = sum((u @ u.transpose(-1, -2) / 8).softmax(-1) @ v for u in (q, k, v))
    return attn.out_proj(mixed.transpose(1, 2).flatten(2))


def classify_features(patches, text):
    full = F.normalize(
        F.interpolate(patches.transpose(1, 2).unflatten(-1, (14, 14)), (CROP, CROP), mode="bilinear"), dim=1
    )
    return torch.einsum("bdhw,md->bmhw", full, text)


def entropy(logits):
    return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()


def plain_norms(method, clip, image, text, stack, steps):
    visual = copy.deepcopy(clip.visual)  # the released codes restore a copied state before every batch
    norms = [p for m in visual.modules() if isinstance(m, torch.nn.LayerNorm) for p in m.parameters()]
    optimiser = torch.optim.Adam(norms, lr=1e-3)
    depths = tuple(range(3, 12)) if method == "mlmp" else (11,)
    rounds = [text] * steps if method != "watt" else [t for t in stack for _ in range(2)]
    for words in rounds:
        patches, whole, _ = plain_tokens(visual, image, depths)
        if method == "mlmp":
            loss = torch.stack([entropy(100 * patches @ t.T) + entropy(100 * whole @ t.T) for t in stack]).mean()
        elif method == "tent":
            loss = entropy(100 * patches @ words.T)
        else:
            loss = agreement(clip, patches[0], words, method)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        plain_tokens(visual, image, depths)  # the weights of the layers
        patches, _, _ = plain_tokens(visual, image, depths)
        classify_features(patches, text)


def agreement(clip, patches, words, method):
    chosen = (patches @ words.T).topk(3 if method == "clipartt" else 1, -1).indices
    if method == "watt":
        texts = words[chosen[:, 0]]
    else:
        prompts = ["a photo of a " + " or ".join(NAMES[int(i)] for i in row) for row in chosen]
        with torch.no_grad():
            texts = F.normalize(clip.encode_text(tokenizer()(prompts).to(patches.device)), dim=-1)
    target = ((patches @ patches.T + texts @ texts.T) / 2 / 0.01).softmax(-1)
    return F.cross_entropy((100 * texts @ patches.T).T, target.T)


def plain_tpt(clip, image, steps):
    tokens = tokenizer()([f"a photo of a {n}" for n in NAMES]).to(image.device)
    embedded = clip.token_embedding(tokens).detach()
    context = embedded[0, 1:5].clone().requires_grad_(True)
    optimiser = torch.optim.Adam([context], lr=1e-3)
    for _ in range(steps):
        patches = plain_tokens(clip.visual, image)[0]
        x = (
            torch.cat([embedded[:, :1], context.expand(len(NAMES), -1, -1), embedded[:, 5:]], 1)
            + clip.positional_embedding
        )
        x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask))[torch.arange(len(NAMES)), tokens.argmax(1)]
        text = F.normalize(x @ clip.text_projection, dim=-1)
        loss = entropy(100 * patches @ text.T)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        classify_features(plain_tokens(clip.visual, image)[0], text)


def plain_tmpa(visual, image, text):
    alpha = torch.full((len(text), 1), 0.02, device=image.device, requires_grad=True)
    optimiser = torch.optim.AdamW([alpha], lr=1e-4)
    for step in range(4):
        with torch.no_grad():
            patches = plain_tokens(visual, image)[0]
        chosen = (patches[0] @ text.T).topk(3, dim=0).indices
        prototypes = patches[0][chosen].mean(0)
        scores = classify_features(patches, F.normalize((1 - alpha) * text + alpha * prototypes, dim=-1))
        loss = entropy(50 * scores.flatten(2).transpose(1, 2))
        if step < 3:
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


@torch.no_grad()
def plain_jbu(visual, image, text):
    """All 512 channels, one neighbour after the other."""
    from ovrs.model.clip.jbu import Jbu

    net = Jbu("jbu_one", 512).eval().to(image.device)
    x = plain_tokens(visual, image)[0].transpose(1, 2).unflatten(-1, (14, 14))
    for stage in net.stages():
        x = plain_stage(stage, x, image)
    full = F.normalize(x + 0.1 * net.fixup_proj(x), dim=1)
    torch.einsum("bdhw,md->bmhw", full, text)


def plain_stage(stage, source, image):
    h, w = source.shape[-2] * 2, source.shape[-1] * 2
    r, d = stage.radius, stage.diameter
    guide = F.adaptive_avg_pool2d(image, (h, w))
    z = stage.range_proj(guide)
    offsets = [(i, j) for i in range(d) for j in range(d)]
    padded = F.pad(z, (r,) * 4, mode="reflect")
    near = torch.stack([(z * padded[..., i : i + h, j : j + w]).sum(1) for i, j in offsets], 1)
    weight = (stage.range_temp.exp() * near).softmax(1) * stage.spatial()
    weight = weight / weight.sum(1, keepdim=True)
    weight = weight + 0.1 * stage.fixup_proj(torch.cat([weight, guide], 1))
    padded = F.pad(F.interpolate(source, size=(h, w), mode="bicubic"), (r,) * 4, mode="reflect")
    return sum(weight[:, n : n + 1] * padded[..., i : i + h, j : j + w] for n, (i, j) in enumerate(offsets))


def clock(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_mb(device: str) -> float:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure(method: str, kind: str, args: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.speed", "--child", method, kind, "--steps", str(args.steps)]
    command += ["--threads", str(args.threads), "--device", args.device]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.child:
        method, kind = args.child
        run = ours if kind == "ours" else plain
        model()
        before = peak_mb(args.device)
        seconds = run(method, args.steps, args.device)
        print(json.dumps({"seconds": seconds, "mb": peak_mb(args.device) - before}))
        return
    forward = float(np.median([measure("none", "ours", args)["seconds"] for _ in range(3)]))
    print(f"one forward pass of the four crops and their scores: {forward:.2f} s")
    print(f"{'method':10} {'ours s':>8} {'passes':>7} {'MB':>7} {'plain s':>9} {'MB':>7} {'ratio':>6}")
    kept: dict[str, dict[str, float]] = {}
    for method in args.methods:
        own, other = measure(method, "ours", args), measure(method, "plain", args)
        print(
            f"{method:10} {own['seconds']:8.2f} {own['seconds'] / forward:7.1f} {own['mb']:7.0f} {other['seconds']:9.2f} "
            f"{other['mb']:7.0f} {other['seconds'] / own['seconds']:6.1f}",
            flush=True,
        )
        kept[method] = {"ours_s": own["seconds"], "plain_s": other["seconds"], "passes": own["seconds"] / forward}
    if args.out is not None:
        keep(args.out, kept, bundled=False)


if __name__ == "__main__":
    main()
