"""A vision tower whose LayerNorm parameters belong to each sample: what TENT, MLMP and their kin adapt.

Every sample of a batch has its own weights and biases, so B crops or tiles adapt in one forward and backward pass with
the result of adapting them one by one (Adam is element-wise). The tower itself is never changed: the parameters live in
a `NormState`, which makes reset trivial and concurrent use safe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from ovrs.errors import OptionError
from ovrs.methods.norms import Norms
from ovrs.model.clip.dense import REDUCED, Visual, attend, mixing, position_embedding
from ovrs.model.clip.segmenter import ClipSegmenter, EpisodicTiles, alike

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from ovrs.engine.contract import TileSample, TileScores
    from ovrs.methods.clip import DenseVariant
    from ovrs.model.clip.features import TileFeatures


@dataclass(frozen=True, eq=False)
class NormState:
    """LayerNorm parameters of B samples: name in the tower to `(B, 1, d)` weight and bias."""

    weights: dict[str, Tensor]
    biases: dict[str, Tensor]

    def parameters(self) -> list[Tensor]:
        """All tensors, weights first, in the tower's order."""
        return [*self.weights.values(), *self.biases.values()]

    def detached(self) -> NormState:
        """Return equal values outside any graph."""
        return NormState(
            {k: v.detach() for k, v in self.weights.items()}, {k: v.detach() for k, v in self.biases.items()}
        )


def initial_norms(visual: Visual, batch: int, *, dtype: torch.dtype = torch.float32) -> NormState:
    """Return the loaded parameters, repeated for `batch` samples and ready to be optimised."""
    modules = {name: m for name, m in visual.named_modules() if isinstance(m, nn.LayerNorm)}

    def repeat(tensor: Tensor) -> Tensor:
        return tensor.detach().to(dtype).expand(batch, 1, -1).clone().requires_grad_(True)

    return NormState({n: repeat(m.weight) for n, m in modules.items()}, {n: repeat(m.bias) for n, m in modules.items()})


def mean_norms(states: list[NormState]) -> NormState:
    """Return the mean of several states of the same tower and batch."""

    def mean(each: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.stack([tensors[name] for tensors in each]).mean(dim=0) for name in each[0]}

    return NormState(mean([s.weights for s in states]), mean([s.biases for s in states]))


class Branches(NamedTuple):
    """Intermediate results of one forward pass."""

    layers: list[Tensor]
    """`(B, 1 + N, d)` per chosen block, ascending depth: attention-branch outputs (`docs/methods.md#tent-and-mlmp`); of the last block the
    whole output where its variant keeps skip connection and feed-forward."""
    final: Tensor
    """Output `(B, 1 + N, d)` of the unmodified last block."""
    grid: tuple[int, int]


def forward(
    visual: Visual, images: Tensor, norms: NormState, variant: DenseVariant, depths: tuple[int, ...]
) -> Branches:
    """Run the tower with per-sample norms.

    Args:
        visual: open_clip `VisionTransformer`.
        images: float32 `(B, 3, H, W)`, CLIP-normalised.
        norms: Of B samples.
        variant: Attention of the last block's branch; earlier blocks and the trunk stay vanilla.
        depths: Blocks whose branch is returned, 0-based. For the last one the variant decides.
    """
    x = visual.conv1(images)
    grid = (x.shape[-2], x.shape[-1])
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
    x = x + position_embedding(visual, grid).to(x.dtype)
    x = norm(norms, "ln_pre", x)
    blocks = visual.transformer.resblocks
    layers = []
    for depth, block in enumerate(blocks):
        prefix = f"transformer.resblocks.{depth}"
        y = norm(norms, f"{prefix}.ln_1", x)
        branch = attend(block.attn, y, grid, mixing("vanilla"))
        if depth in depths and depth < len(blocks) - 1:
            layers.append(branch)
        before, x = x, _rest(block, prefix, x, branch, norms)
    if len(blocks) - 1 in depths:
        modified = attend(block.attn, y, grid, mixing(variant))
        layers.append(modified if variant in REDUCED else _rest(block, prefix, before, modified, norms))
    return Branches(layers, x, grid)


def _rest(block: Visual, prefix: str, x: Tensor, branch: Tensor, norms: NormState) -> Tensor:
    """Skip connections and feed-forward of a block around its attention branch."""
    x = x + block.ls_1(branch)
    return x + block.ls_2(block.mlp(norm(norms, f"{prefix}.ln_2", x)))


def norm(norms: NormState, name: str, x: Tensor) -> Tensor:
    """LayerNorm `name` with each sample's own parameters, in float32. Consecutive inputs may share a sample's."""
    weight, bias = (_for_each(p[name], len(x)) for p in (norms.weights, norms.biases))
    return F.layer_norm(x.float(), x.shape[-1:]).mul(weight).add(bias).to(x.dtype)


def _for_each(parameters: Tensor, inputs: int) -> Tensor:
    """Parameters `(samples, 1, d)` for inputs that belong to the samples in equal shares."""
    if len(parameters) in (1, inputs):
        return parameters
    return parameters.repeat_interleave(inputs // len(parameters), dim=0)


def project(visual: Visual, tokens: Tensor, norms: NormState) -> Tensor:
    """LN_post and projection, normalised: `(…, d)` tokens of B samples to unit vectors `(…, D)`."""
    return F.normalize(norm(norms, "ln_post", tokens) @ visual.proj, dim=-1)


class Tuned(Protocol):
    """Features of B crops after adaptation."""

    @property
    def patches(self) -> Tensor:
        """`(B, N, D)`, unit vectors."""
        ...

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        ...


class NormSegmenter(EpisodicTiles[Norms]):
    """TENT, MLMP, CLIPArTT, WATT: one set of LayerNorm parameters per tile, adapted to all its crops together."""

    def __init__(self, frozen: ClipSegmenter, settings: Norms, adapt: Callable[[Tensor, int], Tuned]) -> None:
        if frozen.encoder.model.dtype != torch.float32:
            raise OptionError(
                "tent, mlmp, clipartt and watt move layer norms by steps that "
                f"{str(frozen.encoder.model.dtype)[6:]} is too coarse for; use --set model.dtype=float32"
            )
        super().__init__(frozen, settings)
        self.adapt = adapt

    def scores(self, tiles: Sequence[TileSample]) -> list[TileScores]:
        frozen = self.frozen
        inputs = [frozen.encoder.inputs(*tile) for tile in tiles]
        features: dict[int, TileFeatures] = {}
        for rows in alike(inputs):
            group = [inputs[i].images for i in rows]
            count = len(group[0])
            sets = self.tiles_at_once if len(tiles) > 1 else 1  # made up to full size: the same sums whatever the tiles
            images = torch.cat([*group, *group[-1:] * (sets - len(group))])
            adapted = self.adapt(images.to(frozen.encoder.model.dtype), sets)
            for index, patches in zip(rows, adapted.patches.split(count), strict=False):
                features[index] = inputs[index].features(patches, patches.new_zeros(count, 1), adapted.grid)
        text = frozen.bank.vectors
        return frozen.classify_tiles([features[i] for i in range(len(tiles))], text, text, [("adapted",)] * len(tiles))
