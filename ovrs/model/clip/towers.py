"""Vision towers without CLIP's last block: each gives dense features in its own way, and one rule says which methods fit.

* Towers of timm that pool by attention over a learned query (SigLIP 2, SigLIP, PE-Core, through open_clip): each token's value takes the
  place of the attention's mixture, as MaskCLIP takes the values of CLIP's last block. Then follow the same projection,
  feed-forward block and head that the pooled vector goes through.
* TIPSv2 (`ovrs.model.clip.tips`): its patches are trained against words, so the tower's own output is taken.

None has a global term: nothing of the pooled vector is taken off the patches.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from ovrs.errors import OptionError, WeightsError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ovrs.methods.clip import Clip

METHODS = ("none", "tmpa", "tmpa_shift")
"""Methods that need nothing but patches and words: these fit every tower."""
SUPPORTED = (
    "CLIP's ViTs with a class token (OpenAI, LAION, DataComp, DFN, MetaCLIP), towers of timm that pool by attention "
    "(SigLIP 2, SigLIP, PE-Core) and TIPSv2"
)
"""What a refusal names."""


class DenseTower(nn.Module):
    """A vision tower that gives dense features itself."""

    variants: ClassVar[tuple[str, ...]]
    """Values of `--dense` that mean something here; the first is the default."""
    family: str
    patch: int
    """Side of a patch in pixels."""
    native: int
    """Side of the training image in pixels."""
    output_dim: int
    activation: str

    def dense(self, images: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Features of crops in the space of the words.

        Args:
            images: `(B, 3, H, W)`, normalised, H and W multiples of `patch`.

        Returns:
            Patches `(B, N, D)`, the pooled vectors `(B, D)`, and the grid `(h, w)`, `h * w == N`.
        """
        raise NotImplementedError

    def blocks(self) -> Iterable[nn.Module]:
        """Return the transformer blocks."""
        raise NotImplementedError


class PooledTower(DenseTower):
    """open_clip's `TimmModel` whose trunk pools by attention; `forward` is its own."""

    variants = ("maskclip",)

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        trunk = inner.trunk
        self.family = type(trunk).__name__
        self.patch, self.native = int(trunk.patch_embed.patch_size[0]), int(trunk.patch_embed.img_size[0])
        self.output_dim = int(getattr(trunk.head, "out_features", trunk.num_features))
        self.activation = repr(trunk.blocks[-1].mlp.act)
        _take_any_size(trunk)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.inner(images)
        return out

    def dense(self, images: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
        trunk, pool = self.inner.trunk, self.inner.trunk.attn_pool
        grid = (images.shape[-2] // self.patch, images.shape[-1] // self.patch)
        tokens = trunk.forward_features(images)
        pooled = trunk.forward_head(tokens)
        width = tokens.shape[-1]
        values = nn.functional.linear(tokens[:, trunk.num_prefix_tokens :], *_second_half(pool.kv, width))
        out = pool.proj(values)
        if pool.mlp is not None:
            out = out + pool.mlp(pool.norm(out))
        return trunk.head(trunk.fc_norm(out)), pooled, grid

    def blocks(self) -> Iterable[nn.Module]:
        return list(self.inner.trunk.blocks)


def _second_half(layer: nn.Linear, width: int) -> tuple[Tensor, Tensor | None]:
    """Weights of a joint key and value projection that give the values."""
    return layer.weight[width:], None if layer.bias is None else layer.bias[width:]


def _take_any_size(trunk: Any) -> None:
    """Let the trunk take images of any whole number of patches; timm resamples its positions then."""
    from timm.layers.format import Format

    trunk.dynamic_img_size = True
    embed = trunk.patch_embed
    embed.strict_img_size, embed.flatten, embed.output_fmt = False, False, Format.NHWC
    rope = getattr(trunk, "rope", None)
    if rope is None:
        return
    if not hasattr(rope, "_use_cached_embed"):
        raise unsupported("this timm keeps turned positions of one image size alone: pip install -U timm")
    rope._use_cached_embed = False  # as timm builds it for images of any size


def adapted(visual: Any) -> Any:
    """Return a tower as ovrs runs it: timm's are wrapped, others stay as they are."""
    return PooledTower(visual) if _is_timm(visual) else visual


def _is_timm(visual: Any) -> bool:
    module = sys.modules.get("open_clip.timm_model")  # where it was not imported, it made no tower
    return module is not None and isinstance(visual, module.TimmModel)


def require_supported(visual: Any) -> None:
    """Refuse towers of timm that do not pool by attention over one learned query.

    Raises:
        WeightsError: Names what the tower is and which are supported.
    """
    from timm.layers.attention_pool import AttentionPoolLatent
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    trunk = visual.trunk
    pool = getattr(trunk, "attn_pool", None)
    if not isinstance(trunk, (VisionTransformer, Eva)) or not isinstance(pool, AttentionPoolLatent):
        raise unsupported(f"this one is timm's {type(trunk).__name__} without attention pooling")
    told: Any = pool
    odd = told.latent_len != 1 or told.pos_embed is not None or len(visual.head) or told.pool != "token"
    sides = (*trunk.patch_embed.patch_size, *trunk.patch_embed.img_size)
    if odd or sides[0] != sides[1] or sides[2] != sides[3] or sides[2] % sides[0]:
        raise unsupported(f"this one is timm's {type(trunk).__name__} with another kind of pooling or of patches")


def unsupported(found: str) -> WeightsError:
    """Return the error that refuses a tower."""
    return WeightsError(f"Dense features need a supported vision tower; {found}. Supported are {SUPPORTED}")


def fitted(visual: Any, settings: Clip) -> Clip:
    """Refuse methods that do not fit a tower without CLIP's last block.

    Args:
        visual: The tower; CLIP's own ViTs take everything.
        settings: Of the method. What nobody told or recommended follows from the tower: its dense features, no global term.

    Raises:
        OptionError: Names what fits.
    """
    if not isinstance(visual, DenseTower):
        return settings
    fits = f"{visual.family} is no CLIP ViT with a class token: it takes"
    told = settings.model_fields_set
    if settings.method not in METHODS:
        raise OptionError(f"{fits} --method {', '.join(METHODS)}, not {settings.method}")
    if "dense" in told and settings.dense not in visual.variants:
        raise OptionError(f"{fits} --dense {', '.join(visual.variants)}, not {settings.dense}")
    if "cls_weight" in told and settings.cls_weight:
        raise OptionError(f"{fits} no global term, so cls_weight must be 0, not {settings.cls_weight:g}")
    return settings.model_copy(update={"dense": visual.variants[0], "cls_weight": 0.0})
