"""What the segmenters of CLIP's methods are put together from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic

import torch

from ovrs.methods.clip import EXTERNAL_VARIANTS, Clip
from ovrs.methods.norms import Norms
from ovrs.model.clip.encoder import Encoder
from ovrs.model.clip.loading import hash_weights
from ovrs.model.clip.memory import suited
from ovrs.model.clip.proxy import ExternalViT
from ovrs.model.clip.segmenter import ClipSegmenter, S
from ovrs.model.clip.text import TextBank, build_text_bank, queries_of
from ovrs.model.clip.upsample import Bilinear, JointBilateral, Upsampler, load_jbu

if TYPE_CHECKING:
    from ovrs.model.clip.loading import LoadedModel
    from ovrs.model.clip.windows import Views
    from ovrs.options import ModelOptions
    from ovrs.words.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts(Generic[S]):
    """What a method's `segmenter` function is given."""

    model: LoadedModel
    look: ModelOptions
    """As the network was asked for."""
    settings: S
    """Of the method, complete."""
    views: Views
    """The windows."""
    vocabulary: Vocabulary

    def queries(self) -> tuple[list[str], list[int]]:
        """Return the cleaned queries and the class of each."""
        own = self.settings
        return queries_of(self.vocabulary, own.prompts, prefix=own.prefix, split_names=own.split_names)

    def bank(self) -> TextBank:
        """Return the queries embedded in CLIP's own templates, or bare."""
        queries, class_of = self.queries()
        return build_text_bank(self.model, queries, class_of, bare=self.settings.bare)

    def frozen(self, bank: TextBank) -> ClipSegmenter:
        """Frozen dense CLIP that asks for the queries of `bank`."""
        model, own = self.model, self.settings
        if own.balance:
            bank = bank.balanced()
        external = None
        if own.dense in EXTERNAL_VARIANTS:
            external = ExternalViT(own.proxy_model, own.proxy_weights, model.device)
        upsampler = _upsampler(own, model)
        count = self.look.tiles_at_once or suited(
            model, self.views, learns=isinstance(own, Norms), queries=len(bank.vectors)
        )
        facts = {
            **self._described(),
            "tiles_at_once": count,
            "queries": len(bank.vectors),
            "external": None if external is None else external.describe(),
            "upsampler_weights": hash_weights(upsampler.net) if isinstance(upsampler, JointBilateral) else None,
        }
        encoder = Encoder(model, own.dense, external, self.views, tiles_at_once=count)
        return ClipSegmenter(encoder, upsampler, bank, own, self.views.geometry, facts)

    def _described(self) -> dict[str, object]:
        """Return what decides the numbers, for digest and record: all settings, and what follows from them."""
        model, views = self.model, self.views
        return {
            **self.look.decisive(),
            **self.settings.decisive(),
            "model": model.name,
            "weights": model.weights_hash,
            **model.facts,
            "licence": model.licence,
            "device": model.device.type,
            "crop": views.geometry.crop,
            "stride": views.geometry.stride,
            "zoom": views.zoom,
            "wide": list(views.wide),
            "turned": views.turned,
            "batch": views.batch,
            "threads": torch.get_num_threads(),
        }


def _upsampler(settings: Clip, model: LoadedModel) -> Upsampler:
    if settings.upsampler == "bilinear":
        return Bilinear()
    path = settings.upsampler_weights
    if path is None and model.directory is not None:
        path = model.directory / f"{settings.upsampler}.safetensors"
    dim = int(model.clip.visual.output_dim)
    net = load_jbu(settings.upsampler, path or Path(f"{settings.upsampler}.ckpt"), dim, model.device)
    return JointBilateral(net, settings.upsampler_rank or None)
