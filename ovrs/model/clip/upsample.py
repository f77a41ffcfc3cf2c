"""From the patch grid to pixels: class scores are upsampled, not features.

Joint bilateral upsampling is linear and shares its kernel among channels. So the numerators of the cosines, one map per
query, are upsampled instead of D channels (the final 1 × 1 convolution is folded into the text), and the length of every
pixel's feature comes from the crop's features in an orthonormal basis of the few dimensions that they span: exact at full
rank, close at a lower one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F

from ovrs.errors import WeightsError
from ovrs.foreign import is_file
from ovrs.model.clip import sums
from ovrs.model.clip.checkpoint import require_finite
from ovrs.model.clip.features import TileFeatures, cosines, of_whole
from ovrs.model.clip.foreign import FAULTS, one_line
from ovrs.model.clip.jbu import STAGES, Jbu

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ovrs.model.clip.sums import Layer

FACTOR = 2**STAGES


class Upsampler(Protocol):
    """Score maps at pixel resolution."""

    name: str

    def __call__(self, features: TileFeatures, text: Tensor, base_text: Tensor, cls_weight: float) -> Tensor:
        """Cosines plus global term `(B, M, crop height, crop width)`, temperature not applied.

        Args:
            features: Of one tile.
            text: `(M, D)`, or `(B, M, D)` when every crop has its own; gradients flow to it.
            base_text: `(M, D)`, the uncalibrated text of the global term.
            cls_weight: λ.
        """
        ...

    def sums(self, scales: Sequence[Sequence[Layer]], tiles: int, cls_weight: float) -> tuple[Tensor, Tensor]:
        """Return sums over the windows of T tiles, `(T, M, H, W)` and weights `(H, W)`, as `ovrs.model.clip.sums.by_window`."""
        ...


class Bilinear:
    """Scores of the patches, resized: of a plain CLIP, their cosines with the text."""

    name = "bilinear"

    def scores(self, features: TileFeatures, text: Tensor, base_text: Tensor, cls_weight: float) -> Tensor:
        """Return what is resized, `(B, M, N)`; arguments as of a call."""
        return cosines(features, text, base_text, cls_weight)

    def __call__(self, features: TileFeatures, text: Tensor, base_text: Tensor, cls_weight: float) -> Tensor:
        return on_pixels(features, self.scores(features, text, base_text, cls_weight))

    def sums(self, scales: Sequence[Sequence[Layer]], tiles: int, cls_weight: float) -> tuple[Tensor, Tensor]:
        def scores(layer: Layer) -> Tensor:
            return self.scores(layer.part, layer.text, layer.base_text, cls_weight)

        found = sums.by_matrices(scales, tiles, scores)
        return found or sums.by_window(scales, tiles, lambda layer: on_pixels(layer.part, scores(layer)))


class JointBilateral:
    """Cosines of jointly upsampled features, without ever holding them (`docs/methods.md#upsampler`)."""

    def __init__(self, net: Jbu, rank: int | None = None) -> None:
        """Wrap a network; `rank` limits the basis for the lengths (default: full, exact)."""
        self.net, self.rank, self.name = net.eval().requires_grad_(False), rank, net.kind

    def __call__(self, features: TileFeatures, text: Tensor, base_text: Tensor, cls_weight: float) -> Tensor:
        per_crop = text if text.ndim == 3 else text.expand(len(features.patches), -1, -1)
        maps = [self._crop(features, index, words) for index, words in enumerate(per_crop)]  # one crop bounds memory
        full = torch.stack(maps)
        if cls_weight:
            full = full + cls_weight * of_whole(features, base_text)[:, :, None, None]
        return sums.cut_out(full, pad=features.pad, inner=features.inner, crop=features.crop_shape)

    def sums(self, scales: Sequence[Sequence[Layer]], tiles: int, cls_weight: float) -> tuple[Tensor, Tensor]:
        return sums.by_window(scales, tiles, lambda w: self(w.part, w.text, w.base_text, cls_weight))

    def _crop(self, features: TileFeatures, index: int, text: Tensor) -> Tensor:
        raw = features.patches[index] * features.lengths[index, :, None]
        matrix, offset = self.net.final()
        with torch.no_grad():
            basis, coordinates = _span(raw @ matrix.T, self.rank)
        low = torch.cat([(raw @ (text @ matrix).T).T, coordinates]).unflatten(-1, features.grid)
        full = self.net.expand(low[None], features.images[index : index + 1])[0]
        numerator = full[: len(text)] + (text @ offset)[:, None, None]
        inside = full[len(text) :] + (basis @ offset)[:, None, None]
        beyond = (offset - basis.T @ (basis @ offset)).square().sum()  # what of the offset lies outside the span
        cosine = numerator / (inside.square().sum(dim=0) + beyond).sqrt().clamp(min=1e-12)
        if cosine.shape[-2:] != torch.Size(features.input_shape):  # patches of 14 or 32 px do not meet the factor 16
            return F.interpolate(cosine[None], features.input_shape, mode="bilinear", align_corners=False)[0]
        return cosine


def on_pixels(features: TileFeatures, maps: Tensor) -> Tensor:
    """Resize maps on the patches `(B, M, N)` to the pixels of the crops `(B, M, crop height, crop width)`."""
    return sums.resized(
        maps.unflatten(-1, features.grid),
        seen=features.input_shape,
        pad=features.pad,
        inner=features.inner,
        crop=features.crop_shape,
        direct=features.inner == features.input_shape,
    )


def _span(vectors: Tensor, rank: int | None) -> tuple[Tensor, Tensor]:
    """Orthonormal basis `(r, D)` of the rows `(N, D)` and their coordinates `(r, N)`, strongest directions first."""
    left, strength, basis = torch.linalg.svd(vectors, full_matrices=False)
    keep = slice(None) if rank is None else slice(rank)
    return basis[keep], (left[:, keep] * strength[keep]).T


def load_jbu(kind: str, path: Path, dim: int, device: torch.device) -> Jbu:
    """Load a joint bilateral upsampler: safetensors, or a SimFeatUp checkpoint (read without executing it).

    Raises:
        WeightsError: No file, another kind or feature size, or content that is no plain tensor dictionary.
    """
    if not is_file(path):
        raise WeightsError(
            f"upsampler {kind} needs its weights, and there is no file {path}; SegEarth-OV publishes "
            "xclip_jbu_one_million_aid.ckpt for ViT-B/16. --set upsampler=bilinear needs none"
        )
    state = _read_state(path)
    net = Jbu(kind, dim)
    try:
        net.load_state_dict(state, strict=True)
    except RuntimeError as error:
        have = state.get("fixup_proj.1.weight")
        raise WeightsError(
            f"{path} holds no {kind} for features of {dim} dimensions"
            + (f" (its own have {len(have)})" if have is not None else "")
            + f": {str(error).splitlines()[-1].strip()}"
        ) from error
    require_finite(net, path)
    return net.to(device)


def _read_state(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            state: dict[str, Tensor] = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
            state = content.get("state_dict", content)
        prefix = "upsampler."
        inner = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        return {k: v.float() for k, v in (inner or state).items()}
    except FAULTS as error:
        raise WeightsError(f"{path} cannot be read as plain tensors: {one_line(error)}") from error
