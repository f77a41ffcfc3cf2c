"""Reading: every kind of raster comes out as RGB and validity on a north-up grid. rasterio is the oracle."""

import pickle

import geopandas
import numpy as np
import pytest
import rasterio
from affine import Affine
from conftest import rotated, smooth
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from shapely.geometry import Polygon, box

from ovrs.errors import OptionError, SceneReadError
from ovrs.options import SceneOptions
from ovrs.scene.grid import Window
from ovrs.scene.opening import open_scene


def whole(scene):
    return scene.read(Window(0, 0, scene.geobox.height, scene.geobox.width))


def test_uint8_rgb_passes_unchanged_in_any_window(write_raster):
    rgb = smooth(70, 90)
    scene = open_scene(write_raster(rgb), SceneOptions())
    pixels = scene.read(Window(11, 7, 31, 53))
    np.testing.assert_array_equal(pixels.rgb, rgb[:, 11:42, 7:60])
    assert pixels.valid.all()
    assert scene.stretch is None


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
def test_other_types_get_one_stretch_per_scene(write_raster, dtype):
    values = (smooth(64, 64).astype(np.float64) * 20 - (500 if dtype != "uint16" else 0)).astype(dtype)
    scene = open_scene(write_raster(values), SceneOptions())
    low, high = np.percentile(values[0].astype(float), (2, 98))
    assert scene.stretch.low[0] == pytest.approx(low)
    assert scene.stretch.high[0] == pytest.approx(high)
    left, right = scene.read(Window(0, 0, 64, 40)).rgb, scene.read(Window(0, 24, 64, 40)).rgb
    np.testing.assert_array_equal(left[:, :, 24:], right[:, :, :16])


def test_nodata_value_nan_alpha_and_internal_mask_are_respected(write_raster):
    hole = np.zeros((48, 48), bool)
    hole[10:20, 5:30] = True
    rgb = np.maximum(smooth(48, 48), 1)
    with_value = np.where(hole, 0, rgb).astype(np.uint8)
    floats = np.where(hole, np.nan, rgb).astype(np.float32)
    alpha = np.concatenate([rgb, np.where(hole, 0, 255)[None].astype(np.uint8)])
    rasters = {
        "value": write_raster(with_value, "value.tif", nodata=0),
        "nan": write_raster(floats, "nan.tif", nodata=np.nan),
        "bare nan": write_raster(floats, "bare.tif"),
        "alpha": write_raster(alpha, "alpha.tif", photometric="RGB", alpha="YES"),
        "mask": write_raster(rgb, "mask.tif", mask=~hole),
    }
    for name, path in rasters.items():
        pixels = whole(open_scene(path, SceneOptions()))
        np.testing.assert_array_equal(pixels.valid, ~hole, err_msg=name)
        assert (pixels.rgb[:, hole] == 0).all()


def test_a_pixel_is_valid_when_any_band_is(write_raster):
    rgb = np.maximum(smooth(16, 16), 1)
    rgb[0, 3, 3] = 0
    assert whole(open_scene(write_raster(rgb, nodata=0), SceneOptions())).valid.all()


def test_nodata_can_be_overridden(write_raster):
    rgb = np.maximum(smooth(16, 16), 8)
    rgb[:, 2, 5] = 7
    valid = whole(open_scene(write_raster(rgb), SceneOptions(nodata=7))).valid
    assert not valid[2, 5]
    assert valid.sum() == 255


def test_band_choice_replication_and_interpretation(write_raster):
    five = np.stack([np.full((20, 20), 10 * i, np.uint8) for i in range(1, 6)])
    path = write_raster(five, "five.tif")
    assert whole(open_scene(path, SceneOptions(bands=(4, 3, 2)))).rgb[:, 0, 0].tolist() == [40, 30, 20]
    assert whole(open_scene(path, SceneOptions())).rgb[:, 0, 0].tolist() == [10, 20, 30]
    assert whole(open_scene(path, SceneOptions(bands=(5,)))).rgb[:, 0, 0].tolist() == [50, 50, 50]
    one = write_raster(five[:1], "one.tif")
    assert whole(open_scene(one, SceneOptions())).rgb[:, 0, 0].tolist() == [10, 10, 10]
    with rasterio.open(path, "r+") as target:
        target.colorinterp = [
            ColorInterp.blue,
            ColorInterp.green,
            ColorInterp.red,
            ColorInterp.undefined,
            ColorInterp.undefined,
        ]
    assert whole(open_scene(path, SceneOptions())).rgb[:, 0, 0].tolist() == [30, 20, 10]
    with pytest.raises(OptionError, match=r"1\.\.5.*got 6"):
        open_scene(path, SceneOptions(bands=(6,)))


def test_rotated_scenes_are_warped_north_up_and_cover_their_footprint(write_raster):
    path = write_raster(np.maximum(smooth(80, 120), 1), transform=rotated())
    scene = open_scene(path, SceneOptions())
    affine = scene.geobox.affine
    assert (affine.b, affine.d) == (0, 0)
    assert affine.e < 0
    corners = [rotated() @ c for c in ((0, 0), (120, 0), (120, 80), (0, 80))]
    footprint = Polygon(corners)
    assert box(*scene.geobox.boundingbox).buffer(affine.a).contains(footprint)
    valid = whole(scene).valid
    assert valid.mean() == pytest.approx(footprint.area / box(*scene.geobox.boundingbox).area, abs=0.02)


def test_gcp_only_scenes_are_placed_by_their_points(tmp_path):
    path = tmp_path / "gcps.tif"
    points = [
        GroundControlPoint(row=r, col=c, x=500000 + 0.5 * c, y=5600000 - 0.5 * r) for r in (0, 60) for c in (0, 90)
    ]
    with rasterio.open(
        path, "w", driver="GTiff", height=60, width=90, count=3, dtype="uint8", gcps=points, crs="EPSG:32633"
    ) as target:
        target.write(np.maximum(smooth(60, 90), 1))
    scene = open_scene(path, SceneOptions())
    np.testing.assert_allclose(tuple(scene.geobox.boundingbox), (500000, 5599970, 500045, 5600000), atol=0.5)
    assert whole(scene).valid.mean() > 0.97


def test_gsd_resamples_and_mean_colour_survives(write_raster):
    rgb = smooth(200, 160)
    scene = open_scene(write_raster(rgb), SceneOptions(gsd=2.0))
    assert tuple(scene.geobox.shape) == (50, 40)
    assert scene.resampling == "average"
    assert whole(scene).rgb.mean() == pytest.approx(rgb.mean(), abs=1)
    assert open_scene(write_raster(rgb), SceneOptions(gsd=0.5)).warp is False


def test_drone_mosaics_are_not_read_at_full_resolution_by_accident(write_raster, caplog):
    from rasterio.transform import from_origin

    drone = write_raster(smooth(64, 64), transform=from_origin(500000, 5600000, 0.02, 0.02))
    with pytest.raises(OptionError, match=r"0\.02 m.*--gsd 0\.2.*--gsd 0\.02"):
        open_scene(drone, SceneOptions())
    assert tuple(open_scene(drone, SceneOptions(gsd=0.2)).geobox.shape) == (7, 7)
    assert open_scene(drone, SceneOptions(gsd=0.02)).warp is False
    open_scene(
        write_raster(smooth(64, 64), "coarse.tif", transform=from_origin(500000, 5600000, 30, 30)), SceneOptions()
    )
    assert "expect little" in caplog.text


def test_geographic_scenes(write_raster):
    from rasterio.transform import from_origin

    path = write_raster(
        smooth(50, 50), crs="EPSG:4326", transform=from_origin(-115.2, 36.1, 2.7e-6, 2.7e-6)
    )  # about 0.3 m
    scene = open_scene(path, SceneOptions(gsd=1.0))
    assert scene.geobox.crs.geographic
    assert scene.geobox.height in (15, 16)
    assert scene.geobox.width in (12, 13)


def test_bbox_reads_the_source_pixels_of_that_part(write_raster):
    rgb = smooth(80, 100)
    scene = open_scene(write_raster(rgb), SceneOptions(bbox=(500010, 5599970, 500030, 5599990)))
    np.testing.assert_array_equal(whole(scene).rgb, rgb[:, 20:60, 20:60])


def test_aoi_masks_outside_its_polygons_in_any_crs(write_raster, tmp_path):
    rgb = smooth(80, 100)
    shape = Polygon([(500010, 5599990), (500040, 5599990), (500010, 5599965)])
    aoi = tmp_path / "aoi.gpkg"
    geopandas.GeoDataFrame(geometry=[shape], crs="EPSG:32633").to_crs("EPSG:4326").to_file(aoi)
    scene = open_scene(write_raster(rgb), SceneOptions(aoi=aoi))
    assert whole(scene).valid.mean() == pytest.approx(0.5, abs=0.03)
    left, right = scene.read(Window(0, 0, 50, 30)).valid, scene.read(Window(0, 20, 50, 30)).valid
    np.testing.assert_array_equal(left[:, 20:], right[:, :10])


def test_missing_georeference_is_refused_with_the_way_out(tmp_path, recwarn):
    path = tmp_path / "plain.png"
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(path, "w", driver="PNG", height=20, width=30, count=3, dtype="uint8") as target:
            target.write(smooth(20, 30))
    with pytest.raises(SceneReadError, match=r"scene\.allow_ungeoreferenced=true"):
        open_scene(path, SceneOptions())
    scene = open_scene(path, SceneOptions(allow_ungeoreferenced=True))
    assert scene.geobox.crs is None
    assert whole(scene).rgb.shape == (3, 20, 30)
    with pytest.raises(OptionError, match="--gsd"):
        open_scene(path, SceneOptions(allow_ungeoreferenced=True, gsd=1.0))


def test_unreadable_files_are_named(tmp_path, write_raster):
    broken = tmp_path / "broken.tif"
    broken.write_bytes(b"no raster")
    with pytest.raises(SceneReadError, match=r"broken\.tif"):
        open_scene(broken, SceneOptions())
    cut = write_raster(smooth(600, 600), "cut.tif")
    cut.write_bytes(cut.read_bytes()[: 600 * 600])
    with pytest.raises(SceneReadError, match=r"cut\.tif"):
        whole(open_scene(cut, SceneOptions()))


def test_scenes_pickle_without_their_handles(write_raster):
    rgb = smooth(32, 32)
    scene = open_scene(write_raster(rgb), SceneOptions())
    whole(scene)
    np.testing.assert_array_equal(whole(pickle.loads(pickle.dumps(scene))).rgb, rgb)


@pytest.mark.parametrize(("gsd", "how"), [(1.1, "bilinear"), (1.5, "average")])
def test_pixels_of_unequal_sides_are_averaged_from_their_mean_size_on(write_raster, gsd, how):
    """Sides of 0.5 m and 2 m have a mean of 1 m; averaging begins at 1.2 times that."""
    path = write_raster(np.maximum(smooth(60, 120), 1), transform=Affine(0.5, 0, 500000, 0, -2.0, 5600000))
    assert open_scene(path, SceneOptions(gsd=gsd)).resampling == how
