"""How a paper shows images to its model, as data (`protocols.yaml`): size, tiles, windows, images adapted together."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, model_validator

from ovrs import yamlfile
from ovrs.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


class _Part(BaseModel):
    model_config = yamlfile.STRICT


class Resize(_Part):
    """To what size an image is brought, enlarged or reduced: one of `long`, `short` and `to`."""

    long: int | None = None
    """Pixels of the longer side; the aspect is kept."""
    short: int | None = None
    """Pixels of the shorter side; the aspect is kept."""
    most: int | None = None
    """`short`: most pixels of the longer side."""
    to: tuple[int, int] | None = None
    """Height and width of an image that is wider than high; of others width and height. The aspect is not kept."""

    @model_validator(mode="after")
    def _one(self) -> Resize:
        if sum(v is not None for v in (self.long, self.short, self.to)) != 1:
            raise ValueError("a size is one of long, short and to")
        return self

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that an image of `height` and `width` pixels is brought to."""
        if self.to is not None:
            return self.to if width > height else (self.to[1], self.to[0])
        if self.long is not None:
            factor = self.long / max(height, width)
        else:
            assert self.short is not None  # the validator has looked
            factor = self.short / min(height, width)
            factor = factor if self.most is None else min(factor, self.most / max(height, width))
        return int(height * factor + 0.5), int(width * factor + 0.5)


class Protocol(_Part):
    """How the images of one set are shown, and what is compared with the labels."""

    resize: Resize | None = None
    """Default: images keep their size."""
    labels: Literal["native", "resized"] = "native"
    """Whether scores are brought to the labels' size, or labels (nearest pixel) to the image's new size."""
    tiles: tuple[int, int] | None = None
    """Height and width of tiles that are images of their own; the last ones are moved back to the border."""
    together: int = 1
    """Images that are adapted together, in the order of their names."""
    whole: bool = False
    """One window over the whole image."""
    crop: int | None = None
    stride: int | None = None
    """Side of the windows and distance between them, unless the model is told others."""
    threshold: float | None = None
    """Background threshold, where the method has none of its own."""
    split: str | None = None
    """Split, unless the catalog names one."""

    @model_validator(mode="after")
    def _same_size(self) -> Protocol:
        if self.together > 1 and (self.resize is None or self.resize.to is None):
            raise ValueError("images adapted together need one size: resize to")
        return self


@cache
def _table() -> Mapping[str, Any]:
    text = (resources.files("ovrs.bench") / "protocols.yaml").read_text("utf-8")
    raw: Mapping[str, Any] = yamlfile.parse(text, "protocols.yaml", OptionError).data
    return {name: {**raw[entry["like"]], **entry} if "like" in entry else entry for name, entry in raw.items()}


def of_preset(name: str, benchmark: str | None) -> Protocol | None:
    """Return the published protocol of preset `file/entry` on a set; None where there is none.

    Args:
        name: The preset.
        benchmark: The set, as papers know it; None is a set of one's own.
    """
    file, _, entry = name.partition("/")
    found = _table().get(file)
    if found is None or benchmark not in found["sets"]:
        return None
    own = found.get("entries", {}).get(entry, {})
    return Protocol.model_validate({**found["common"], **found["sets"][benchmark], **own})


def bilinear(planes: NDArray[Any], size: tuple[int, int]) -> NDArray[np.float32]:
    """Bilinear resizing without antialiasing: of each pixel's centre, whatever lies between is skipped.

    The same values as `torch.nn.functional.interpolate` with `align_corners` false, and before rounding as OpenCV's.

    Args:
        planes: `(…, height, width)`.
        size: New height and width.

    Returns:
        float32 `(…, *size)`.
    """
    out = np.asarray(planes, np.float32)
    for axis, new in ((-2, size[0]), (-1, size[1])):
        low, high, share = _between(out.shape[axis], new)
        share = share[:, None] if axis == -2 else share
        out = np.take(out, low, axis) * (1 - share) + np.take(out, high, axis) * share
    return out


def _between(old: int, new: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Lower and upper neighbour of each new pixel's centre, and how near it is to the upper one."""
    at = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    low = np.floor(at).astype(np.intp)
    return low, np.minimum(low + 1, old - 1), (at - low).astype(np.float32)


def resized(rgb: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize an image `(3, height, width)`, bilinear without antialiasing."""
    if rgb.shape[1:] == size:
        return rgb
    return np.asarray(np.floor(bilinear(rgb, size) + 0.5), np.uint8)


def nearest(labels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Labels `(height, width)` at another size: the pixel at each new pixel's first corner."""
    rows, cols = (np.arange(new) * old // new for old, new in zip(labels.shape, size, strict=True))
    return labels[np.ix_(rows, cols)]


def tiles(shape: tuple[int, ...], size: tuple[int, int] | None) -> list[tuple[slice, slice]]:
    """Rows and columns of the tiles of an image; the last ones are moved back to its border."""
    if size is None:
        return [(slice(0, shape[0]), slice(0, shape[1]))]
    starts = [
        [min(at, max(whole - step, 0)) for at in range(0, whole, step)] for whole, step in zip(shape, size, strict=True)
    ]
    return [(slice(r, r + size[0]), slice(c, c + size[1])) for r in starts[0] for c in starts[1]]
