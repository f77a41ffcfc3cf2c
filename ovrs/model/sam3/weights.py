"""Find, check and load SAM 3's weights. Nothing is ever downloaded; the licence is the user's to accept."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch

from ovrs.errors import OptionError, Sam3WeightsMissing, WeightsError
from ovrs.foreign import is_file, read_object
from ovrs.model.clip.checkpoint import require_finite, tensors_of
from ovrs.model.clip.foreign import FAULTS, one_line
from ovrs.model.clip.loading import hash_weights
from ovrs.model.sam3 import importing
from ovrs.model.sam3.backend import is_lite
from ovrs.model.sam3.importing import LICENCE
from ovrs.options import SAM3_FILE

log = logging.getLogger(__name__)

HUB_NAME = "facebook/sam3"
TINY = "sam3-tiny"
"""The random model of the tests and of a first try: every code path, no knowledge."""
_HOW = (
    f"Get the weights: accept the SAM License (no military use) at {HUB_NAME} on Hugging Face, wait for approval, then\n"
    f"    hf download {HUB_NAME} --local-dir DIR\n"
    f"and name DIR with --model or in OVRS_SAM3_DIR. Without them: --model {TINY} (random weights, for trying the way "
    "through), or the CLIP methods (`ovrs methods`)"
)
_AGAIN = f"Download the weights again: `hf download {HUB_NAME} --local-dir DIR`"


def find_directory(model: str) -> Path:
    """Return the directory with the weights: `model` itself, else `OVRS_SAM3_DIR`, else the Hugging Face cache.

    Raises:
        Sam3WeightsMissing: Nothing there, or not all that is needed; the message says what was looked for and where.
    """
    if model not in ("sam3", HUB_NAME):
        return checked(Path(model))
    if own := os.environ.get("OVRS_SAM3_DIR"):
        return checked(Path(own))
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(HUB_NAME, "config.json")
    if not isinstance(cached, str):
        raise Sam3WeightsMissing(
            f"no SAM 3 weights: OVRS_SAM3_DIR is not set and the Hugging Face cache has no {HUB_NAME}. {_HOW}"
        )
    return checked(Path(cached).parent)


def checked(directory: Path) -> Path:
    """`directory`, if it holds what loading needs.

    Raises:
        Sam3WeightsMissing: It does not.
    """
    if is_file(directory):
        raise Sam3WeightsMissing(
            f"{directory} is a file; name its folder, or make one: ovrs model import {directory} -o DIR"
        )
    if not directory.is_dir():
        raise Sam3WeightsMissing(f"no SAM 3 weights: {directory} is no directory. {_HOW}")
    names = {p.name for p in directory.iterdir()}
    weights = {n for n in names if n.endswith((".safetensors", ".bin"))}
    if SAM3_FILE in names and not weights:
        return directory
    lacking = [n for n in ("config.json",) if n not in names] + ([] if weights else ["model.safetensors"])
    if lacking:
        raise Sam3WeightsMissing(f"no SAM 3 weights: {directory} lacks {' and '.join(lacking)}. {_HOW}")
    return directory


def load(model: str, dtype: torch.dtype) -> tuple[Any, str]:
    """Return the network in evaluation mode on the CPU, and a name for provenance.

    Raises:
        Sam3WeightsMissing: See `find_directory`.
        WeightsError: The files are damaged, incomplete or of another model.
        OptionError: The extra `sam3` is not installed.
    """
    try:
        from transformers import Sam3Model
        from transformers.utils import logging as their_logging
    except ImportError as error:
        raise OptionError(f'SAM 3 needs transformers 5: pip install "ovrs[sam3]" ({error})') from error
    from huggingface_hub.errors import StrictDataclassError

    if model == TINY:
        from ovrs.model.sam3.tiny import build

        log.warning("%s has random weights: its maps mean nothing", TINY)
        return build().to(dtype), TINY
    directory = find_directory(model)
    their_logging.disable_progress_bar()  # ours is the one to be read
    kind, options = _kind_of(directory, Sam3Model)
    verbosity = their_logging.get_verbosity()
    their_logging.set_verbosity(logging.CRITICAL)  # the report of a misfit has a line per tensor
    try:
        pretrained: Any = kind.from_pretrained  # its annotation knows no loading info
        network, report = pretrained(dtype=dtype, output_loading_info=True, **options)
    except (*FAULTS, StrictDataclassError) as error:
        misfit = "ignore_mismatched_sizes" in str(error)
        cause = "config.json and weights do not fit each other" if misfit else one_line(error)
        raise WeightsError(f"{directory} cannot be loaded as SAM 3: {cause}. {_AGAIN}") from error
    finally:
        their_logging.set_verbosity(verbosity)
    missing = sorted(report["missing_keys"])
    if missing:
        raise WeightsError(
            f"{directory} is not a whole SAM 3: {len(missing)} tensors are missing, such as {missing[0]}. {_AGAIN}"
        )
    require_finite(network, directory)
    _require_floats(network, directory)
    if is_lite(network.config):
        network.config.text_config.pad_token_id = _padding(directory)
    return network.eval().requires_grad_(False), directory.name


def _kind_of(directory: Path, usual: Any) -> tuple[Any, dict[str, Any]]:
    """Return the class of the network, and from what `from_pretrained` makes it."""
    if theirs := importing.theirs_in(directory):
        config, tensors, _ = importing.read(theirs)
        return usual, {"pretrained_model_name_or_path": None, "config": config, "state_dict": tensors}
    try:
        lite = str(read_object(directory / "config.json").get("model_type", "")).startswith("sam3_lite_text")
    except ValueError as error:
        raise WeightsError(f"{error}. {_AGAIN}") from error
    kind = _lite_model() if lite else usual
    return kind, {"pretrained_model_name_or_path": directory, "local_files_only": True}


def _lite_model() -> Any:
    """Return the network with the light text tower.

    Raises:
        OptionError: This transformers has none.
    """
    try:
        from transformers import Sam3LiteTextModel
    except ImportError as error:
        raise OptionError(
            "SAM 3 with the light text tower needs a newer transformers: pip install -U transformers"
        ) from error
    return Sam3LiteTextModel


def _padding(directory: Path) -> int:
    """Return the token that fills phrases up; the light text tower sees it, so it must be the one of training.

    Raises:
        WeightsError: The tokenizer's files are missing or damaged.
    """
    from transformers import AutoTokenizer

    try:
        theirs: Any = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        found = theirs.pad_token_id
    except FAULTS as error:
        raise WeightsError(f"{directory}: the tokenizer cannot be loaded: {one_line(error)}. {_AGAIN}") from error
    if not isinstance(found, int):
        raise WeightsError(f"{directory}: the tokenizer has no token for padding. {_AGAIN}")
    return found


def _require_floats(network: Any, directory: Path) -> None:
    """Refuse quantised files, whose whole numbers would be taken for weights."""
    wanted = {name for name, tensor in network.state_dict().items() if tensor.is_floating_point()}
    for file in sorted(directory.glob("*.safetensors")):
        kinds = tensors_of(file)
        if whole := sorted(n for n in wanted & kinds.keys() if not kinds[n].is_floating_point()):
            raise WeightsError(f"{file} holds whole numbers in {whole[0]}, not floating-point weights. {_AGAIN}")


def facts(model: str) -> str:
    """One line on weights that load: name, parameters, input size, hash (errors as `load`)."""
    network, name = load(model, torch.float32)
    size = sum(p.numel() for p in network.parameters())
    side = network.config.vision_config.backbone_config.image_size
    told = "" if name == TINY else f"; {LICENCE}"
    return f"{name}: {size / 1e6:.1f} M parameters, {side} px, sha256 {hash_weights(network)}{told}"
