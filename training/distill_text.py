"""Teach the small text tower the sentence vectors of the teacher, and which sentences speak of which class.

python -m training.distill_text --work DIR --minutes 25 --threads 1
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.contexts import Contexts
from training.text_tower import encode_short, text_tower, tokens_of


def distilled(model: nn.Module, tokens: Tensor, target: Tensor) -> Tensor:
    """One minus the cosine with the teacher's vectors, and the divergence of likenesses within the batch."""
    z = encode_short(model, tokens)
    cosine = 1 - (z * target).sum(-1).mean()
    relation = F.kl_div(
        (z @ target.T * 20).log_softmax(-1), (target @ target.T * 20).softmax(-1), reduction="batchmean"
    )
    return cosine + 0.5 * relation


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--contexts", type=float, default=0.1, help="weight of the contrast of sentences with names")
    parser.add_argument("--resume", action="store_true", help="go on from text.pt")
    parser.add_argument("--out", type=Path, help="where the weights go (WORK/text.pt)")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    everything = json.loads((args.work / "texts.json").read_text())
    target = torch.from_numpy(np.load(args.work / "texts.npy"))
    contexts = Contexts()
    tokens = tokens_of(everything)
    held = torch.zeros(len(tokens), dtype=torch.bool)
    held[torch.randperm(len(tokens))[:2000]] = True
    train_rows, held_rows = (~held).nonzero().flatten(), held.nonzero().flatten()
    lengths = tokens.argmax(1)

    model = text_tower(args.work / "text.pt" if args.resume else None)
    embedding = [model.token_embedding.weight]
    rest = [p for p in model.parameters() if p is not embedding[0] and p.ndim > 0]
    optimiser = torch.optim.AdamW(
        [
            {"params": embedding, "weight_decay": 0.0, "lr_scale": 2.0},
            {"params": rest, "weight_decay": 0.02, "lr_scale": 1.0},
        ],
        lr=1e-3,
        betas=(0.9, 0.98),
    )
    batch, start, step = 256, time.time(), 0
    while (used := (time.time() - start) / 60) < args.minutes:
        progress = used / args.minutes
        rate = args.rate * min(1, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * progress)) + 1e-5
        for group in optimiser.param_groups:
            group["lr"] = rate * group["lr_scale"]
        pool = train_rows[torch.randint(len(train_rows), (batch * 8,))]
        pool = pool[lengths[pool].argsort()]  # equal lengths together: less padding
        pick = int(torch.randint(8, ()))
        rows = pool[pick * batch : (pick + 1) * batch]
        loss = distilled(model, tokens[rows], target[rows])
        if args.contexts:
            loss = loss + args.contexts * contexts.loss(model)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step += 1
        if step % 100 == 0:
            with torch.no_grad():
                cos = (encode_short(model, tokens[held_rows]) * target[held_rows]).sum(-1).mean()
            print(f"{step} {used:.1f} min  loss {loss.item():.3f}  held-out cosine {cos.item():.3f}", flush=True)
    torch.save(model.state_dict(), args.out or args.work / "text.pt")


if __name__ == "__main__":
    main()
