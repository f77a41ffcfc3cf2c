"""The store: what each reader sees, one writer per chunk, markers and locks."""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import rasterio
import rioxarray  # noqa: F401 - registers the accessor
import xarray as xr
import zarr
from affine import Affine
from odc.geo.geobox import GeoBox

from ovrs.errors import GridMismatchError, StoreError, StoreLockedError
from ovrs.objects import owner
from ovrs.run import lock as locks
from ovrs.run.lock import Lock
from ovrs.run.rundir import BlockRecord, RunDir
from ovrs.scene.grid import Window
from ovrs.store import layout as store
from ovrs.store import pyramid
from ovrs.store.levels import GROUP, Levels, strips

UTM = GeoBox((70, 90), Affine(0.5, 0, 500000, 0, -0.5, 5600000), "EPSG:32633")
DEGREES = GeoBox((70, 90), Affine(2.7e-6, 0, -115.2, 0, -2.7e-6, 36.1), "EPSG:4326")
CLASSES, COLOURS = ("building", "bare soil"), ((200, 0, 0), (150, 120, 80))


def levels_of(box, chunk, pitches=8, **more):
    return Levels(shape=(box.height, box.width), chunk=chunk, pitches=pitches, **more)


def overviews(path, box, levels):
    """Make all levels of a stored map as a run does: by blocks, by groups of blocks, the rest; returns their factors."""
    root = zarr.open_group(path, mode="r+")
    side = levels.pitches * levels.chunk
    for core in strips((box.height, box.width), side):
        part = core.slices_in(Window(0, 0, box.height, box.width))
        pair = (root["label"][part], root["confidence"][part])
        told = pyramid.write_block(root, levels, core, pair)
        assert told == (pyramid.block_crc(root, levels, core) if levels.by_block else "")
    for row, col in np.ndindex(*levels.group_shape):
        pyramid.write_group(root, levels, row, col)
    pyramid.write_rest(root, levels)
    pyramid.describe(root, levels, box)
    return list(levels.factors)


def filled(path, box, zarr_format):
    store.create(path, box, store.Schema(classes=CLASSES, colours=COLOURS, chunk=32, zarr_format=zarr_format))
    label = (np.arange(70 * 90).reshape(70, 90) % 2).astype(np.uint8)
    label[5:9, 5:9] = 255
    store.write_block(path, Window(0, 0, 70, 90), 32, label, np.full((70, 90), 100, np.uint8), None)
    return label


@pytest.mark.parametrize("box", [UTM, DEGREES], ids=["projected", "geographic"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_xarray_and_rioxarray_see_crs_and_transform(tmp_path, box, zarr_format):
    label = filled(tmp_path / "a.zarr", box, zarr_format)
    with xr.open_zarr(tmp_path / "a.zarr", consolidated=False, decode_coords="all", mask_and_scale=False) as data:
        assert data.rio.crs.to_epsg() == box.crs.epsg
        np.testing.assert_allclose(tuple(data.rio.transform())[:6], tuple(box.affine)[:6], rtol=0, atol=1e-9)
        np.testing.assert_array_equal(data["label"].values, label)
    with xr.open_zarr(tmp_path / "a.zarr", consolidated=False) as data:
        for name in ("label", "confidence"):
            assert data[name].rio.crs.to_epsg() == box.crs.epsg
            np.testing.assert_allclose(tuple(data[name].rio.transform())[:6], tuple(box.affine)[:6], rtol=0, atol=1e-9)
        assert float(data["confidence"].values[0, 0]) == 0.5


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_xarray_reads_class_numbers_as_integers_in_every_level(tmp_path, zarr_format):
    """Format 3 without being told. A format 2 fill value is a mask for xarray until it is told otherwise."""
    path = tmp_path / "a.zarr"
    box = GeoBox((300, 90), UTM.affine, UTM.crs)
    levels = levels_of(box, 32)
    schema = store.Schema(classes=CLASSES, colours=COLOURS, chunk=32, zarr_format=zarr_format, levels=levels)
    store.create(path, box, schema)
    label = np.full((300, 90), 1, np.uint8)
    label[8:12, 8:12] = 255
    store.write_block(path, Window(0, 0, 300, 90), 32, label, label, None)
    assert overviews(path, box, levels) == [2]
    plain = {} if zarr_format == 3 else {"mask_and_scale": False}
    for group, wanted in ((None, label), ("2", pyramid.mode2(label, 255))):
        with xr.open_zarr(path, group=group, consolidated=False, **plain) as data:
            assert data["label"].dtype == np.uint8
            np.testing.assert_array_equal(data["label"].values, wanted)
            assert data["label"].rio.nodata == 255
            assert data["label"].rio.crs.to_epsg() == 32633


@pytest.mark.parametrize("crs", ["EPSG:32633", None, "+proj=laea +lat_0=50.1 +lon_0=11 +datum=WGS84"])
def test_every_level_registers_the_conventions_it_follows(tmp_path, crs):
    """UUIDs and fields of zarr-conventions v0.1: without the registration GDAL and rio-tiler see no pyramid."""
    spatial, proj, multiscales = (
        "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4",
        "f17cb550-5864-4468-aeb7-f3180cfb622f",
        "d35379db-88df-4056-af3a-620245f8e347",
    )
    path, box = tmp_path / "a.zarr", GeoBox((1031, 300), UTM.affine, crs)
    levels = levels_of(box, 64)
    store.create(path, box, store.Schema(classes=CLASSES, colours=COLOURS, chunk=64, levels=levels))
    overviews(path, box, levels)
    root = zarr.open_group(path, mode="r")
    layout = root.attrs["multiscales"]["layout"]
    assert [item["asset"] for item in layout] == [".", "2", "4", "8"]
    assert [item.get("derived_from") for item in layout] == [None, ".", "2", "4"]
    for item in layout:
        level = root if item["asset"] == "." else root[item["asset"]]
        found = {c["name"]: c for c in level.attrs["zarr_conventions"]}
        wanted = (
            {"spatial": spatial}
            | ({"proj": proj} if crs else {})
            | ({"multiscales": multiscales} if level is root else {})
        )
        assert {name: c["uuid"] for name, c in found.items()} == wanted
        assert all(c["schema_url"].endswith(f"/{name}/refs/tags/v0.1/schema.json") for name, c in found.items())
        assert ("proj:code" in level.attrs) + ("proj:wkt2" in level.attrs) == (crs is not None)
        assert item["spatial:shape"] == level.attrs["spatial:shape"] == list(level["label"].shape)
        assert item["spatial:transform"] == level.attrs["spatial:transform"]
        assert level.attrs["spatial:dimensions"] == ["y", "x"]
    assert layout[2]["spatial:transform"] == [2.0, 0.0, 500000.0, 0.0, -2.0, 5600000.0]


def test_a_small_map_is_no_pyramid(tmp_path):
    path = tmp_path / "a.zarr"
    filled(path, UTM, 3)
    assert overviews(path, UTM, levels_of(UTM, 32)) == []
    assert "multiscales" not in zarr.open_group(path).attrs


@pytest.mark.parametrize("box", [UTM, DEGREES], ids=["projected", "geographic"])
def test_gdal_3_10_reads_format_2_and_only_format_2(tmp_path, box):
    """The matrix of what GIS can open: rasterio 1.4's GDAL 3.10 reads our format 2 whole, and no format 3."""
    label = filled(tmp_path / "two.zarr", box, 2)
    with rasterio.open(f'ZARR:"{tmp_path}/two.zarr":/label') as source:
        assert source.crs.to_epsg() == box.crs.epsg
        np.testing.assert_allclose(tuple(source.transform)[:6], tuple(box.affine)[:6], rtol=0, atol=1e-9)
        assert source.nodata == 255
        np.testing.assert_array_equal(source.read(1), label)
    filled(tmp_path / "three.zarr", box, 3)
    if tuple(map(int, rasterio.__gdal_version__.split(".")[:2])) < (3, 11):
        with pytest.raises(rasterio.errors.RasterioIOError):
            rasterio.open(f'ZARR:"{tmp_path}/three.zarr":/label')


GDAL_312 = """
import ctypes, glob, json, os, sys
import numpy, pyogrio
library = glob.glob(os.path.join(os.path.dirname(pyogrio.__file__), "..", "pyogrio.libs", "libgdal*"))
gdal = ctypes.CDLL(library[0])
for name, kind in (("GDALOpenEx", ctypes.c_void_p), ("GDALGetProjectionRef", ctypes.c_char_p), ("GDALGetRasterBand", ctypes.c_void_p)):
    getattr(gdal, name).restype = kind
gdal.GDALAllRegister()
found = []
for path in sys.argv[1:]:
    data = gdal.GDALOpenEx(path.encode(), 2, None, None, None)
    if not data:
        found.append(None)
        continue
    data = ctypes.c_void_p(data)
    transform, pixels = (ctypes.c_double * 6)(), numpy.zeros((70, 90), numpy.uint8)
    placed = gdal.GDALGetGeoTransform(data, transform)
    band = ctypes.c_void_p(gdal.GDALGetRasterBand(data, 1))
    read = gdal.GDALRasterIO(band, 0, 0, 0, 90, 70, pixels.ctypes.data_as(ctypes.c_void_p), 90, 70, 1, 0, 0)
    found.append([gdal.GDALGetProjectionRef(data).decode(), list(transform), placed, read, int(pixels.sum())])
print(json.dumps([pyogrio.__gdal_version__, found]))
"""


@pytest.mark.parametrize("box", [UTM, DEGREES], ids=["projected", "geographic"])
def test_gdal_3_12_reads_both_formats_with_crs_and_transform(tmp_path, box):
    """The newer GDAL inside the pyogrio wheel, called through ctypes: v2 and v3 open in the right place, pixels equal."""
    import pyogrio

    if pyogrio.__gdal_version__ < (3, 12):
        pytest.skip("this pyogrio carries an older GDAL")
    label = filled(tmp_path / "two.zarr", box, 2)
    filled(tmp_path / "three.zarr", box, 3)
    paths = [f'ZARR:"{tmp_path}/{name}.zarr":/label' for name in ("two", "three")]
    done = subprocess.run([sys.executable, "-c", GDAL_312, *paths], check=True, capture_output=True, text=True)
    _, (two, three) = json.loads(done.stdout)
    for found in (two, three):
        assert found is not None
        projection, transform, placed, read, total = found
        assert f'"EPSG","{box.crs.epsg}"' in projection
        assert (placed, read) == (0, 0)
        a = box.affine
        np.testing.assert_allclose(transform, [a.c, a.a, a.b, a.f, a.d, a.e], rtol=0, atol=1e-9)
        assert total == int(label.sum())


def test_coordinates_are_what_gdal_places_a_store_by(tmp_path):
    """Why x and y are written: without them GDAL 3.10 opens format 2 at the identity transform."""
    import shutil

    filled(tmp_path / "two.zarr", UTM, 2)
    for name in ("x", "y"):
        shutil.rmtree(tmp_path / "two.zarr" / name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(f'ZARR:"{tmp_path}/two.zarr":/label') as source:
            assert source.transform.is_identity


def test_coordinates_and_scalars_are_uncompressed_and_unsharded(tmp_path):
    filled(tmp_path / "a.zarr", UTM, 3)
    for name in ("x", "y", "spatial_ref"):
        assert [c["name"] for c in json.loads((tmp_path / f"a.zarr/{name}/zarr.json").read_text())["codecs"]] == [
            "bytes"
        ]
    codecs = json.loads((tmp_path / "a.zarr/label/zarr.json").read_text())["codecs"]
    assert [c["name"] for c in codecs] == ["bytes", "gzip"]


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:2056", "EPSG:3857", "EPSG:3035"])
def test_geobox_survives_the_store_in_any_projection(tmp_path, crs):
    """Also where CF has no complete form (the oblique Swiss grid)."""
    box = GeoBox((70, 90), UTM.affine, crs)
    filled(tmp_path / "a.zarr", box, 3)
    assert store.geobox_of(zarr.open_group(tmp_path / "a.zarr")) == box


def test_blocks_off_the_chunk_grid_are_refused(tmp_path):
    store.create(tmp_path / "a.zarr", UTM, store.Schema(classes=CLASSES, colours=COLOURS, chunk=32))
    with pytest.raises(GridMismatchError, match="chunk grid"):
        store.write_block(
            tmp_path / "a.zarr",
            Window(8, 0, 32, 32),
            32,
            np.zeros((32, 32), np.uint8),
            np.zeros((32, 32), np.uint8),
            None,
        )


def plain_mode(label, nodata):
    """Most frequent class of each cell, the plain way."""
    quads = np.stack([np.pad(label, ((0, label.shape[0] % 2), (0, label.shape[1] % 2)), constant_values=nodata)[i::2, j::2]
                      for i in (0, 1) for j in (0, 1)])  # fmt: skip
    votes = (quads[:, None] == quads[None]).sum(axis=1) * (quads != nodata)
    return np.take_along_axis(quads, votes.argmax(axis=0)[None], axis=0)[0]


def plain_mean(confidence):
    """Mean of the valid values of each cell, the plain way."""
    even = np.pad(confidence, ((0, confidence.shape[0] % 2), (0, confidence.shape[1] % 2)), constant_values=255)
    quads = np.stack([even[i::2, j::2] for i in (0, 1) for j in (0, 1)]).astype(int)
    count, total = (quads != 255).sum(axis=0), np.where(quads != 255, quads, 0).sum(axis=0)
    return np.where(count, (total + count // 2) // np.maximum(count, 1), 255).astype(np.uint8)


def test_cells_of_every_kind_have_their_most_frequent_class_and_mean():
    """All combinations of four labels, no data among them; odd sides; more rows than are reduced at a time."""
    every = np.array(list(itertools.product([0, 1, 2, 7, 255], repeat=4)), np.uint8).reshape(-1, 2, 2)
    every = every.transpose(1, 0, 2).reshape(2, -1)
    rng = np.random.default_rng(0)
    for label in (every, rng.choice(np.array([0, 1, 2, 255], np.uint8), (1031, 77))):
        np.testing.assert_array_equal(pyramid.mode2(label, 255), plain_mode(label, 255))
        wide = np.where(label == 255, 65535, label).astype(np.uint16) + (label < 7) * np.uint16(300)
        np.testing.assert_array_equal(pyramid.mode2(wide, 65535), plain_mode(wide, 65535))
    for choice in ([0, 1, 77, 200, 255], [254, 255], range(201)):
        sure = rng.choice(np.array(choice, np.uint8), (1031, 77))
        np.testing.assert_array_equal(pyramid.mean2(sure), plain_mean(sure))


@pytest.mark.parametrize(("pitches", "sharded"), [(1, False), (3, True), (4, False), (4, True)])
def test_overviews_by_blocks_groups_and_the_rest_are_those_of_the_whole(tmp_path, monkeypatch, pitches, sharded):
    """Whoever writes a level: the pixels are those of halving all of it, and so are the files where chunks are files."""
    monkeypatch.setattr("ovrs.store.levels.PYRAMID_FLOOR", 16)
    monkeypatch.setattr("ovrs.store.levels.GROUP", 2)
    box = GeoBox((190, 141), UTM.affine, "EPSG:32633")
    rng = np.random.default_rng(pitches)
    label = rng.choice(np.array([0, 1, 255], np.uint8), box.shape)
    label[:64, 96:], label[96:, :40] = 255, 255  # chunks without data have no files
    confidence = np.where(label == 255, 255, rng.integers(0, 201, box.shape)).astype(np.uint8)
    found = {}
    for name, count in (("parts", pitches), ("whole", 32)):
        levels = levels_of(box, 32, count, sharded=sharded and name == "parts")
        shard = 32 * count if levels.sharded else None
        schema = store.Schema(classes=CLASSES, colours=COLOURS, chunk=32, shard=shard, levels=levels)
        store.create(tmp_path / name, box, schema)
        store.write_block(tmp_path / name, Window(0, 0, *box.shape), 32, label, confidence, None)
        assert overviews(tmp_path / name, box, levels) == [2, 4, 8, 16]
        assert sorted(levels.by_block + levels.by_group + levels.rest) == [2, 4, 8, 16]
        files = (p for p in (tmp_path / name).rglob("*") if p.is_file())
        found[name] = {p.relative_to(tmp_path / name): p.read_bytes() for p in files}
    assert levels_of(box, 32, pitches).by_block == {1: (), 3: (), 4: (2, 4)}[pitches]
    assert sharded or found["parts"] == found["whole"]
    group = zarr.open_group(tmp_path / "parts", mode="r")
    for factor in (2, 4, 8, 16):
        label, confidence = plain_mode(label, 255), plain_mean(confidence)
        np.testing.assert_array_equal(group[f"{factor}/label"][:], label)
        np.testing.assert_array_equal(group[f"{factor}/confidence"][:], confidence)
        assert store.geobox_of(group[str(factor)]).affine.a == 0.5 * factor


def test_no_two_write_one_chunk_of_an_overview():
    """Every chunk or shard of a level lies in the part of one block, or of one group."""
    for pitches, sharded in itertools.product((1, 2, 3, 6, 8, 64), (False, True)):
        levels = Levels(shape=(100_000, 70_001), chunk=160, pitches=pitches, sharded=sharded)
        for factors, blocks in ((levels.by_block, 1), (levels.by_group, GROUP)):
            side = blocks * pitches * levels.chunk
            for factor in factors:
                assert side % factor == 0
                assert (side // factor) % (levels.shard_of(factor) or levels.chunk) == 0
    with_millions = Levels(shape=(1_000_000, 1_000_000), chunk=448, pitches=8)
    assert (with_millions.by_block, with_millions.by_group) == ((2, 4, 8), (16, 32, 64))
    assert max(with_millions.shape_of(with_millions.rest[0] // 2)) < 16_000


def test_unfinished_and_foreign_stores_are_refused(tmp_path):
    with pytest.raises(StoreError, match="no store"):
        store.open_complete(tmp_path / "a.zarr")
    filled(tmp_path / "a.zarr.partial", UTM, 3)
    with pytest.raises(StoreError, match="ovrs resume"):
        store.open_complete(tmp_path / "a.zarr")
    zarr.create_group(tmp_path / "b.zarr")
    with pytest.raises(StoreError, match="not one that ovrs wrote"):
        store.open_complete(tmp_path / "b.zarr")


def test_markers_round_trip(tmp_path):
    run = RunDir(tmp_path / "a.zarr")
    record = BlockRecord(name="00000_00001", status="done", histogram={"0": 5}, areas_m2={"0": 1.25}, crc="00ff")
    run.record(record)
    assert run.records() == {"00000_00001": record}
    assert run.record_of("00000_00002") is None
    assert run.path.name == "a.run"


def test_a_second_run_is_locked_out_and_a_dead_owner_is_taken_over(tmp_path):
    run = RunDir(tmp_path / "a.zarr")
    with Lock(run), pytest.raises(StoreLockedError, match=str(os.getpid())), Lock(run):
        pass
    assert not (run.path / "lock.json").exists()
    code = f"import os; from pathlib import Path; from ovrs.run.rundir import *; from ovrs.run.lock import Lock; Lock(RunDir(Path({str(run.store)!r}))).__enter__(); os._exit(9)"
    subprocess.run([sys.executable, "-c", code], check=False)
    assert (run.path / "lock.json").exists()
    with Lock(run):
        pass


def test_an_owner_is_known_by_number_start_and_system(tmp_path):
    """Also a process of another user: nothing is asked of it. Its number alone may have been given to another process."""
    run = RunDir(tmp_path / "a.zarr")
    run.path.mkdir()
    for changed, gone in (({}, False), ({"start": "1"}, True), ({"start": "1", "system": "another"}, False)):
        (run.path / "lock.json").write_text(json.dumps({**owner.me(), "token": "x", **changed}))
        with contextlib.nullcontext() if gone else pytest.raises(StoreLockedError, match=str(os.getpid())), Lock(run):
            pass


def test_a_silent_owner_elsewhere_expires(tmp_path, monkeypatch):
    run = RunDir(tmp_path / "a.zarr")
    run.path.mkdir()
    (run.path / "lock.json").write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": "x"}))
    with pytest.raises(StoreLockedError, match="elsewhere"), Lock(run):
        pass
    old = time.time() - locks.EXPIRY_SECONDS - 1
    os.utime(run.path / "lock.json", (old, old))
    with Lock(run):
        assert json.loads((run.path / "lock.2.json").read_text())["pid"] == os.getpid()
    assert not list(run.path.glob("lock*"))


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_chunks_are_gzip_for_every_reader_and_equal_chunks_are_equal_files(tmp_path, zarr_format):
    import gzip

    label = filled(tmp_path / "a.zarr", UTM, zarr_format)
    time.sleep(1.1)  # gzip's own header would hold another second
    filled(tmp_path / "b.zarr", UTM, zarr_format)
    chunk = tmp_path / "a.zarr/label" / ("c/0/0" if zarr_format == 3 else "0.0")
    assert np.array_equal(np.frombuffer(gzip.decompress(chunk.read_bytes()), np.uint8).reshape(32, 32), label[:32, :32])
    files = [p for p in (tmp_path / "a.zarr").rglob("*") if p.is_file()]
    assert len(files) > 18
    for file in files:
        assert file.read_bytes() == (tmp_path / "b.zarr" / file.relative_to(tmp_path / "a.zarr")).read_bytes()
    script = f"import zarr; print(zarr.open_group({str(tmp_path / 'a.zarr')!r}, mode='r')['label'][:].sum(dtype=int))"
    there = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert int(there) == label.sum(dtype=int)  # the libraries' own codecs, in a process that never heard of ours


@pytest.mark.parametrize("holes", [False, True])
def test_chunks_of_nothing_but_no_data_are_no_files(tmp_path, holes):
    """Whether or not zarr is spared the look for them: a block without gaps has none, another one is looked through."""
    group = zarr.open_group(tmp_path / "store.zarr", mode="w")
    plain = group.create_array("plain", shape=(90, 70), chunks=(30, 30), dtype="uint8", fill_value=255)
    group.create_array("layer", shape=(90, 70), chunks=(30, 30), dtype="uint8", fill_value=255)
    values = np.arange(60 * 70, dtype=np.uint16).reshape(60, 70).astype(np.uint8) % 200
    if holes:
        values[:30, 30:60] = 255
    plain[30:] = values
    store.array(group, "layer")[30:] = values
    assert np.array_equal(store.array(group, "layer")[:], plain[:])
    chunks = [
        {p.relative_to(tmp_path / "store.zarr" / n).as_posix() for p in (tmp_path / "store.zarr" / n / "c").rglob("*")}
        for n in ("plain", "layer")
    ]
    assert chunks[0] == chunks[1]
    assert ("c/1/1" in chunks[1]) is not holes
