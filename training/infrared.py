"""Colour infrared: how a labelled image would look to a sensor that shows near infrared, red and green as RGB.

Much aerial imagery comes only so. Few training images have a near-infrared band, so it is guessed: grounds reflect it by
what they are, within the ranges below, and plants by how green they look.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    import random

    from torch import Tensor

REFLECTS = {
    **dict.fromkeys(("tree", "low_vegetation", "vegetation", "field"), (1.2, 2.4)),
    **dict.fromkeys(("soil", "land", "unpaved_road"), (1.0, 1.4)),
    **dict.fromkeys(("building", "road", "paved"), (0.7, 1.1)),
    "water": (0.2, 0.7),
}
"""Near infrared of each concept, in times its brightness in visible light."""
GREENEST = 2.2
"""The same of what is greener than most plants, where nothing is labelled."""


def colour_infrared(image: Tensor, labels: Tensor, names: list[str], rng: random.Random) -> Tensor:
    """(near infrared, red, green) of an RGB image `(3, h, w)` in 0..1 with labels `(h, w)`, 255 unknown."""
    total = image.sum(0) + 1e-3
    green = ((3 * image[1] / total - 1) * 6).clamp(0, 1)  # excess green, one for strong green
    factor = 1 + (GREENEST - 1) * green
    for index, name in enumerate(names):
        known = rng.uniform(*REFLECTS[name])
        if known > 1.4 or name in ("tree", "low_vegetation", "vegetation", "field"):
            known = 1 + (known - 1) * (0.5 + 0.5 * green)  # dry plants reflect less of it
        factor = torch.where(labels == index, known, factor)
    factor = F.avg_pool2d(F.pad(factor[None, None], (1, 1, 1, 1), mode="replicate"), 3, 1)[0, 0]
    infrared = total / 3 * factor
    return torch.stack([infrared.clamp(max=1), image[0], image[1]])
