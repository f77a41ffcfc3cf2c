"""The store: what each reader sees, one writer per chunk, markers and locks."""

import contextlib
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

UTM = GeoBox((70, 90), Affine(0.5, 0, 500000, 0, -0.5, 5600000), "EPSG:32633")
DEGREES = GeoBox((70, 90), Affine(2.7e-6, 0, -115.2, 0, -2.7e-6, 36.1), "EPSG:4326")
CLASSES, COLOURS = ("building", "bare soil"), ((200, 0, 0), (150, 120, 80))


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
    store.create(path, box, store.Schema(classes=CLASSES, colours=COLOURS, chunk=32, zarr_format=zarr_format))
    label = np.full((300, 90), 1, np.uint8)
    label[8:12, 8:12] = 255
    store.write_block(path, Window(0, 0, 300, 90), 32, label, label, None)
    assert pyramid.build(path, box, classes=CLASSES, colours=COLOURS, chunk=32) == [2]
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
    store.create(path, box, store.Schema(classes=CLASSES, colours=COLOURS, chunk=64))
    pyramid.build(path, box, classes=CLASSES, colours=COLOURS, chunk=64)
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
    assert pyramid.build(path, UTM, classes=CLASSES, colours=COLOURS, chunk=32) == []
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


def test_an_overview_of_many_strips_is_that_of_the_whole(tmp_path):
    """Overviews are made strip by strip, in both directions."""
    box = GeoBox((530, 401), UTM.affine, "EPSG:32633")
    label = np.random.default_rng(0).integers(0, 2, box.shape).astype(np.uint8)
    confidence = np.random.default_rng(1).integers(0, 201, box.shape).astype(np.uint8)
    store.create(tmp_path / "a.zarr", box, store.Schema(classes=CLASSES, colours=COLOURS, chunk=16))
    store.write_block(tmp_path / "a.zarr", Window(0, 0, *box.shape), 16, label, confidence, None)
    assert pyramid.build(tmp_path / "a.zarr", box, classes=CLASSES, colours=COLOURS, chunk=16) == [2, 4]
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    np.testing.assert_array_equal(group["2/label"][:], pyramid.mode2(label, 255))
    np.testing.assert_array_equal(group["2/confidence"][:], pyramid.mean2(confidence))


def test_pyramid_levels_and_repeatability(tmp_path):
    box = GeoBox((1030, 700), UTM.affine, UTM.crs)
    store.create(tmp_path / "a.zarr", box, store.Schema(classes=CLASSES, colours=COLOURS, chunk=64))
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, (1030, 700)).astype(np.uint8)
    store.write_block(tmp_path / "a.zarr", Window(0, 0, 1030, 700), 64, label, label, None)
    for _ in range(2):
        assert pyramid.build(tmp_path / "a.zarr", box, classes=CLASSES, colours=COLOURS, chunk=64) == [2, 4, 8]
        group = zarr.open_group(tmp_path / "a.zarr")
        np.testing.assert_array_equal(group["2/label"][:], pyramid.mode2(label, 255))
        assert group["8/label"].shape == (129, 88)
        assert store.geobox_of(group["4"]).affine.a == 2.0
        assert [e["asset"] for e in group.attrs["multiscales"]["layout"]] == [".", "2", "4", "8"]


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
