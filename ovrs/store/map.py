"""A finished map as one value: what its pixels mean, where they lie on the ground, and how they came to be.

with ovrs.open("out.zarr") as mapped:
    print(mapped.names, mapped.grid.crs, mapped.record.model.method)
    labels = mapped.label[:500, :500]
    data = mapped.to_xarray()
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import zarr
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from pydantic import ValidationError
from zarr.storage import FsspecStore

from ovrs.encoding import label_nodata
from ovrs.errors import OptionError, StoreError, told
from ovrs.names import shown_names
from ovrs.objects.address import Address, place_of
from ovrs.objects.remote import knows
from ovrs.options import SceneOptions
from ovrs.redact import redacted
from ovrs.scene.opening import open_scene
from ovrs.store import layout
from ovrs.store.keys import hidden
from ovrs.store.place import filesystem, is_fault_of_reading
from ovrs.store.record import RunRecord

if TYPE_CHECKING:
    import xarray
    from odc.geo.geobox import GeoBox

    from ovrs.scene.raster import RasterScene
    from ovrs.store.layout import Layer

Colour = tuple[int, int, int]
"""Red, green, blue, 0..255."""


@dataclass(frozen=True, kw_only=True)
class MapClass:
    """One class of a map: its legend entry and its area."""

    name: str
    """One printable line, unequal to the names of all other classes (`ovrs.names.shown_names`)."""
    colour: Colour
    pixels: int
    hectares: float
    """True ground area."""
    percent: float
    """Of the valid ground area."""

    @property
    def hex(self) -> str:
        """The colour as `#rrggbb`."""
        return "#{:02x}{:02x}{:02x}".format(*self.colour)


class Map:
    """A finished map, open for reading; made by `open_map`. Pixels are read when they are asked for."""

    place: str
    """Path or URL, as it was given."""
    path: Path | None
    """The folder on this machine; None for a URL."""
    record: RunRecord
    """What went in and what came out."""
    classes: tuple[MapClass, ...]
    """In the order of the class numbers."""
    grid: GeoBox
    """CRS, transform and shape; the CRS is None for a map without a place on the ground."""
    nodata: int
    """Label of pixels without a class."""
    label: Layer
    """Class numbers `(y, x)`, uint8 or uint16."""
    confidence: Layer
    """`(y, x)`, uint8: 0..200 stand for 0..1, 255 is no data."""
    note: str = ""
    """What was done to the pixels of the store; empty for the map as it is stored."""

    def __init__(self, place: str | Path, group: zarr.Group) -> None:
        """Take a group that `ovrs.store.layout.require_finished` accepted."""
        where = place_of(place)
        self.place = str(place)
        self.path = where if isinstance(where, Path) else None
        self.group = group
        self.record = RunRecord.model_validate(group.attrs["ovrs"])
        self.grid = layout.geobox_of(group)
        self.label, self.confidence = self.layer("label"), self.layer("confidence")
        self.classes = _classes(self.label, self.record)
        self.nodata = label_nodata(len(self.classes))

    @property
    def name(self) -> str:
        """Last part of the place, such as `out.zarr`, without secrets."""
        return redacted(self.place).rstrip("/").rpartition("/")[2] if self.path is None else self.path.name

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes in the order of their numbers, one printable line each."""
        return tuple(c.name for c in self.classes)

    @property
    def colours(self) -> tuple[Colour, ...]:
        """Colours of the classes in the order of their numbers."""
        return tuple(c.colour for c in self.classes)

    @cached_property
    def scores(self) -> Layer | None:
        """Scores `(class, y, x)`, uint8 as `confidence`; None where the run did not keep them."""
        return self.layer("score") if "score" in self.group else None

    @cached_property
    def factors(self) -> tuple[int, ...]:
        """Side of a pixel of each level in pixels of the map: 1, then 2, 4, … for the overviews."""
        found = [1]
        while str(2 * found[-1]) in self.group:
            found.append(2 * found[-1])
        return tuple(found)

    def layer(self, name: str, factor: int = 1) -> Layer:
        """`label` or `confidence` of one level, or `score` of the first.

        Raises:
            StoreError: There is none, or its metadata are damaged. Reading raises it for a damaged chunk.
        """
        return layout.array(self.group, name if factor == 1 else f"{factor}/{name}")

    def scene(self) -> RasterScene:
        """Open the scene that the map was made from, as the run opened it.

        Raises:
            OvrsError: The scene is no longer there, or cannot be read.
        """
        try:
            options = SceneOptions.model_validate(self.record.options.scene)
        except ValidationError as error:
            raise StoreError(
                f"{self.place} was made by ovrs {self.record.version}, whose options for scenes this version does not "
                f"know ({error.errors()[0]['msg']}); its scene is not opened"
            ) from error
        return open_scene(self.record.uri, options)

    def to_xarray(self, factor: int = 1) -> xarray.Dataset:
        """Return the map as a dataset with its CRS (`spatial_ref`), read when values are asked for.

        Args:
            factor: Level; one of `factors`.

        Returns:
            `label` `(y, x)` with integers and CF's `flag_values` and `flag_meanings`; `confidence` `(y, x)` as float32,
            0..1, NaN for no data; `score` `(class, y, x)` alike, where the run kept scores and `factor` is 1.
            `.rio` of rioxarray and `.odc` of odc-geo find grid, CRS and no data.

        Raises:
            StoreError: There is no such level. Reading raises it for a damaged chunk.
        """
        from ovrs.store.labelled import dataset_of

        return dataset_of(self, factor)

    def close(self) -> None:
        """Let go of the store."""
        self.group.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        height, width = self.grid.shape
        where = "no CRS" if self.grid.crs is None else f"EPSG:{self.grid.crs.epsg}" if self.grid.crs.epsg else "own CRS"
        model = self.record.model
        return (
            f"<ovrs.Map {self.name}: {width} x {height} px, {where}, {len(self.classes)} classes, "
            f"{model.model} with {model.method}>"
        )

    def _repr_html_(self) -> str:
        """For notebooks: a small picture and the areas."""
        from ovrs.store.picture import card

        return card(self)


def open_map(place: str | Path) -> Map:
    """Open a finished map.

    Args:
        place: `NAME.zarr`, also as `file:///…/NAME.zarr`; or a URL that fsspec knows: `s3://bucket/NAME.zarr`,
            `https://…/NAME.zarr`.

    Raises:
        StoreError: Missing, unfinished or only partly published (says how to go on), damaged, or not written by `ovrs`.
        OptionError: No package is installed for this kind of URL.
    """
    where = place_of(place)
    return Map(place, layout.open_complete(where) if isinstance(where, Path) else _remote(str(place)))


def _remote(url: str) -> zarr.Group:
    try:
        files, root = filesystem(url)
    except OptionError:  # no package of fsspec for it
        if not knows(url):
            raise
        return layout.open_complete(Address(url.rstrip("/")))
    try:
        # sessions of fsspec, which closes them at the end of the process; those that zarr makes stay open
        store = FsspecStore(AsyncFileSystemWrapper(files, asynchronous=True), read_only=True, path=root)
        group = zarr.open_group(store, mode="r", use_consolidated=False)
    except Exception as error:
        if not is_fault_of_reading(error):
            raise
        if _exists(files, f"{root}/{layout.PUBLISHING}"):
            raise StoreError(layout.partly_published(url)) from error
        if any(_exists(files, f"{root}/{hidden(name)}") for name in layout.ROOT_FILES):
            way = f"`ovrs status {url}` shows how far it is, `ovrs resume {url}` goes on"
            raise StoreError(f"{url} is not finished; {way}") from error
        raise StoreError(f"no map at {url}, or it cannot be read ({type(error).__name__}: {told(error)})") from error
    layout.require_finished(group, url, "publish the map again with --overwrite")
    return group


def _exists(files: Any, name: str) -> bool:
    """Whether there is a file; False where the place does not answer."""
    try:
        return bool(files.exists(name))
    except Exception as error:
        if not is_fault_of_reading(error):
            raise
        return False


def _classes(label: Layer, record: RunRecord) -> tuple[MapClass, ...]:
    attributes: Any = label.attrs.asdict()
    names, colours = shown_names(attributes["class_names"]), attributes["flag_colors"].split()
    return tuple(
        MapClass(
            name=name,
            colour=(int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)),
            pixels=area.pixels,
            hectares=area.hectares,
            percent=area.percent,
        )
        for name, colour, area in zip(names, colours, record.classes, strict=True)
    )
