"""What a run can be told: one frozen object for scene, model, method and run each. Unknown keys are refused."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from ovrs.errors import OptionError
from ovrs.foreign import is_file, read_object
from ovrs.methods import preset, recommended, registry, told
from ovrs.methods.base import AbsolutePath, Fields, Moment

if TYPE_CHECKING:
    from pydantic import GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema

    from ovrs.methods.base import Method, Settings
    from ovrs.words.vocabulary import Vocabulary

SAM3_FILE = "sam3.pt"
"""The published file of SAM 3's authors."""
SAM3_NAMES = ("sam3", "facebook/sam3", "sam3-tiny")


class SceneOptions(Fields):
    """How the raster is read."""

    APART: ClassVar[Mapping[str, str]] = {
        "bands": "the bands that were chosen enter with the radiometry",
        "stretch": "the limits that it gives enter with the radiometry",
        "nodata": "the value in force enters with the radiometry",
        "gsd": "the grid enters",
        "bbox": "the grid enters",
        "aoi": "its polygons enter with the grid: the same file may hold others tomorrow",
        "allow_ungeoreferenced": "the grid enters, with or without a place on the ground",
        "acquired": "no pixel depends on it",
    }

    bands: tuple[int, ...] | None = None
    """One-based band numbers used as red, green, blue; one band is replicated. Default: the RGB bands, else the first three."""
    gsd: float | None = Field(default=None, gt=0)
    """Pixel size of the grid to work on, in metres on the ground at the scene's centre. Default: the source's own."""
    bbox: tuple[float, float, float, float] | None = None
    """left, bottom, right, top in the CRS of the scene: only this part is mapped."""
    aoi: AbsolutePath = None
    """Vector file whose polygons restrict the work: pixels whose centre lies outside are no data. `FILE|layer=NAME` names a
    layer. Made absolute, so that a run can be resumed from any directory; in a catalog, relative to the catalog."""
    stretch: tuple[float, float] | None = None
    """Percentiles that become 0 and 255. Default: none for uint8, (2, 98) for every other type."""
    nodata: float | None = Field(default=None, allow_inf_nan=True)
    """Replaces the source's nodata values; its masks and alpha band still count."""
    allow_ungeoreferenced: bool = False
    """Map a raster without CRS or transform on its pixel grid."""
    acquired: Moment = None
    """When the scene was recorded, ISO 8601 (2024-06-01, 2024-06-01T10:30Z): the `datetime` of a STAC Item. Without a zone it is
    UTC. Default: what the file says."""

    @field_serializer("nodata", when_used="json")
    def _as_text(self, value: float | None) -> float | str | None:
        """NaN and infinity as text: JSON has no number for them."""
        return value if value is None or math.isfinite(value) else repr(value)


class ModelOptions(Fields):
    """Which network gives the features."""

    APART: ClassVar[Mapping[str, str]] = {
        "model": "name, weights, architecture and recommendations of the loaded network enter: a folder may be moved",
        "pretrained": "as for model",
        "device": "the kind of device enters; which of several alike changes nothing",
        "crop": "the windows that it leads to enter",
        "stride": "the windows that it leads to enter",
        "zoom": "the windows that it leads to enter",
        "wide": "the windows that it leads to enter",
        "turned": "the windows that it leads to enter",
        "pixel_size": "the windows that it leads to enter",
    }

    model: str = "bundled"
    """`bundled`, a name that `ovrs models` lists, an open_clip name such as `ViT-B-16`, a local directory in open_clip's format,
    `hf-hub:ORG/NAME` for a repository in that format; `sam3`, a directory with SAM 3's weights, or `sam3-tiny`."""
    pretrained: str | None = None
    """open_clip's tag of the weights, or a file that holds them, for a model named by open_clip's name."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|(cuda|mps|xpu)(:\d{1,3})?)$")
    """`auto`, `cpu`, `cuda`, `cuda:1`, …"""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of the vision tower; everything after it is float32."""
    tiles_at_once: int | None = Field(default=None, ge=1, le=256)
    """Tiles that are looked at in one batch. Default: 1 on a CPU; on a GPU as many as its memory holds, at most 16."""
    compile: bool = False
    """Compile the tower's blocks with torch.compile; needs a C++ compiler (CPU) or Triton (CUDA), and a minute at start."""
    crop: int | None = Field(default=None, ge=16)
    """Side of the model's window in pixels. Default: as the model recommends, else its training size."""
    stride: int | None = Field(default=None, ge=1)
    """Distance between windows. Default: as the model recommends, else half the crop; SAM 3 three quarters."""
    zoom: float | None = Field(default=None, ge=0.25, le=8)
    """How many times windows are enlarged before the model sees them: patches then cover less ground. Default: as the
    model recommends for the imagery's pixel size, else 1. The window of a zoom of 2 covers half of the model's training size,
    unless `crop` is given."""
    wide: tuple[int, ...] | None = None
    """Add windows that cover k × k crops, for each k named here, and take the mean over the sizes. Default: as the model
    recommends for the pixel size of the imagery; none if `zoom` or `crop` is given."""
    turned: bool | None = None
    """Show wider windows turned, each size in another way; the mean is then over orientations too. Default: as the
    model recommends."""
    pixel_size: float | None = Field(default=None, gt=0)
    """Metres per pixel of the imagery, by which a model may choose its windows. Default: the scene's own, if it has a place on
    the ground; otherwise unknown."""

    @field_validator("wide")
    @classmethod
    def _sides(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and any(v < 2 for v in value):
            raise ValueError("a wider window covers at least 2 x 2 ordinary ones")
        return None if value is None else tuple(sorted(set(value)))

    def told(self, pixel_size: float | None) -> ModelOptions:
        """Return these options with the pixel size of the imagery in metres.

        An option that is set stays. Only models of the family `clip` choose their crops by the pixel size.
        """
        if pixel_size is None or self.pixel_size is not None or self.family != "clip":
            return self
        return self.model_copy(update={"pixel_size": pixel_size})

    @property
    def family(self) -> Literal["clip", "sam3", "trivial"]:
        """Which kind of network `model` names; a directory tells by its `config.json`, or by the name of SAM 3's own file.

        Raises:
            OptionError: That file is damaged.
        """
        if self.model == "trivial":
            return "trivial"
        if self.model in SAM3_NAMES:
            return "sam3"
        place = Path(self.model)
        config = place / "config.json"
        if is_file(place / "open_clip_config.json"):
            return "clip"
        if not is_file(config):
            return "sam3" if is_file(place / SAM3_FILE) else "clip"
        try:
            kind = str(read_object(config).get("model_type", ""))
        except ValueError as error:
            raise OptionError(f"--model {self.model}: {error}") from error
        return "sam3" if kind.startswith("sam3") else "clip"


class MethodOptions(BaseModel):
    """What a run is told about its method: the name, and options of it. What is not told is settled by `resolved`."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    method: str = "tmpa"
    """One of `ovrs methods`. Default: `tmpa`, or `coco_sam3` for a model of SAM 3."""

    @model_validator(mode="before")
    @classmethod
    def _checked(cls, data: object, info: ValidationInfo) -> object:
        """Refuse what the named method does not read, or what no method reads; give values their types."""
        if isinstance(data, MethodOptions):
            data = data.model_dump(exclude_unset=True)
        if not isinstance(data, Mapping):
            return data
        try:
            return told.checked(data, info.context)
        except OptionError as error:
            raise ValueError(str(error)) from error

    @property
    def told(self) -> dict[str, Any]:
        """The options that were told, beside the method's name."""
        return dict(self.model_extra or {})

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return told.schema(cls.__doc__ or "")


class RunOptions(Fields):
    """Where and how the work runs. Nothing here changes a pixel except `block_pitches` through floating-point order."""

    APART: ClassVar[Mapping[str, str]] = {
        "executor": "every executor computes the same blocks",
        **dict.fromkeys(("workers", "scheduler", "tls_ca", "tls_cert", "tls_key", "resources"), "as for executor"),
        "allow_mixed": "workers that differed stand in the map's record",
        "batch": "says which blocks travel together, not what is in them",
        "pyramid": "overviews repeat the map's own pixels",
        "shards": "enters with the plan where blocks are shards: the default depends on the place",
        "allow_holes": "failed blocks are no data and stand in the map's record",
    }

    @model_validator(mode="before")
    @classmethod
    def _scheduler(cls, data: object) -> object:
        """Take Dask where a scheduler is named."""
        if isinstance(data, dict) and data.get("scheduler") and data.get("executor") is None:
            return {**data, "executor": "dask"}
        return data

    block_pitches: int = Field(default=8, ge=1, le=64)
    """Side of a block in tile pitches."""
    zarr_format: Literal[2, 3] = 3
    """Of the store: 3, or 2 for a GIS with GDAL before 3.11."""
    shards: bool | None = None
    """One file per block and array, with chunks of one pitch inside; Zarr format 3. Default: in object storage."""
    store_scores: bool = False
    """Also keep every class's score, quantised to uint8."""
    executor: Literal["serial", "threads", "dask"] = "serial"
    """Where blocks are computed: one after the other, in threads, or by Dask workers. Default: serial; dask with a scheduler."""
    workers: int = Field(default=2, ge=1, le=1024)
    """Threads, or local Dask workers."""
    scheduler: str | None = None
    """Address of a standing Dask scheduler, `tcp://host:8786`, or `tls://host:8786`."""
    tls_ca: AbsolutePath = None
    """Certificate of the authority, for `tls://`. Default: Dask's setting `distributed.comm.tls.ca-file`."""
    tls_cert: AbsolutePath = None
    """Certificate of this client. Default: Dask's setting `distributed.comm.tls.client.cert`."""
    tls_key: AbsolutePath = None
    """Key of this client. Default: Dask's setting `distributed.comm.tls.client.key`."""
    allow_mixed: bool = False
    """Take Dask workers of different versions, devices or thread counts; the map's record names them."""
    resources: dict[str, float] = Field(default_factory=dict)
    """Dask resources that each piece of work takes, `{"GPU": 1}`; workers are started with `--resources GPU=1`."""
    batch: int = Field(default=4, ge=1, le=1024)
    """Consecutive blocks given to a thread or Dask worker at a time: neighbours share tiles, and Dask workers read ahead."""
    pyramid: bool = True
    """Write overview levels."""
    allow_holes: bool = False
    """Finish although blocks failed; they are no data and the map says so."""


class MapOptions(Fields):
    """Everything a run is told, written into the store."""

    scene: SceneOptions = SceneOptions()
    """How the raster is read."""
    model: ModelOptions = ModelOptions()
    """Which network gives the features."""
    method: MethodOptions = Field(default=MethodOptions(), validate_default=True)
    """How features and text become scores. The model's family decides where no method is named: `tmpa` for CLIP,
    `coco_sam3` for SAM 3."""
    run: RunOptions = RunOptions()
    """Where and how the work runs."""

    @field_validator("method")
    @classmethod
    def _of_the_family(cls, value: MethodOptions, info: ValidationInfo) -> MethodOptions:
        model = info.data.get("model")  # absent if it is invalid itself
        if model is None or "method" in value.model_fields_set:
            return value
        name = "coco_sam3" if model.family == "sam3" else value.method
        checked = MethodOptions.model_validate({**value.told, "method": name}, context=info.context)
        return value.model_copy(update={"method": checked.method, **checked.told})


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One option, for help and documentation."""

    kind: type[Fields]
    """The class that has it."""
    default: Any
    help: str
    methods: tuple[str, ...] = ()
    """Methods that read it; empty for options of other sections."""

    choices: tuple[str, ...] = ()
    """The only values that it takes."""

    @property
    def switch(self) -> bool:
        """Whether it is true or false."""
        return self.choices == ("true", "false")


def listing() -> dict[str, Listed]:
    """Every option by `SECTION.KEY`; an option of several methods is told as the first of them tells it."""
    found: dict[str, Listed] = {}
    kinds: dict[str, type[Fields]] = {"scene": SceneOptions, "model": ModelOptions, "run": RunOptions}
    for section, kind in kinds.items():
        found |= {f"{section}.{name}": _listed(kind, name) for name in kind.model_fields}
    found["method.method"] = _listed(registry.METHODS["tmpa"].settings, "method", help=_METHOD_HELP, choices=())
    for method in registry.METHODS.values():
        for name in method.settings.model_fields:
            readers = tuple(registry.readers(name))
            found.setdefault(f"method.{name}", _listed(method.settings, name, methods=readers))
    return found


_METHOD_HELP = "One of `ovrs methods`. Default: `tmpa`, or `coco_sam3` for a model of SAM 3."


def _listed(kind: type[Fields], name: str, **more: Any) -> Listed:
    field = kind.model_fields[name]
    told = {
        "help": " ".join((field.description or "").split()),
        "choices": preset.choices(field.annotation),
        "default": field.get_default(call_default_factory=True),
    }
    return Listed(kind=kind, **{**told, **more})


def parse(pairs: Sequence[str], flags: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """Sections for `build`, of `SECTION.KEY=VALUE` pairs; a key without section, or of `sam3`, is the method's.

    Args:
        pairs: Each with a value in YAML; several numbers may be separated by commas.
        flags: `SECTION.KEY` to text that is taken as it is.

    Raises:
        OptionError: No equals sign, a key that is none or that is said twice, or a value that does not fit it.
    """
    known = listing()
    found: dict[str, dict[str, Any]] = {"scene": {}, "model": {}, "method": {}, "run": {}}
    own = []
    for key, text in (flags or {}).items():
        section, _, name = key.partition(".")
        found[section][name] = preset.listed(known[key].kind, name, text, f"--{name.replace('_', '-')}")
    for pair in pairs:
        key, _, text = pair.partition("=")
        section, dot, name = key.partition(".")
        if not dot or section not in found or section == "method":
            own.append(pair)
            continue
        if key not in known:
            listed = ", ".join(k for k in known if k.startswith(f"{section}."))
            raise OptionError(f"--set {key}: no such option; choose one of {listed}")
        if name in found[section]:
            raise OptionError(f"{key} is given twice")
        found[section][name] = preset.read_value(known[key].kind, name, text, f"--set {key}")
    settings = preset.parse_settings(own)
    if twice := sorted(settings.keys() & found["method"].keys()):
        raise OptionError(f"method.{twice[0]} is given twice")
    return {**found, "method": {**found["method"], **settings}}


def build(**sections: Mapping[str, object]) -> MapOptions:
    """Validate nested dictionaries into options.

    Raises:
        OptionError: Names each wrong field, its value and the limit.
    """
    try:
        return MapOptions.model_validate(
            {k: {n: v for n, v in s.items() if v is not None} for k, s in sections.items()}
        )
    except ValidationError as error:
        raise OptionError(registry.faults(error)) from error


def resolved(model: ModelOptions, method: MethodOptions, words: Vocabulary) -> Settings:
    """Return the settings of a run's method, complete. Reads the model's `ovrs.json`; loads no weights.

    Raises:
        OptionError: See `ovrs.methods.registry.resolve`, and a method of another kind of network, or too few classes.
        WeightsError: The model's recommendations are damaged.
    """
    found = registry.method(method.method)
    _require_family(found, model)
    rule = {} if words.background is None else {"threshold": words.background.threshold}
    own = recommended.of_model(model.model).of(found.name) if model.family == found.family == "clip" else {}
    imposed(model, found.name)
    return registry.resolve(found.name, rule, method.told, recommended=own)


def imposed(model: ModelOptions, method: str) -> ModelOptions:
    """`model` with what a method imposes on it.

    Raises:
        OptionError: The user asked for something else.
    """
    return model.model_copy(update=registry.require_free(method, dict(model)))


def _require_family(found: Method, model: ModelOptions) -> None:
    if model.family == "trivial" or model.family == found.family:
        return
    if found.family == "sam3":
        raise OptionError(f"method {found.name} needs SAM 3: add --model sam3 (or a directory with its weights)")
    raise OptionError(
        f"method {found.name!r} is for CLIP models; with SAM 3 choose one of {', '.join(registry.of_family('sam3'))}"
    )
