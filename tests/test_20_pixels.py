"""Which pixels count and what colours they have: the same from the file, mirrored and warped, local and on a server."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from conftest import rotated, smooth
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.transform import Affine, from_origin

from ovrs.errors import OptionError, SceneReadError
from ovrs.options import SceneOptions
from ovrs.scene.grid import Window
from ovrs.scene.opening import open_scene

H, W = 40, 48
HOLE = np.zeros((H, W), bool)
HOLE[6:16, 8:24] = True
OTHER = np.zeros((H, W), bool)
OTHER[24:32, 30:40] = True
PLACE = from_origin(500000, 5600000, 0.5, 0.5)


def picture(dtype="uint8", bands=3):
    """Values of 10 to 209, so that neither 0 nor 255 occurs."""
    values = smooth(H, W)[np.arange(bands) % 3]
    return (10 + values.astype(float) * 199 / 255).round().astype(dtype)


def whole(scene):
    return scene.read(Window(0, 0, *scene.geobox.shape))


def every_way(path, **options):
    """The same pixels: from the file, through the warper on the same grid, and averaged to twice the size."""
    scene = open_scene(path, SceneOptions(**options))
    assert not scene.warp
    native, warped = whole(scene), whole(replace(scene, warp=True))
    np.testing.assert_array_equal(native.valid, warped.valid)
    np.testing.assert_array_equal(native.rgb, warped.rgb)
    coarse = whole(open_scene(path, SceneOptions(**options, gsd=1.0)))
    blocks = native.valid.reshape(H // 2, 2, W // 2, 2)
    np.testing.assert_array_equal(coarse.valid, blocks.any(axis=(1, 3)))
    return native


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [
        ("uint8", 0),
        ("int8", -5),
        ("uint16", 65535),
        ("int16", -9999),
        ("uint32", 4000000000),
        ("int32", -(2**31)),
        ("int64", -(2**40)),
        ("uint64", 2**40),
        ("float32", -9999.0),
        ("float32", float(np.finfo("f4").min)),
        ("float32", float("nan")),
        ("float64", float(np.finfo("f8").min)),
    ],
)
def test_a_nodata_value_and_a_mask_both_count(write_raster, dtype, nodata):
    values = (picture("int16") - (110 if dtype == "int8" else 0)).astype(dtype)
    values[:, HOLE] = nodata
    path = write_raster(values, mask=~OTHER, nodata=nodata)
    np.testing.assert_array_equal(every_way(path).valid, ~(HOLE | OTHER))


def test_alpha_mask_and_a_given_nodata_value_all_count(write_raster):
    alpha = np.where(HOLE, 0, 255).astype(np.uint8)
    alpha[0, 0] = 1  # nearly transparent is valid
    values = np.concatenate([picture(), alpha[None]])
    values[:3, 0, 5:9] = 77
    path = write_raster(values, mask=~OTHER, photometric="RGB", alpha="YES")
    valid = every_way(path, nodata=77).valid
    assert not valid[0, 5:9].any()
    expected = ~(HOLE | OTHER)
    expected[0, 5:9] = False
    np.testing.assert_array_equal(valid | (values[:3] == 77).all(axis=0), expected | (values[:3] == 77).all(axis=0))
    gray = np.stack([picture()[0], alpha])
    with rasterio.open(write_raster(gray, "la.tif"), "r+") as target:
        target.colorinterp = (ColorInterp.gray, ColorInterp.alpha)
    np.testing.assert_array_equal(every_way(target.name).valid, ~HOLE)
    deep = np.concatenate([picture("uint16"), np.where(HOLE, 0, 65535)[None].astype(np.uint16)])
    deep[3, 0, 0] = 1
    np.testing.assert_array_equal(
        every_way(write_raster(deep, "deep.tif", photometric="RGB", alpha="YES")).valid, ~HOLE
    )


def test_numbers_that_are_not_finite_are_no_data_in_any_band(write_raster):
    values = picture("float32")
    values[0, HOLE], values[1, OTHER], values[2, 0, 0] = np.nan, np.inf, -np.inf
    expected = ~(HOLE | OTHER)
    expected[0, 0] = False
    np.testing.assert_array_equal(every_way(write_raster(values)).valid, expected)


def write_vrt(tmp_path, bands, source="scene.tif", dtype="Byte"):
    """`bands`: XML within each band, beside its source."""
    text = "".join(
        f'<VRTRasterBand dataType="{dtype}" band="{i}">{more}<SimpleSource><SourceFilename relativeToVRT="1">{source}'
        f"</SourceFilename><SourceBand>{i}</SourceBand></SimpleSource></VRTRasterBand>"
        for i, more in enumerate(bands, 1)
    )
    place = ", ".join(map(repr, PLACE.to_gdal()))
    path = tmp_path / "scene.vrt"
    path.write_text(
        f'<VRTDataset rasterXSize="{W}" rasterYSize="{H}"><SRS>EPSG:32633</SRS><GeoTransform>{place}</GeoTransform>{text}</VRTDataset>'
    )
    return path


def test_bands_may_have_different_nodata_values_and_masks_of_their_own(write_raster, tmp_path):
    values = picture()
    for band, value in zip(values, (3, 5, 254), strict=True):
        band[HOLE] = value
    write_raster(values)
    path = write_vrt(tmp_path, [f"<NoDataValue>{v}</NoDataValue>" for v in (3, 5, 254)])
    np.testing.assert_array_equal(every_way(path).valid, ~HOLE)
    assert open_scene(path, SceneOptions()).nodata == (3.0, 5.0, 254.0)
    masks = np.where([HOLE, HOLE | OTHER, HOLE], 0, 255).astype(np.uint8)
    write_raster(masks, "masks.tif")
    own = [
        f'<MaskBand><VRTRasterBand dataType="Byte"><SimpleSource><SourceFilename relativeToVRT="1">masks.tif</SourceFilename>'
        f"<SourceBand>{i}</SourceBand></SimpleSource></VRTRasterBand></MaskBand>"
        for i in (1, 2, 3)
    ]
    write_raster(picture())
    np.testing.assert_array_equal(every_way(write_vrt(tmp_path, own)).valid, ~HOLE)  # any band is enough
    assert every_way(write_vrt(tmp_path, ["<NoDataValue>-9999</NoDataValue>"] * 3)).valid.all()  # no byte is -9999
    assert every_way(write_vrt(tmp_path, ["<NoDataValue>nan</NoDataValue>"] * 3)).valid.all()
    assert every_way(write_raster(picture(), "plain.tif"), nodata=-9999).valid.all()


def test_bands_of_different_types_are_read_together(write_raster, tmp_path):
    write_raster(picture("uint16"))
    path = write_vrt(tmp_path, [""] * 3, dtype="UInt16")
    path.write_text(path.read_text().replace('dataType="UInt16"', 'dataType="Int16"', 1))
    assert every_way(path).valid.all()
    assert open_scene(path, SceneOptions()).channels.dtype == "int32"


def test_mirrored_scenes_become_north_up_pixel_by_pixel(write_raster):
    values = picture()
    values[:, HOLE] = 0
    straight = whole(open_scene(write_raster(values, nodata=0), SceneOptions()))
    for flip_x, flip_y in ((True, False), (False, True), (True, True)):
        stored = values[:, :: -1 if flip_y else 1, :: -1 if flip_x else 1]
        place = PLACE @ Affine(-1 if flip_x else 1, 0, W * flip_x, 0, -1 if flip_y else 1, H * flip_y)
        path = write_raster(stored, "mirrored.tif", transform=place, nodata=0)
        scene = open_scene(path, SceneOptions())
        assert scene.geobox.affine.almost_equals(PLACE)
        np.testing.assert_array_equal(whole(scene).rgb, straight.rgb)
        np.testing.assert_array_equal(whole(scene).valid, straight.valid)
        np.testing.assert_array_equal(whole(replace(scene, warp=True)).rgb, straight.rgb)
        part = open_scene(path, SceneOptions(bbox=(500003, 5599985, 500015, 5599998)))
        np.testing.assert_array_equal(whole(part).rgb, straight.rgb[:, 4:30, 6:30])
        np.testing.assert_array_equal(part.read(Window(3, 5, 7, 9)).rgb, straight.rgb[:, 7:14, 11:20])
        np.testing.assert_array_equal(scene.decimated(24).valid.shape, (20, 24))


def test_rotated_scenes_and_ground_control_points_keep_mask_and_nodata(write_raster, tmp_path):
    values = picture()
    values[:, HOLE] = 0
    turned = open_scene(write_raster(values, "r.tif", nodata=0, mask=~OTHER, transform=rotated()), SceneOptions())
    bare = open_scene(write_raster(picture(), "b.tif", transform=rotated()), SceneOptions())
    lost = whole(bare).valid.sum() - whole(turned).valid.sum()
    area = abs(rotated().determinant / turned.geobox.affine.determinant)
    assert lost == pytest.approx((HOLE | OTHER).sum() * area, rel=0.15)
    path = tmp_path / "points.tif"
    points = [GroundControlPoint(row=r, col=c, x=5e5 + c / 2, y=5.6e6 - r / 2) for r in (0, H) for c in (0, W)]
    profile = {"driver": "GTiff", "height": H, "width": W, "count": 3, "dtype": "uint8", "nodata": 0}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", gcps=points, crs="EPSG:32633", **profile) as target,
    ):
        target.write(values)
        target.write_mask(~OTHER)
    placed = open_scene(path, SceneOptions())
    assert placed.geobox.shape == (H, W)
    np.testing.assert_array_equal(whole(placed).valid, ~(HOLE | OTHER))


def test_palettes_are_expanded_before_anything_else(write_raster):
    index = np.random.default_rng(0).integers(0, 250, (1, H, W)).astype(np.uint8)
    index[0, HOLE] = 9
    table = {i: ((7 * i) % 256, 255 - i, (31 * i) % 256, 255) for i in range(256)}
    path = write_raster(index, nodata=9)
    with rasterio.open(path, "r+") as target:
        target.write_colormap(1, table)
    pixels = every_way(path)
    np.testing.assert_array_equal(pixels.valid, index[0] != 9)
    colours = np.array([table[i][:3] for i in range(256)], np.uint8)
    expected = np.where(pixels.valid, np.moveaxis(colours[index[0]], -1, 0), 0)
    np.testing.assert_array_equal(pixels.rgb, expected)
    coarse = whole(open_scene(path, SceneOptions(gsd=1.0))).rgb
    total = expected.astype(float).reshape(3, H // 2, 2, W // 2, 2).sum(axis=(2, 4))
    count = pixels.valid.reshape(H // 2, 2, W // 2, 2).sum(axis=(1, 3))
    np.testing.assert_allclose(coarse, total / np.maximum(count, 1), atol=1)


def test_an_alpha_band_that_looks_like_imagery_is_told(write_raster, caplog):
    """GDAL calls a nameless fourth band alpha; near-infrared is zero over water."""
    infrared = np.where(HOLE, 0, picture()[:1] // 2 + 20).astype(np.uint8)
    path = write_raster(np.concatenate([picture(), infrared]), photometric="RGB", alpha="YES")
    open_scene(path, SceneOptions())
    assert "band 4" in caplog.text
    assert "-colorinterp_4 undefined" in caplog.text
    caplog.clear()
    with rasterio.open(path, "r+") as target:
        target.colorinterp = (*target.colorinterp[:3], ColorInterp.undefined)
    assert every_way(path).valid.all()
    for opaque, kind in ((255, "uint8"), (255, "uint16"), (65535, "uint16")):
        alpha = np.where(HOLE, 0, opaque)[None].astype(kind)
        soft = write_raster(
            np.concatenate([picture(kind), alpha]), f"{opaque}{kind}.tif", photometric="RGB", alpha="YES"
        )
        open_scene(soft, SceneOptions())
    assert not caplog.records


def test_transparent_colours_of_a_palette_are_no_data(tmp_path, write_raster):
    index = np.where(HOLE, 3, 200).astype(np.uint8)[None]
    path = write_raster(index, "p.png", driver="PNG")
    with rasterio.open(
        path, "w", driver="PNG", height=H, width=W, count=1, dtype="uint8", crs="EPSG:32633", transform=PLACE
    ) as target:
        target.write(index)
        target.write_colormap(1, {3: (9, 9, 9, 0), 200: (1, 2, 3, 255)})
    pixels = every_way(path)
    np.testing.assert_array_equal(pixels.valid, ~HOLE)
    assert pixels.rgb[:, 0, 0].tolist() == [1, 2, 3]


def test_few_bits_and_inverted_numbers_are_shown_as_meant(write_raster):
    bits = (np.random.default_rng(0).random((1, H, W)) > 0.5).astype(np.uint8)
    np.testing.assert_array_equal(every_way(write_raster(bits, nbits=1)).rgb[1], 255 * bits[0])
    four = np.arange(H * W, dtype=np.uint8).reshape(1, H, W) % 16
    np.testing.assert_array_equal(every_way(write_raster(four, nbits=4)).rgb[1], 17 * four[0])
    white = every_way(write_raster(bits, photometric="MINISWHITE", nbits=1))
    np.testing.assert_array_equal(white.rgb[0], 255 * (1 - bits[0]))
    gray = picture(bands=1)
    np.testing.assert_array_equal(every_way(write_raster(gray, photometric="MINISWHITE")).rgb[2], 255 - gray[0])
    negative = write_raster(255 - picture("int16"))
    with rasterio.open(negative, "r+") as target:
        target.scales, target.offsets = (-1.0,) * 3, (255.0,) * 3
    positive = every_way(write_raster(picture("int16"), "positive.tif"), stretch=(0, 100))
    np.testing.assert_allclose(every_way(negative, stretch=(0, 100)).rgb.astype(int), positive.rgb, atol=1)


def test_positive_scales_and_offsets_change_nothing(write_raster, caplog):
    plain = every_way(write_raster(picture("uint16")), stretch=(0, 100))
    each = picture("uint16") * np.array([10, 50, 100], np.uint16)[:, None, None]
    path = write_raster(each, "scaled.tif")
    with rasterio.open(path, "r+") as target:
        target.scales, target.offsets = (0.1, 0.02, 0.01), (-1.0, 5.0, 0.0)
    np.testing.assert_array_equal(every_way(path, stretch=(0, 100)).rgb, plain.rgb)
    with rasterio.open(write_raster(picture(), "bytes.tif"), "r+") as target:
        target.scales = (0.1, 0.02, 0.01)
    assert not caplog.records
    open_scene(target.name, SceneOptions())
    assert "another scale for each band" in caplog.text


def test_numbers_that_are_no_colours_are_refused_with_the_way_out(write_raster):
    with pytest.raises(SceneReadError, match=r"complex.*abs\(A\)"):
        open_scene(write_raster(picture("complex64")), SceneOptions())
    path = write_raster(picture(bands=4), "hsl.tif")
    with rasterio.open(path, "r+") as target:
        target.colorinterp = [ColorInterp.hue, ColorInterp.saturation, ColorInterp.lightness, ColorInterp.undefined]
    with pytest.raises(SceneReadError, match=r"HSL.*--bands"):
        open_scene(path, SceneOptions())
    assert whole(open_scene(path, SceneOptions(bands=(1, 2, 3)))).valid.all()


def test_a_scene_without_a_valid_pixel_is_refused_whatever_its_type(write_raster):
    for dtype in ("uint8", "uint16", "float32"):
        with pytest.raises(SceneReadError, match="no valid pixel"):
            open_scene(write_raster(np.zeros((3, H, W), dtype), nodata=0), SceneOptions())
    with pytest.raises(SceneReadError, match="no valid pixel"):
        open_scene(write_raster(picture(), mask=np.zeros((H, W), bool)), SceneOptions())
    one = np.zeros((3, 300, 300), np.uint8)
    one[:, 170, 31] = 5  # off the first looks
    assert whole(open_scene(write_raster(one, nodata=0), SceneOptions())).valid.sum() == 1


@pytest.mark.parametrize(
    ("dtype", "value"), [("float32", -9999), ("int16", -32768), ("uint16", 0), ("float32", 1e20), ("int32", 2**31 - 1)]
)
def test_a_number_that_looks_like_no_data_is_told(write_raster, caplog, dtype, value):
    values = (300 + 10 * picture("int32")).astype(dtype)
    open_scene(write_raster(values), SceneOptions())
    assert not caplog.records
    values[:, HOLE] = value
    path = write_raster(values)
    open_scene(path, SceneOptions())
    said = caplog.text
    share = 100 * HOLE.mean()
    assert f"{share:.1f} % of the pixels" in said
    assert "scene.nodata" in said
    given = said.split("scene.nodata=")[1].split(":")[0]
    caplog.clear()
    np.testing.assert_array_equal(every_way(path, nodata=float(given)).valid, ~HOLE)
    assert not caplog.records


def test_numbers_of_any_size_are_stretched(write_raster):
    plain = every_way(write_raster(picture("float64")), stretch=(0, 100)).rgb
    for factor in (1e300, 1e12, 1e-30, 1e-300):
        found = every_way(write_raster(picture("float64") * factor), stretch=(0, 100)).rgb
        np.testing.assert_allclose(found.astype(int), plain, atol=1)
    far = write_raster(picture("uint32") + np.uint32(4_000_000_000))
    np.testing.assert_allclose(every_way(far, stretch=(0, 100)).rgb.astype(int), plain, atol=1)
    constant = whole(open_scene(write_raster(np.full((3, H, W), 1e300)), SceneOptions()))
    assert constant.valid.all()
    both = picture("float64")
    both[:, HOLE], both[:, OTHER] = -1.7e308, 1.7e308
    with pytest.raises(SceneReadError, match="more than can be stretched"):
        open_scene(write_raster(both), SceneOptions(stretch=(0, 100)))


def external_mask(folder):
    profile = {"driver": "GTiff", "height": H, "width": W, "count": 3, "dtype": "uint8"}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False),
        rasterio.open(folder / "m.tif", "w", crs="EPSG:32633", transform=PLACE, **profile) as target,
    ):
        target.write(picture())
        target.write_mask(~HOLE)
    assert (folder / "m.tif.msk").exists()
    return "m.tif"


def nodata_beside(folder):
    values = picture()
    values[:, HOLE] = 250
    profile = {"driver": "GTiff", "height": H, "width": W, "count": 3, "dtype": "uint8"}
    with rasterio.open(folder / "a.tif", "w", crs="EPSG:32633", transform=PLACE, **profile) as target:
        target.write(values)
    each = "".join(f'<PAMRasterBand band="{b}"><NoDataValue>250</NoDataValue></PAMRasterBand>' for b in (1, 2, 3))
    (folder / "a.tif.aux.xml").write_text(f"<PAMDataset>{each}</PAMDataset>")
    return "a.tif"


def world_file(folder):
    values = np.concatenate([picture(), np.where(HOLE, 0, 255).astype(np.uint8)[None]])
    with rasterio.open(
        folder / "w.png",
        "w",
        driver="PNG",
        height=H,
        width=W,
        count=4,
        dtype="uint8",
        worldfile="YES",
        crs="EPSG:32633",
        transform=PLACE,
    ) as target:
        target.write(values)
    (folder / "w.png.aux.xml").write_text(f"<PAMDataset><SRS>{CRS.from_epsg(32633).to_wkt()}</SRS></PAMDataset>")
    return "w.png"


def header_beside(folder):
    values = picture()
    values[:, HOLE] = 0
    profile = {"driver": "ENVI", "height": H, "width": W, "count": 3, "dtype": "uint8", "nodata": 0}
    with rasterio.open(folder / "e.dat", "w", crs="EPSG:32633", transform=PLACE, **profile) as target:
        target.write(values)
    return "e.dat"


SIDE_FILES = [external_mask, nodata_beside, world_file, header_beside]


@pytest.mark.parametrize("make", SIDE_FILES)
def test_files_beside_a_scene_count_when_it_is_read(tmp_path, make):
    np.testing.assert_array_equal(every_way(tmp_path / make(tmp_path)).valid, ~HOLE)


@pytest.fixture
def served(tmp_path, monkeypatch):
    """The address of a server of `tmp_path`, and a function that tells what it was asked for."""
    monkeypatch.setenv("NO_PROXY", "*")
    log = tmp_path / "requests.log"
    command = [sys.executable, str(Path(__file__).with_name("range_server.py")), str(tmp_path), str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        yield f"http://127.0.0.1:{int(server.stdout.readline())}", lambda: log.read_text().splitlines()
        server.kill()


@pytest.mark.parametrize("make", SIDE_FILES)
def test_a_server_gives_the_same_pixels_as_the_folder(tmp_path, served, make):
    address, asked = served
    name = make(tmp_path)
    far, near = every_way(f"{address}/{name}"), every_way(tmp_path / name)
    np.testing.assert_array_equal(far.valid, near.valid)
    np.testing.assert_array_equal(far.rgb, near.rgb)
    assert len(asked()) < 200  # five openings, each with its side files and the bytes of its identity


def test_a_signed_address_stands_for_one_file(tmp_path, served):
    address, asked = served
    scene = open_scene(f"{address}/{external_mask(tmp_path)}?signature=abc", SceneOptions())
    assert whole(scene).valid.all()
    assert whole(replace(scene, warp=True)).valid.all()
    assert set(asked()) == {"/m.tif?signature=abc"}


def test_a_link_keeps_the_files_beside_it(tmp_path, words, trivial):
    from ovrs.run.begin import build_job

    (tmp_path / "store").mkdir()
    external_mask(tmp_path)
    (tmp_path / "m.tif").rename(tmp_path / "store/m.tif")
    (tmp_path / "m.tif").symlink_to(tmp_path / "store/m.tif")
    job, _ = build_job(tmp_path / "m.tif", words, tmp_path / "o.zarr", trivial())
    np.testing.assert_array_equal(whole(job.scene).valid, ~HOLE)


def test_senseless_sizes_of_the_grid_are_refused(write_raster):
    path = write_raster(picture())
    for gsd, reason in (
        (1e-6, "times finer"),
        (500.0, "coarser than the whole scene"),
    ):
        with pytest.raises(OptionError, match=reason):
            open_scene(path, SceneOptions(gsd=gsd))
