"""Tokenizers of models from directories: CLIP's byte pairs, or a Hugging Face tokenizer from files beside the weights."""

from __future__ import annotations

import functools
import hashlib
from typing import TYPE_CHECKING, Any

from ovrs.errors import OptionError, WeightsError
from ovrs.foreign import is_file
from ovrs.model.clip.foreign import FAULTS, one_line, shown
from ovrs.model.clip.singles import part

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

    Tokenize = Callable[[list[str]], Tensor]

CLIP_BPE = "clip"
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "spiece.model",
    "tokenizer.model",
)
"""Everything a Hugging Face tokenizer may consist of."""
OWN_WORDS = ("tokenizer.json", "vocab.json", "vocab.txt", *(name for name in FILES if name.endswith(".model")))
"""Any of these makes a tokenizer; the others only describe it."""
_CLEANING = {"clean": str, "reduction_mask": str, "strip_sep_token": bool, "additional_special_tokens": list}
"""`tokenizer_kwargs` that change words and name no file or place."""


def of_directory(directory: Path, text: Mapping[str, Any]) -> tuple[Tokenize, str]:
    """Return the tokenizer that `text_cfg` asks for, from local files only, and its name for provenance.

    Raises:
        WeightsError: Its files are missing or damaged, or it does not fit the vocabulary of the text tower.
        OptionError: It needs transformers, which is not installed.
    """
    extra = checked_extra(str(directory), text)
    length, words = int(text.get("context_length", 77)), int(text.get("vocab_size", 49408))
    wanted = text.get("hf_tokenizer_name")
    if not wanted:
        return _clip_bpe(directory, length, words, extra), CLIP_BPE
    files = [directory / name for name in FILES if is_file(directory / name)]
    if not any(file.name in OWN_WORDS for file in files):
        raise WeightsError(
            f"{directory}: the text tower speaks the tokens of {shown(wanted)}, whose files are not there; put its tokenizer.json "
            "and tokenizer_config.json into the directory"
        )
    tokenizer = _hugging_face(directory, length, text.get("tokenizer_mode"), extra)
    if len(tokenizer.tokenizer) > words:
        raise WeightsError(
            f"{directory}: the tokenizer has {len(tokenizer.tokenizer)} tokens and the text tower only {words}; "
            f"take the files of {shown(wanted)}"
        )
    return tokenizer, digest(files)


def checked_extra(where: str, text: Mapping[str, Any]) -> dict[str, object]:
    """`tokenizer_kwargs`, if they change words only and name no file, place or code.

    Raises:
        WeightsError: Another key, or a value of another type.
    """
    extra = dict(text.get("tokenizer_kwargs") or {})
    for key, value in extra.items():
        if key not in _CLEANING or not isinstance(value, _CLEANING[key]):
            raise WeightsError(
                f"{where}: text_cfg.tokenizer_kwargs has {shown(key)}, unknown or of another type; "
                f"known are {', '.join(_CLEANING)}"
            )
    return extra


@functools.cache
def clip_bpe(length: int = 77) -> Any:
    """CLIP's tokenizer for a context length; reading its merges takes a while, so it is kept."""
    return part("tokenizer").SimpleTokenizer(context_length=length)


def _other_bpe(length: int, extra: dict[str, object]) -> Any:
    return part("tokenizer").SimpleTokenizer(context_length=length, **extra)


def _clip_bpe(directory: Path, length: int, words: int, extra: dict[str, object]) -> Any:
    try:
        tokenizer = clip_bpe(length) if not extra else _other_bpe(length, extra)
    except FAULTS as error:
        raise WeightsError(f"{directory}: text_cfg.tokenizer_kwargs make no tokenizer: {one_line(error)}") from error
    if tokenizer.vocab_size != words:
        raise WeightsError(
            f"{directory}: the text tower has {words} tokens and CLIP's tokenizer {tokenizer.vocab_size}; "
            "name the tokenizer in text_cfg.hf_tokenizer_name and put its files into the directory"
        )
    return tokenizer


def _hugging_face(directory: Path, length: int, mode: str | None, extra: dict[str, object]) -> Any:
    from open_clip.tokenizer import HFTokenizer

    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise OptionError(
            f'{directory} has a Hugging Face tokenizer: pip install "ovrs[sam3]" brings transformers'
        ) from error
    try:
        return HFTokenizer(
            str(directory),
            context_length=length,
            tokenizer_mode=mode,
            local_files_only=True,
            trust_remote_code=False,
            **extra,
        )
    except FAULTS as error:
        raise WeightsError(f"{directory}: the tokenizer cannot be loaded: {one_line(error)}") from error


def digest(files: list[Path]) -> str:
    """Names and contents of the tokenizer's files, as SHA-256."""
    digest = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()
