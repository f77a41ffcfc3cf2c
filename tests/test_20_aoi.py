"""Areas of interest: the pixels whose centre lies inside, whatever CRS, layer or place; everything else is refused."""

import logging
import zipfile

import geopandas
import numpy as np
import pyogrio
import pyproj
import pytest
import shapely
from conftest import smooth
from odc.geo.geobox import GeoBox
from rasterio.features import rasterize
from rasterio.transform import from_origin
from shapely.geometry import GeometryCollection, LineString, MultiPolygon, Point, Polygon, box

import ovrs
from ovrs.collection import catalog
from ovrs.errors import OptionError
from ovrs.options import SceneOptions
from ovrs.scene.aoi import restrict
from ovrs.scene.grid import Window
from ovrs.scene.opening import open_scene

LEFT, TOP, SIZE = 500000, 5600000, 0.5
GRID = GeoBox((200, 240), from_origin(LEFT, TOP, SIZE, SIZE), "EPSG:32633")
INSIDE = box(LEFT + 20.2, TOP - 70.2, LEFT + 80.2, TOP - 30.2)
"""60 m × 40 m."""


def write(tmp_path, shapes, crs="EPSG:32633", name="a.gpkg", **kwargs):
    geopandas.GeoDataFrame({"id": range(len(shapes))}, geometry=list(shapes), crs=crs).to_file(
        tmp_path / name, **kwargs
    )
    return tmp_path / name


def mask(area):
    shape = [shapely.from_wkt(area.wkt)]
    return rasterize(shape, out_shape=tuple(area.geobox.shape), transform=area.geobox.affine, dtype="uint8")


def square_metres(area):
    return mask(area).sum() * SIZE**2


@pytest.mark.parametrize(
    ("crs", "name"),
    [("EPSG:4326", "a.geojson"), ("EPSG:3035", "a.gpkg"), ("EPSG:3857", "a.fgb"), ("EPSG:32632", "a.shp")],
)
def test_polygons_of_any_crs_give_their_area(tmp_path, crs, name):
    shape = geopandas.GeoSeries([INSIDE], crs="EPSG:32633").to_crs(crs)
    area = restrict(GRID, write(tmp_path, shape, crs, name))
    assert square_metres(area) == pytest.approx(2400, rel=0.02)
    assert area.note == ""


def around(lon, lat, crs, size=0.5, side=200):
    """A grid of `side`² pixels with this place in the middle."""
    x, y = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(lon, lat)
    half = side * size / 2
    return GeoBox((side, side), from_origin(x - half, y + half, size, size), crs)


SHIFT = 0.0002
PLACES = {
    "world": (around(15, 50, "EPSG:32633"), box(-180, -90, 180, 90), "EPSG:4326"),
    "half world": (around(15, 50, "EPSG:32633"), box(-180, -90, 15, 90), "EPSG:4326"),
    "long edge": (around(15, 50, "EPSG:32633", 50), box(-100, 49.99, 120, 60), "EPSG:4326"),
    "antimeridian in two parts": (
        around(180, 10, "EPSG:32660"),
        MultiPolygon([box(180 - SHIFT, 9.9, 180, 10), box(-180, 9.9, -180 + SHIFT, 10)]),
        "EPSG:4326",
    ),
    "antimeridian, beyond 180": (around(180, 10, "EPSG:32660"), box(180 - SHIFT, 9.9, 180 + SHIFT, 10), "EPSG:4326"),
    "antimeridian, one side": (around(180, 10, "EPSG:32601"), box(-180, 9.9, -170, 10), "EPSG:4326"),
    "antimeridian in Web Mercator": (
        around(180, 10, "EPSG:32660"),
        box(20037508 - 20, 1000000, 20037508.34, 1118889.97),
        "EPSG:3857",
    ),
    "pole": (around(0, 90, "EPSG:3413", 100), box(-180, 89.95, 180, 90), "EPSG:4326"),
    "pole, a sector": (around(0, 90, "EPSG:3413", 100), box(20, 80, 110, 90), "EPSG:4326"),
    "south pole": (around(0, -90, "EPSG:3031", 100), box(-180, -90, 180, -89.95), "EPSG:4326"),
    "degrees on degrees": (
        GeoBox((200, 200), from_origin(190, 50, 1e-5, 1e-5), "EPSG:4326"),
        box(-170, 49.9985, -169.999, 50.1),
        "EPSG:4326",
    ),
    "other datum": (
        GeoBox((200, 200), from_origin(190, 50, 1e-5, 1e-5), "EPSG:4326"),
        box(-170, 49.9985, -169.999, 50.1),
        "EPSG:4258",
    ),
    "grads": (around(3, 47, "EPSG:2154"), box(0.5, 52.2, 0.7368, 53), "EPSG:4807"),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_pixel_is_inside_when_its_centre_is(tmp_path, name):
    grid, shape, crs = PLACES[name]
    area = restrict(grid, write(tmp_path, [shape], crs))
    assert set(np.unique(mask(area))) <= {0, 1}
    cols, rows = np.meshgrid(np.arange(grid.width) + 0.5, np.arange(grid.height) + 0.5)
    x, y = grid.affine.a * cols + grid.affine.c, grid.affine.e * rows + grid.affine.f
    there = pyproj.Transformer.from_crs(grid.crs.to_wkt(), crs, always_xy=True)
    x, y = there.transform(x, y)
    turn = {"EPSG:4807": 400}.get(crs, 360)
    shifts = (0, turn, -turn) if crs != "EPSG:3857" else (0,)
    expected = np.any([shapely.contains_xy(shape, x + by, y) for by in shifts], axis=0)
    whole = rasterize([shapely.from_wkt(area.wkt)], out_shape=tuple(grid.shape), transform=grid.affine, dtype="uint8")
    assert expected.sum() > 0
    assert (whole != expected).mean() < 0.002
    assert area.geobox.shape[0] * area.geobox.shape[1] <= grid.shape[0] * grid.shape[1]


def test_geometries_are_mended_and_left_out_with_a_word(tmp_path, caplog):
    bow = Polygon([(LEFT + 10, TOP - 10), (LEFT + 60, TOP - 60), (LEFT + 60, TOP - 10), (LEFT + 10, TOP - 60)])
    area = restrict(GRID, write(tmp_path, [bow]))
    assert square_metres(area) == pytest.approx(1250, rel=0.02)
    assert "1 invalid polygons were mended" in area.note
    assert area.note in caplog.text
    mixed = [
        GeometryCollection([INSIDE, LineString([(LEFT, TOP), (LEFT + 90, TOP - 90)])]),
        Point(LEFT + 5, TOP - 5),
        None,
    ]
    area = restrict(GRID, write(tmp_path, mixed, name="mixed.gpkg"))
    assert square_metres(area) == pytest.approx(2400, rel=0.02)
    assert "2 features without area do not count" in area.note


def test_height_holes_curves_and_archives_are_understood(tmp_path):
    holed = INSIDE.difference(box(LEFT + 40, TOP - 60, LEFT + 60, TOP - 40))
    assert square_metres(restrict(GRID, write(tmp_path, [shapely.force_3d(holed, 7.0)]))) == pytest.approx(
        2000, rel=0.03
    )
    write(tmp_path, [INSIDE], name="z.shp")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for suffix in ("shp", "shx", "dbf", "prj"):
            archive.write(tmp_path / f"z.{suffix}", f"z.{suffix}")
    assert square_metres(restrict(GRID, tmp_path / "z.zip")) == pytest.approx(2400, rel=0.02)
    (tmp_path / "c.csv").write_text(
        f'id,shape\n1,"CURVEPOLYGON(CIRCULARSTRING({LEFT + 30} {TOP - 50}, {LEFT + 50} {TOP - 30}, {LEFT + 70} {TOP - 50}, {LEFT + 50} {TOP - 70}, {LEFT + 30} {TOP - 50}))"\n'
    )
    (tmp_path / "c.vrt").write_text(
        f'<OGRVRTDataSource><OGRVRTLayer name="c"><SrcDataSource>{tmp_path}/c.csv</SrcDataSource><GeometryField encoding="WKT" field="shape"/>'
        "<LayerSRS>EPSG:32633</LayerSRS></OGRVRTLayer></OGRVRTDataSource>"
    )
    assert square_metres(restrict(GRID, tmp_path / "c.vrt")) == pytest.approx(np.pi * 400, rel=0.03)


def test_layers_are_named_or_told(tmp_path, caplog):
    file = write(tmp_path, [INSIDE], layer="one")
    write(tmp_path, [box(LEFT, TOP - 10, LEFT + 10, TOP)], layer="two")
    write(tmp_path, [Point(LEFT, TOP)], layer="points")
    area = restrict(GRID, file)
    assert square_metres(area) == pytest.approx(2400, rel=0.02)
    assert "layer 'one' is taken of one, two, points" in caplog.text
    assert "layer 'one' is taken" in area.note
    caplog.clear()
    assert square_metres(restrict(GRID, f"{file}|layer=two")) == 100
    assert square_metres(restrict(GRID, f"{file}|layername=two")) == 100
    assert caplog.text == ""
    for source, told in (("three", "no layer 'three'; it has: one, two, points"), ("points", "no polygon")):
        with pytest.raises(OptionError, match=told):
            restrict(GRID, f"{file}|layer={source}")
    with pytest.raises(OptionError, match=r"names no layer; write FILE\|layer=NAME"):
        restrict(GRID, f"{file}|two")


def faulty(tmp_path):
    """Files that cannot be an area, with what is said of each."""
    (tmp_path / "text.txt").write_text("x")
    (tmp_path / "cut.geojson").write_text("{")
    (tmp_path / "none.geojson").write_text('{"type":"FeatureCollection","features":[]}')
    (tmp_path / "table.csv").write_text("id,name\n1,a\n")
    (tmp_path / "folder").mkdir()
    write(tmp_path, [INSIDE], name="half.shp")
    (tmp_path / "half.shx").unlink()
    write(tmp_path, [INSIDE], name="lost.shp")
    (tmp_path / "lost.prj").unlink()
    write(tmp_path, [Point(LEFT + 9, TOP - 9), LineString([(LEFT, TOP), (LEFT + 50, TOP - 50)])], name="line.gpkg")
    write(tmp_path, [Polygon([(LEFT, TOP), (np.inf, TOP), (LEFT, TOP - 50)])], name="endless.gpkg")
    with np.errstate(invalid="ignore"):
        write(tmp_path, [INSIDE, Polygon([(LEFT, TOP), (np.nan, TOP), (LEFT, TOP - 50)])], name="nan.gpkg")
    write(tmp_path, [box(LEFT + 5000, TOP, LEFT + 5010, TOP + 10)], name="beside.gpkg")
    write(tmp_path, [box(LEFT + 9.01, TOP - 9.2, LEFT + 9.2, TOP - 9.01)], name="tiny.gpkg")
    write(tmp_path, [box(0, 0, 9, 9)], crs=pyproj.CRS.from_wkt('LOCAL_CS["here",UNIT["metre",1]]'), name="local.gpkg")
    return {
        "missing.gpkg": "does not exist",
        "text.txt": "cannot be read as vectors",
        "cut.geojson": "cannot be read as vectors",
        "none.geojson": "holds no polygon",
        "table.csv": "a table without geometry",
        "folder": "cannot be read as vectors",
        "half.shp": "cannot be read.*shx",
        "lost.shp": "has no CRS",
        "line.gpkg": r"holds no polygon \(2 features",
        "endless.gpkg": "geometry 1 has coordinates that are infinite",
        "nan.gpkg": "geometry 2 has coordinates that are infinite",
        "beside.gpkg": "does not touch the scene",
        "tiny.gpkg": "covers no pixel's centre",
        "local.gpkg": "its CRS",
    }


def test_everything_else_is_refused_in_one_line(tmp_path):
    for name, told in faulty(tmp_path).items():
        with pytest.raises(OptionError, match=told) as caught:
            restrict(GRID, tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(OptionError, match="georeferenced"):
        restrict(GeoBox((10, 10), from_origin(0, 10, 1, 1), None), tmp_path / "tiny.gpkg")


def test_many_features_are_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("ovrs.scene.polygons._BATCH", 7)
    shapes = [box(LEFT + 4 * i, TOP - 3, LEFT + 4 * i + 2, TOP - 1) for i in range(21)]
    assert square_metres(restrict(GRID, write(tmp_path, shapes))) == 21 * 4


def test_a_catalogs_area_lies_beside_the_catalog(tmp_path, write_raster, monkeypatch):
    write_raster(smooth(200, 240))
    write(tmp_path, [INSIDE], layer="one")
    text = "version: 1\nscenes:\n  s: {path: scene.tif, vocabulary: demo, read: {aoi: a.gpkg|layer=one}}\n"
    (tmp_path / "c.yaml").write_text(text)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    read = catalog.load(tmp_path / "c.yaml").scene("s").read
    scene = open_scene(tmp_path / "scene.tif", read)
    height, width = scene.geobox.shape
    assert scene.read(Window(0, 0, height, width)).valid.sum() * SIZE**2 == pytest.approx(2400, rel=0.02)
    assert SceneOptions.model_validate(read.model_dump(mode="json")) == read


def test_own_polygons_are_an_area_without_a_warning(tmp_path, caplog):
    file = write(tmp_path, [INSIDE], layer="classes")
    pyogrio.write_dataframe(geopandas.pd.DataFrame({"style": ["x"]}), file, layer="layer_styles", append=True)
    with caplog.at_level(logging.WARNING):
        assert restrict(GRID, file).note == ""
    assert caplog.text == ""


def test_zones_keep_their_features_and_say_which_are_empty(tmp_path, write_raster, words, trivial, caplog):
    from ovrs import pipeline
    from ovrs.errors import SceneReadError
    from ovrs.export.stats import zone_areas

    pipeline.map_scene(write_raster(smooth(200, 240)), words, tmp_path / "m.zarr", trivial())
    bow = Polygon([(LEFT + 10, TOP - 10), (LEFT + 60, TOP - 60), (LEFT + 60, TOP - 10), (LEFT + 10, TOP - 60)])
    shapes = [INSIDE, bow, None, Point(LEFT + 5, TOP - 5), box(LEFT + 0.3, TOP - 0.4, LEFT + 0.45, TOP - 0.3)]
    frame = geopandas.GeoDataFrame({"name": list("abcde")}, geometry=shapes, crs="EPSG:32633").to_crs(3035)
    world = geopandas.GeoDataFrame({"name": ["w"]}, geometry=[box(-180, -90, 180, 90)], crs=4326)
    frame.to_file(tmp_path / "z.gpkg")
    world.to_file(tmp_path / "w.geojson")

    def areas(file):
        rows = zone_areas(ovrs.open(tmp_path / "m.zarr"), file)
        return {
            zone: sum(r["pixels"] for r in rows if r["zone"] == zone) * SIZE**2 for zone in {r["zone"] for r in rows}
        }

    found = areas(tmp_path / "z.gpkg")
    assert found.keys() == set("abcde")
    assert found["a"] == pytest.approx(2400, rel=0.01)
    assert found["b"] == pytest.approx(1250, rel=0.02)
    assert (found["c"], found["d"], found["e"]) == (0, 0, 0)
    assert "lies in the zones c, d, e" in caplog.text
    assert areas(tmp_path / "w.geojson")["w"] == 200 * 240 * SIZE**2
    for name, told in faulty(tmp_path).items():
        if name not in ("beside.gpkg", "tiny.gpkg"):
            with pytest.raises((OptionError, SceneReadError), match=told):
                areas(tmp_path / name)
