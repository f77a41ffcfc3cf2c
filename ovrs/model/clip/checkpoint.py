"""Files of weights: found, compared with the network by their shapes, and loaded. Nothing is ever unpickled into code."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ovrs.errors import WeightsError
from ovrs.foreign import is_file
from ovrs.model.clip.foreign import FAULTS, one_line
from ovrs.model.clip.tower import Clip

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

WEIGHTS_FILE = "open_clip_model.safetensors"
_NAMES = (
    WEIGHTS_FILE,
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
"""open_clip's order of preference."""
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
"""Of files of weights."""
_SAFETENSORS_FLOATS = ("F", "BF")
_WAY_OUT = "Install or download them again, best as safetensors"


def find(directory: Path) -> Path:
    """Return the file of weights in a directory of open_clip's format.

    Raises:
        WeightsError: None, several of unknown names, or one that is no file.
    """
    try:
        present = sorted(p for p in directory.iterdir() if p.suffix in SUFFIXES)
    except OSError as error:
        raise WeightsError(f"{directory} cannot be read: {error.strerror}") from error
    preferred = [directory / name for name in _NAMES if directory / name in present]
    own = [p for p in present if not p.name.startswith("jbu_")]
    found = preferred or own
    if not found:
        raise WeightsError(f"{directory} is no model directory in open_clip's format: {WEIGHTS_FILE} is missing")
    if not preferred and len(found) > 1:
        raise WeightsError(
            f"{directory} holds {len(found)} files of weights ({', '.join(p.name for p in found)}); "
            f"rename the one to use to {WEIGHTS_FILE}"
        )
    if not is_file(found[0]):
        raise WeightsError(f"{found[0]} is no file. {_WAY_OUT}")
    return found[0]


def fill(clip: Any, file: Path) -> None:
    """Load a file whose shapes are known to fit (`require_fit`), through open_clip's own loader where the network is its.

    Raises:
        WeightsError: It cannot be read, or holds values that are not finite.
    """
    try:
        if isinstance(clip, Clip) and file.suffix == ".safetensors":
            _fill_ours(clip, file)
        else:
            import open_clip

            open_clip.load_checkpoint(clip, str(file), strict=True, weights_only=True)
    except FAULTS as error:
        raise WeightsError(f"weights {file} cannot be loaded: {one_line(error)}") from error
    require_finite(clip, file)


def _fill_ours(clip: Clip, file: Path) -> None:
    found = {n: t.float() if t.is_floating_point() else t for n, t in load_file(file).items()}
    found.pop("text.transformer.embeddings.position_ids", None)
    found["logit_scale"] = found["logit_scale"].reshape(clip.logit_scale.shape)
    clip.load_state_dict(found, strict=True, assign=True)


def require_finite(clip: Any, file: Path) -> None:
    """Refuse networks with NaN or infinite weights.

    Args:
        clip: The network.
        file: Where its weights come from.

    Raises:
        WeightsError: Names the first such tensor.
    """
    for name, tensor in clip.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise WeightsError(f"weights {file} hold NaN or infinite values in {name}. {_WAY_OUT}")


def require_fit(sketch: Any, file: Path, towers: str = "") -> None:
    """Compare names, shapes and kinds of the tensors in a file with a network, before anything is loaded.

    open_clip's loader would stretch position embeddings of another image size or text length without a word.

    Args:
        sketch: The network on the meta device.
        file: safetensors, or a pickled dictionary of tensors.
        towers: Beginning of the names to compare: "visual." where the sketch has no text tower.

    Raises:
        WeightsError: The file is unreadable, unsafe or of another network.
    """
    require_same(sketch, tensors_of(file), file, towers)


def require_same(sketch: Any, found: dict[str, Tensor], file: Path, towers: str = "") -> None:
    """As `require_fit`, for tensors that are already at hand.

    Raises:
        WeightsError: They are of another network; the message names `file`.
    """
    wanted = sketch.state_dict()
    if "positional_embedding" in found and hasattr(sketch, "text"):
        from open_clip.model import convert_to_custom_text_state_dict

        found = convert_to_custom_text_state_dict(found)
    found.pop("text.transformer.embeddings.position_ids", None)  # older transformers saved it; open_clip drops it
    found, wanted = ({n: t for n, t in tensors.items() if n.startswith(towers)} for tensors in (found, wanted))
    _require_names(found, wanted, file)
    for name, tensor in wanted.items():
        if name not in found:
            continue
        own = found[name]
        scalar = name in ("logit_scale", "logit_bias") and own.numel() == tensor.numel()
        if own.shape != tensor.shape and not scalar:
            raise _misfit(file, f"{name} is {tuple(own.shape)} in the file and {tuple(tensor.shape)} in the network")
        if tensor.is_floating_point() and not own.is_floating_point():
            raise _misfit(file, f"{name} holds {str(own.dtype).removeprefix('torch.')}, not floating-point numbers")


def _require_names(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], file: Path) -> None:
    lacking = sorted(wanted.keys() - found.keys() - {"logit_bias"})
    surplus = sorted(found.keys() - wanted.keys())
    if not lacking and not surplus:
        return
    if any(name.startswith(("vision_model.", "text_model.")) for name in surplus):
        raise _misfit(
            file, "they have the layout of transformers; `ovrs model import FOLDER -o DIR` converts its folder"
        )
    parts = [
        f"{len(names)} tensors {what}, such as {names[0]}"
        for names, what in ((lacking, "are missing"), (surplus, "belong to another network"))
        if names
    ]
    raise _misfit(file, "; ".join(parts))


def _misfit(file: Path, what: str) -> WeightsError:
    return WeightsError(f"weights {file} and the description of the network do not fit each other: {what}")


def tensors_of(file: Path) -> dict[str, Tensor]:
    """Names, shapes and dtypes of a file's tensors, on the meta device; the values are not read.

    Raises:
        WeightsError: The file is unreadable, unsafe, or no file of weights.
    """
    try:
        if file.stat().st_size < 8:
            raise WeightsError(f"weights {file} cannot be loaded: the file is empty. {_WAY_OUT}")
        refuse_known(file)
        if file.suffix == ".safetensors":
            return _of_safetensors(file)
        from open_clip.factory import load_state_dict

        found: Any = load_state_dict(str(file), device="meta", weights_only=True)
        state = dict(found)
    except FAULTS as error:
        raise WeightsError(
            f"weights {file} cannot be loaded: {one_line(error)}. ovrs opens safetensors, and pickled files that hold "
            "tensors alone"
        ) from error
    other = [str(name) for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if other:
        raise WeightsError(
            f"weights {file} cannot be loaded: {other[0]} is no tensor; give the model's state dictionary"
        )
    return state


def _of_safetensors(file: Path) -> dict[str, Tensor]:
    with safe_open(file, "pt") as source:
        slices = {name: source.get_slice(name) for name in source.keys()}  # noqa: SIM118  (no mapping)
        kinds = {name: s.get_dtype().startswith(_SAFETENSORS_FLOATS) for name, s in slices.items()}
        return {
            name: torch.empty(s.get_shape(), dtype=torch.float32 if kinds[name] else torch.int64, device="meta")
            for name, s in slices.items()
        }


def refuse_known(file: Path) -> None:
    """Name the way out for files that are often mistaken for weights.

    Raises:
        WeightsError: A pointer of Git LFS, a web page, or a TorchScript archive.
        OSError: The file cannot be read.
    """
    with file.open("rb") as source:
        start = source.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"weights {file} are a pointer of Git LFS, not the weights: run `git lfs pull` there")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise WeightsError(f"weights {file} are a web page, not the weights: download the file itself")
    if start.startswith(b"PK") and zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
        if any(name.endswith("constants.pkl") for name in names) and any("/code/" in name for name in names):
            raise WeightsError(
                f"weights {file} are a TorchScript archive, which is a program and is not run. OpenAI's models are there "
                "as --model ViT-B-16 --pretrained openai; of others take the state dictionary as safetensors"
            )
