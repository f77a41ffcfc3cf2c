"""Several files as one scene: values and validity equal those of one file, and what does not go together is refused."""

import numpy as np
import pytest
import rasterio
import zarr
from conftest import rotated, smooth
from rasterio.transform import from_origin
from rasterio.warp import Resampling

from ovrs import pipeline
from ovrs.errors import OptionError, SceneChangedError, SceneReadError, StoreError
from ovrs.options import SceneOptions
from ovrs.request import Request
from ovrs.run import begin, mosaic
from ovrs.run.rundir import RunDir
from ovrs.scene.grid import Window
from ovrs.scene.opening import open_scene

LEFT, TOP, SIZE = 500000, 5600000, 0.5


def place(row, col):
    return from_origin(LEFT + col * SIZE, TOP - row * SIZE, SIZE, SIZE)


def halves(write_raster, array, name="half", **profile):
    """A raster and its left and right parts, which share four columns."""
    width = array.shape[2] // 2
    whole = write_raster(array, "whole.tif", **profile)
    left = write_raster(array[:, :, : width + 4], f"{name}_1.tif", **profile)
    right = write_raster(array[:, :, width:], f"{name}_2.tif", transform=place(0, width), **profile)
    return whole, left, right


def pixels_of(uri, **scene):
    opened = open_scene(uri, SceneOptions(**scene))
    return opened.geobox, opened.read(Window(0, 0, *opened.geobox.shape))


@pytest.mark.parametrize(
    ("dtype", "profile", "hole"),
    [
        ("uint8", {}, None),
        ("uint8", {"nodata": 0}, 0),
        ("float32", {"nodata": np.nan}, np.nan),
        ("uint16", {"photometric": "RGB", "alpha": "YES"}, "alpha"),
    ],
)
def test_a_mosaic_reads_as_the_whole_file(write_raster, tmp_path, dtype, profile, hole):
    rgb = np.maximum(smooth(60, 80), 1).astype(dtype)
    if hole == "alpha":
        rgb = np.concatenate([rgb, np.full((1, 60, 80), 65535, dtype)])
        rgb[3, 10:20, 30:50] = 0
    elif hole is not None:
        rgb[:, 10:20, 30:50] = hole
        rgb[0, 40, 40] = hole  # no data in one band alone: a pixel of its own value
    whole, left, right = halves(write_raster, rgb, **profile)
    made = mosaic.as_one([left, right], tmp_path / "out.zarr")
    assert made == tmp_path / "out.scene/out.vrt"
    (box, one), (expected_box, expected) = pixels_of(made), pixels_of(whole)
    assert box == expected_box
    np.testing.assert_array_equal(one.valid, expected.valid)
    assert expected.valid.all() == (hole is None)
    np.testing.assert_array_equal(one.rgb[:, one.valid], expected.rgb[:, one.valid])


def test_between_files_nothing_is_data_and_masks_are_seen_through(write_raster, tmp_path):
    rgb, mask = smooth(40, 40), np.ones((40, 40), bool)
    mask[:, :20] = False
    first = write_raster(rgb, "a.tif")
    on_top = write_raster(255 - rgb, "b.tif", mask=mask)
    apart = write_raster(rgb, "c.tif", transform=place(40, 60))
    _, found = pixels_of(mosaic.as_one([first, on_top, apart], tmp_path / "out.zarr"))
    expected = np.zeros((80, 100), bool)
    expected[:40, :40] = expected[40:, 60:] = True
    np.testing.assert_array_equal(found.valid, expected)
    np.testing.assert_array_equal(found.rgb[:, :40, :20], rgb[:, :, :20])
    np.testing.assert_array_equal(found.rgb[:, :40, 20:40], (255 - rgb)[:, :, 20:])


def test_a_file_of_another_crs_is_warped_to_the_first(write_raster, tmp_path):
    rgb = np.maximum(smooth(60, 80), 1)
    _, left, right = halves(write_raster, rgb)
    other = tmp_path / "other.tif"
    with rasterio.open(right) as source:
        view = rasterio.vrt.WarpedVRT(source, crs="EPSG:25832", resampling=Resampling.bilinear, add_alpha=True)
        with (
            view,
            rasterio.open(other, "w", **{**view.profile, "driver": "GTiff", "count": 3, "nodata": None}) as target,
        ):
            target.write(view.read([1, 2, 3]))
            target.write_mask(view.read(4))
    made = mosaic.as_one([left, other], tmp_path / "out.zarr")
    assert {p.name for p in made.parent.iterdir()} == {"out.vrt", "out.2.vrt"}
    box, found = pixels_of(made)
    assert box.crs.epsg == 32633
    col, row = (~box.affine) @ (LEFT, TOP)
    assert (col, row) == pytest.approx((round(col), round(row)), abs=1e-6)
    part = found.rgb[:, round(row) + 8 : round(row) + 52, round(col) + 50 : round(col) + 72].astype(int)
    assert np.abs(part - rgb[:, 8:52, 50:72]).mean() < 4
    assert found.valid[round(row) + 8 : round(row) + 52, round(col) + 2 : round(col) + 72].all()


def test_off_grid_and_turned_files_are_brought_to_the_grid_of_the_first(write_raster, tmp_path):
    rgb = smooth(40, 40)
    first = write_raster(rgb, "a.tif")
    for k, transform in enumerate((from_origin(LEFT + 10.2, TOP, SIZE, SIZE), from_origin(LEFT, TOP, 1, 1), rotated())):
        other = write_raster(rgb, f"b{k}.tif", transform=transform)
        made = mosaic.as_one([first, other], tmp_path / f"{k}.zarr")
        box, found = pixels_of(made)
        assert (box.affine.a, box.affine.e, (box.affine.c - LEFT) % SIZE) == (SIZE, -SIZE, 0)
        assert found.valid.any()


@pytest.mark.parametrize(
    ("profile", "change", "told"),
    [
        ({}, lambda a: a[:1], "bands"),
        ({}, lambda a: a.astype(np.uint16), "data types"),
        ({"nodata": 0}, lambda a: a, "no data values"),
        ({"crs": None}, lambda a: a, "no CRS"),
    ],
)
def test_files_that_differ_are_refused(write_raster, tmp_path, profile, change, told):
    first = write_raster(smooth(20, 20), "a.tif")
    other = write_raster(change(smooth(20, 20)), "b.tif", **profile)
    with pytest.raises(SceneReadError, match=told) as refused:
        mosaic.as_one([first, other], tmp_path / "out.zarr")
    assert "b.tif" in str(refused.value)
    assert not (tmp_path / "out.scene").exists()


def test_folders_and_patterns_name_their_rasters(write_raster, tmp_path, words, trivial):
    _, left, right = halves(write_raster, smooth(20, 40))
    folder = tmp_path / "tiles"
    folder.mkdir()
    for file in (left, right):
        file.rename(folder / file.name)
    (folder / "notes.txt").write_text("no raster")
    (folder / "half_1.tif.ovr").write_bytes((folder / "half_1.tif").read_bytes())
    with pytest.raises(OptionError, match="zarr"):
        pipeline.map(Request(uri=folder, words=words, options=trivial(), target=tmp_path / "map.tif"))
    made = [mosaic.as_one([g], tmp_path / f"{k}.zarr") for k, g in enumerate((folder, f"{folder}/*.tif"))]
    texts = [file.read_text() for file in made]
    assert texts[0] == texts[1]
    assert texts[0].count("half_1.tif</") == 3 + 1  # three bands and the mask
    assert mosaic.as_one([f"{folder}/*1.tif"], tmp_path / "x.zarr") == f"{folder}/half_1.tif"
    for given, told in ((f"{folder}/*.jp2", "no file matches"), (tmp_path / "empty", "no raster")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(SceneReadError, match=told):
            mosaic.as_one([given], tmp_path / "x.zarr")
    with pytest.raises(SceneReadError, match="twice"):
        mosaic.as_one([folder, folder / "half_1.tif"], tmp_path / "x.zarr")
    with pytest.raises(SceneReadError, match="secret"):
        mosaic.as_one([folder, "https://h/x.tif?X-Amz-Signature=abc"], tmp_path / "x.zarr")


def test_one_map_over_files_is_the_map_of_the_whole_and_is_resumed(write_raster, tmp_path, words, trivial):
    whole, left, right = halves(write_raster, smooth(300, 420))
    trivial = trivial()
    alone, out = tmp_path / "alone.zarr", tmp_path / "out.zarr"
    pipeline.map(Request(uri=whole, words=words, options=trivial, target=alone))
    request = Request(uri=left, others=(right,), words=words, options=trivial, target=out)
    facts = pipeline.map(request)
    labels = [zarr.open_group(p, mode="r")["label"][:] for p in (alone, out)]
    np.testing.assert_array_equal(*labels)
    assert pipeline.map(request) == facts == pipeline.resume(out)
    assert begin.resume(out).scene.origin.size > left.stat().st_size + right.stat().st_size
    with pytest.raises(StoreError, match="other files"):
        pipeline.map(Request(uri=right, others=(left,), words=words, options=trivial, target=out))
    assert pipeline.map(request) == facts
    again = pipeline.map(Request(uri=right, others=(left,), words=words, options=trivial, target=out), overwrite=True)
    assert again["digest"]["scene"] != facts["digest"]["scene"]
    job = begin.resume(out)
    with rasterio.open(left, "r+") as target:
        target.write(np.zeros((1, 10, 10), np.uint8), [1], window=rasterio.windows.Window(0, 0, 10, 10))
    with pytest.raises(SceneChangedError):
        job.scene.require_unchanged()
    assert RunDir(out).exists
