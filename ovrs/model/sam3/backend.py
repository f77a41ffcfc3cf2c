"""SAM 3 as three functions: encode an image once, encode phrases once, ground phrases in the image.

Every size is read from the network's configuration. The submodules are called one by one, so that the mask decoder can
be left out for phrases that are not there; the result is that of the authors' code (`tests/test_35_sam3.py`), which adds a token of
geometry to every phrase (`ovrs.model.sam3.geometry`).
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
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
from ovrs.model.sam3 import active, geometry
from ovrs.model.sam3.tiny import END
from ovrs.provenance import NUMERICS, canonical

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

log = logging.getLogger(__name__)

PRESENCE_LIMIT = 10.0
"""Presence logits are clamped to ±10, as the authors mean to (their `.clamp` has no effect)."""
LITE_CONTEXT = 32
"""Tokens to which SAM 3's processor pads phrases; the light text tower sees all of them."""
_HOUSEKEEPING = frozenset({"transformers_version", "dtype", "torch_dtype", "architectures", "name_or_path"})


@dataclass(frozen=True, eq=False)
class Levels:
    """What the detector reads of an image."""

    neck: tuple[Tensor, ...]
    """Neck levels `(B, 256, h, w)`, finest first; the detector before its masks reads the last one."""
    position: tuple[Tensor, ...]
    """Of the same shapes."""
    token: Tensor
    """`(B, 1, 256)`: the token of geometry (`ovrs.model.sam3.geometry`)."""

    def of(self, image: int) -> Levels:
        """One image of a batch, B = 1."""
        rows = slice(image, image + 1)
        return Levels(tuple(x[rows] for x in self.neck), tuple(x[rows] for x in self.position), self.token[rows])


@dataclass(frozen=True, eq=False)
class ImageState:
    """One image after the vision tower."""

    levels: Levels
    layer: Tensor
    """Output of one block of the vision tower `(h, w, D)` float32."""
    preview: Levels | None = None
    """Of the small pass, where phrases are to be chosen by it (`ovrs.model.sam3.active`)."""

    @property
    def neck(self) -> tuple[Tensor, ...]:
        """Neck levels `(1, 256, h, w)`, finest first."""
        return self.levels.neck


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


def is_lite(config: Any) -> bool:
    """Whether a network is SAM 3 with the light text tower."""
    return str(config.model_type).startswith("sam3_lite_text")


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
        present_floor: float | None = None,
    ) -> None:
        self.network, self.name, self.device = network.to(device), name, device
        vision, text = network.config.vision_config.backbone_config, network.config.text_config
        self.image_size = int(vision.image_size)
        self.lite = is_lite(network.config)
        self.context = (
            min(LITE_CONTEXT, text.max_position_embeddings) if self.lite else int(text.max_position_embeddings)
        )
        self.padding = int(getattr(text, "pad_token_id", None) or 0)
        self.dtype: torch.dtype = network.dtype
        self.layer = _default_layer(vision) if layer is None else layer
        self.prompt_chunk = prompt_chunk or (4 if device.type == "cuda" else 2)
        self.weights_hash = hash_weights(network)
        self.architecture = _architecture(network.config)
        self._tokenize = SimpleTokenizer(context_length=self.context)
        self.present_floor = present_floor
        self._small: Any = None
        self.passes: Counter[str] = Counter()
        """Work done so far: windows through the vision tower (`vision`, `small_vision`), phrases through the detector
        (`decoder`, `small_decoder`) and the mask decoder (`masks`)."""

    def encode_image(self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_], *, phrases: int = 0) -> ImageState:
        """Run the vision tower once (arguments as `encode_images`)."""
        return self.encode_images([(rgb, valid)], phrases=phrases)[0]

    def encode_images(
        self, images: Sequence[tuple[NDArray[np.uint8], NDArray[np.bool_]]], *, phrases: int = 0
    ) -> list[ImageState]:
        """Run the vision tower over several windows in one batch.

        Args:
            images: `(3, H, W)` uint8 of any size, resized to the network's square, aspect not kept, as SAM 3 does; and
                `(H, W)`, of which pixels that are not valid become mid-grey.
            phrases: How many will be grounded; decides whether the small pass pays.
        """
        inputs = [self._image(rgb, valid) for rgb, valid in images]
        pixels = torch.cat([self._resized(image, self.image_size) for image in inputs])
        self.passes["vision"] += len(inputs)
        levels, layer = self._vision(pixels)
        previews: list[Levels | None] = [None] * len(inputs)
        if self.present_floor is not None and phrases > active.FEW:
            previews = [self._preview(image) for image in inputs]
        return [ImageState(levels.of(i), layer[i].float(), previews[i]) for i in range(len(inputs))]

    def _image(self, rgb: NDArray[np.uint8], valid: NDArray[np.bool_]) -> Tensor:
        image = torch.from_numpy(np.ascontiguousarray(rgb)).to(self.device).float() / 127.5 - 1
        return image.masked_fill(~torch.from_numpy(np.ascontiguousarray(valid)).to(self.device), 0.0)

    @staticmethod
    def _resized(image: Tensor, side: int) -> Tensor:
        return F.interpolate(image[None], (side, side), mode="bilinear", align_corners=False, antialias=True)

    def _preview(self, image: Tensor) -> Levels:
        """Run the small pass over one window."""
        if self._small is None:
            self._small = active.small_encoder(self.network)
        side = active.small_size(self.network.config.vision_config.backbone_config)
        self.passes["small_vision"] += 1
        with torch.no_grad():
            return self._levels(self._small(self._resized(image, side).to(self.dtype)))

    def _levels(self, vision: Any) -> Levels:
        """Return what the detector reads of the vision tower's output; it drops the coarsest level."""
        neck = tuple(vision.fpn_hidden_states[:-1])
        position = tuple(p.expand(len(neck[-1]), *p.shape[1:]) for p in vision.fpn_position_encoding[:-1])
        return Levels(neck, position, geometry.token(self.network.geometry_encoder, neck[-1], position[-1]))

    def _vision(self, pixels: Tensor) -> tuple[Levels, Tensor]:
        """Return what the detector reads, and the output of one block `(B, h, w, D)`."""
        seen: list[Tensor] = []
        block = self.network.vision_encoder.backbone.layers[self.layer]
        hook = block.register_forward_hook(lambda _m, _i, out: seen.append(out[0] if isinstance(out, tuple) else out))
        try:
            with torch.no_grad():
                levels = self._levels(self.network.get_vision_features(pixel_values=pixels.to(self.dtype)))
        finally:
            hook.remove()
        return levels, seen[0]

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
        if not self.lite:
            ids = ids[:, : int(ends.max()) + 1]  # exact: the tower is causal and padding is masked
        mask = torch.arange(ids.shape[1], device=self.device) <= ends[:, None]
        ids = ids.masked_fill(~mask, self.padding)  # convolutions of the light tower see the padding
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
        if state.preview is None:
            return self._in_chunks(list(rows), lambda chunk: reduce(self._detect(state, bank, chunk, presence_floor)))
        (presence,) = self._in_chunks(list(rows), lambda chunk: (self._small_presence(state, bank, chunk),))
        assert self.present_floor is not None  # or there would be no preview
        chosen = active.likely(presence, self.present_floor)
        rest = sorted({*range(len(rows))} - {*chosen})
        parts = [(chosen, self._in_buckets(state, bank, [rows[i] for i in chosen], reduce, presence_floor))]
        size = (state.neck[0].shape[-2], state.neck[0].shape[-1])
        for at in range(0, len(rest), self.prompt_chunk):
            some = rest[at : at + self.prompt_chunk]
            parts.append((some, reduce(active.absent(presence[some], size, PRESENCE_LIMIT))))
        return active.merged(parts, len(rows))

    def _in_buckets(
        self,
        state: ImageState,
        bank: PhraseBank,
        rows: list[int],
        reduce: Callable[[Detection], tuple[Tensor, ...]],
        floor: float | None,
    ) -> tuple[Tensor, ...]:
        """Ground in buckets of constant size, the last one filled with repeats: what else is there changes no number."""

        def bucket(chunk: list[int]) -> tuple[Tensor, ...]:
            filled = chunk + chunk[-1:] * (self.prompt_chunk - len(chunk))
            return tuple(t[: len(chunk)] for t in reduce(self._detect(state, bank, filled, floor)))

        return self._in_chunks(rows, bucket)

    def _in_chunks(self, rows: list[int], work: Callable[[list[int]], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Join what `work` gives for `prompt_chunk` rows at a time; fewer when a GPU's memory is short."""
        done: list[tuple[Tensor, ...]] = []
        at = 0
        while at < len(rows):
            try:
                chunk = rows[at : at + self.prompt_chunk]
                done.append(work(chunk))
                at += len(chunk)
            except torch.cuda.OutOfMemoryError:
                if self.prompt_chunk == 1:
                    raise
                self.prompt_chunk //= 2
                torch.cuda.empty_cache()
                log.warning("out of GPU memory: prompts are grounded %d at a time now", self.prompt_chunk)
        return tuple(torch.cat(parts) for parts in zip(*done, strict=True))

    def _small_presence(self, state: ImageState, bank: PhraseBank, rows: list[int]) -> Tensor:
        """Presence logits `(b,)` of phrases by the small pass; no masks are decoded."""
        assert state.preview is not None
        self.passes["small_decoder"] += len(rows)
        return self._decoded(state.preview, *self._prompt(state.preview, bank, rows))[1]

    @staticmethod
    def _prompt(levels: Levels, bank: PhraseBank, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Tokens `(b, L + 1, 256)` and mask `(b, L + 1)` of phrases: their words, and the image's token of geometry."""
        tokens = torch.cat([bank.tokens[rows], levels.token.expand(len(rows), -1, -1)], dim=1)
        return tokens, F.pad(bank.mask[rows], (0, 1), value=True)

    def _decoded(self, levels: Levels, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Any]:
        """Return the detector before its masks: queries, presence logits, object logits, and the encoder's output."""
        net, count = self.network, len(text)
        encoded = net.detr_encoder(
            vision_features=[levels.neck[-1].expand(count, -1, -1, -1)],  # views, no copies
            text_features=text,
            vision_pos_embeds=[levels.position[-1].expand(count, -1, -1, -1)],
            text_mask=mask,
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
        return queries, presence, objects.float(), encoded.last_hidden_state

    def _detect(self, state: ImageState, bank: PhraseBank, rows: list[int], floor: float | None) -> Detection:
        count = len(rows)
        self.passes["decoder"] += count
        text, mask = self._prompt(state.levels, bank, rows)
        queries, presence, objects, encoded = self._decoded(state.levels, text, mask)
        there = torch.ones_like(presence, dtype=torch.bool) if floor is None else presence >= floor
        height, width = state.neck[0].shape[-2:]
        semantic = presence.new_full((count, height, width), -PRESENCE_LIMIT)
        masks = presence.new_full((count, queries.shape[2], height, width), -PRESENCE_LIMIT)
        if there.any():
            self.passes["masks"] += int(there.sum())
            found = self.network.mask_decoder(
                decoder_queries=queries[-1][there],
                backbone_features=[level.expand(count, -1, -1, -1)[there] for level in state.neck],
                encoder_hidden_states=encoded[there],
                prompt_features=text[there],
                prompt_mask=mask[there],
            )
            semantic[there], masks[there] = found.semantic_seg[:, 0].float(), found.pred_masks.float()
        return Detection(semantic, masks, objects, presence)


def _default_layer(vision: Any) -> int:
    """Return the third of four global layers (23 of 32), or the last but one of however many there are."""
    layers = sorted(vision.global_attn_indexes)
    return int(layers[-2] if len(layers) > 1 else layers[-1])
