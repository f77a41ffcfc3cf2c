"""What a model's makers recommend (`ovrs.json` in its directory): windows, words, and settings for each method. No torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from ovrs.errors import WeightsError
from ovrs.foreign import is_directory, read_object
from ovrs.methods.registry import METHODS
from ovrs.yamlfile import STRICT, short

if TYPE_CHECKING:
    from ovrs.methods.base import Settings

METADATA_FILE = "ovrs.json"
"""Optional, beside a model's files: recommendations, and the hash of its weights."""
BUNDLED = "bundled"
LOCAL = "local-dir:"
"""open_clip's prefix of a directory; ovrs needs none."""

_OF_USERS = frozenset({"method", "proxy_weights", "upsampler_weights"})
"""What no model can recommend: the method, and files."""
_OF_TMPA = ("tmpa", "tmpa_shift")


class Windows(BaseModel):
    """Through which windows the model wants to look (`ovrs.model.clip.windows`)."""

    model_config = STRICT

    zoom: float = Field(default=1.0, ge=0.25, le=8)
    stride: int = Field(default=1, ge=1)
    pixel_sizes: tuple[Annotated[float, Field(gt=0)], ...] = ()
    wide: tuple[Annotated[int, Field(ge=2)], ...] = ()
    """Wider windows for imagery of any pixel size, beside those that `pixel_sizes` asks for."""
    turned: bool = False


class Recommendations(BaseModel):
    """The content of `ovrs.json`."""

    model_config = STRICT

    text: dict[str, object] = {}
    """Options of words, for every method that has them."""
    head: dict[str, object] = {}
    """Options of features and scores, for every method that has them."""
    methods: dict[str, dict[str, object]] = {}
    """Options of one method, by its name."""
    defaults: dict[str, object] = {}
    """All of them in one flat list, for every method that has them; the sections above win."""
    windows: Windows = Windows()
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-fA-F]{64}$")
    """Of the weights, as `ovrs.model.clip.loading.hash_weights` counts it."""
    source: Any = None
    licence: Any = None
    description: Any = None

    def of(self, name: str) -> dict[str, object]:
        """Return what is recommended for one method of CLIP; the learning rate of a flat list is TMPA's."""
        flat = {k: v for k, v in self.defaults.items() if k != "lr" or name in _OF_TMPA}
        own = {**flat, **self.text, **self.head, **self.methods.get(name, {})}
        return {k: v for k, v in own.items() if k in METHODS[name].fields}


def _kinds() -> dict[str, type[Settings]]:
    """Each option that may be recommended, and the settings of a method that has it."""
    kinds = [method.settings for method in METHODS.values() if method.family == "clip"]
    return {name: kind for kind in reversed(kinds) for name in kind.model_fields if name not in _OF_USERS}


def _checked(where: str, told: dict[str, object], kinds: Mapping[str, type[Settings]]) -> dict[str, object]:
    """Return the values of one section, with their types.

    Raises:
        WeightsError: An option that is none, or a value that does not fit it.
    """
    if unknown := sorted(told.keys() - kinds.keys()):
        raise WeightsError(
            f"{where} has {short(repr(unknown))}, which no model can recommend; it may hold {', '.join(sorted(kinds))}"
        )
    found = {}
    for name, value in told.items():
        try:
            own = kinds[name].model_validate({name: value})
        except ValidationError as error:
            raise WeightsError(_fault(where, error.errors()[0])) from error
        found[name] = getattr(own, name)
    return found


def _fault(where: str, fault: Any) -> str:
    given, name = short(repr(fault["input"])), ".".join(map(str, fault["loc"]))
    if fault["type"] == "literal_error":
        return f"{where}.{name} is {given}; choose one of {fault['ctx']['expected']}"
    return f"{where}: {name}: {fault['msg']} (got {given})"


def place_of(model: str) -> Path | None:
    """Return the directory that a model's name means; None for names of open_clip and repositories of a hub."""
    place = Path(str(resources.files("ovrs"))) / "assets" if model == BUNDLED else Path(model.removeprefix(LOCAL))
    return place if is_directory(place) else None


def read(directory: Path) -> Recommendations:
    """Read `ovrs.json` of a model's directory; without the file nothing is recommended.

    Raises:
        WeightsError: It is damaged, or recommends what no method or window takes.
    """
    file = directory / METADATA_FILE
    if not os.path.lexists(file):
        return Recommendations()
    try:
        own = Recommendations.model_validate(read_object(file))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "content"
        raise WeightsError(f"{file}: {where}: {first['msg']} (got {short(first['input'])})") from error
    except ValueError as error:
        raise WeightsError(f"{error}; install or download the model again") from error
    known = _kinds()
    if unknown := sorted(own.methods.keys() - METHODS.keys()):
        raise WeightsError(f"{file}: methods has {short(unknown[0])}; choose of {', '.join(METHODS)}")
    sections = {name: _checked(f"{file}: {name}", getattr(own, name), known) for name in ("text", "head", "defaults")}
    methods = {
        name: _checked(f"{file}: methods.{name}", told, dict.fromkeys(METHODS[name].fields, METHODS[name].settings))
        for name, told in own.methods.items()
    }
    return own.model_copy(update={**sections, "methods": methods})


def of_model(model: str) -> Recommendations:
    """Return what the makers of a model recommend, by its name; loads no weights (errors as `read`)."""
    place = place_of(model)
    return Recommendations() if place is None else read(place)
