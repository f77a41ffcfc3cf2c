"""What a method is, and what it can be told. No torch: the code behind a method is imported when a run starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from ovrs.yamlfile import STRICT, numbers_are_numbers


class Fields(BaseModel):
    """Options as one frozen value. A field's docstring is its help, its schema text and its documentation."""

    model_config = ConfigDict(**STRICT, use_attribute_docstrings=True)

    APART: ClassVar[Mapping[str, str]] = {}
    """Fields that do not enter a run's digest as they are given, each with the reason. All other fields enter."""

    @model_validator(mode="before")
    @classmethod
    def _numbers(cls, data: object) -> object:
        return numbers_are_numbers(cls, data)

    def decisive(self) -> dict[str, object]:
        """Return the fields that enter a run's digest, as plain data: another value is another run."""
        return self.model_dump(mode="json", exclude=set(self.APART))


def _absolute(value: Path | None, info: ValidationInfo) -> Path | None:
    """Return a path from the working directory, or from the folder `base` of the validation's context (a catalog's)."""
    base = (info.context or {}).get("base")
    return None if value is None else (value if base is None else base / value).absolute()


AbsolutePath = Annotated[Path | None, AfterValidator(_absolute)]


def _in_utc(value: str | None) -> str | None:
    """Return a time in ISO 8601 with its zone; without one it is UTC."""
    if value is None:
        return None
    when = datetime.fromisoformat(value)
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).astimezone(UTC).isoformat(timespec="seconds")


Moment = Annotated[str | None, AfterValidator(_in_utc)]


@dataclass(frozen=True)
class Only:
    """Beside a field's type: where a method also has the field `field`, that must have one of these values to be of use."""

    field: str
    values: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.field} {' or '.join(self.values)}"


class Settings(Fields):
    """What one method is told, complete: `ovrs.methods.registry.resolve` makes it, and the segmenter receives it."""

    APART: ClassVar[Mapping[str, str]] = {
        "threshold": "the rule of decision enters",
        "examples": "the places and classes that it holds enter: the same file may hold others tomorrow",
    }

    method: str
    """The method's name, one of `ovrs methods`."""
    threshold: float = Field(default=0.0, ge=0, le=1)
    """Probability below which a pixel becomes background. Default: the vocabulary's rule."""
    examples: AbsolutePath = None
    """Vector file of points or polygons with a class, some ten a class: places of this scene by which CLIP's methods are
    taught. `FILE|layer=NAME` names a layer."""

    @classmethod
    def implied(cls, told: Mapping[str, Any], recommended: Mapping[str, Any]) -> dict[str, object]:  # noqa: ARG003
        """Values that follow from others: they win over `recommended` and yield to `told`."""
        return {}

    @property
    def scene_level(self) -> bool:
        """Whether something is learned from the scene as a whole before the first tile."""
        return False


class SceneSettings(Settings):
    """Settings of a method that can look at the scene as a whole first."""

    adaptation: Literal["tile", "scene"] = "tile"
    """Calibrate for each tile, or once for the scene from a sample of its tiles."""
    scene_tiles: Annotated[int, Only("adaptation", ("scene",))] = Field(default=32, ge=1, le=4096)
    """Tiles in the sample of the scene."""

    @property
    def scene_level(self) -> bool:
        """Whether it adapts once for the scene."""
        return self.adaptation == "scene"


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """A value that a method imposes on an option."""

    value: Any
    why: str
    """Ends the sentence "the method takes no other value: it …"."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """The values of an option that a method works with."""

    field: str
    values: tuple[str, ...]
    why: str
    """Ends the sentence "the method …"."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to turn features and words into scores."""

    what: str
    """One line."""
    source: str
    """Paper or released code."""
    proof: Literal["golden", "equations", "own"]
    """How its correctness is known: arrays of the authors' code, own derivation with property tests, or neither."""
    settings: type[Settings]
    """All that it can be told; the field `method` has its name as default."""
    build: str
    """`module:function` that makes the segmenter, imported when a run starts."""
    family: Literal["clip", "sam3"] = "clip"
    """Kind of network."""
    fixed: Mapping[str, Fixed] = field(default_factory=dict)
    """What it imposes on options of its settings or of the model."""
    needs: tuple[Need, ...] = ()
    """What it demands of its settings."""

    @property
    def name(self) -> str:
        """As `--method` takes it."""
        return str(self.settings.model_fields["method"].default)

    @property
    def fields(self) -> frozenset[str]:
        """The options that it reads, beside its name."""
        return frozenset(self.settings.model_fields) - {"method"}
