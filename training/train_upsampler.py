"""Train the joint bilateral upsampler of a finished model, without labels.

    python -m training.train_upsampler --work DIR --minutes 12 --threads 2

As FeatUp and SimFeatUp do: what the upsampler draws at pixel resolution, seen through a zoom, a shift and a flip and
averaged back to patches, must be what the encoder says about the zoomed, shifted and flipped image. The kernel is the
same for every channel, so each step looks at a few random directions of the feature space. The last 1 x 1 convolution
stays the identity.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ovrs.model.clip.dense import dense_tokens
from ovrs.model.clip.jbu import Jbu
from training import bank
from training.bank import Pictures
from training.crops import normalised, scene_boxes
from training.material import SCENE_SIDE
from training.model import EMBED_DIM, build

SIDE, CHANNELS, BATCH = 160, 32, 4


def features(visual: torch.nn.Module, images: Tensor) -> Tensor:
    """Dense features before normalisation, `(B, D, 10, 10)`."""
    with torch.no_grad():
        tokens = dense_tokens(visual, images, "segearth")
    return tokens.patches.transpose(1, 2).unflatten(-1, tokens.grid)


def view(x: Tensor, box: tuple[int, int, int], mirror: bool, mode: str) -> Tensor:
    """A square part (y, x, side) of `(B, C, 160, 160)` at full size, perhaps mirrored."""
    y, left, side = box
    part = x[..., y : y + side, left : left + side]
    out = F.interpolate(part, (SIDE, SIDE), mode=mode, antialias=mode == "bilinear" and side > SIDE)
    return out.flip(-1) if mirror else out


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.manual_seed(2)
    torch.set_num_threads(args.threads)
    rng = random.Random(2)
    visual = build().visual
    visual.load_state_dict(torch.load(args.work / "vision.pt", weights_only=True)["visual"])
    visual.eval().requires_grad_(False)
    scenes = Pictures(
        [bank.decoded(p, SCENE_SIDE) for _, p, _ in bank.load(args.work, "scenes")], torch.device("cpu"), 1
    )
    net = Jbu("jbu_one", EMBED_DIM).train()
    with torch.no_grad():
        net.fixup_proj[1].weight.zero_()
        net.fixup_proj[1].bias.zero_()
        net.up.fixup_proj[3].weight.zero_()  # begin as a plain bilateral filter, a narrow one
        net.up.fixup_proj[3].bias.zero_()
        net.up.sigma_spatial.fill_(0.3)
    trained = list(net.up.parameters())
    optimiser = torch.optim.AdamW(trained, lr=3e-3, weight_decay=0.0)
    start, step, mean = time.time(), 0, None
    while (progress := (time.time() - start) / 60 / args.minutes) < 1:
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * (1 - progress)
        parts, _, _ = scene_boxes(torch.randint(0, len(scenes.sizes), (BATCH,)), SCENE_SIDE)
        images = normalised(scenes.crops(parts, SIDE))
        side = rng.randint(64, 144)
        box, mirror = (rng.randint(0, SIDE - side), rng.randint(0, SIDE - side), side), rng.random() < 0.5
        low = features(visual, images)
        want = features(visual, view(images, box, mirror, "bilinear"))
        mix = torch.randn(CHANNELS, EMBED_DIM) / EMBED_DIM**0.5
        centre = low.mean((0, 2, 3), keepdim=True)
        low, want = (torch.einsum("cd,bdhw->bchw", mix, t - centre) for t in (low, want))
        drawn = view(net.expand(low, images), box, mirror, "bilinear")
        plain = view(F.interpolate(low, (SIDE, SIDE), mode="bilinear"), box, mirror, "bilinear")
        loss, base = (F.mse_loss(F.adaptive_avg_pool2d(t, want.shape[-2:]), want) for t in (drawn, plain))
        optimiser.zero_grad()
        (loss / base.detach()).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        ratio = float(loss.detach() / base.detach())
        mean = ratio if mean is None else 0.95 * mean + 0.05 * ratio
        step += 1
        if step % 10 == 0:
            print(f"{step} {100 * progress:.0f} % error relative to bilinear {mean:.4f}", flush=True)
    save_file({k: v.half().contiguous() for k, v in net.state_dict().items()}, args.work / "jbu_one.safetensors")
    print("done", step)


if __name__ == "__main__":
    main()
