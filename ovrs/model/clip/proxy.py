"""ProxyCLIP: CLIP's values mixed by the spatial consistency of another network's features.

Source: Lan et al., "ProxyCLIP" (ECCV 2024, arXiv 2408.04883), code mc-lan/ProxyCLIP@e7b767f. Equations: `docs/methods.md#dense-features`.
The other network is any timm ViT; the paper's is DINO ViT-B/8 (`vit_base_patch8_224.dino`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from ovrs.errors import WeightsError
from ovrs.foreign import is_file
from ovrs.model.clip.checkpoint import require_finite
from ovrs.model.clip.dense import DenseTokens, encode_prelude
from ovrs.model.clip.foreign import one_line

if TYPE_CHECKING:
    from torch import Tensor

    from ovrs.model.clip.dense import Visual

BETA, GAMMA = 1.2, 3.0
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def proxy_tokens(
    visual: Visual,
    images: Tensor,
    external: Tensor,
    beta: float = BETA,
    gamma: float = GAMMA,
    *,
    batch_mean: bool = False,
) -> DenseTokens:
    """CLIP's patch values on the other network's grid.

    Args:
        visual: open_clip `VisionTransformer`.
        images: float32 `(B, 3, H, W)`, CLIP-normalised.
        external: `(B, Ce, h', w')`, the other network's features of the same images.
        beta: Share of the mean similarity that is taken off.
        gamma: Sharpness.
        batch_mean: Take that mean over the whole batch, as the released code does, instead of over each image.
    """
    x, grid = encode_prelude(visual, images)
    block = visual.transformer.resblocks[-1]
    attn, width = block.attn, x.shape[-1]
    y = block.ln_1(x)
    value = F.linear(y, attn.in_proj_weight[2 * width :], attn.in_proj_bias[2 * width :])
    out_grid = (external.shape[-2], external.shape[-1])
    patches = value[:, 1:].transpose(1, 2).unflatten(-1, grid)
    if out_grid != grid:
        patches = F.interpolate(patches, size=out_grid, mode="bilinear", align_corners=False)
    mixing = proxy_attention(external, beta, gamma, batch_mean=batch_mean).to(patches.dtype)
    mixed = mixing @ patches.flatten(2).transpose(1, 2)
    out = visual.ln_post(attn.out_proj(mixed)) @ visual.proj
    # there is no class token in this branch; the mean patch stands in for methods that ask for one
    return DenseTokens(patches=out, cls=out.mean(dim=1), grid=out_grid)


def proxy_attention(external: Tensor, beta: float = BETA, gamma: float = GAMMA, *, batch_mean: bool = False) -> Tensor:
    """Row-stochastic mixing `(B, N', N')` from the cosine Gram matrix of external features."""
    unit = F.normalize(external.flatten(2).transpose(1, 2), dim=-1)
    gram = unit @ unit.transpose(1, 2)
    mean = gram.mean() if batch_mean else gram.mean(dim=(1, 2), keepdim=True)
    shifted = gamma * (gram - beta * mean)
    allowed = shifted >= 0
    allowed |= torch.eye(gram.shape[-1], dtype=torch.bool, device=gram.device)  # a row never loses itself
    return shifted.masked_fill(~allowed, -torch.inf).softmax(dim=-1)


class ExternalViT:
    """A timm ViT as the source of external features."""

    def __init__(self, name: str, weights: Path | None, device: torch.device) -> None:
        """Build the network; `weights` is a local checkpoint, without it timm's published weights are fetched.

        Raises:
            WeightsError: Unknown name, no such file, or weights that cannot be had.
        """
        import timm

        from ovrs.model.clip.loading import hash_weights

        if weights is not None and not is_file(weights):
            raise WeightsError(f"--proxy-weights: there is no file {weights}")
        try:
            self.net: Any = timm.create_model(
                name,
                pretrained=weights is None,
                num_classes=0,
                dynamic_img_size=True,
                checkpoint_path="" if weights is None else str(weights),
            )
        except Exception as error:  # timm raises many kinds for unknown names, no network and unfit files
            raise WeightsError(
                f"external network {name!r} cannot be loaded ({type(error).__name__}: {one_line(error)}). Name a timm ViT, and "
                "with --proxy-weights a local checkpoint of it"
            ) from error
        require_finite(self.net, weights or Path(name))
        self.name = name
        self.net = self.net.eval().requires_grad_(False).to(device)
        self.weights_hash = hash_weights(self.net)
        self.patch = int(self.net.patch_embed.patch_size[0])

    def describe(self) -> dict[str, str]:
        """Name and weights, for digest and provenance."""
        return {"name": self.name, "weights": self.weights_hash}

    @torch.no_grad()
    def features(self, images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
        """Last-layer patch tokens `(B, Ce, h', w')` of CLIP-normalised images (`mean`, `std` of that normalisation)."""
        tokens, grid = self._tokens(images, mean, std)
        return tokens.transpose(1, 2).unflatten(-1, grid)

    @torch.no_grad()
    def keys(self, images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[Tensor, tuple[int, int]]:
        """Keys of the last block `(B, N', Ce)`, class token left out, and their grid."""
        caught: list[Tensor] = []
        attn = self.net.blocks[-1].attn
        hook = attn.qkv.register_forward_hook(lambda _module, _args, out: caught.append(out))
        try:
            tokens, grid = self._tokens(images, mean, std)
        finally:
            hook.remove()
        keys = caught[0].chunk(3, dim=-1)[1]
        return keys[:, -tokens.shape[1] :].float(), grid

    def _tokens(
        self, images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> tuple[Tensor, tuple[int, int]]:
        def column(values: tuple[float, ...]) -> Tensor:
            return torch.tensor(values, device=images.device)[:, None, None]

        x = images.float() * column(std) + column(mean)
        x = (x - column(_IMAGENET_MEAN)) / column(_IMAGENET_STD)
        lack = (-x.shape[-2] % self.patch, -x.shape[-1] % self.patch)
        if any(lack):
            x = F.interpolate(x, size=(x.shape[-2] + lack[0], x.shape[-1] + lack[1]), mode="bilinear")
        grid = (x.shape[-2] // self.patch, x.shape[-1] // self.patch)
        tokens = self.net.forward_features(x)
        return tokens[:, -grid[0] * grid[1] :], grid
