"""Sizes and areas are those on the ground, on the ellipsoid that a CRS names. pyproj.Geod is the oracle."""

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import CRS, Geod, Transformer

from ovrs.scene import ground
from ovrs.scene.grid import Window, has_ground, nominal_size_m, pixel_size_m, regrid, row_areas_m2

MOON = (
    'GEOGCS["Moon 2000",DATUM["D_Moon_2000",SPHEROID["Moon_2000_IAU_IAG",1737400.0,0.0]],PRIMEM["Greenwich",0],'
    'UNIT["Decimal_Degree",0.0174532925199433]]'
)
MARS = MOON.replace("Moon", "Mars").replace("1737400.0,0.0", "3396190.0,169.894447223612")
SITE = 'LOCAL_CS["site grid",UNIT["foot",0.3048],AXIS["X",EAST],AXIS["Y",NORTH]]'
KM = "+proj=utm +zone=33 +datum=WGS84 +units=km"

PROJECTED = {
    "UTM": ("EPSG:32633", (500000, 5600000), 0.5),
    "UTM at the edge": ("EPSG:32633", (170000, 30000), 0.5),
    "Web Mercator at 50 N": ("EPSG:3857", (1669792, 6446275), 0.6),
    "Web Mercator at 75 S": ("EPSG:3857", (-7000000, -12932243), 1.0),
    "polar stereographic at the pole": ("EPSG:3413", (-20, 20), 0.3),
    "polar stereographic at 60 N": ("EPSG:3413", (2300000, -2300000), 0.3),
    "equal area": ("EPSG:3035", (2700000, 1600000), 2.0),
    "US survey feet": ("EPSG:2263", (980000, 200000), 1.0),
    "kilometres": (KM, (500, 5600), 0.0003),
    "Bessel": ("EPSG:31468", (4468000, 5333000), 0.2),
    "grads of Paris": ("EPSG:27572", (600000, 2400000), 0.5),
    "equidistant cylindrical": ("EPSG:4087", (1000000, 6700000), 1.0),
    "Krovak": ("EPSG:5514", (-740000, -1040000), 0.25),
    "antimeridian": ("EPSG:32660", (833978, 54), 0.3),
    "with heights": (CRS("EPSG:32633+5773").to_wkt(), (500000, 5600000), 0.5),
}


def measured(crs, affine, col, row, geod):
    """Lengths along x and y and area of one pixel times 1000 a side, by geodesics between its corners."""
    base = crs.geodetic_crs
    to_degrees = Transformer.from_crs(crs, base, always_xy=True)
    unit = np.degrees(base.axis_info[0].unit_conversion_factor)
    half = 500 * 0.3 / max(abs(affine.a), 1e-9) / 1000 if affine.a < 0.01 else 500

    def place(x, y):
        lon, lat = to_degrees.transform(*(affine @ (col + x * half, row + y * half)))
        return lon * unit, lat * unit

    left, right, top, low = place(-1, 0), place(1, 0), place(0, -1), place(0, 1)
    width = geod.inv(*left, *right)[2] / (2 * half)
    height = geod.inv(*top, *low)[2] / (2 * half)
    corners = [place(-1, -1), place(1, -1), place(1, 1), place(-1, 1)]
    area = abs(geod.polygon_area_perimeter(*zip(*corners, strict=True))[0]) / (2 * half) ** 2
    return width, height, area


@pytest.mark.parametrize("name", PROJECTED)
def test_projected_metres_are_not_taken_for_ground_metres(name):
    crs, (x, y), size = PROJECTED[name]
    box = GeoBox((80, 100), Affine(size, 0, x, 0, -size, y), crs)
    width, height, area = measured(CRS(crs), box.affine, 50, 40, CRS(crs).get_geod())
    assert pixel_size_m(box) == pytest.approx((width, height), rel=2e-4)
    assert row_areas_m2(box, Window(0, 0, 80, 100)) == pytest.approx(np.full(80, area), rel=2e-4)
    assert has_ground(box)
    coarse = regrid(box, 2.0)
    assert pixel_size_m(coarse) == pytest.approx((2.0, 2.0), rel=0.011)
    assert nominal_size_m(coarse) == pytest.approx((2.0, 2.0), rel=1e-3)


def test_round_numbers_stay_round_where_projection_and_ground_agree():
    utm = GeoBox((360, 420), Affine(0.3, 0, 500000, 0, -0.3, 5600000), "EPSG:32633")
    assert pixel_size_m(utm) == pytest.approx((0.3 / 0.9996, 0.3 / 0.9996), rel=1e-6)
    assert nominal_size_m(utm) == (0.3, 0.3)
    assert regrid(utm, 0.6).shape == (180, 210)
    assert regrid(utm, 0.6).affine.a == pytest.approx(0.6, rel=1e-12)
    mercator = GeoBox((360, 420), Affine(0.6, 0, 1669792, 0, -0.6, 6446275), "EPSG:3857")
    assert nominal_size_m(mercator) == pixel_size_m(mercator)


@pytest.mark.parametrize(
    ("crs", "geod", "unit"),
    [
        ("EPSG:4326", Geod(ellps="WGS84"), 1.0),
        ("EPSG:4979", Geod(ellps="WGS84"), 1.0),
        ("EPSG:4314", Geod(ellps="bessel"), 1.0),
        ("EPSG:4807", Geod(a=6378249.2, b=6356515), 0.9),  # grads from Paris
        (MOON, Geod(a=1737400, b=1737400), 1.0),
        (MARS, Geod(a=3396190, rf=169.894447223612), 1.0),
    ],
)
def test_degrees_and_grads_on_any_ellipsoid(crs, geod, unit):
    for latitude in (0.0, 49.5, -84.0):
        step = 2e-6
        box = GeoBox((1000, 500), Affine(step, 0, 12, 0, -step, latitude / unit + 500 * step), crs)
        west, south = 12 * unit, latitude - 500 * step * unit
        east, north = west + 500 * step * unit, latitude + 500 * step * unit
        area = abs(geod.polygon_area_perimeter([west, east, east, west], [south, south, north, north])[0])
        assert row_areas_m2(box, Window(0, 0, 1000, 500)).sum() * 500 == pytest.approx(area, rel=1e-6)
        wide, high = geod.inv(west, latitude, east, latitude)[2] / 500, geod.inv(west, south, west, north)[2] / 1000
        assert pixel_size_m(box) == pytest.approx((wide, high), rel=1e-6)


def test_the_whole_globe_has_its_area_and_nothing_lies_beyond_the_poles():
    box = GeoBox((181, 360), Affine(1, 0, -180, 0, -1, 90.5), "EPSG:4326")
    areas = row_areas_m2(box, Window(0, 0, 181, 360))
    assert (areas >= 0).all()
    assert areas.sum() * 360 == pytest.approx(5.10065621724e14, rel=1e-9)  # WGS 84
    assert row_areas_m2(GeoBox((2, 2), Affine(1, 0, 0, 0, -1, 95), "EPSG:4326"), Window(0, 0, 2, 2)).tolist() == [0, 0]


def test_grids_without_a_place_on_the_ground_say_so(caplog):
    site = GeoBox((10, 10), Affine(2, 0, 100, 0, -2, 100), SITE)
    assert pixel_size_m(site) == pytest.approx((0.6096, 0.6096))
    assert row_areas_m2(site, Window(0, 0, 10, 10))[0] == pytest.approx(0.6096**2)
    assert not has_ground(site)
    assert not has_ground(GeoBox((10, 10), Affine.identity(), None))
    assert not caplog.records
    nowhere = GeoBox((10, 10), Affine(1, 0, 5e9, 0, -1, 5e9), "EPSG:3035")
    assert pixel_size_m(nowhere) == (1, 1)
    assert row_areas_m2(nowhere, Window(0, 0, 10, 10))[0] == 1
    assert not has_ground(nowhere)
    assert caplog.text.count("outside the domain") >= 1


@pytest.mark.parametrize("north", [3e7, 1e9, 1e12, 1e15])
def test_where_a_projection_folds_its_own_metres_are_taken_and_it_is_said(north, caplog):
    ground._warn_outside.cache_clear()
    far = GeoBox((10, 10), Affine(1, 0, 500000, 0, -1, north), "EPSG:32633")
    assert pixel_size_m(far) == (1, 1)
    assert row_areas_m2(far, Window(0, 0, 10, 10)).tolist() == [1] * 10
    assert not has_ground(far)
    assert "outside the domain" in caplog.text


def test_a_grid_beyond_the_antimeridian_keeps_its_place():
    """Web Mercator at longitude 190, UTM zone 60 across 180°."""
    wrapped = GeoBox((10, 10), Affine(1, 0, 21_150_764, 0, -1, 6_446_275), "EPSG:3857")
    assert has_ground(wrapped)
    assert pixel_size_m(wrapped)[0] == pytest.approx(0.643, abs=2e-3)
    assert has_ground(GeoBox((10, 10), Affine(1, 0, 833_978, 0, -1, 54), "EPSG:32660"))


def test_gsd_is_met_on_the_ground_and_the_model_is_told_it(noise_scene, words, trivial, tmp_path, monkeypatch):
    from rasterio.transform import from_origin

    from ovrs.options import ModelOptions, SceneOptions
    from ovrs.run import begin
    from ovrs.scene.opening import open_scene

    path = noise_scene(80, 100, crs="EPSG:3857", transform=from_origin(1669792, 6446275, 0.6, 0.6))  # 0.385 m at 50 N
    scene = open_scene(path, SceneOptions(gsd=0.77))
    assert tuple(scene.geobox.shape) in {(40, 50), (41, 51)}
    assert pixel_size_m(scene.geobox) == pytest.approx((0.77, 0.77), rel=1e-3)
    assert open_scene(path, SceneOptions(gsd=0.385)).warp is False
    told, tell = [], ModelOptions.told
    monkeypatch.setattr(ModelOptions, "told", lambda self, size: told.append(size) or tell(self, size))
    _, description = begin.build_job(path, words, tmp_path / "o.zarr", trivial())
    assert told == [pytest.approx(0.385, rel=5e-3)]
    assert description.pixel_size_m == pytest.approx([0.385, 0.385], rel=5e-3)
    assert description.metres_on_ground is True
