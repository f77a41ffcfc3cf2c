"""TIPSv2 (2604.12012) of transformers: a ViT whose patches are trained against words, with a text tower of its own.

Images are given as they are, red, green and blue from 0 to 1. A patch's feature is the tower's last hidden state; words are
averaged over their tokens.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovrs.errors import OptionError, WeightsError
from ovrs.foreign import is_file, read_object
from ovrs.methods.recommended import Recommendations
from ovrs.model.clip import tokenizer
from ovrs.model.clip.checkpoint import require_finite
from ovrs.model.clip.directory import CONFIG_FILE, Source
from ovrs.model.clip.foreign import FAULTS, one_line, shown
from ovrs.model.clip.towers import DenseTower

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

KIND = "tipsv2"
_CONFIG = "config.json"
_COLOURS = "preprocessor_config.json"
_HOUSEKEEPING = ("transformers_version", "dtype", "torch_dtype", "architectures", "auto_map", "name_or_path")
_SAMPLE = "a field beside the road"


class TipsTower(DenseTower):
    """transformers' vision tower."""

    variants = ("vanilla",)
    family = "TIPSv2"

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        config = network.config
        self.patch, self.native = int(config.patch_size), int(config.image_size)
        self.output_dim = int(config.hidden_size)
        self.activation = "SwiGLU" if config.use_swiglu_ffn else str(config.hidden_act)
        self.extra = 1 + int(config.num_register_tokens)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.network(pixel_values=images).pooler_output
        return out

    def dense(self, images: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
        found = self.network(pixel_values=images).last_hidden_state
        grid = (images.shape[-2] // self.patch, images.shape[-1] // self.patch)
        return found[:, self.extra :], found[:, 0], grid

    def blocks(self) -> Iterable[nn.Module]:
        return list(self.network.encoder.layer)


class TipsClip(nn.Module):
    """Both towers behind the names that open_clip's networks have."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.visual = TipsTower(network.vision_model)
        self.text = network.text_model
        self.padding = int(network.config.text_config.pad_token_id)

    @property
    def activations(self) -> dict[str, str]:
        """Names of both towers' activations."""
        return {"vision": self.visual.activation, "text": str(self.text.config.hidden_act)}

    def encode_image(self, images: Tensor, *, normalize: bool = False) -> Tensor:
        """Vectors `(B, D)` of images `(B, 3, H, W)`."""
        out = self.visual(images)
        return F.normalize(out, dim=-1) if normalize else out

    def encode_text(self, tokens: Tensor, *, normalize: bool = False) -> Tensor:
        """Vectors `(B, D)` of token numbers `(B, length)`; padding is left out."""
        out: Tensor = self.text(input_ids=tokens, attention_mask=(tokens != self.padding).long()).pooler_output
        return F.normalize(out, dim=-1) if normalize else out


def is_folder(folder: Path) -> bool:
    """Whether a folder of transformers holds a TIPSv2.

    Raises:
        WeightsError: Its `config.json` is damaged.
    """
    if is_file(folder / CONFIG_FILE) or not is_file(folder / _CONFIG):
        return False
    return _object(folder / _CONFIG).get("model_type") == KIND


def read(folder: Path) -> Source:
    """Load a folder of transformers; no code of the folder is run, and no hub is asked.

    Raises:
        WeightsError: Weights, configuration or tokenizer are missing, damaged, or do not fit each other.
        OptionError: transformers is missing or knows no TIPSv2.
    """
    try:
        from huggingface_hub.errors import StrictDataclassError
        from transformers import Tipsv2Model
    except ImportError as error:
        raise OptionError(f'{folder} is a TIPSv2, which needs transformers 5.14: pip install "ovrs[sam3]"') from error
    from transformers.utils import logging as theirs

    verbosity = theirs.get_verbosity()
    theirs.set_verbosity(logging.CRITICAL)
    theirs.disable_progress_bar()
    pretrained: Any = Tipsv2Model.from_pretrained  # its annotation knows no loading info
    try:
        network, report = pretrained(folder, local_files_only=True, dtype=torch.float32, output_loading_info=True)
    except (*FAULTS, StrictDataclassError) as error:
        raise WeightsError(f"{folder} cannot be loaded as TIPSv2: {one_line(error)}. Download it again") from error
    finally:
        theirs.set_verbosity(verbosity)
    if missing := sorted({*report["missing_keys"], *(str(k[0]) for k in report.get("mismatched_keys", ()))}):
        raise WeightsError(f"{folder} is no whole TIPSv2: {len(missing)} tensors are missing, such as {missing[0]}")
    clip = TipsClip(network)
    require_finite(clip, folder)
    tokenize, name = _tokenizer(folder, network.config.text_config)
    mean, std = _colours(folder)
    description = {k: v for k, v in network.config.to_dict().items() if k not in _HOUSEKEEPING and k[0] != "_"}
    return Source(
        clip=clip,
        tokenize=tokenize,
        mean=mean,
        std=std,
        tokenizer=name,
        description=description,
        own=Recommendations(),
    )


def _tokenizer(folder: Path, text: Any) -> tuple[tokenizer.Tokenize, str]:
    """Return the folder's own tokenizer, padded and cut to the text tower's length."""
    found = [folder / name for name in tokenizer.FILES if is_file(folder / name)]
    if not any(file.name in tokenizer.OWN_WORDS for file in found):
        raise WeightsError(
            f"{folder} lacks the tokenizer's words; download tokenizer.json or tokenizer.model beside the weights"
        )
    try:
        from transformers import AutoTokenizer

        theirs: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except FAULTS as error:
        raise WeightsError(f"{folder}: the tokenizer cannot be loaded: {one_line(error)}") from error

    def tokenize(texts: list[str]) -> Tensor:
        length = int(text.max_position_embeddings)
        out = theirs(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        ids: Tensor = out.input_ids
        return ids

    sample = tokenize([_SAMPLE])
    if len(theirs) > text.vocab_size or theirs.pad_token_id != text.pad_token_id:
        raise WeightsError(
            f"{folder}: the tokenizer has {len(theirs)} tokens and pads with {theirs.pad_token_id}; the text tower has "
            f"{text.vocab_size} and takes {text.pad_token_id} for padding"
        )
    if theirs.unk_token_id is not None and bool((sample == theirs.unk_token_id).any()):
        raise WeightsError(f"{folder}: the tokenizer does not know plain words; download its files again")
    return tokenize, tokenizer.digest(found)


def _colours(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation; TIPSv2 takes images from 0 to 1 unless its preprocessor says otherwise."""
    content = _object(folder / _COLOURS) if is_file(folder / _COLOURS) else {}
    scale = content.get("rescale_factor", 1 / 255)
    if content.get("do_rescale", True) is not True or not isinstance(scale, float) or abs(scale - 1 / 255) > 1e-6:
        raise WeightsError(f"{folder / _COLOURS}: ovrs gives networks colours from 0 to 1; this one wants others")
    if content.get("do_normalize", False) is not True:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    given = [content.get("image_mean"), content.get("image_std")]
    for values in given:
        whole = isinstance(values, list) and len(values) == 3 and all(isinstance(v, (int, float)) for v in values)
        if not whole or min(given[1] or [0]) <= 0:
            raise WeightsError(
                f"{folder / _COLOURS}: image_mean and image_std must be three numbers, got {shown(values)}"
            )
    return tuple(given[0] or ()), tuple(given[1] or ())


def _object(file: Path) -> dict[str, Any]:
    try:
        return read_object(file)
    except ValueError as error:
        raise WeightsError(f"{error}; download it again") from error
