"""What a run can be told. One frozen object per stage; unknown keys are refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ovrs.errors import OptionError


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SceneOptions(_Options):
    """How the raster is read."""

    bands: tuple[int, ...] | None = None
    """One-based band numbers used as red, green, blue; one band is replicated. Default: the RGB bands, else the first three."""
    gsd: float | None = Field(default=None, gt=0)
    """Ground sample distance in metres of the grid to work on. Default: the source's own."""
    bbox: tuple[float, float, float, float] | None = None
    """left, bottom, right, top in the CRS of the scene: only this part is mapped."""
    aoi: Path | None = None
    """Vector file whose polygons restrict the work; pixels outside are no data. Made absolute, so that a run can be
    resumed from any directory."""
    stretch: tuple[float, float] | None = None
    """Percentiles that become 0 and 255. Default: none for uint8, (2, 98) for every other type."""
    nodata: float | None = None
    """Overrides the source's nodata value."""
    allow_ungeoreferenced: bool = False
    """Map a raster without CRS or transform on its pixel grid."""

    @field_validator("aoi")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else value.absolute()


class ModelOptions(_Options):
    """Which network gives the features."""

    model: str = "bundled"
    """`bundled`, an open_clip name such as `ViT-B-16`, or a local directory in open_clip's format."""
    pretrained: str | None = None
    """open_clip's pretrained tag, for a model named by open_clip's name."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, …"""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of the vision tower; everything after it is float32."""
    crop: int | None = Field(default=None, ge=16)
    """Side of the model's window in pixels. Default: the model's training size."""
    stride: int | None = Field(default=None, ge=1)
    """Distance between windows. Default: half the crop."""


class MethodOptions(_Options):
    """How features and text become scores. Defaults marked *model* come from the model's own metadata."""

    method: str = "tmpa"
    """`none`, `tent`, `mlmp`, `tmpa`, `tmpa_shift` or `tmpa_compat`."""
    dense: str | None = None
    """Variant of the last block. Default: *model* (`segearth`)."""
    cls_weight: float | None = Field(default=None, ge=-2, le=2)
    """SegEarth-OV's λ: weight of the global token's logits. Default: *model*."""
    logit_scale: float | None = Field(default=None, gt=0)
    """Inverse temperature s. Default: *model*."""
    threshold: float | None = Field(default=None, ge=0, le=1)
    """Probability below which a pixel becomes background. Default: the vocabulary's rule."""
    aggregate: Literal["max", "mean"] = "max"
    """How the queries of a class are joined."""
    crop_blend: Literal["taper", "mean"] = "taper"
    """How overlapping crops are averaged: by a weight that falls towards a crop's border, or all alike as in the papers
    (crops then show as boxes; `tmpa_compat` always does this)."""
    steps: int | None = Field(default=None, ge=0, le=1000)
    """Optimisation steps per tile. Default: the method's own (TMPA 3, TENT and MLMP 10); TMPA's 0 keeps the initial visual bias."""
    alpha_init: float = Field(default=0.02, ge=0, le=1)
    alpha_max: float = Field(default=0.5, gt=0, le=1)
    lr: float | None = Field(default=None, gt=0)
    """Learning rate of α, or of the LayerNorms. Default: the method's own (TMPA 0.01, TENT and MLMP 0.001)."""
    lr_shift: float = Field(default=1e-4, gt=0)
    """Learning rate of δ (`tmpa_shift`, and both parameters of `tmpa_compat`)."""
    anchors: int | None = Field(default=None, ge=1)
    """Prototype patches per class and 14 × 14 window. Default: 3."""


class RunOptions(_Options):
    """Where and how the work runs. Nothing here changes a pixel except `block_pitches` through floating-point order."""

    block_pitches: int = Field(default=8, ge=1, le=64)
    """Side of a block in tile pitches."""
    zarr_format: Literal[2, 3] = 3
    store_scores: bool = False
    """Also keep every class's score, quantised to uint8."""
    executor: Literal["serial", "threads", "dask"] = "serial"
    workers: int = Field(default=2, ge=1)
    scheduler: str | None = None
    """Address of a standing Dask scheduler, `tcp://host:8786`."""
    pyramid: bool = True
    """Write overview levels."""
    allow_holes: bool = False
    """Finish although blocks failed; they are no data and the map says so."""


class MapOptions(_Options):
    """Everything a run is told, written into the store."""

    scene: SceneOptions = SceneOptions()
    model: ModelOptions = ModelOptions()
    method: MethodOptions = MethodOptions()
    run: RunOptions = RunOptions()


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
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']} (got {e['input']!r})" for e in error.errors())
        raise OptionError(faults) from error
