"""How much memory a model takes: parameters, weights and one tile, counted on tensors that have shapes and no content."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ovrs.engine.tiling import TileGeometry
from ovrs.errors import OptionError
from ovrs.model.clip import architecture, towers
from ovrs.model.clip.dense import dense_tokens, native_size
from ovrs.model.clip.known import table
from ovrs.model.clip.text import BATCH

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Footprint:
    """Memory of one model in float32, in bytes. What PyTorch itself and the map's own arrays take comes on top."""

    parameters: int
    """Numbers in both towers."""
    weights: int
    tile: int
    """Most that the vision tower holds at a time beside its weights, for the windows of one tile."""
    text: int
    """The same of the text tower, for one batch of sentences."""

    @property
    def peak(self) -> int:
        """Weights, and the larger of what the two towers hold; they do not work at the same time."""
        return self.weights + max(self.tile, self.text)

    def line(self, name: str) -> str:
        """For people."""
        return (
            f"{name}: {self.parameters / 1e6:.1f} M parameters; float32 weights {self.weights / 1e9:.2f} GB, one tile "
            f"{self.tile / 1e9:.2f} GB, one batch of sentences {self.text / 1e9:.2f} GB: {self.peak / 1e9:.1f} GB at most"
        )


def footprint_of(name: str) -> Footprint:
    """Count for a model of the table, or for an architecture of open_clip.

    Raises:
        OptionError: Neither knows the name.
        WeightsError: The architecture is none that ovrs can use.
    """
    model = table().models.get(name)
    if model and model.whole:
        return _counted(_tips, 64)
    config = described(name)
    architecture.sketch(config)  # refuses unfit towers
    return _counted(lambda: architecture.build(config), int(config["text_cfg"].get("context_length", 77)))


def _tips() -> Any:
    """TIPSv2 of the size B/14, the one of the table."""
    from transformers import Tipsv2Config, Tipsv2Model

    from ovrs.model.clip.tips import TipsClip

    return TipsClip(Tipsv2Model(Tipsv2Config()))


def described(name: str) -> dict[str, Any]:
    """open_clip's `model_cfg` of a model of the table, with its own length of texts, or of an architecture.

    Raises:
        OptionError: Neither knows the name.
    """
    import open_clip

    model = table().models.get(name)
    config = open_clip.get_model_config(model.architecture if model else name)
    if config is None:
        raise OptionError(f"{name!r} is no name that `ovrs models` lists, nor one of open_clip's architectures")
    if model and model.tokens:
        config["text_cfg"]["context_length"] = model.tokens
    return dict(config)


def _counted(build: Callable[[], Any], length: int) -> Footprint:
    """Build a network and run both towers, on the CPU's kernels; other devices keep about as much."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.device("meta"):
            clip = build().eval()
        clip.visual = towers.adapted(clip.visual)
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            clip.to_empty(device="cpu")
            side = native_size(clip.visual)
            windows = TileGeometry(crop=side, stride=side // 2).crops_per_tile ** 2
            images = torch.empty(windows, 3, side, side)
            tokens = torch.zeros(BATCH, length, dtype=torch.long)
            tile = _held(lambda: dense_tokens(clip.visual, images, "vanilla"))
            text = _held(lambda: clip.encode_text(tokens))
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    numbers = sum(t.numel() for t in clip.state_dict().values())
    return Footprint(numbers, numbers * 4, tile + images.numel() * 4, text)


def _held(work: Callable[[], object]) -> int:
    """Return the most bytes of new tensors that lived at the same time."""
    with _Peak() as peak:
        work()
    return peak.most


class _Peak(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        key = storage._cdata
        if self._seen.get(key) is storage:
            return
        self._seen[key] = storage
        size = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.now -= size
