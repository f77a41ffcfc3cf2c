"""The architecture of a CLIP, read off the shapes of its tensors."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from ovrs.errors import OptionError, WeightsError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

_CLIP_WORDS = 49408
_HEAD_WIDTH = 64
"""Of OpenAI's and open_clip's networks, but for the vision towers that open_clip describes otherwise (H, g, bigG, e)."""
_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.")


def model_cfg(tensors: Mapping[str, Tensor], file: Path, heads: tuple[int, int] | None = None) -> dict[str, object]:
    """open_clip's `model_cfg` without the activation, which no shape tells.

    Args:
        tensors: By open_clip's names (`ovrs.model.clip.layouts.open_clip_names`).
        file: For messages.
        heads: Attention heads of the vision and of the text tower. None: 64 numbers a head, or as open_clip describes
            vision towers of this width.

    Raises:
        WeightsError: Tensors are missing, or their shapes make no network that ovrs can use.
        OptionError: `heads` do not divide the widths, or are needed and not given.
    """
    conv = _shape(tensors, "visual.conv1.weight", 4, file)
    seen = _shape(tensors, "visual.positional_embedding", 2, file)
    words = _shape(tensors, "token_embedding.weight", 2, file)
    length = _shape(tensors, "positional_embedding", 2, file)[0]
    joint = _shape(tensors, "visual.proj", 2, file)[1]
    side = math.isqrt(max(seen[0] - 1, 0))
    if side < 1 or side**2 + 1 != seen[0]:
        raise WeightsError(f"{file}: {seen[0]} positions are no square of patches and a class token")
    if conv[1] != 3 or conv[2] != conv[3]:
        raise WeightsError(f"{file}: the patches have shape {conv[1:]}; ovrs takes squares of three channels")
    if words[0] != _CLIP_WORDS:
        raise WeightsError(
            f"{file}: the text tower has {words[0]} words and CLIP's tokenizer {_CLIP_WORDS}; shapes do not tell another "
            "tokenizer. Give a directory in open_clip's format, or hf-hub:ORG/NAME"
        )
    widths = (conv[0], words[1])
    usual = (_vision_head_width(conv[0]), _HEAD_WIDTH)
    per_head = [_per_head(w, usual[i], heads and heads[i], file) for i, w in enumerate(widths)]
    vision = {
        "image_size": side * conv[2],
        "layers": _layers(tensors, "visual."),
        "width": conv[0],
        "head_width": per_head[0],
        "patch_size": conv[2],
        "mlp_ratio": _mlp_ratio(tensors, "visual.", conv[0], file),
    }
    text = {
        "context_length": length,
        "vocab_size": words[0],
        "width": words[1],
        "heads": words[1] // per_head[1],
        "layers": _layers(tensors, ""),
        "mlp_ratio": _mlp_ratio(tensors, "", words[1], file),
    }
    bias = {"init_logit_bias": 0.0} if "logit_bias" in tensors else {}
    return {"embed_dim": joint, "vision_cfg": vision, "text_cfg": text, **bias}


def name_of(config: Mapping[str, Any]) -> str | None:
    """open_clip's shortest name of an architecture, whatever its activation and context length; None for one of its own."""
    import open_clip

    def key(described: Mapping[str, Any]) -> tuple[Any, ...]:
        vision, text = described["vision_cfg"], described["text_cfg"]
        return (
            described["embed_dim"],
            *(vision.get(n) for n in ("image_size", "layers", "width", "patch_size")),
            *(text.get(n) for n in ("width", "layers", "vocab_size")),
        )

    known = {name: open_clip.get_model_config(name) for name in open_clip.list_models()}
    plain = {n: c for n, c in known.items() if "multimodal_cfg" not in c and "hf_model_name" not in c["text_cfg"]}
    return min((n for n, c in plain.items() if key(c) == key(config)), key=len, default=None)


def _vision_head_width(width: int) -> int:
    import open_clip

    towers = [open_clip.get_model_config(name)["vision_cfg"] for name in open_clip.list_models()]
    told = {t["head_width"] for t in towers if t.get("width") == width and "head_width" in t}
    return int(told.pop()) if len(told) == 1 else _HEAD_WIDTH


def _per_head(width: int, usual: int, heads: int | None, file: Path) -> int:
    if heads is None and width % usual:
        raise OptionError(
            f"{file}: shapes do not tell into how many heads a width of {width} is cut; name them: --heads VISION,TEXT"
        )
    if heads is not None and (heads < 1 or width % heads):
        raise OptionError(f"--heads: {heads} heads do not divide a width of {width}")
    return usual if heads is None else width // heads


def _shape(tensors: Mapping[str, Tensor], name: str, dimensions: int, file: Path) -> tuple[int, ...]:
    if name not in tensors:
        raise WeightsError(
            f"{file} lacks the tensor {name}; it is no CLIP of a ViT with a class token and a text tower"
        )
    shape = tuple(tensors[name].shape)
    if len(shape) != dimensions or 0 in shape:
        raise WeightsError(f"{file}: {name} has shape {shape} where {dimensions} dimensions are expected")
    return shape


def _layers(tensors: Mapping[str, Tensor], tower: str) -> int:
    start = tower + "transformer."
    found = [m for n in tensors if n.startswith(start) and (m := _BLOCK.match(n.removeprefix(tower)))]
    return 1 + max((int(m[1][:9]) for m in found), default=-1)


def _mlp_ratio(tensors: Mapping[str, Tensor], tower: str, width: int, file: Path) -> float:
    """Such that open_clip's `int(width * ratio)` gives the hidden width."""
    hidden = _shape(tensors, f"{tower}transformer.resblocks.0.mlp.c_fc.weight", 2, file)[0]
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width
