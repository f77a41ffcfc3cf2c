"""What a run can be told. One frozen object per stage; unknown keys are refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, Field, ValidationError, ValidationInfo, field_validator, model_validator

from ovrs.errors import OptionError
from ovrs.foreign import is_file, read_object
from ovrs.yamlfile import STRICT, numbers_are_numbers

SAM3_NAMES = ("sam3", "facebook/sam3", "sam3-tiny")


class _Options(BaseModel):
    model_config = STRICT

    APART: ClassVar[Mapping[str, str]] = {}
    """Fields that do not enter a run's digest as they are given, each with the reason. All other fields enter."""

    @model_validator(mode="before")
    @classmethod
    def _numbers(cls, data: object) -> object:
        return numbers_are_numbers(cls, data)

    def decisive(self) -> dict[str, Any]:
        """The fields that enter a run's digest, as plain data: another value is another run."""
        return self.model_dump(mode="json", exclude=set(self.APART))


def _absolute(value: Path | None, info: ValidationInfo) -> Path | None:
    """A path from the working directory, or from the folder `base` of the validation's context (a catalog's)."""
    base = (info.context or {}).get("base")
    return None if value is None else (value if base is None else base / value).absolute()


AbsolutePath = Annotated[Path | None, AfterValidator(_absolute)]


class SceneOptions(_Options):
    """How the raster is read."""

    APART = {
        "bands": "the bands that were chosen enter with the radiometry",
        "stretch": "the limits that it gives enter with the radiometry",
        "nodata": "the value in force enters with the radiometry",
        "gsd": "the grid enters",
        "bbox": "the grid enters",
        "aoi": "its polygons enter with the grid: the same file may hold others tomorrow",
        "allow_ungeoreferenced": "the grid enters, with or without a place on the ground",
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


class ModelOptions(_Options):
    """Which network gives the features."""

    APART = {
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
    """`bundled`, an open_clip name such as `ViT-B-16`, a local directory in open_clip's format, `hf-hub:ORG/NAME` for a
    repository in that format; `sam3`, a directory with SAM 3's weights, or `sam3-tiny`."""
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
    """Look also through windows over so many × so many of the ordinary ones, and take the mean. Default: as the model
    recommends for the imagery's pixel size, none if `zoom` or `crop` is given."""
    turned: bool | None = None
    """Show wider windows turned, each size of them in another way: the mean is then over orientations too. Default: as the
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
        """With the imagery's pixel size, where it is known, was not given, and a model may choose its windows by it."""
        if pixel_size is None or self.pixel_size is not None or self.family != "clip":
            return self
        return self.model_copy(update={"pixel_size": pixel_size})

    @property
    def family(self) -> Literal["clip", "sam3", "trivial"]:
        """Which kind of network `model` names; a directory tells by its `config.json`.

        Raises:
            OptionError: That file is damaged.
        """
        if self.model == "trivial":
            return "trivial"
        if self.model in SAM3_NAMES:
            return "sam3"
        config = Path(self.model) / "config.json"
        if not is_file(config) or is_file(Path(self.model) / "open_clip_config.json"):
            return "clip"
        try:
            kind = str(read_object(config).get("model_type", ""))
        except ValueError as error:
            raise OptionError(f"--model {self.model}: {error}") from error
        return "sam3" if kind.startswith("sam3") else "clip"


class Sam3Options(_Options):
    """SAM 3's methods (`docs/sam3.md`); on the command line `--set sam3.NAME=VALUE`."""

    APART = {
        "probe": "the weight that the verdict allows enters, with its reason",
        "alignment": "the arrays of the file enter",
        "prior_model": "the description of the loaded CLIP enters",
        "prior_pretrained": "as for prior_model",
    }

    structure_head: Literal["both", "semantic", "instance"] = "both"
    """CoCo-SAM3: which masks are evidence."""
    structure_prompts: Literal["name", "all"] | None = None
    """Whether the detector is asked for synonyms too. Default: `segearth_ov3` all, others name."""
    score_floor: float = Field(default=0.3, ge=0, le=1)
    """CoCo-SAM3: instances with a lower object score do not count."""
    confidence: float = Field(default=0.3, ge=0, le=1)
    """SegEarth-OV3: the same, for object score times presence."""
    presence_weight: float = Field(default=1.0, ge=0)
    """CoCo-SAM3: weight of the presence logit."""
    presence_rescue: bool = False
    """CoCo-SAM3: on a tile where no class is present, judge background by the masks alone."""
    presence_floor: float | None = None
    """Phrases whose presence logit lies below it are not given masks (saves the mask decoder). Default: all are."""
    prior_space: Literal["none", "rs_clip", "sam3", "sam3_neck", "prototype", "aligned"] = "rs_clip"
    """Where pixels are compared with phrases."""
    prior_preset: Literal["stabilised", "literal"] = "stabilised"
    """Spaces inside SAM 3: with layer norm and centring, or the bare product."""
    prior_layer: int | None = Field(default=None, ge=0)
    """Block of the vision tower (from 0). Default: the last global layer but one (23)."""
    prior_weight: float = Field(default=1.0, ge=0)
    """λ. Used only when the space passed the probe."""
    prior_tau: float = Field(default=0.1, gt=0)
    """Temperature of the cosines."""
    prior_model: str = "bundled"
    """`rs_clip`: any CLIP that --model takes."""
    prior_pretrained: str | None = None
    require_probe: bool = True
    """Keep λ at 0 until a verdict accepts the space; false is for ablations."""
    probe: AbsolutePath = None
    """Verdict written by `ovrs sam3 probe`."""
    alignment: AbsolutePath = None
    """`aligned`: map written by `ovrs sam3 align`."""
    synonyms: int = Field(default=3, ge=0)
    """At most so many synonyms of a class; 0 is the paper's SEC row."""
    background: Literal["threshold", "prompt"] | None = None
    """Whether the background class is only what stays below the threshold, or asked for too. Default: `segearth_ov3`
    prompt, others threshold."""
    prompt_chunk: int | None = Field(default=None, ge=1)
    """Phrases grounded at a time. Default: 2 on a CPU, 4 on a GPU (halved when its memory is short)."""


class MethodOptions(_Options):
    """How features and text become scores. Defaults marked *model* come from the model's own metadata.

    Options that a method does not use are refused by `ovrs.model.clip.build`, so that none is silently ignored.
    """

    APART = {
        "threshold": "the rule of decision enters",
        "proxy_weights": "the weights in the file enter",
        "upsampler_weights": "the weights in the file enter",
        "sam3": "enters by itself where SAM 3 is used; the methods of CLIP refuse it",
    }

    method: str = "tmpa"
    """One of `ovrs methods`."""
    adaptation: Literal["tile", "scene"] | None = None
    """TMPA: calibrate the text for each tile, as in the paper, or once for the scene from a sample of its tiles. Default: scene
    for `tmpa`, tile for the others."""
    scene_tiles: int = Field(default=32, ge=1, le=4096)
    """TMPA with `adaptation` scene: tiles in that sample."""
    bias: Literal["entropy", "learned"] | None = None
    """TMPA: how far the text moves. `entropy`: by how unsure the text is of the scene, nothing is learned; `learned`: the
    paper's α, by descent. Default: entropy for `adaptation` scene, learned for tile and where options of the descent are given."""
    dense: str | None = None
    """Variant of the last block. Default: *model* (`segearth`)."""
    proxy_model: str = "vit_base_patch8_224.dino"
    """`proxyclip` and `cass`: a timm ViT."""
    proxy_weights: AbsolutePath = None
    """`proxyclip` and `cass`: a local checkpoint of it; without one, timm fetches the published weights."""
    upsampler: str | None = None
    """`bilinear`, `jbu_one` or `jbu_stack`. Default: *model* (bilinear)."""
    upsampler_rank: int = Field(default=64, ge=0)
    """Joint bilateral upsamplers: dimensions in which the lengths of pixel features are measured; 0 takes all (exact)."""
    upsampler_weights: AbsolutePath = None
    """Weights of a joint bilateral upsampler. Default: *model*."""
    cls_weight: float | None = Field(default=None, ge=-2, le=2)
    """SegEarth-OV's λ: weight of the global token's logits. Default: *model*; CASS 0.43, the LayerNorm methods 0."""
    logit_scale: float | None = Field(default=None, gt=0)
    """Inverse temperature s. Default: *model*."""
    threshold: float | None = Field(default=None, ge=0, le=1)
    """Probability below which a pixel becomes background. Default: the vocabulary's rule."""
    aggregate: Literal["max", "mean", "mixed"] | None = None
    """How the queries of a class are joined. Default: *model* (max)."""
    aggregate_weight: float = Field(default=0.8, ge=0, le=1)
    """`aggregate` mixed: share of the maximum, the rest is the mean."""
    balance: bool = False
    """Take the logarithm of a class's number of queries off its logits."""
    prompts: Literal["all", "names", "synonyms"] | None = None
    """What of the vocabulary is asked for: names, names and synonyms, or all with the descriptions. Default: *model* (all; the
    bundled model asks for names)."""
    bare: bool | None = None
    """Ask for the bare words, without CLIP's 80 templates (not for methods with templates of their own). Default: *model* (no)."""
    split_names: bool | None = None
    """Ask for a class name that lists things, "trees, grass and crops", also thing by thing. Default: *model* (no)."""
    prefix: bool | None = None
    """Put the class's name before each of its descriptions, as TMPA's prompt files do. Default: *model* (yes)."""
    pamr: int = Field(default=0, ge=0, le=100)
    """Steps of pixel-adaptive refinement of each tile's scores; NACLIP and CASS use 10."""
    area_threshold: float = Field(default=0.0, ge=0, le=1)
    """Share of a tile's foreground below which a class is dropped from it (SCLIP)."""
    crop_blend: Literal["taper", "mean"] = "taper"
    """How overlapping crops are averaged: by a weight that falls towards a crop's border, or all alike as in the papers
    (crops then show as boxes; `tmpa_compat` always does this)."""
    steps: int | None = Field(default=None, ge=0, le=1000)
    """Optimisation steps per tile. Default: the method's own (TMPA 3, others 10); TMPA's 0 keeps the initial visual bias."""
    alpha_init: float | None = Field(default=None, ge=0, le=1)
    """TMPA: visual bias to start from. Default: *model* (0.02; `tmpa_compat` always 0.02)."""
    alpha_max: float = Field(default=0.5, gt=0, le=1)
    absent: Literal["text", "mean"] | None = None
    """TMPA: what classes without prototype move toward. Default: *model* (text, the paper's)."""
    keep_shares: float | None = Field(default=None, ge=0)
    """TMPA: weight of keeping the tile's class shares. Default: *model* (0, the paper's loss)."""
    lr: float | None = Field(default=None, gt=0)
    """Learning rate of α, of the LayerNorms, or of the context. Default: the method's own (TMPA *model*, else 0.01;
    WATT 0.0001, others 0.001)."""
    lr_shift: float = Field(default=1e-4, gt=0)
    """Learning rate of δ (`tmpa_shift`, and both parameters of `tmpa_compat`)."""
    anchors: int | None = Field(default=None, ge=1)
    """Prototype patches per class and 14 × 14 window. Default: 3."""
    layers: int | None = Field(default=None, ge=1)
    """MLMP: number of deepest blocks that are fused. Default: three quarters of them."""
    image_weight: float | None = Field(default=None, ge=0)
    """MLMP: weight of the image-level entropy. Default: 1."""
    beta: float | None = Field(default=None, ge=0)
    """MLMP: sharpness of the uncertainty weights; 0 weighs all layers alike. Default: 1."""
    templates: Literal["separate", "mean", "weights", "single"] | None = None
    """MLMP: the entropy of each of the seven prompts, or of their mean vector; `weights` adapts to each prompt alone and
    averages the LayerNorm parameters; `single` takes "a photo of a {}" alone. Default: separate."""
    top: int | None = Field(default=None, ge=1)
    """CLIPArTT: classes joined in a prompt. Default: 3."""
    inner_steps: int | None = Field(default=None, ge=1)
    """WATT: steps per template. Default: 2."""
    rounds: int | None = Field(default=None, ge=1)
    """WATT: rounds over all templates. Default: 5."""
    mode: Literal["sequential", "parallel"] | None = None
    """WATT: whether a template starts from its predecessor or from the last mean. Default: sequential."""
    cluster_height: float | None = Field(default=None, gt=0)
    """CASS: where the tree of class names is cut. Default: 0.06."""
    amount: float | None = Field(default=None, ge=0, le=1)
    """CASS: how far a class moves toward the image. Default: 0.03."""
    sam3: Sam3Options = Sam3Options()
    """SAM 3's methods only."""

    @property
    def scene_level(self) -> bool:
        """Whether something is learned from the scene as a whole before the first tile."""
        return (self.adaptation or ("scene" if self.method == "tmpa" else "tile")) == "scene"


class RunOptions(_Options):
    """Where and how the work runs. Nothing here changes a pixel except `block_pitches` through floating-point order."""

    APART = {
        "executor": "every executor computes the same blocks",
        "workers": "as for executor",
        "scheduler": "as for executor",
        "resources": "as for executor",
        "batch": "says which blocks travel together, not what is in them",
        "pyramid": "overviews repeat the map's own pixels",
        "allow_holes": "failed blocks are no data and stand in the map's record",
    }

    block_pitches: int = Field(default=8, ge=1, le=64)
    """Side of a block in tile pitches."""
    zarr_format: Literal[2, 3] = 3
    store_scores: bool = False
    """Also keep every class's score, quantised to uint8."""
    executor: Literal["serial", "threads", "dask"] = "serial"
    workers: int = Field(default=2, ge=1, le=1024)
    scheduler: str | None = None
    """Address of a standing Dask scheduler, `tcp://host:8786`."""
    resources: dict[str, float] = {}
    """Dask resources that each piece of work takes, `{"GPU": 1}`; workers are started with `--resources GPU=1`."""
    batch: int = Field(default=4, ge=1, le=1024)
    """Consecutive blocks given to a thread or Dask worker at a time: neighbours share tiles, and Dask workers read ahead."""
    pyramid: bool = True
    """Write overview levels."""
    allow_holes: bool = False
    """Finish although blocks failed; they are no data and the map says so."""


class MapOptions(_Options):
    """Everything a run is told, written into the store."""

    scene: SceneOptions = SceneOptions()
    model: ModelOptions = ModelOptions()
    method: MethodOptions = Field(default=MethodOptions(), validate_default=True)
    """Where its `method` is not given, the model's family decides: `tmpa` for CLIP, `coco_sam3` for SAM 3."""
    run: RunOptions = RunOptions()

    @field_validator("method")
    @classmethod
    def _of_the_family(cls, value: MethodOptions, info: ValidationInfo) -> MethodOptions:
        model = info.data.get("model")  # absent if it is invalid itself
        if model is None or "method" in value.model_fields_set or model.family != "sam3":
            return value
        return value.model_copy(update={"method": "coco_sam3"})

    @property
    def adapts_to_scene(self) -> bool:
        """Whether a run learns from the scene as a whole; `trivial` has nothing to learn."""
        return self.method.scene_level and self.model.family != "trivial"


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
        raise OptionError(
            "; ".join(_told(fault["loc"], fault["msg"], fault["input"]) for fault in error.errors())
        ) from error


def merged(first: dict[str, Any], then: dict[str, Any]) -> dict[str, Any]:
    """`first` with what `then` says; the section `sam3` is joined key by key."""
    nested = {**first.get("sam3", {}), **then.get("sam3", {})}
    return {**first, **then, **({"sam3": nested} if nested else {})}


def _told(place: tuple[int | str, ...], what: str, given: object) -> str:
    """One fault in words; a section of options is no value that anybody typed."""
    got = "" if isinstance(given, BaseModel) else f" (got {given!r})"
    return f"{'.'.join(map(str, place))}: {what}{got}"
