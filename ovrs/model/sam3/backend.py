"""SAM 3 as three functions: encode an image once, encode phrases once, ground phrases in the image.

Every size is read from the network's configuration. The submodules are called one by one, so that the mask decoder can
be left out for phrases that are not there; the result equals `Sam3Model.forward` (`tests/test_35_sam3.py`).
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor
from torch.nn import functional as F

from ovrs import files
from ovrs.cache import cache_directory
from ovrs.model.clip.loading import hash_weights
from ovrs.model.sam3.tiny import END
from ovrs.provenance import NUMERICS, canonical

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

log = logging.getLogger(__name__)

PRESENCE_LIMIT = 10.0
"""Presence logits are clamped to ±10, as the authors mean to (their `.clamp` has no effect)."""
_HOUSEKEEPING = frozenset({"transformers_version", "dtype", "torch_dtype", "architectures", "name_or_path"})


@dataclass(frozen=True, eq=False)
class ImageState:
    """One image after the vision tower."""

    neck: tuple[Tensor, ...]
    """Neck levels `(1, 256, h, w)`, finest first; the last one is what the detector reads."""
    position: tuple[Tensor, ...]
    layer: Tensor
    """Output of one block of the vision tower `(h, w, D)` float32."""


@dataclass(frozen=True, eq=False)
class PhraseBank:
    """Encoded phrases."""

    tokens: Tensor
    """`(T, L, 256)`: what the detector reads."""
    mask: Tensor
    """`(T, L)` bool: True = token."""
    vectors: Tensor
    """`(T, D)` float32: the text tower's state at the end token, before any projection."""

    @property
    def neck_vectors(self) -> Tensor:
        """`(T, 256)` float32: mean of the projected tokens."""
        mask = self.mask[..., None].float()
        return (self.tokens.float() * mask).sum(1) / mask.sum(1)


@dataclass(frozen=True, eq=False)
class Detection:
    """The detector's answer for a few phrases; large, so it is reduced at once."""

    semantic: Tensor
    """`(b, h, w)` logits of the class-wide mask."""
    masks: Tensor
    """`(b, q, h, w)` logits of instance masks."""
    objects: Tensor
    """`(b, q)` object logits, presence not included."""
    presence: Tensor
    """`(b,)` logits within ±10."""


def _architecture(config: Any) -> str:
    """SHA-256 of the configuration without its housekeeping: what of a network its weights do not tell."""

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: kept(v) for k, v in value.items() if not str(k).startswith("_") and k not in _HOUSEKEEPING}
        return value

    return hashlib.sha256(canonical(kept(config.to_dict())).encode()).hexdigest()[:16]


class Sam3Backend:
    """A loaded network. `prompt_chunk` phrases are grounded at a time; halved when a GPU runs out of memory."""

    def __init__(
        self,
        network: Any,
        name: str,
        device: torch.device,
        *,
        layer: int | None = None,
        prompt_chunk: int | None = None,
    ) -> None:
        self.network, self.name, self.device = network.to(device), name, device
        vision, text = network.config.vision_config.backbone_config, network.config.text_config
        self.image_size = int(vision.image_size)
        self.context = int(text.max_position_embeddings)
        self.dtype: torch.dtype = network.dtype
        self.layer = _default_layer(vision) if layer is None else layer
        self.prompt_chunk = prompt_chunk or (4 if device.type == "cuda" else 2)
        self.weights_hash = hash_weights(network)
        self.architecture = _architecture(network.config)
        self._tokenize = SimpleTokenizer(context_length=self.context)

    def encode_image(self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_]) -> ImageState:
        """Run the vision tower once.

        Args:
            rgb: `(3, H, W)` uint8 of any size; resized to the network's square, aspect not kept, as SAM 3 does.
            valid: `(H, W)`; other pixels become mid-grey.
        """
        image = torch.from_numpy(np.ascontiguousarray(rgb)).to(self.device).float() / 127.5 - 1
        image = image.masked_fill(~torch.from_numpy(np.ascontiguousarray(valid)).to(self.device), 0.0)
        size = (self.image_size, self.image_size)
        pixels = F.interpolate(image[None], size, mode="bilinear", align_corners=False, antialias=True)
        seen: list[Tensor] = []
        block = self.network.vision_encoder.backbone.layers[self.layer]
        hook = block.register_forward_hook(lambda _m, _i, out: seen.append(out[0] if isinstance(out, tuple) else out))
        try:
            with torch.no_grad():
                vision = self.network.get_vision_features(pixel_values=pixels.to(self.dtype))
        finally:
            hook.remove()
        # the detector drops the coarsest level
        neck, position = vision.fpn_hidden_states[:-1], vision.fpn_position_encoding[:-1]
        return ImageState(tuple(neck), tuple(position), seen[0][0].float())

    def encode_text(self, phrases: Sequence[str]) -> PhraseBank:
        """Encode phrases, or read them from the cache (by network, arithmetic and words)."""
        network = canonical([NUMERICS, self.weights_hash, self.architecture, str(self.dtype)])
        key = hashlib.sha256("\n".join([network, *phrases]).encode()).hexdigest()
        file = cache_directory() / "sam3" / f"{key}.npz"
        if file.is_file():
            with np.load(file) as kept:
                tokens, mask, vectors = (
                    torch.from_numpy(kept[k]).to(self.device) for k in ("tokens", "mask", "vectors")
                )
            return PhraseBank(tokens.to(self.dtype), mask, vectors)
        bank = self._encode_text(list(phrases))
        parts = {"tokens": bank.tokens.float(), "mask": bank.mask, "vectors": bank.vectors}
        arrays: Any = {name: part.cpu().numpy() for name, part in parts.items()}
        files.keep(file, lambda temporary: np.savez(temporary, **arrays))
        return bank

    @torch.no_grad()
    def _encode_text(self, phrases: list[str]) -> PhraseBank:
        ids = self._tokenize(phrases).to(self.device)
        ends = (ids == END).int().argmax(dim=1)
        ids = ids[:, : int(ends.max()) + 1]  # exact: the tower is causal and padding is masked
        mask = torch.arange(ids.shape[1], device=self.device) <= ends[:, None]
        text = self.network.get_text_features(input_ids=ids, attention_mask=mask.long())
        vectors = text.last_hidden_state[torch.arange(len(ids)), ends].float()
        return PhraseBank(text.pooler_output.clone(), mask, vectors.clone())

    @torch.no_grad()
    def ground(
        self,
        state: ImageState,
        bank: PhraseBank,
        rows: Sequence[int],
        reduce: Callable[[Detection], tuple[Tensor, ...]],
        *,
        presence_floor: float | None = None,
    ) -> tuple[Tensor, ...]:
        """Ground phrases in one image, a chunk at a time, sharing the vision pass.

        Args:
            state: The image.
            bank: All phrases.
            rows: Which of them.
            reduce: Turns a chunk's detection into tensors with one row per phrase; masks are not kept.
            presence_floor: Phrases whose presence logit lies below are given empty masks without running the mask
                decoder.

        Returns:
            `reduce`'s tensors for all `rows`, in their order.
        """
        done: list[tuple[Tensor, ...]] = []
        at = 0
        while at < len(rows):
            try:
                chunk = list(rows[at : at + self.prompt_chunk])
                done.append(reduce(self._detect(state, bank, chunk, presence_floor)))
                at += len(chunk)
            except torch.cuda.OutOfMemoryError:
                if self.prompt_chunk == 1:
                    raise
                self.prompt_chunk //= 2
                torch.cuda.empty_cache()
                log.warning("out of GPU memory: prompts are grounded %d at a time now", self.prompt_chunk)
        return tuple(torch.cat(parts) for parts in zip(*done, strict=True))

    def _detect(self, state: ImageState, bank: PhraseBank, rows: list[int], floor: float | None) -> Detection:
        net, count = self.network, len(rows)
        text, mask = bank.tokens[rows], bank.mask[rows]
        neck = [level.expand(count, -1, -1, -1) for level in state.neck]  # views, no copies
        position = state.position[-1].expand(count, -1, -1, -1)
        encoded = net.detr_encoder(
            vision_features=[neck[-1]], text_features=text, vision_pos_embeds=[position], text_mask=mask
        )
        decoded = net.detr_decoder(
            vision_features=encoded.last_hidden_state,
            text_features=encoded.text_features,
            vision_pos_encoding=encoded.pos_embeds_flattened,
            text_mask=mask,
            spatial_shapes=encoded.spatial_shapes,
        )
        queries = decoded.intermediate_hidden_states
        objects = net.dot_product_scoring(
            decoder_hidden_states=queries, text_features=encoded.text_features, text_mask=mask
        ).squeeze(-1)[-1]
        presence = decoded.presence_logits[-1].float()[:, 0].clamp(-PRESENCE_LIMIT, PRESENCE_LIMIT)
        there = torch.ones_like(presence, dtype=torch.bool) if floor is None else presence >= floor
        height, width = state.neck[0].shape[-2:]
        semantic = presence.new_full((count, height, width), -PRESENCE_LIMIT)
        masks = presence.new_full((count, queries.shape[2], height, width), -PRESENCE_LIMIT)
        if there.any():
            found = net.mask_decoder(
                decoder_queries=queries[-1][there],
                backbone_features=[level[there] for level in neck],
                encoder_hidden_states=encoded.last_hidden_state[there],
                prompt_features=text[there],
                prompt_mask=mask[there],
            )
            semantic[there], masks[there] = found.semantic_seg[:, 0].float(), found.pred_masks.float()
        return Detection(semantic, masks, objects.float(), presence)


def _default_layer(vision: Any) -> int:
    """The third of four global layers (23 of 32), or the last but one of however many there are."""
    layers = sorted(vision.global_attn_indexes)
    return int(layers[-2] if len(layers) > 1 else layers[-1])
