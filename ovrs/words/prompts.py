"""Context prompts written by a language model: descriptions and synonyms for each class of a vocabulary.

Follows Cat-Prompt of TMPA (CVPR 2026): a task and an output format, what is known about the imagery, and rules of
diversity. Any endpoint that speaks OpenAI's chat protocol will do (a hosted one, vLLM, Ollama, llama.cpp's server). The
key is read from `OPENAI_API_KEY` by the client and written nowhere. Answers are kept by content, so asking again is free.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from ovrs import files
from ovrs.errors import OvrsError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ovrs.words.vocabulary import ClassEntry, Vocabulary

log = logging.getLogger(__name__)


class PromptError(OvrsError):
    """A language model could not be made to write prompts; what was good is kept."""

    exit_code = 3
    partial: Vocabulary | None = None
    """The vocabulary with the classes that could be written."""


ATTEMPTS = 3
TASK = """You write prompts for a vision-language model that labels remote sensing images seen from above.
For one class of ground you give short synonyms and one-sentence descriptions of what is visible.
Answer with JSON only: {"synonyms": [...], "descriptions": [...]}."""
RULES = """Write exactly {count} descriptions, each one sentence of at most 20 words, and 1 to 3 synonyms.
Each sentence stresses another aspect: colour, shape, size, texture, arrangement, surroundings, season.
Use visual words only: nothing about use, history, value, sound or smell. Repeat no phrasing.
Never name another class of the list."""
BACKGROUND = "This class stands for all ground that is none of the others: describe what that is in this imagery."


@dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """Where to ask."""

    base_url: str | None
    """None: OpenAI's own."""
    name: str
    temperature: float = 0.7
    timeout: float = 60.0
    retries: int = 3
    """Of one request, for refused connections, time-outs, 429 (after the time the server names) and 5xx."""


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    synonyms: list[str]
    descriptions: list[str]

    @field_validator("synonyms", "descriptions")
    @classmethod
    def _written(cls, values: list[str]) -> list[str]:
        cleaned = [" ".join(v.split()) for v in values]
        if not all(cleaned):
            raise ValueError("an entry is empty")
        if len({v.lower() for v in cleaned}) < len(cleaned):
            raise ValueError("an entry is there twice")
        return cleaned


def write_prompts(
    words: Vocabulary,
    model: LanguageModel,
    *,
    context: str = "",
    count: int = 5,
    cache: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Vocabulary:
    """Ask for every class that has no descriptions of its own, and return the completed vocabulary.

    Args:
        words: Classes; those with descriptions stay as they are, unless these are composed.
        model: Where to ask.
        context: What is known about the imagery: sensor, resolution, region, season.
        count: Descriptions per class.
        cache: Directory for answers; None keeps none.
        progress: Called with the name of each class when it is done.

    Raises:
        PromptError: Some classes could not be written; its `partial` is the vocabulary with those that could.
    """
    client = _client(model)
    entries, failed = [], {}
    for entry in words.classes:
        if entry.descriptions and entry.prompt_source != "composed":
            entries.append(entry)
            continue
        try:
            answer = _ask(client, model, _messages(words, entry, context, count), count, cache)
        except PromptError as error:
            failed[entry.name] = str(error)
            entries.append(entry)
            continue
        synonyms = tuple(dict.fromkeys([*entry.synonyms, *answer.synonyms]))
        entries.append(_completed(entry, synonyms, tuple(answer.descriptions), model))
        if progress:
            progress(entry.name)
    provenance = {
        **words.provenance,
        "written_by": model.name,
        "date": datetime.now(UTC).date().isoformat(),
        "instruction": f"{TASK} {RULES.format(count=count)}",
        "temperature": str(model.temperature),
        "scene_context": context,
    }
    done = words.model_copy(
        update={"classes": tuple(entries), "provenance": provenance, "imagery": context or words.imagery}
    )
    if failed:
        told = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        problem = PromptError(f"{model.name} wrote no prompts for {len(failed)} of {len(entries)} classes: {told}")
        problem.partial = done
        raise problem
    return done


def _completed(
    entry: ClassEntry, synonyms: tuple[str, ...], descriptions: tuple[str, ...], model: LanguageModel
) -> ClassEntry:
    own = tuple(s for s in synonyms if s.lower() != entry.name.lower())
    return entry.model_copy(update={"synonyms": own, "descriptions": descriptions, "prompt_source": model.name})


def _messages(words: Vocabulary, entry: ClassEntry, context: str, count: int) -> list[dict[str, str]]:
    rule = words.background
    about = BACKGROUND if rule is not None and rule.class_name == entry.name else ""
    request = (
        f"Imagery: {context or words.imagery or 'not described'}\nAll classes: {', '.join(words.class_names)}\n"
        f"Class to describe: {entry.name}\n{about}\n{RULES.format(count=count)}"
    )
    return [{"role": "system", "content": TASK}, {"role": "user", "content": request}]


def _ask(client: Any, model: LanguageModel, messages: list[dict[str, str]], count: int, cache: Path | None) -> _Answer:
    """One class: ask, check, and ask again with the fault named."""
    key = hashlib.sha256(json.dumps([model.base_url, model.name, model.temperature, messages]).encode()).hexdigest()
    kept = None if cache is None else cache / f"{key}.json"
    if kept is not None and kept.is_file():
        return _Answer.model_validate(json.loads(kept.read_text("utf-8"))["answer"])
    talk, fault = list(messages), ""
    for attempt in range(ATTEMPTS):
        text = _complete(client, model, talk)
        try:
            answer = _parse(text, count)
        except ValueError as error:  # pydantic's and json's errors are ValueErrors
            fault = _short(error)
            log.info("attempt %d of %s: %s", attempt + 1, model.name, fault)
            talk = [*messages, {"role": "assistant", "content": text}]
            talk.append({"role": "user", "content": f"That was not usable: {fault}. Answer again, JSON only."})
            continue
        if kept is not None:
            record = {"model": model.name, "messages": messages, "answer": answer.model_dump()}
            content = json.dumps(record, indent=1).encode()
            files.keep(kept, partial(_write, content))
        return answer
    raise PromptError(f"no usable answer in {ATTEMPTS} attempts ({fault})")


def _write(content: bytes, temporary: Path) -> None:
    temporary.write_bytes(content)


def _parse(text: str, count: int) -> _Answer:
    fenced = re.fullmatch(r"\s*```(?:json)?\s*(.*?)\s*```\s*", text, re.S)
    answer = _Answer.model_validate_json(fenced.group(1) if fenced else text)
    if len(answer.descriptions) != count:
        raise ValueError(f"{len(answer.descriptions)} descriptions instead of {count}")
    return answer


def _short(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'answer'}: {e['msg']}" for e in error.errors())
    return str(error)


def _client(model: LanguageModel) -> Any:
    try:
        from openai import OpenAI
    except ImportError as error:
        raise PromptError('writing prompts needs the client library: pip install "ovrs[prompts]"') from error
    # servers of one's own usually want no key, but the client insists on one
    key = os.environ.get("OPENAI_API_KEY") or ("none" if model.base_url else None)
    if key is None:
        raise PromptError("set OPENAI_API_KEY, or name a server of your own with --llm-base-url")
    return OpenAI(base_url=model.base_url, api_key=key, timeout=model.timeout, max_retries=model.retries)


def _complete(client: Any, model: LanguageModel, messages: list[dict[str, str]]) -> str:
    """Return the text of one answer.

    Raises:
        PromptError: The endpoint is down, hangs, refuses the key, or the model refuses to answer.
    """
    import openai

    schema = {"name": "prompts", "strict": True, "schema": _Answer.model_json_schema()}
    try:
        done = client.chat.completions.create(
            model=model.name,
            messages=messages,
            temperature=model.temperature,
            response_format={"type": "json_schema", "json_schema": schema},
        )
    except openai.APITimeoutError as error:
        raise PromptError(f"{model.base_url or 'the endpoint'} did not answer within {model.timeout:g} s") from error
    except openai.APIConnectionError as error:
        raise PromptError(
            f"{model.base_url or 'the endpoint'} cannot be reached: {error.__cause__ or error}"
        ) from error
    except openai.APIStatusError as error:
        raise PromptError(f"the endpoint answered {error.status_code}: {error.message}") from error
    message = done.choices[0].message if done.choices else None
    if message is None or getattr(message, "refusal", None):
        raise PromptError(f"the model refused: {getattr(message, 'refusal', None) or 'no answer'}")
    return message.content or ""
