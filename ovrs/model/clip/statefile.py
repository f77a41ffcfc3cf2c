"""Tensors out of files that people publish: checkpoints, archives, folders with shards. Pickled code is never run.

Allowed in a pickle beside tensors and plain values is what cannot act: `argparse.Namespace`, `types.SimpleNamespace` and paths.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import pathlib
import re
import shutil
import tempfile
import types
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ovrs.errors import WeightsError
from ovrs.foreign import is_file, read_object
from ovrs.model.clip.checkpoint import SUFFIXES, refuse_known
from ovrs.model.clip.foreign import FAULTS, one_line, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

log = logging.getLogger(__name__)

_INERT: list[Any] = [
    argparse.Namespace,
    types.SimpleNamespace,
    pathlib.PosixPath,
    pathlib.WindowsPath,
    pathlib.PurePosixPath,
]


@dataclass(frozen=True)
class Sought:
    """Which networks are looked for in a file."""

    title: str
    marks: tuple[str, ...]
    """A name with one of these ends tells such a network."""


CLIP = Sought("CLIP with a ViT", ("visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight"))
"""In the layout of OpenAI and open_clip, or of transformers."""
_PREFERRED = ("", "state_dict", "model", "model_state_dict")
_DEEPEST = 4
_GLOBAL = re.compile(r"(?:GLOBAL|class|function) <?(?:class '|function )?([\w.]+)")
_FOLDER_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@dataclass(frozen=True, eq=False)
class State:
    """The state dictionary of one network."""

    tensors: dict[str, Tensor]
    """By the names of the file, prefixes included; on the CPU, in the file's own arithmetic."""
    left_out: tuple[str, ...] = ()
    """What lay beside the network: an optimiser, the number of an epoch, another network."""


def read(file: Path, network: str | None = None, sought: Sought = CLIP) -> State:
    """Read the state dictionary in a file: safetensors, a pickled checkpoint, or a zip archive that holds one of these.

    Args:
        file: The file.
        network: Which one to take of a checkpoint with several, "state_dict_ema"; None for the only one, or for the
            one that stands alone, under `state_dict`, `model` or `model_state_dict`.
        sought: What networks are taken.

    Raises:
        WeightsError: The file cannot be read, is unsafe, or holds no such network, or several and none was chosen.
    """
    try:
        if not is_file(file):
            raise WeightsError(f"there is no file {file}")
        if file.stat().st_size < 8:
            raise WeightsError(f"{file} is empty")
        refuse_known(file)
        with _unpacked(file) as inner:
            if inner != file:
                refuse_known(inner)
            return _network(_content(inner), file, network, sought)
    except FAULTS as error:
        raise WeightsError(f"{file} cannot be read: {_told(error)}") from error


def names(file: Path) -> set[str]:
    """Names of all tensors in a file, whose values are not read; empty where it cannot be read, which `read` explains."""
    try:
        if not is_file(file) or file.stat().st_size < 8:
            return set()
        with _unpacked(file) as inner:
            if inner.suffix == ".safetensors":
                with safe_open(inner, "pt") as source:
                    return set(source.keys())
            return set(_names(_content(inner, "meta")))
    except (*FAULTS, WeightsError) as error:
        log.debug("%s: %s", file, error)
        return set()


def read_folder(folder: Path) -> tuple[State, tuple[Path, ...]]:
    """Read the weights in a folder of transformers: one file, or shards with their index.

    Returns:
        The tensors, and the files they came from.

    Raises:
        WeightsError: None are there, or one is missing, damaged or unsafe.
    """
    found = [folder / name for name in _FOLDER_FILES if is_file(folder / name)]
    if not found:
        raise WeightsError(f"{folder} holds no weights; expected {' or '.join(_FOLDER_FILES[::2])}")
    file = found[0]
    if file.suffix != ".json":
        return read(file), (file,)
    try:
        index: Any = read_object(file)
        names = sorted(set(index.get("weight_map", {}).values()))
    except (ValueError, AttributeError, TypeError) as error:
        raise WeightsError(f"{file} is no index of shards: {one_line(error)}") from error
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise WeightsError(f"{file} must name files beside it, got {shown(names)}")
    tensors: dict[str, Tensor] = {}
    for name in names:
        tensors |= shard(folder / name)
    return _network(tensors, file, None, CLIP), tuple(folder / name for name in names)


def shard(file: Path) -> dict[str, Tensor]:
    """Read all tensors of one file of several.

    Raises:
        WeightsError: It is missing, damaged or unsafe.
    """
    try:
        if not is_file(file):
            raise WeightsError(f"the shard {file} is missing; download it again")
        refuse_known(file)
        return dict(_content(file))
    except FAULTS as error:
        raise WeightsError(f"{file} cannot be read: {_told(error)}") from error


@contextlib.contextmanager
def _unpacked(file: Path) -> Iterator[Path]:
    """Return the file itself, or the one file of weights in a zip archive that is no checkpoint of PyTorch."""
    if not zipfile.is_zipfile(file):
        yield file
        return
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        if any(name.rpartition("/")[2] == "data.pkl" for name in names):
            yield file
            return
        weights = [n for n in names if n.endswith(SUFFIXES) and not n.rpartition("/")[2].startswith(".")]
        if len(weights) != 1:
            raise WeightsError(
                f"{file} holds {len(weights)} files of weights{': ' if weights else ''}{', '.join(weights[:5])}; "
                "take the one to import out of the archive"
            )
        with tempfile.TemporaryDirectory(prefix="ovrs-import-") as folder:
            inner = Path(folder) / f"weights{Path(weights[0]).suffix}"
            with archive.open(weights[0]) as source, inner.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            yield inner


def _content(file: Path, device: str = "cpu") -> Any:
    if file.suffix == ".safetensors":
        return load_file(file)
    with torch.serialization.safe_globals(_INERT), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # on kinds of tensors that are refused anyway
        return torch.load(file, map_location=device, weights_only=True)


def _told(error: BaseException) -> str:
    """One line; for a pickle with code in it, what that code is and how to get at the tensors."""
    text = str(error)
    if "weights_only" not in text:
        return one_line(error)
    found = _GLOBAL.search(text)
    if found is None:
        return one_line(error)
    return (
        f"beside tensors it holds {found[1][:100]}, and pickled code is never run. Where you trust the file, save its state "
        "dictionary alone, best as safetensors"
    )


def _network(content: Any, file: Path, wanted: str | None, sought: Sought) -> State:
    found = dict(_networks(content, "", sought.marks))
    if wanted is not None and wanted not in found:
        if any(str(name).startswith(f"{wanted}.") for state in found.values() for name in state):
            return _network(content, file, None, sought)  # a prefix within one state dictionary (`layouts.bare`)
        raise WeightsError(f"{file} has no network {shown(wanted)}; it has {', '.join(map(shown, found)) or 'none'}")
    if not found:
        raise WeightsError(f"{file} holds no {sought.title}: {_instead(content)}")
    chosen = wanted if wanted is not None else next((n for n in _PREFERRED if n in found), None)
    if chosen is None and len(found) > 1:
        raise WeightsError(f"{file} holds {len(found)} networks; choose one: --network {' or --network '.join(found)}")
    if chosen is None:
        chosen = next(iter(found))
    tensors = {str(n): t for n, t in found[chosen].items() if isinstance(t, torch.Tensor)}
    odd = [n for n, t in tensors.items() if t.layout != torch.strided or t.is_quantized or t.is_meta]
    if odd:
        raise WeightsError(f"{file}: {odd[0]} is sparse or quantised; ovrs takes plain floating-point weights")
    beside = [str(n) for n, t in found[chosen].items() if not isinstance(t, torch.Tensor)]
    if chosen and isinstance(content, Mapping):
        beside += [str(name) for name in content if str(name) != chosen.partition(".")[0]]
    return State(tensors, tuple(sorted(beside)))


def _networks(
    content: Any, place: str, marks: tuple[str, ...], depth: int = 0
) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Return mappings of tensors that name a network, with the place of each, "state_dict" or "model.student"."""
    if not isinstance(content, Mapping) or depth > _DEEPEST:
        return
    if any(isinstance(t, torch.Tensor) and str(name).endswith(marks) for name, t in content.items()):
        yield place, content
        return
    for name, value in content.items():
        yield from _networks(value, f"{place}.{name}" if place else str(name), marks, depth + 1)


def _instead(content: Any) -> str:
    """Tell what a file without a CLIP holds."""
    names = sorted(_names(content))
    if not names:
        return "there are no named tensors in it"
    if any("layer1.0.conv1" in name for name in names):
        return "its vision tower is a ResNet, which has no class token"
    if any(".trunk." in name for name in names):
        return "its vision tower is one of timm's; give open_clip's name and tag, or hf-hub:ORG/NAME"
    return f"its {len(names)} tensors have names such as {names[0][:80]}"


def _names(content: Any, depth: int = 0) -> Iterator[str]:
    if isinstance(content, Mapping) and depth <= _DEEPEST:
        for name, value in content.items():
            if isinstance(value, torch.Tensor) and isinstance(name, str):
                yield name
            else:
                yield from _names(value, depth + 1)
