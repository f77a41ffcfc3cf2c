"""Colour infrared: how a labelled image would look to a sensor that shows near infrared, red and green as RGB.

Much aerial imagery comes only so. Few training images have a near-infrared band, so it is guessed: grounds reflect it by
what they are, within the ranges below, and plants by how green they look.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

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


UNNAMED = (0.8, 1.3)
"""The same of concepts that are not listed."""
PLANTS = frozenset({"tree", "low_vegetation", "vegetation", "field"})


def colour_infrared(images: Tensor, labels: Tensor, names: Sequence[str]) -> Tensor:
    """(Near infrared, red, green) of RGB images `(B, 3, h, w)` in 0..1 with labels `(B, h, w)` of `names`."""
    count = len(images)
    total = images.sum(1) + 1e-3
    green = ((3 * images[:, 1] / total - 1) * 6).clamp(0, 1)  # excess green, one for strong green
    factor = 1 + (GREENEST - 1) * green
    for index, name in enumerate(names):
        low, high = REFLECTS.get(name, UNNAMED)
        known = torch.empty(count, 1, 1, device=images.device).uniform_(low, high)
        if name in PLANTS:
            known = 1 + (known - 1) * (0.5 + 0.5 * green)  # dry plants reflect less of it
        factor = torch.where(labels == index, known, factor)
    factor = F.avg_pool2d(F.pad(factor[:, None], (1, 1, 1, 1), mode="replicate"), 3, 1)[:, 0]
    infrared = total / 3 * factor
    return torch.stack([infrared.clamp(max=1), images[:, 0], images[:, 1]], 1)
