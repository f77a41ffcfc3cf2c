"""Stand-ins for large networks: the same blocks, patches and image size, narrow layers and random weights.

They prove that a command runs on one's data before weights are there. What they predict means nothing.
"""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import torch

from ovrs import files
from ovrs.errors import OptionError
from ovrs.model.clip import architecture
from ovrs.model.clip.directory import CONFIG_FILE
from ovrs.model.clip.jbu import Jbu

if TYPE_CHECKING:
    from pathlib import Path

DIM = 32
"""Dimensions of the joint space of image and text."""
_NARROW: dict[str, dict[str, Any]] = {
    "vision_cfg": {"width": 32, "head_width": 16, "mlp_ratio": 2.0},
    "text_cfg": {"width": 32, "heads": 2},
}


def narrowed(name: str, pretrained: str | None) -> dict[str, Any]:
    """open_clip's `model_cfg` of a network made narrow; blocks, patches, image size and context stay.

    Raises:
        OptionError: open_clip knows no network of that name.
    """
    import open_clip

    known = open_clip.get_model_config(name.replace("/", "-"))
    if known is None or "layers" not in known.get("vision_cfg", {}):
        raise OptionError(f"a dry run stands in for ViTs that open_clip knows by name and for sam3, not for {name!r}")
    config = copy.deepcopy(known)
    config["embed_dim"] = DIM
    for tower, narrow in _NARROW.items():
        config[tower] = {**config[tower], **narrow}
    if pretrained == "openai":
        config["quick_gelu"] = True
    return config


def write_network(name: str, pretrained: str | None, folder: Path) -> None:
    """Write the stand-in of a network as a model directory; the same name gives the same weights.

    Raises:
        OptionError: open_clip knows no network of that name.
    """
    from safetensors.torch import save_file

    config = narrowed(name, pretrained)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = architecture.build(config)
    with files.atomic_folder(folder) as temporary:
        temporary.mkdir()
        save_file({k: v.contiguous() for k, v in clip.state_dict().items()}, temporary / "open_clip_model.safetensors")
        text = json.dumps({"model_cfg": config}, indent=1) + "\n"
        files.write_text(temporary / CONFIG_FILE, text)


def write_upsampler(kind: str, file: Path) -> None:
    """Write random weights of a joint bilateral upsampler in the form of SimFeatUp's checkpoints."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = {f"upsampler.{k}": v for k, v in Jbu(kind, DIM).state_dict().items()}
    with files.atomic(file) as temporary:
        torch.save({"state_dict": state}, temporary)
