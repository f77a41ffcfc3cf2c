"""Every product × hostile names and paths: its own reader opens it and is told the right thing, or it is refused."""

import csv
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import geopandas
import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
import zarr
from conftest import environment
from PIL import Image
from typer.testing import CliRunner

import ovrs
from ovrs import options, pipeline
from ovrs.cli.app import app
from ovrs.errors import OptionError, OutputError, OvrsError, StoreError
from ovrs.export import cog as cog_room
from ovrs.export import quicklook as quicklook_room
from ovrs.export import stac, stats, vector_files
from ovrs.export.cog import write_cog, write_confidence
from ovrs.export.qml import write_qml
from ovrs.export.quicklook import write_quicklook
from ovrs.export.run import Request, write_products
from ovrs.export.sld import style_vectors, write_sld
from ovrs.export.vectors import write_vectors
from ovrs.names import ascii_words, cf_words, shown, shown_names
from ovrs.store import layout as store
from ovrs.view.page import write_report
from ovrs.words import vocabulary

NAMES = [
    "it's \"q\" <b>&amp; ]]>", "nul\x00esc\x1b[31m", "\u202eturned\u2066", "=1+1", "-1", "建筑物", "bare soil", "bare_soil",
    "bare-soil", "half\ud800", "x" * 300, "tab\tline\nend", "tab line end", "café",
]  # fmt: skip
SIDE = 60


def make_map(folder, names, labels, **scene):
    """A small map with given labels and class names, whatever a vocabulary would take."""
    folder.mkdir(exist_ok=True)
    place = {"crs": "EPSG:32633", "transform": rasterio.transform.from_origin(500000, 5600000, 2, 2), **scene}
    shape = {"height": labels.shape[0], "width": labels.shape[1], "count": 3, "dtype": "uint8", "driver": "GTiff"}
    with rasterio.open(folder / "s.tif", "w", **shape, **place) as target:
        target.write(np.full((3, *labels.shape), 90, np.uint8))
    words = vocabulary.from_names([f"c{i}" for i in range(len(names))])
    chosen = options.build(model={"model": "trivial", "crop": 32}, run={"block_pitches": 1})
    pipeline.map_scene(folder / "s.tif", words, folder / "m.zarr", chosen)
    group = zarr.open_group(folder / "m.zarr", mode="r+", use_consolidated=False)
    nodata = np.iinfo(group["label"].dtype).max
    group["label"][:] = labels
    group["confidence"][:] = np.where(labels == nodata, 255, 150)
    group["label"].attrs["class_names"] = names
    facts = dict(group.attrs["ovrs"])
    counts = np.bincount(labels[labels != nodata].ravel().astype(int), minlength=len(names)).tolist()
    facts["classes"] = [
        {"name": n, "pixels": c, "hectares": c * 4e-4, "percent": round(100 * c / max(sum(counts), 1), 3)}
        for n, c in zip(names, counts, strict=True)
    ]
    group.attrs["ovrs"] = facts
    return folder / "m.zarr"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A map whose classes have every kind of awkward name, each with pixels."""
    labels = np.repeat(np.arange(SIDE) % len(NAMES), SIDE).reshape(SIDE, SIDE).astype(np.uint8)
    return make_map(tmp_path_factory.mktemp("hostile"), NAMES, labels)


def table(mapped, out, *, overwrite=False):
    stats.check_table(mapped, out, overwrite=overwrite)
    return stats.write_table(stats.class_areas(mapped), out)


WRITERS = {
    "o.tif": write_cog,
    "c.tif": write_confidence,
    "o.gpkg": write_vectors,
    "o.parquet": write_vectors,
    "o.png": write_quicklook,
    "o.json": stac.write_item,
    "o.csv": table,
    "t.parquet": table,
    "o.html": write_report,
}
"""Each kind of product: a name for its file, and its writer `(map, file, overwrite=…)`."""


def test_names_are_printable_different_and_kept_where_they_are_plain():
    assert shown("\x1b]0;x\x07 a\u2028b\ufffe ") == "]0;x  a b\ufffd"
    assert shown("\u202e\t") == "?"
    assert shown("  voda, pole žluté 🌳  طريق") == "voda, pole žluté 🌳  طريق"
    assert shown_names(["a\tb", "a b", "a b (2)"]) == ["a b", "a b (3)", "a b (2)"]
    assert cf_words(["bare soil", "bare_soil", "a  b", "x y", "建 物", "?"]) == [
        "bare_soil", "bare_soil_2", "a__b", "x_y", "建_物", "_"]  # fmt: skip
    assert ascii_words(["pole žluté", "pole zlute", "建筑物", "a/b", "a_b_2", "a_b"]) == [
        "pole_zlute", "pole_zlute_2", "class_2", "a_b", "a_b_2", "a_b_3"]  # fmt: skip
    for maker in (shown_names, cf_words, ascii_words):
        made = maker(NAMES)
        assert len(set(made)) == len(NAMES)
        assert made == maker(NAMES)


def test_a_store_has_as_many_flag_meanings_as_classes(tmp_path):
    from odc.geo.geobox import GeoBox

    box = GeoBox((4, 4), rasterio.transform.from_origin(5e5, 5.6e6, 1, 1), "EPSG:32633")
    names = [n for n in NAMES if "\ud800" not in n]
    store.create(tmp_path / "s.zarr", box, store.Schema(classes=names, colours=[(1, 2, 3)] * len(names), chunk=4))
    words = zarr.open_group(tmp_path / "s.zarr")["label"].attrs["flag_meanings"].split()
    assert len(words) == len(set(words)) == len(names)


def test_raster_products_name_the_classes(hostile, tmp_path):
    names = shown_names(NAMES)
    write_cog(ovrs.open(hostile), tmp_path / "o.tif")
    with rasterio.open(tmp_path / "o.tif") as source:
        assert [source.tags(1)[f"CLASS_{i}"] for i in range(len(names))] == names
    side = ElementTree.parse(tmp_path / "o.tif.aux.xml")
    assert [c.text for c in side.iter("Category")] == names
    assert [row[1].text for row in side.iter("Row")] == names
    style = ElementTree.parse(write_qml(ovrs.open(hostile), tmp_path / "o.tif"))
    assert [e.get("label") for e in style.iter("paletteEntry")] == names
    raster = tmp_path / "a & <b> 'c'.tif"
    sld = ElementTree.parse(write_sld(ovrs.open(hostile), raster))
    space = "{http://www.opengis.net/sld}"
    assert [e.get("label") for e in sld.iter(f"{space}ColorMapEntry")] == names
    assert sld.find(f".//{space}Name").text == "a & <b> 'c'"


@pytest.mark.parametrize("file", ["o.gpkg", "O.GPKG", "o.parquet", "O.GeoParquet"])
def test_polygons_name_the_classes(hostile, tmp_path, file):
    out = tmp_path / file
    assert write_vectors(ovrs.open(hostile), out).features == SIDE
    in_package = file.lower().endswith("gpkg")
    frame = geopandas.read_file(out, layer="classes") if in_package else geopandas.read_parquet(out)
    names = shown_names(NAMES)
    assert [names[i] for i in frame.class_id] == list(frame["class"])
    if in_package:
        with closing(sqlite3.connect(out)) as database:
            told = ElementTree.fromstring(database.execute("SELECT styleQML FROM layer_styles").fetchone()[0])
    else:
        told = ElementTree.parse(style_vectors(ovrs.open(hostile), out)).getroot()
    assert [c.get("value") for c in told.iter("category")] == names


def test_tables_name_the_classes_and_start_no_formula(hostile, tmp_path):
    names = shown_names(NAMES)
    table(ovrs.open(hostile), tmp_path / "O.CSV")
    text = (tmp_path / "O.CSV").read_text("utf-8")
    with (tmp_path / "O.CSV").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [r["class"] for r in rows] == ["'=1+1" if n == "=1+1" else n for n in names]
    assert len(text.splitlines()) == len(names) + 1
    assert sum(int(r["pixels"]) for r in rows) == SIDE * SIDE
    table(ovrs.open(hostile), tmp_path / "o.parquet")
    assert pq.read_table(tmp_path / "o.parquet")["class"].to_pylist() == names


@pytest.mark.parametrize(
    ("text", "cell"),
    [("=1+1", "'=1+1"), ("\t=1", "'=1"), ("\r\n@SUM(A1)", "'@SUM(A1)"), ("+420 12", "'+420 12"), ("-a", "'-a"), ("-1", "-1"),
     ("+1.5e3", "+1.5e3"), ("\uff1d1", "'\uff1d1"), ("tree", "tree"), ("-1+cmd|x", "'-1+cmd|x"), ("a;=1", "a;=1")],
)  # fmt: skip
def test_cells_are_no_formulas(text, cell):
    assert stats.harmless(text) == cell


def test_zone_names_are_no_formulas(hostile, tmp_path):
    area = shapely.box(500000, 5599900, 500100, 5600000)
    geopandas.GeoDataFrame({"name": ['=HYPERLINK("http://x")']}, geometry=[area], crs=32633).to_file(
        tmp_path / "z.gpkg"
    )
    stats.write_table(stats.zone_areas(ovrs.open(hostile), tmp_path / "z.gpkg"), tmp_path / "z.csv")
    with pytest.raises(OptionError, match="holds the zones"):
        stats.check_table(ovrs.open(hostile), tmp_path / "z.csv", tmp_path / "z.csv")
    with (tmp_path / "z.csv").open(newline="") as stream:
        assert {r["zone"] for r in csv.DictReader(stream)} == {'\'=HYPERLINK("http://x")'}


class _Texts(HTMLParser):
    def __init__(self):
        super().__init__()
        self.inside, self.texts, self.tags = [], [], set()

    def handle_starttag(self, tag, attrs):
        self.inside.append(tag)
        self.tags.add(tag)
        self.texts += [""] if tag == "bdi" else []

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if "bdi" in self.inside:
            self.texts[-1] += data


def test_the_report_names_the_classes(hostile, tmp_path):
    page = write_report(ovrs.open(hostile), tmp_path / "o.html").read_text("utf-8")
    parser = _Texts()
    parser.feed(page)
    assert sorted(parser.texts) == sorted(shown_names(NAMES))
    assert not parser.tags & {"b", "script"}
    assert all(c.isprintable() or c in "\n\u200f\u200e" for c in page)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_item_names_the_classes(hostile, tmp_path):
    import pystac

    file = stac.write_item(ovrs.open(hostile), tmp_path / "o.json", [write_cog(ovrs.open(hostile), tmp_path / "O.TIF")])
    item = pystac.Item.from_dict({**json.loads(file.read_text()), "stac_extensions": []}, href=str(file))
    item.validate()
    told = item.assets["classes"].extra_fields["classification:classes"]
    assert [c["title"] for c in told] == shown_names(NAMES)
    assert [c["name"] for c in told] == ascii_words(shown_names(NAMES))
    assert len({c["name"] for c in told}) == len(NAMES)
    assert item.assets["classes"].media_type == "image/tiff; application=geotiff; profile=cloud-optimized"
    assert Path(item.assets["classes"].get_absolute_href()).exists()


def test_links_of_an_item_end_no_path_early(hostile, tmp_path):
    made = write_quicklook(ovrs.open(hostile), tmp_path / "50% #1?.PNG")
    asset = stac.item(ovrs.open(hostile), tmp_path, [made])["assets"]["thumbnail"]
    assert (asset["href"], asset["type"]) == ("./50%25 %231%3F.PNG", "image/png")


# ---------- paths


def snapshot(folder):
    return {p: (p.read_bytes() if p.is_file() else None) for p in sorted(folder.rglob("*"))}


@pytest.fixture
def own(hostile, tmp_path):
    """A copy of the map beside its scene, with an area of interest's record, that a test may try to destroy."""
    folder = tmp_path / "own"
    shutil.copytree(hostile.parent, folder)
    group = zarr.open_group(folder / "m.zarr", mode="r+", use_consolidated=False)
    facts = dict(group.attrs["ovrs"])
    facts["uri"] = str(folder / "s.tif")
    group.attrs["ovrs"] = facts
    return folder / "m.zarr"


def hostile_path(kind, suffix, path, folder):
    """A path that no product may take, and a word of the refusal."""
    scene, out = path.parent / "s.tif", folder / f"x{suffix}"
    if kind in ("symbolic link to the scene", "hard link to the scene"):
        (os.symlink if "symbolic" in kind else os.link)(scene, out)
        return out, "made from"
    if kind == "foreign file":
        out.write_bytes(b"not a product of ours " * 100)
        return out, "is there already"
    if kind == "folder":
        out.mkdir()
        return out, "is a folder"
    if kind == "below a file":
        (folder / "f").write_text("x")
        return folder / f"f/x{suffix}", "is a file"
    return {
        "inside the map": (path / f"x{suffix}", "lies inside"),
        "inside the map, level by level": (path / "label" / f"c/x{suffix}", "lies inside"),
        "inside the run": (path.parent / f"m.run/x{suffix}", "lies inside"),
        "other suffix": (folder / "x.xyz", "must end with|written as"),
        "no suffix": (folder / "x", "must end with|written as"),
        "control character": (folder / f"a\nb{suffix}", "control character"),
        "no UTF-8": (folder / f"a\udce9{suffix}", "no UTF-8"),
        "too long": (folder / ("n" * 248 + suffix), "too long"),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    ["symbolic link to the scene", "hard link to the scene", "foreign file", "folder", "below a file", "inside the map",
     "inside the map, level by level", "inside the run", "other suffix", "no suffix", "control character", "no UTF-8", "too long"],
)  # fmt: skip
@pytest.mark.parametrize("name", WRITERS)
def test_no_product_takes_a_path_that_is_not_its_own(own, tmp_path, name, kind):
    (tmp_path / "to").mkdir()
    out, told = hostile_path(kind, Path(name).suffix, own, tmp_path / "to")
    before = snapshot(tmp_path)
    for overwrite in (False, True) if kind != "foreign file" else (False,):
        with pytest.raises(OvrsError, match=told) as refused:
            WRITERS[name](ovrs.open(own), out, overwrite=overwrite)
        assert "\n" not in str(refused.value)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", WRITERS)
def test_a_product_takes_the_place_of_its_own_kind_and_with_overwrite_of_any_file(own, tmp_path, name):
    out = tmp_path / name
    out.write_bytes(b"somebody's")
    WRITERS[name](ovrs.open(own), out, overwrite=True)
    first = out.read_bytes()
    assert first != b"somebody's"
    link = tmp_path / f"link{out.suffix}"
    link.symlink_to(out)
    WRITERS[name](ovrs.open(own), link)
    assert link.is_symlink()
    assert not list(tmp_path.glob(".*"))
    other = (
        next(n for n in WRITERS if Path(n).suffix == out.suffix and n != name)
        if out.suffix in (".tif", ".parquet")
        else None
    )
    if other:  # the class raster and the confidence look alike from outside
        with pytest.raises(OptionError, match="is there already"):
            WRITERS[other](ovrs.open(own), out)


def test_scenes_are_known_by_their_own_names_too(own, tmp_path, monkeypatch):
    monkeypatch.chdir(own.parent)
    for out in ("s.tif", "./s.tif", "../own/s.tif", "m.zarr/../s.tif"):
        with pytest.raises(OptionError, match="made from"):
            write_cog(ovrs.open(own), Path(out))
    (own.parent / "s.tif.msk").write_bytes(b"")
    with pytest.raises(OptionError, match="made from"):
        write_cog(ovrs.open(Path("m.zarr")), Path("s.tif"), overwrite=True)
    (tmp_path / "o.tif.msk").write_bytes(b"x")
    with pytest.raises(OptionError, match="would be read as part"):
        write_cog(ovrs.open(own), tmp_path / "o.tif")


@pytest.mark.parametrize("form", ["file://{}", "/vsizip/{}.zip/s.tif", "zip://{}.zip!s.tif", "{}.vrt"])
def test_files_behind_other_forms_of_a_scene_are_inputs_too(own, form):
    import zipfile

    from ovrs.export.inputs import input_files

    scene = own.parent / "s.tif"
    with zipfile.ZipFile(f"{scene}.zip", "w") as archive:
        archive.write(scene, "s.tif")
    rasterio.shutil.copy(scene, f"{scene}.vrt", driver="VRT")
    found = input_files(form.format(scene), f"{own.parent}/s.tif.vrt|layer=x")
    assert (Path(f"{scene}.zip") if "zip" in form else scene) in found
    assert Path(f"{scene}.vrt") in found


def test_remote_scenes_are_not_asked(monkeypatch):
    from ovrs.export import inputs

    monkeypatch.setattr(inputs.rasterio, "open", lambda *_: pytest.fail("the network is asked"))
    for uri in (
        "https://a/b.tif",
        "s3://a/b.tif",
        "/vsicurl/https://a/b.tif",
        "/vsizip//vsicurl/https://a/b.zip/c.tif",
    ):
        assert inputs.input_files(uri) == []


@pytest.mark.parametrize(("first", "second"), [("--cog", "--confidence"), ("--png", "--stac"), ("--stac", "--vectors")])
def test_two_products_never_share_a_file(own, tmp_path, first, second):
    before = snapshot(tmp_path)
    done = CliRunner().invoke(
        app, ["export", str(own), first, str(tmp_path / "x.tif"), second, str(tmp_path / "X.TIF")]
    )
    assert isinstance(done.exception, OptionError)
    assert "both write" in str(done.exception)
    assert snapshot(tmp_path) == before


def test_a_style_that_somebody_made_is_kept(own, tmp_path):
    run, base = CliRunner(), ["export", str(own), "--cog", str(tmp_path / "o.tif")]
    (tmp_path / "o.qml").write_text("<qgis/>")
    refused = run.invoke(app, base)
    assert "o.qml is there already" in str(refused.exception)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.qml", "own"]
    assert run.invoke(app, [*base, "--overwrite"]).exit_code == 0
    assert run.invoke(app, base).exit_code == 0


# ---------- failures on the way


def full_disk(*_args, **_kwargs):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("name", WRITERS)
def test_a_failed_export_keeps_the_old_file_and_leaves_nothing_half(own, tmp_path, monkeypatch, name):
    out = tmp_path / name
    WRITERS[name](ovrs.open(own), out)
    before = snapshot(tmp_path)

    def half(path, *_args, **_kwargs):
        Path(path).write_bytes(b"half")
        full_disk()

    def gdal_fails(_source, path, _layer):
        Path(path).write_bytes(b"half")
        raise rasterio.errors.RasterioIOError("write failed")

    monkeypatch.setattr(cog_room, "_copy_as_cog", gdal_fails)
    monkeypatch.setattr(vector_files._GeoPackage, "close", lambda sink: half(sink.path))
    monkeypatch.setattr(vector_files._GeoParquet, "close", lambda sink: half(sink.path))
    monkeypatch.setattr(quicklook_room.Image.Image, "save", lambda _image, path, **_: half(path))
    monkeypatch.setattr(Path, "write_text", half)
    monkeypatch.setattr(stats.csv, "DictWriter", full_disk)
    monkeypatch.setattr(stats, "_write_parquet", lambda _rows, path: half(path))
    if name == "o.html":
        monkeypatch.setattr("ovrs.view.page._picture", lambda _: "")
    with pytest.raises(OutputError, match="cannot be written"):
        WRITERS[name](ovrs.open(own), out)
    assert snapshot(tmp_path) == before


def test_pixels_that_did_not_reach_the_disk_are_noticed(own, tmp_path, monkeypatch):
    """GDAL tells nothing where a tile of its temporary file is lost: the tile reads as no data."""
    whole = cog_room._copy_as_cog

    def loses_a_tile(source, cog, layer):
        with rasterio.open(source, "r+") as raster:
            raster.write(np.full((1, 16, 16), 255, np.uint8), window=((0, 16), (0, 16)))
        whole(source, cog, layer)

    monkeypatch.setattr(cog_room, "_copy_as_cog", loses_a_tile)
    for crs in (None, "EPSG:3857"):
        with pytest.raises(StoreError, match="not all pixels"):
            write_cog(ovrs.open(own), tmp_path / "o.tif", crs=crs)
    assert [p.name for p in tmp_path.iterdir()] == ["own"]


def test_a_limit_on_file_sizes_ends_in_one_line(own, tmp_path):
    """What a full disk does to GDAL and SQLite: every writer fails in C, and the program says so."""
    code = """
import resource, sys
from typer.testing import CliRunner
from ovrs.cli.app import app
resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
for option, name in (("--cog", "o.tif"), ("--vectors", "o.gpkg"), ("--vectors", "o.parquet"), ("--png", "o.png")):
    error = CliRunner().invoke(app, ["export", sys.argv[1], option, f"{sys.argv[2]}/new/{name}"]).exception
    print(type(error).__name__, error.exit_code, str(error).count(chr(10)), flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(own), str(tmp_path)],
        check=False, capture_output=True, text=True, env=environment(tmp_path),
    )  # fmt: skip
    assert done.stdout.splitlines() == ["OutputError 4 0"] * 4, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "cache") == ["own"]


# ---------- other people's GeoPackages


@pytest.fixture
def project(tmp_path):
    """A GeoPackage of somebody with two layers and a style."""
    path = tmp_path / "project.gpkg"
    frame = geopandas.GeoDataFrame({"a": [1, 2]}, geometry=[shapely.Point(0, 0), shapely.Point(1, 1)], crs=4326)
    frame.to_file(path, layer="wells")
    frame.to_file(path, layer="roads")
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(
            "CREATE TABLE layer_styles (id INTEGER PRIMARY KEY, f_table_catalog TEXT, f_table_schema TEXT, f_table_name TEXT, "
            "f_geometry_column TEXT, styleName TEXT, styleQML TEXT, styleSLD TEXT, useAsDefault BOOLEAN, description TEXT, owner TEXT)"
        )
        database.execute(
            "INSERT INTO layer_styles (f_table_name, styleQML, useAsDefault, owner) VALUES ('wells', '<q/>', 1, 'me')"
        )
    return path


def layers(path):
    return sorted(geopandas.list_layers(path).name)


def test_other_layers_of_a_geopackage_stay_and_ours_is_replaced(hostile, project):
    wells = geopandas.read_file(project, layer="wells")
    for _ in range(2):
        write_vectors(ovrs.open(hostile), project)
        assert layers(project) == ["classes", "layer_styles", "roads", "wells"]
        assert len(geopandas.read_file(project, layer="classes")) == SIDE
    assert geopandas.read_file(project, layer="wells").equals(wells)
    write_vectors(ovrs.open(hostile), project, layer="town", min_area=1e9)
    assert layers(project) == ["classes", "layer_styles", "roads", "town", "wells"]
    assert len(geopandas.read_file(project, layer="classes")) == SIDE
    with closing(sqlite3.connect(project)) as database:
        styles = database.execute("SELECT f_table_name, owner, useAsDefault FROM layer_styles ORDER BY 1").fetchall()
    assert styles == [("classes", "ovrs", 1), ("town", "ovrs", 1), ("wells", "me", 1)]


@pytest.mark.parametrize("layer", ["wells", "WELLS"])
def test_a_layer_of_somebody_else_is_refused(hostile, project, layer):
    before = project.read_bytes()
    with pytest.raises(OptionError, match="that ovrs did not write; name another with --layer"):
        write_vectors(ovrs.open(hostile), project, layer=layer)
    assert project.read_bytes() == before


@pytest.mark.parametrize("layer", ["", "  ", "gpkg_contents", "layer_styles", 'a"b', "a\nb", "sqlite_x"])
def test_layers_need_a_possible_name(hostile, tmp_path, layer):
    with pytest.raises(OptionError, match="cannot name a layer"):
        write_vectors(ovrs.open(hostile), tmp_path / "x.gpkg", layer=layer)
    assert not (tmp_path / "x.gpkg").exists()


def test_a_geopackage_that_another_program_writes_is_left_alone(hostile, project):
    with closing(sqlite3.connect(project)) as other:
        other.execute("PRAGMA journal_mode=WAL")
        other.execute("CREATE TABLE mine (x INTEGER)")
        other.commit()
        with pytest.raises(StoreError, match="open in another program"):
            write_vectors(ovrs.open(hostile), project)
    assert "classes" not in layers(project)
    with closing(sqlite3.connect(project)) as database:
        assert database.execute("SELECT count(*) FROM mine").fetchone() == (0,)


def test_a_geopackage_that_changes_meanwhile_keeps_the_change(hostile, project, monkeypatch):
    from ovrs.export import geopackage

    add = geopackage.add_style

    def meanwhile(*args):
        add(*args)
        with closing(sqlite3.connect(project)) as database, database:
            database.execute("CREATE TABLE later (x INTEGER)")

    monkeypatch.setattr(geopackage, "add_style", meanwhile)
    with pytest.raises(StoreError, match="changed while"):
        write_vectors(ovrs.open(hostile), project)
    with closing(sqlite3.connect(project)) as database:
        assert database.execute("SELECT count(*) FROM later").fetchone() == (0,)


# ---------- degenerate maps


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["a", "b"], np.full((20, 30), 255, np.uint8)),
        (["a", "b"], np.zeros((1, 1), np.uint8)),
        (["a"], np.zeros((1, 40), np.uint8)),
        ([f"c {i}" for i in range(254)], np.tile(np.arange(254, dtype=np.uint8), (3, 1))),
        ([f"c {i}" for i in range(300)], np.tile(np.arange(300, dtype=np.uint16), (3, 1))),
    ],
    ids=["no valid pixel", "one pixel", "one class", "254 classes", "300 classes"],
)
def test_every_product_of_a_degenerate_map(tmp_path, names, labels):
    path = make_map(tmp_path / "in", names, labels)
    files = {"--cog": "o.tif", "--confidence": "c.tif", "--vectors": "o.gpkg", "--png": "o.png", "--stac": "o.json"}
    nodata = np.iinfo(labels.dtype).max
    present = np.unique(labels[labels != nodata])
    lines = list(write_products(ovrs.open(path), Request(paths={k: tmp_path / v for k, v in files.items()})))
    assert len(lines) == 8
    with rasterio.open(tmp_path / "o.tif") as source:
        np.testing.assert_array_equal(source.read(1), labels)
        assert source.nodata == nodata
    frame = geopandas.read_file(tmp_path / "o.gpkg", layer="classes")
    assert sorted(frame.class_id) == present.tolist()
    assert write_vectors(ovrs.open(path), tmp_path / "o.parquet").features == len(
        geopandas.read_parquet(tmp_path / "o.parquet")
    )
    with Image.open(tmp_path / "o.png") as picture:
        assert picture.size[1] < 2500
    table(ovrs.open(path), tmp_path / "o.csv")
    with (tmp_path / "o.csv").open(newline="") as stream:
        assert sum(int(r["pixels"]) for r in csv.DictReader(stream)) == (labels != nodata).sum()
    assert len(json.loads((tmp_path / "o.json").read_text())["assets"]["classes"]["classification:classes"]) == len(
        names
    )
    ElementTree.parse(tmp_path / "o.tif.aux.xml")
    write_report(ovrs.open(path), tmp_path / "o.html")
    write_cog(ovrs.open(path), tmp_path / "w.tif", crs="EPSG:3857")
    with rasterio.open(tmp_path / "w.tif") as source:
        assert set(np.unique(source.read(1)).tolist()) <= {*present.tolist(), nodata}
