"""What of a network its weights do not tell: two networks with equal weights and another activation give other maps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from ovrs.model.loading import LoadedModel

_WITHOUT_EFFECT = (nn.Identity, nn.Dropout)


def describe(model: LoadedModel) -> dict[str, Any]:
    """Activations, heads, pooling and normalisation of a CLIP, as plain data for the digest."""
    clip = model.clip
    return {
        "vision": _tower(clip.visual),
        "text": {**_tower(nn.ModuleDict({n: m for n, m in clip.named_children() if n != "visual"})), **_pooling(clip)},
        "mean": list(model.mean),
        "std": list(model.std),
    }


def _tower(tower: nn.Module) -> dict[str, Any]:
    leaves = [m for m in tower.modules() if not any(True for _ in m.children()) and not isinstance(m, _WITHOUT_EFFECT)]
    return {
        "functions": sorted({repr(m) for m in leaves if not any(True for _ in m.parameters())}),
        "heads": sorted({m.num_heads for m in tower.modules() if isinstance(m, nn.MultiheadAttention)}),
        "eps": sorted({m.eps for m in tower.modules() if isinstance(m, nn.LayerNorm)}),
    }


def _pooling(clip: Any) -> dict[str, Any]:
    return {
        "pool": str(getattr(clip, "text_pool_type", "own")),
        "causal": getattr(clip, "attn_mask", None) is not None,
    }
