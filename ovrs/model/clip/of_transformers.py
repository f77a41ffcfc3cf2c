"""A CLIPModel directory of transformers, Hugging Face's usual form, brought to open_clip's names.

transformers itself reads the configuration, and its network is what the converted one is compared with.
"""

from __future__ import annotations

import logging
import re
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ovrs.errors import OptionError, WeightsError
from ovrs.foreign import is_file, read_object
from ovrs.model.clip import architecture, checkpoint
from ovrs.model.clip.foreign import FAULTS, one_line, shown
from ovrs.model.clip.statefile import read_folder
from ovrs.model.clip.tokenizer import FILES, OWN_WORDS, clip_bpe

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

CONFIG_FILE = "config.json"
_COLOURS_FILE = "preprocessor_config.json"
_ACTIVATIONS = {"quick_gelu": True, "gelu": False}
_LEGACY_END = 2
"""`eos_token_id` of configurations that mean the highest token."""
_NAMES = (
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.patch_embedding.weight", "visual.conv1.weight"),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.pre_layrnorm.", "visual.ln_pre."),
    ("vision_model.post_layernorm.", "visual.ln_post."),
    ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
    ("text_model.embeddings.token_embedding.weight", "token_embedding.weight"),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.final_layer_norm.", "ln_final."),
    ("text_model.encoder.layers.", "transformer.resblocks."),
)
_PARTS = (
    (".self_attn.out_proj.", ".attn.out_proj."),
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
)
_TRANSPOSED = {"visual_projection.weight": "visual.proj", "text_projection.weight": "text_projection"}
_QUERY = re.compile(r"(.*\.)self_attn\.q_proj\.(weight|bias)$")


@dataclass(frozen=True, eq=False)
class Folder:
    """What a directory of transformers holds."""

    network: Any
    """transformers' CLIPModel, in evaluation mode on the CPU."""
    tensors: dict[str, Tensor]
    """float32, by open_clip's names."""
    config: Mapping[str, Any]
    """open_clip's `model_cfg`."""
    colours: Mapping[str, Any]
    """`mean` and `std`, or neither where the directory does not say."""
    tokenizer: tuple[Path, ...]
    """Files of a tokenizer that is not CLIP's own."""
    weights: tuple[Path, ...]
    """Files."""


def read(folder: Path) -> Folder:
    """Read and convert a CLIPModel directory.

    Raises:
        WeightsError: It is of another kind of network, damaged, unsafe, or has what open_clip's CLIP cannot express.
        OptionError: transformers is not installed.
    """
    content = _object(folder / CONFIG_FILE)
    if str(content.get("model_type")).startswith(("sam3", "tipsv2")):
        raise WeightsError(f"{folder} is used as it is: --model {folder}")
    if content.get("model_type") != "clip":
        raise WeightsError(
            f"{folder / CONFIG_FILE}: model_type is {shown(content.get('model_type'))}; ovrs imports transformers' CLIPModel, 'clip'"
        )
    theirs = _config(content, folder)
    config: Any = architecture.checked(_model_cfg(theirs, folder), str(folder / CONFIG_FILE))
    state, weights = read_folder(folder)
    tensors = converted(state.tensors, folder)
    checkpoint.require_same(architecture.sketch(config), dict(tensors), weights[0])
    network = _network(theirs, state.tensors, folder)
    tokenizer = _tokenizer(folder, config["text_cfg"]["vocab_size"])
    if tokenizer:
        config["text_cfg"]["hf_tokenizer_name"] = str(content.get("_name_or_path") or folder.name)
    return Folder(network, tensors, config, _colours(folder), tokenizer, weights)


def converted(state: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """float32 tensors of transformers' CLIPModel by open_clip's names: queries, keys and values joined, projections turned.

    Raises:
        WeightsError: Queries without keys or values.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in _TRANSPOSED:
            found[_TRANSPOSED[name]] = tensor.float().T.contiguous()
        elif query := _QUERY.match(name):
            names = [f"{query[1]}self_attn.{p}_proj.{query[2]}" for p in "qkv"]
            if lacking := [n for n in names if n not in state or state[n].shape != tensor.shape]:
                raise WeightsError(f"{folder}: {lacking[0]} is missing or of another shape than {name}")
            parts = [state[n].float() for n in names]
            found[f"{_renamed(query[1])}attn.in_proj_{query[2]}"] = torch.cat(parts)
        elif not name.endswith("position_ids") and not re.search(r"\.self_attn\.[kv]_proj\.", name):
            found[_renamed(name)] = tensor.float().contiguous()
    return found


def copy_tokenizer(files: tuple[Path, ...], target: Path) -> None:
    """Copy files of a tokenizer into a directory."""
    for file in files:
        shutil.copyfile(file, target / file.name)


@torch.no_grad()
def vectors(network: Any, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return unit vectors `(B, D)` of images and of token numbers, as transformers computes them."""
    out = network(pixel_values=images, input_ids=tokens)
    return out.image_embeds, out.text_embeds


def _renamed(name: str) -> str:
    for theirs, ours in (*_NAMES, *_PARTS):
        name = name.replace(theirs, ours)
    return name


def _config(content: Mapping[str, Any], folder: Path) -> Any:
    """Return the configuration of transformers, its defaults filled in."""
    try:
        from huggingface_hub.errors import StrictDataclassError
        from transformers import CLIPConfig
    except ImportError as error:
        raise OptionError(
            f'{folder} is a directory of transformers, which is not installed: pip install "ovrs[sam3]"'
        ) from error
    try:
        with _quiet():
            return CLIPConfig.from_dict(dict(content))
    except (*FAULTS, StrictDataclassError) as error:
        raise WeightsError(f"{folder / CONFIG_FILE} is no configuration of a CLIPModel: {one_line(error)}") from error


def _network(config: Any, tensors: Mapping[str, Tensor], folder: Path) -> Any:
    """Return the network of transformers; names and shapes of the tensors are known to fit."""
    from transformers import CLIPModel

    try:
        with _quiet():
            network = CLIPModel(config).float().eval()
            network.load_state_dict(dict(tensors), strict=False)
    except FAULTS as error:
        raise WeightsError(f"{folder} cannot be loaded as a CLIPModel: {one_line(error)}") from error
    return network


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the remarks of transformers on configurations."""
    from transformers.utils import logging as theirs

    before = theirs.get_verbosity()
    theirs.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        theirs.set_verbosity(before)


def _model_cfg(config: Any, folder: Path) -> Mapping[str, Any]:
    """open_clip's description of the same; sizes are checked by `architecture.checked`."""
    vision, text = config.vision_config, config.text_config
    acts = {tower.hidden_act for tower in (vision, text)}
    if len(acts) > 1 or not acts <= _ACTIVATIONS.keys():
        raise WeightsError(
            f"{folder / CONFIG_FILE}: hidden_act is {' and '.join(sorted(map(str, acts)))}; open_clip's towers share one of "
            f"{', '.join(_ACTIVATIONS)}"
        )
    towers = [
        {"layers": t.num_hidden_layers, "width": t.hidden_size, "mlp_ratio": _ratio(t), **_eps(t)}
        for t in (vision, text)
    ]
    towers[0] |= {
        "head_width": vision.hidden_size // vision.num_attention_heads,
        "patch_size": vision.patch_size,
        "image_size": vision.image_size,
    }
    towers[1] |= {
        "heads": text.num_attention_heads,
        "context_length": text.max_position_embeddings,
        "vocab_size": text.vocab_size,
        **_end(text),
    }
    return {
        "embed_dim": config.projection_dim,
        "quick_gelu": _ACTIVATIONS[acts.pop()],
        "vision_cfg": towers[0],
        "text_cfg": towers[1],
    }


def _ratio(tower: Any) -> float:
    ratio = float(tower.intermediate_size / tower.hidden_size)
    exact = int(tower.hidden_size * ratio) == tower.intermediate_size
    return ratio if exact else (tower.intermediate_size + 0.5) / tower.hidden_size


def _eps(tower: Any) -> Mapping[str, Any]:
    return {} if tower.layer_norm_eps == 1e-5 else {"norm_kwargs": {"eps": float(tower.layer_norm_eps)}}


def _end(text: Any) -> Mapping[str, Any]:
    """Where the text tower is read: at the highest token, or at a token by its number."""
    end = text.eos_token_id
    if not isinstance(end, int):
        raise WeightsError(f"eos_token_id of text_config must be a number, got {shown(end)}")
    if end in (_LEGACY_END, text.vocab_size - 1):
        return {}
    return {"pool_type": "eos", "eos_id": end}


def _colours(folder: Path) -> Mapping[str, Any]:
    if not is_file(folder / _COLOURS_FILE):
        return {}
    content = _object(folder / _COLOURS_FILE)
    scaled = abs(float(content.get("rescale_factor", 1 / 255)) - 1 / 255) < 1e-6
    if content.get("do_rescale", True) is not True or content.get("do_normalize", True) is not True or not scaled:
        raise WeightsError(
            f"{folder / _COLOURS_FILE}: ovrs gives networks colours from 0 to 1, normalised; this one wants others"
        )
    named = {"mean": content.get("image_mean"), "std": content.get("image_std")}
    return {key: value for key, value in named.items() if value is not None}


def _tokenizer(folder: Path, words: int) -> tuple[Path, ...]:
    """Return the tokenizer's files, unless its words are those of CLIP, which ovrs has itself."""
    files = tuple(folder / name for name in FILES if is_file(folder / name))
    own = [file for file in files if file.name in OWN_WORDS]
    ours = clip_bpe().encoder
    if not own and words == len(ours):
        return ()
    if not own:
        raise WeightsError(
            f"{folder} lacks the tokenizer of its {words} words; download tokenizer.json beside the weights"
        )
    for file in own:
        if file.name == "vocab.json" and _object(file) == ours:
            return ()
        if file.name == "tokenizer.json" and _object(file).get("model", {}).get("vocab") == ours:
            return ()
    return files


def _object(file: Path) -> Mapping[str, Any]:
    try:
        return read_object(file)
    except ValueError as error:
        raise WeightsError(f"{error}; download it again") from error
