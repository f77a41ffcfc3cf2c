"""Areas of interest and rasters that are wrong."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import from_origin

from .runner import Case

LEFT, TOP, SIZE = 500000, 5600000, 0.5
INSIDE = [[LEFT + 5, TOP - 5], [LEFT + 30, TOP - 5], [LEFT + 30, TOP - 30], [LEFT + 5, TOP - 30], [LEFT + 5, TOP - 5]]


def make_material(folder: Path) -> Path:
    """`scene/scene.tif`: 96 × 112 pixels of 0.5 m."""
    (folder / "scene").mkdir()
    rng = np.random.default_rng(0)
    pixels = np.repeat(np.repeat(rng.integers(1, 255, (3, 6, 7), np.uint8), 16, 1), 16, 2)
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "height": 96, "width": 112, "crs": "EPSG:32633"}
    with rasterio.open(
        folder / "scene/scene.tif", "w", **profile, transform=from_origin(LEFT, TOP, SIZE, SIZE)
    ) as target:
        target.write(pixels)
    return folder


def make_maps(folder: Path) -> Path:
    """`maps/finished` and `maps/begun` hold `map.zarr` or its parts, `maps/net` a tiny model directory."""
    from ovrs import pipeline
    from ovrs.options import build
    from ovrs.run import begin
    from ovrs.words import vocabulary

    words = vocabulary.from_names(["water", "road"])
    options = build(model={"model": "trivial"}, run={"block_pitches": 1})
    for name in ("finished", "begun"):
        (folder / "maps" / name).mkdir(parents=True)
        begun = begin.prepare(folder / "scene/scene.tif", words, folder / "maps" / name / "map.zarr", options)
        if name == "finished":
            pipeline.run(begun)
        else:
            pipeline.compute(begun, begun.missing()[:1])
    _write_tiny_model(folder / "maps/net")
    return folder / "maps"


def _write_tiny_model(directory: Path) -> None:
    """A CLIP with random weights in open_clip's directory format."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1}
    torch.manual_seed(0)
    directory.mkdir()
    network = open_clip.CLIP(16, dict(vision), dict(text))
    save_file(network.state_dict(), directory / "open_clip_model.safetensors")
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3}
    content = {"model_cfg": config, "preprocess_cfg": preprocess}
    (directory / "open_clip_config.json").write_text(json.dumps(content))


def area(rng: random.Random, folder: Path) -> Case:
    """A file for `--aoi` that is no area, or none here."""
    name, about, may_pass = rng.choice(AREAS)(rng, folder)
    command = ["map", "scene.tif", "--classes", "water, road", "--model", "trivial", "-o", "out.zarr", "--aoi", name]
    return Case(command, about, may_pass)


def _feature(kind: str, coordinates: Any) -> dict[str, Any]:
    return {"type": "Feature", "properties": {}, "geometry": {"type": kind, "coordinates": coordinates}}


def _collection(features: list[Any], crs: str | None = "EPSG:32633") -> dict[str, Any]:
    named = {} if crs is None else {"crs": {"type": "name", "properties": {"name": crs}}}
    return {"type": "FeatureCollection", **named, "features": features}


def _good() -> dict[str, Any]:
    return _collection([_feature("Polygon", [INSIDE]), _feature("Polygon", [INSIDE])])


def _geojson(rng: random.Random, folder: Path) -> tuple[str, str, bool]:
    """Correct GeoJSON of what is no area here."""
    x, y = LEFT + 10.05, TOP - 10.2
    far = [[a + 1e5, b] for a, b in INSIDE]
    kinds: list[tuple[str, Any]] = [
        ("points", _collection([_feature("Point", [LEFT + 9, TOP - 9])])),
        ("a line", _collection([_feature("LineString", INSIDE)])),
        ("no feature", _collection([])),
        ("no geometry", _collection([{"type": "Feature", "properties": {}, "geometry": None}])),
        ("an empty polygon", _collection([_feature("Polygon", [])])),
        ("beside the scene", _collection([_feature("Polygon", [far])])),
        ("in degrees by mistake", _collection([_feature("Polygon", [INSIDE])], None)),
        (
            "smaller than a pixel",
            _collection([_feature("Polygon", [[[x, y], [x + 0.1, y], [x + 0.1, y + 0.1], [x, y]]])]),
        ),
        ("without width", _collection([_feature("Polygon", [[INSIDE[0], INSIDE[1], INSIDE[0], INSIDE[0]]])])),
        ("endless", _collection([_feature("Polygon", [[INSIDE[0], [1e400, TOP], INSIDE[2], INSIDE[0]]])])),
        (
            "numbers beyond measure",
            _collection([_feature("Polygon", [[INSIDE[0], [1e300, TOP], INSIDE[2], INSIDE[0]]])]),
        ),
        ("a CRS that is none", _collection([_feature("Polygon", [INSIDE])], rng.choice(["EPSG:999999", "", "here"]))),
        ("half of a ring", _collection([_feature("Polygon", [INSIDE[:2]])])),
        ("words for numbers", _collection([_feature("Polygon", [[["a", "b"]] * 4])])),
        ("a topology", {"type": "Topology", "objects": {}, "arcs": []}),
        ("another JSON", {"a": [1, 2, 3]}),
        ("a list", [1, 2, 3]),
    ]
    about, content = rng.choice(kinds)
    (folder / "a.geojson").write_text(json.dumps(content).replace("Infinity", "1e400"))
    odd = ("numbers beyond measure", "a CRS that is none", "half of a ring", "words for numbers")
    return "a.geojson", about, about in odd


def _patched(rng: random.Random, folder: Path) -> tuple[str, str, bool]:
    """GeoJSON with characters taken out, put in, or cut off."""
    text = json.dumps(_good())
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(text))
        way = rng.randrange(4)
        if way == 0:
            text = text[:at] + text[at + rng.randrange(1, 12) :]
        elif way == 1:
            text = text[:at] + rng.choice(["null", "{", "]", '"', "1e999", "NaN", "-", "\x00", "é"]) + text[at:]
        elif way == 2:
            text = text[: max(3, at)]
        else:
            text = text.replace(
                rng.choice(["Polygon", "Feature", "type", "coordinates", "500"]), rng.choice(["x", "Point", ""])
            )
        text = text or " "
    (folder / "a.geojson").write_text(text)
    return "a.geojson", "text cut and patched", True


def _binary(rng: random.Random, folder: Path) -> tuple[str, str, bool]:
    """A GeoPackage, shapefile or FlatGeobuf with bytes flipped or cut off, or a part missing."""
    import geopandas
    from shapely.geometry import Polygon

    suffix = rng.choice(["gpkg", "shp", "fgb", "parquet"])
    file = folder / f"a.{suffix}"
    frame = geopandas.GeoDataFrame({"n": [1, 2]}, geometry=[Polygon(INSIDE)] * 2, crs="EPSG:32633")
    frame.to_parquet(file) if suffix == "parquet" else frame.to_file(file)
    if suffix == "shp" and rng.random() < 0.5:
        lost = rng.choice(["shx", "prj", "dbf"])
        file.with_suffix(f".{lost}").unlink()
        return file.name, f"a shapefile without .{lost}", lost == "dbf"
    content = bytearray(file.read_bytes())
    if rng.random() < 0.3:
        content = content[: rng.randrange(len(content))]
    for _ in range(rng.randrange(1, 30)):
        if content:
            content[rng.randrange(min(len(content), 4000))] = rng.randrange(256)
    file.write_bytes(content)
    return file.name, f"{suffix} with bytes changed", True


def _no_vectors(rng: random.Random, folder: Path) -> tuple[str, str, bool]:
    """Files and paths that hold no vectors at all."""
    way = rng.choice(
        [
            "text",
            "raster",
            "folder",
            "table",
            "empty",
            "missing",
            "bytes",
            "pipe",
            "circle",
            "long",
            "zip",
            "xml",
            "device",
            "yaml",
        ]
    )
    file = folder / {"table": "a.csv", "zip": "a.zip", "xml": "a.gml", "bytes": "a.shp", "empty": "a.gpkg"}.get(
        way, "a.txt"
    )
    if way in ("text", "yaml"):
        file.write_text(rng.choice(["hello", "POLYGON((0 0,1 0,1 1,0 0))", "a: 1\n"]))
    elif way == "table":
        file.write_text("id,name\n1,a\n")
    elif way == "xml":
        file.write_text("<a><b/></a>")
    elif way in ("empty", "zip", "bytes"):
        file.write_bytes(rng.randbytes(0 if way == "empty" else 300))
    elif way == "folder":
        file.mkdir()
    elif way == "pipe":
        os.mkfifo(file)
    elif way == "circle":
        file.symlink_to(file)
    names = {"raster": "scene.tif", "long": "n" * 400, "device": "/dev/zero"}
    return names.get(way, file.name), f"no vectors: {way}", False


def _layers(rng: random.Random, folder: Path) -> tuple[str, str, bool]:
    """Layers that are not there, or asked for in another way than ours."""
    import geopandas
    from shapely.geometry import Point, Polygon

    file = folder / "a.gpkg"
    for layer, shape in (("one", Polygon(INSIDE)), ("points", Point(LEFT, TOP))):
        geopandas.GeoDataFrame({"n": [1]}, geometry=[shape], crs="EPSG:32633").to_file(file, layer=layer)
    told = rng.choice(
        ["layer=none", "layer=", "one", "", "layer=points", "sheet=one", "layer", "layer=one|x", "=one", "layer=\x00"]
    )
    return f"a.gpkg|{told}", f"a layer asked for as {told!r}", False


AREAS = [_geojson, _geojson, _patched, _patched, _binary, _binary, _no_vectors, _no_vectors, _layers]
