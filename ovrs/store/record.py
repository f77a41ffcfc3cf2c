"""The record of a run as values: what went in (`run.json`), and what a finished map tells of itself (`ovrs`).

Readers are strict about what they use and tolerant of the rest: a key that this version does not know stays in the
record and in its dump, so maps of other versions open and lose nothing.
"""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from ovrs.errors import StoreError


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    def dump(self) -> dict[str, object]:
        """Return the value as JSON knows it, with every key that it was made from."""
        return self.model_dump(mode="json", exclude_unset=True)

    @classmethod
    def read(cls, content: object, where: object) -> Self:
        """Return the value that `content`, JSON from `where`, stands for.

        Raises:
            StoreError: Names the first key that lacks or is damaged.
        """
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            raise StoreError(f"{where} is damaged ({'.'.join(map(str, first['loc']))}: {first['msg']})") from error


class SceneFacts(_Part):
    """The scene as it was opened."""

    name: str
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    count: int
    """Bands."""
    dtypes: list[str]
    """NumPy's name of each band's type."""
    driver: str | None = None
    """GDAL's name of the format."""
    crs: str | None = None
    """EPSG code or WKT of the file's own grid."""
    transform: list[float] | None = None
    """Affine coefficients a to f of the file's own grid."""
    nodata: str | None = None
    """The file's own value for no data, as Python writes it."""
    bytes: int | None = None
    """Size of all files."""
    sha256: str | None = None
    """Of the bytes, or of pieces of them."""
    sampled: bool | None = None
    """Whether pieces stand for the whole."""
    version: str | None = None
    """Digest of times of change and tags."""
    acquired: str | None = None
    """When the file says that it was recorded, ISO 8601."""


class GridFacts(_Part):
    """The grid of the map."""

    crs: str | None = None
    """WKT."""
    epsg: int | None
    shape: tuple[int, int]
    """Rows, columns."""
    transform: tuple[float, float, float, float, float, float] | None = None
    """Affine coefficients a, b, c, d, e, f from column and row to x and y, in units of the CRS."""
    aoi: str | None
    """The area of interest as WKT in the CRS of the grid."""


class StretchFacts(_Part):
    """Limits of the linear stretch to 0..255, in units of the scene."""

    low: list[float]
    """One value for each band."""
    high: list[float]
    """One value for each band."""
    percentiles: tuple[float, float] | None = None
    """Shares of the pixels, in percent, that lie below `low` and `high`."""
    sample_shape: tuple[int, int] | None = None
    """Rows and columns of the read that the limits come from."""


class RadiometryFacts(_Part):
    """How the pixels of the scene became red, green and blue."""

    bands: list[int]
    """Numbers of the bands from 1: red, green, blue."""
    nodata: str | None = None
    """Value of the scene's pixels without data, as Python writes it."""
    stretch: StretchFacts | None
    """None: the pixels are bytes and stay as they are."""


class PlanFacts(_Part):
    """How the scene was cut, in pixels."""

    crop: int
    """Side of a crop."""
    stride: int
    """Step from crop to crop."""
    crops_per_tile: int | None = None
    """Crops along a side of a tile."""
    block_pitches: int | None = None
    """Steps from tile to tile along a side of a block."""


class ModelFacts(_Part):
    """The model and the method, with the facts that each tells of itself."""

    model: str
    method: str
    weights: str | None = None
    """SHA-256, or `none`."""
    licence: str | None = None
    """Of the weights, where it is told."""
    prior_weight_used: float | None = None
    """SAM 3: weight of the semantic prior."""
    prior_reason: str | None = None
    """SAM 3: why the prior has this weight."""
    deviations: list[str] | None = None
    """SAM 3: where the run departs from its paper's equations, one sentence each."""


class RuleFacts(_Part):
    """How scores became classes."""

    background: int | None
    """Number of the class that takes pixels below the threshold."""
    threshold: float
    shares: bool = False
    """Confidence is the winner's share of all classes' scores."""


class EntryFacts(_Part):
    """One class of the vocabulary."""

    name: str
    synonyms: list[str]
    descriptions: list[str]
    prompt_source: str
    """`library`, `name`, `composed`, or the language model that wrote the descriptions."""
    asked: list[str] | None = None
    """The words that were asked in place of name and synonyms, if others were."""


class VocabularyFacts(_Part):
    """The words that the map was asked for."""

    name: str
    classes: list[EntryFacts]
    provenance: dict[str, str] = {}
    """Whose words and descriptions they are."""


class OptionFacts(_Part):
    """What the run was told."""

    scene: dict[str, object]
    """Content of `ovrs.options.SceneOptions`."""


class AdaptationFacts(_Part):
    """What was learned from the scene as a whole, with the numbers that the method tells."""

    learned: str
    """Digest of what was learned."""
    tiles: int
    """Tiles that it was learned from."""


class ClassArea(_Part):
    """How much of the map one class covers."""

    name: str
    """As the vocabulary spells it."""
    pixels: int
    hectares: float
    """True ground area."""
    percent: float
    """Of the valid ground area."""


class NearTie(_Part):
    """Two classes that are often nearly as high as each other."""

    name: str
    """The class that wins."""
    second: str
    """The class that is nearly as high."""
    percent: float
    """Of the winner's counted pixels."""
    pixels: int
    """Counted pixels that the winner has."""


class RunDescription(_Part):
    """What went into a run: the content of `run.json`."""

    version: str
    """Version of ovrs."""
    uri: str
    """Path or URL of the scene, without secrets."""
    begun: str
    """Time in ISO 8601, UTC."""
    scene: SceneFacts
    grid: GridFacts
    grid_note: str
    """Whether pixels were resampled."""
    aoi_note: str = ""
    """What a reader should know of the area of interest."""
    pixel_size_m: tuple[float, float]
    """Sides of a pixel along x and y in metres on the ground."""
    metres_on_ground: bool | None = None
    """Whether sizes and areas are those on the ground; else they are in units of the CRS."""
    source_rotated: bool | None = None
    """Whether the file's own grid is turned or sheared."""
    radiometry: RadiometryFacts
    plan: PlanFacts
    model: ModelFacts
    rule: RuleFacts
    composed_prompts: list[str]
    """Classes whose descriptions are composed from their names."""
    asked_by_name: list[str] = []
    """Classes that no library knows."""
    vocabulary: VocabularyFacts
    options: OptionFacts
    versions: dict[str, str]
    """Of Python and libraries."""
    numerics: int | None = None
    """Counted up when equal inputs give other scores."""
    digest: dict[str, str]
    """One word for each part of the input; runs with equal digests give equal maps."""
    acquired: str | None = None
    """Time at which the scene was recorded, ISO 8601."""


class RunRecord(RunDescription):
    """What a finished map tells of itself: the attribute `ovrs` of its root group."""

    finished: str
    """Time in ISO 8601, UTC."""
    seconds: float
    """Computing time, summed over blocks."""
    stages: dict[str, float] | None = None
    """Seconds by stage, summed over blocks: read, compute, write, and the parts of computing."""
    mpx_per_second: dict[str, float] | None = None
    """Megapixels of map a second by stage, for one worker that does nothing else."""
    held_up_by: str | None = None
    """The slowest stage."""
    blocks: int
    holes: list[str]
    """Names of blocks that are missing and no data."""
    mixed_workers: list[dict[str, str]] | None = None
    """The kinds of Dask workers that computed blocks, where they differed and that was allowed."""
    tile_events: dict[str, int]
    """How often tiles reported what."""
    scene_adaptation: AdaptationFacts | None = None
    """None: every tile adapts alone, or nothing does."""
    valid_pixels: int
    mean_confidence: float | None
    """0..1; None for a map without valid pixels."""
    classes: list[ClassArea]
    """In the order of the class numbers."""
    near_ties: list[NearTie] | None = None
    """Pairs that tie nearly in a quarter of the winner's pixels or more; None: not counted."""


RESULTS = tuple(sorted(RunRecord.model_fields.keys() - RunDescription.model_fields.keys()))
"""Keys of a record that `run.json` does not hold."""
