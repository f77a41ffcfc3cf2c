"""facebookresearch/sam3's own files: read into transformers' network, or written as a directory that transformers reads too."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import torch

from ovrs import files
from ovrs.errors import OptionError, WeightsError
from ovrs.foreign import is_file, read_object
from ovrs.methods.recommended import METADATA_FILE
from ovrs.model import places
from ovrs.model.clip import checkpoint, statefile
from ovrs.model.clip.foreign import FAULTS, one_line
from ovrs.model.sam3 import authors
from ovrs.options import SAM3_FILE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

log = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
LICENCE = "SAM License (Meta, 19 November 2025): no military, nuclear or espionage use"
_SOUGHT = statefile.Sought("detector of SAM 3", (authors.ANCHOR,))


def theirs_in(directory: Path) -> tuple[Path, ...]:
    """Files of a directory whose tensors have the names of facebookresearch/sam3; none where transformers' are there too."""
    kinds = ("*.safetensors", "pytorch_model*.bin", SAM3_FILE)
    found = next((sorted(directory.glob(kind)) for kind in kinds if any(directory.glob(kind))), [])
    named = any(file.name == SAM3_FILE or authors.is_theirs(statefile.names(file)) for file in found)
    return tuple(found) if named else ()


def is_source(source: Path) -> bool:
    """Whether `import_model` takes it: a file with tensors of facebookresearch/sam3."""
    return is_file(source) and authors.is_theirs(statefile.names(source))


def read(sources: Sequence[Path], network: str | None = None) -> tuple[Any, dict[str, Tensor], tuple[str, ...]]:
    """Read the detector of a picture out of the authors' files.

    Args:
        sources: One file, or shards in safetensors. `config.json` beside the first, of transformers' kind, tells sizes; without it
            they are those of the published network.
        network: Of a checkpoint with several.

    Returns:
        transformers' configuration, tensors by transformers' names, and what is left out.

    Raises:
        WeightsError: Unreadable or unsafe files, and tensors that are missing, unknown or of another shape; each is named.
        OptionError: The extra `sam3` is not installed.
    """
    state: dict[str, Tensor] = {}
    beside: list[str] = []
    for file in sources:
        one = statefile.read(file, network, _SOUGHT) if len(sources) == 1 else statefile.State(statefile.shard(file))
        state |= one.tensors
        beside += one.left_out
    described = sources[0].parent / CONFIG_FILE
    config = _config(described)
    sketch = _sketch(config, sources[0])
    try:
        found, left_out = authors.converted(state, sources[0], sketch.state_dict())
        checkpoint.require_same(sketch, dict(found), sources[0])
    except WeightsError as error:
        if is_file(described):
            raise
        raise WeightsError(f"{error}. These are the published sizes; for others lay {CONFIG_FILE} beside it") from error
    return config, found, (*sorted(beside), *left_out)


def import_model(source: Path, out: Path, network: str | None = None, *, overwrite: bool = False) -> list[str]:
    """Write a directory in transformers' layout from a file of facebookresearch/sam3.

    Args:
        source: `sam3.pt`, safetensors, or a zip archive with one of them.
        out: The directory; it takes its name when it is whole.
        network: Of a checkpoint with several.
        overwrite: Replace `out`, if it is a model directory.

    Returns:
        Lines for people: what was found and left out.

    Raises:
        WeightsError: See `read`.
        OptionError: `out` is there.
        OutputError: The directory cannot be written.
    """
    places.require_free(out, source, CONFIG_FILE, overwrite=overwrite)
    config, tensors, left_out = read([source], network)
    wrong = [n for n, t in tensors.items() if t.is_floating_point() and not bool(t.isfinite().all())]
    if wrong:
        raise WeightsError(f"{source} holds NaN or infinite values in {wrong[0]}; download it again")
    config.architectures = ["Sam3Model"]
    own = {
        "source": {"file": source.name, "sha256": places.sha256([source]), "layout": "facebookresearch/sam3"},
        "licence": LICENCE,
    }
    with places.new_directory(out) as folder:
        files.write_text(folder / CONFIG_FILE, config.to_json_string())
        places.write_tensors(folder, WEIGHTS_FILE, tensors)
        files.write_text(folder / METADATA_FILE, json.dumps(own, indent=1) + "\n")
    size = sum(tensor.numel() for tensor in tensors.values())
    lines = [
        f"found: SAM 3, {size / 1e6:.1f} M parameters, {config.vision_config.backbone_config.image_size} px (facebookresearch/sam3)",
        f"licence: {LICENCE}",
    ]
    kinds = sorted({".".join(name.removeprefix("detector.").split(".")[:3]) for name in map(_layer, left_out)})
    if left_out:
        more = " …" if len(kinds) > 8 else ""
        lines.append(f"left out: {len(left_out)} tensors and values: {', '.join(kinds[:8])}{more}")
    return lines


def _layer(name: str) -> str:
    """Return a tensor's name without its last part."""
    return name.rpartition(".")[0] or name


def _config(file: Path) -> Any:
    """Return Transformers' configuration of the detector."""
    try:
        from huggingface_hub.errors import StrictDataclassError
        from transformers import Sam3Config
    except ImportError as error:
        raise OptionError(f'SAM 3 needs transformers 5: pip install "ovrs[sam3]" ({error})') from error
    if not is_file(file):
        return Sam3Config()
    try:
        content: Any = read_object(file)
        if not str(content.get("model_type", "")).startswith("sam3"):
            return Sam3Config()
        return Sam3Config.from_dict(content.get("detector_config") or content)
    except (*FAULTS, StrictDataclassError) as error:
        raise WeightsError(f"{file} is no configuration of SAM 3: {one_line(error)}") from error


def _sketch(config: Any, file: Path) -> Any:
    """Return the network on the meta device: names and shapes without memory."""
    from transformers import Sam3Model

    try:
        with torch.device("meta"):
            return Sam3Model(config)
    except FAULTS as error:
        raise WeightsError(f"no SAM 3 can be built by config.json beside {file}: {one_line(error)}") from error
