"""The accuracy bench: every layout in its set's own on-disk form, the runner, its tables and the papers' figures."""

import json
import subprocess
import sys

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import from_origin
from typer.testing import CliRunner

from ovrs.bench import accuracy, cells, papers, predict, report, rows
from ovrs.bench.evaluate import IGNORE, Confusion
from ovrs.bench.layouts import layouts, open_set
from ovrs.cli.app import app
from ovrs.collection.catalog import DatasetEntry
from ovrs.errors import CatalogError, OptionError, SceneReadError
from ovrs.options import ModelOptions
from ovrs.words import vocabulary

INDEX = np.array([[0, 1], [2, 255]], np.uint8)
BINARY = np.array([[0, 255], [0, 255]], np.uint8)
HEX = {"w": "FFFFFF", "b": "0000FF", "k": "000000", "r": "FF0000"}


def colours(*values):
    """A 2 × 2 RGB image of four RRGGBB."""
    return np.array([[int(v[i : i + 2], 16) for i in (0, 2, 4)] for v in values], np.uint8).reshape(2, 2, 3)


# layout: image file, label file, what the publisher's label file holds, what it means (255 ignored)
CASES = {
    "openearthmap": ("aachen/images/aachen_1.tif", "aachen/labels/aachen_1.tif", INDEX, [0, 1, 2, IGNORE]),
    "loveda": ("Val/Rural/images_png/1.png", "Val/Rural/masks_png/1.png", INDEX, [IGNORE, 0, 1, IGNORE]),
    "loveda_mmseg": ("img_dir/val/1.png", "ann_dir/val/1.png", INDEX, [0, 1, 2, IGNORE]),
    "isaid": (
        "val/images/images/P0003.png",
        "val/Semantic_masks/images/P0003_instance_color_RGB.png",
        colours("000000", "00003F", "00649B", "123456"),
        [0, 1, 15, IGNORE],
    ),
    "isaid_mmseg": (
        "img_dir/val/P0_0_896.png",
        "ann_dir/val/P0_0_896_instance_color_RGB.png",
        INDEX,
        [0, 1, 2, IGNORE],
    ),
    "potsdam": (
        "2_Ortho_RGB/top_potsdam_2_13_RGB.tif",
        "5_Labels_all/top_potsdam_2_13_label.tif",
        colours("FFFFFF", "0000FF", "FF0000", "000000"),
        [0, 1, 5, IGNORE],
    ),
    "potsdam_mmseg": ("img_dir/val/2_10.png", "ann_dir/val/2_10.png", INDEX, [IGNORE, 0, 1, IGNORE]),
    "vaihingen": (
        "top/top_mosaic_09cm_area1.tif",
        "gts_for_participants/top_mosaic_09cm_area1.tif",
        colours("00FFFF", "00FF00", "FFFF00", "010101"),
        [2, 3, 4, IGNORE],
    ),
    "vaihingen_mmseg": ("img_dir/val/area1.png", "ann_dir/val/area1.png", INDEX, [IGNORE, 0, 1, IGNORE]),
    "uavid": (
        "uavid_val/seq16/Images/000000.png",
        "uavid_val/seq16/Labels/000000.png",
        colours("000000", "C000C0", "400080", "404000"),
        [0, 3, 3, 6],
    ),
    "udd5": ("val/src/DJI_1.JPG", "val/gt/DJI_1.png", INDEX, [0, 1, 2, IGNORE]),
    "vdd": ("test/src/DJI_1.JPG", "test/gt/DJI_1.png", INDEX, [0, 1, 2, IGNORE]),
    "whu_aerial": ("val/image/1.tif", "val/label/1.tif", BINARY, [0, 1, 0, 1]),
    "whu_sat2": ("test/image/1.tif", "test/label/1.tif", BINARY, [0, 1, 0, 1]),
    "inria": ("train/images/austin1.tif", "train/gt/austin1.tif", BINARY, [0, 1, 0, 1]),
    "xbd": ("test/images/a_pre_disaster.png", "test/targets/a_pre_disaster_target.png", BINARY // 255, [0, 1, 0, 1]),
    "chn6_cug": ("val/images/am1_sat.jpg", "val/gt/am1_mask.png", BINARY, [0, 1, 0, 1]),
    "deepglobe": ("train/1_sat.jpg", "train/1_mask.png", np.dstack([BINARY] * 3), [0, 1, 0, 1]),
    "massachusetts": ("tiff/test/1.tiff", "tiff/test_labels/1.tif", BINARY, [0, 1, 0, 1]),
    "wbs_si": ("Images/water_body_1.jpg", "Masks/water_body_1.jpg", None, [0, 1, 0, 1]),
    "voc20": ("JPEGImages/2007_1.jpg", "SegmentationClass/2007_1.png", INDEX, [IGNORE, 0, 1, IGNORE]),
    "voc21": ("JPEGImages/2007_1.jpg", "SegmentationClass/2007_1.png", INDEX, [0, 1, 2, IGNORE]),
    "context59": ("JPEGImages/2008_1.jpg", "SegmentationClassContext/2008_1.png", INDEX, [IGNORE, 0, 1, IGNORE]),
    "context60": ("JPEGImages/2008_1.jpg", "SegmentationClassContext/2008_1.png", INDEX, [0, 1, 2, IGNORE]),
    "cityscapes": (
        "leftImg8bit/val/ulm/ulm_0_leftImg8bit.png",
        "gtFine/val/ulm/ulm_0_gtFine_labelTrainIds.png",
        INDEX,
        [0, 1, 2, IGNORE],
    ),
    "coco_stuff": ("images/val2017/1.jpg", "annotations/val2017/1_labelTrainIds.png", INDEX, [0, 1, 2, IGNORE]),
    "coco_object": ("images/val2017/1.jpg", "annotations/val2017/1_instanceTrainIds.png", INDEX, [0, 1, 2, IGNORE]),
    "ade20k": ("images/validation/ADE_1.jpg", "annotations/validation/ADE_1.png", INDEX, [IGNORE, 0, 1, IGNORE]),
}


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".tif", ".tiff"):
        bands = np.moveaxis(array, -1, 0) if array.ndim == 3 else array[None]
        profile = {"driver": "GTiff", "height": bands.shape[1], "width": bands.shape[2], "count": len(bands)}
        with rasterio.open(
            path, "w", dtype=bands.dtype, crs="EPSG:32633", transform=from_origin(5e5, 5e6, 1, 1), **profile
        ) as target:
            target.write(bands)
    else:
        Image.fromarray(array).save(path)


def write_set(name, root):
    """A tiny copy of a set in its own form."""
    image, label, raw, _ = CASES[name]
    write(root / image, np.full((2, 2, 3), 99, np.uint8))
    if raw is None:  # masks in JPEG: grey levels are not exact
        raw = np.kron(np.array([[3, 250], [3, 250]], np.uint8), np.ones((8, 8), np.uint8))
        write(root / image, np.full((16, 16, 3), 99, np.uint8))
    write(root / label, raw)
    layout = layouts()[name]
    if layout.list:
        file = root / layout.list.replace("{split}", layout.split)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text((root / image).stem + "\n")
        write(root / image.replace("_1", "_2"), np.zeros((2, 2, 3), np.uint8))  # not in the list
    return open_set(name, DatasetEntry(layout=name, root=str(root)), root, None)


@pytest.mark.parametrize("name", list(CASES))
def test_every_layout_reads_its_sets_own_files(name, tmp_path):
    data = write_set(name, tmp_path)
    samples = data.samples()
    assert [s.label for s in samples] == [tmp_path / CASES[name][1]]
    rgb, labels = data.read(samples[0])
    assert rgb.dtype == labels.dtype == np.uint8
    assert rgb.shape[0] == 3
    step = labels.shape[0] // 2
    assert labels[::step, ::step].ravel().tolist() == CASES[name][3]
    assert np.abs(rgb.astype(int) - 99).max() <= 2


def test_all_layouts_are_tested_and_counted():
    assert set(layouts()) == set(CASES) | {"spacenet"}
    sizes = {
        n: len(open_set(n, DatasetEntry(layout=n, root="x"), __import__("pathlib").Path("x"), None).words.classes)
        for n in layouts()
    }
    wanted = {"openearthmap": 9, "loveda": 7, "isaid": 16, "potsdam": 6, "voc20": 20, "voc21": 21, "context59": 59}
    wanted |= {"context60": 60, "cityscapes": 19, "coco_stuff": 171, "coco_object": 81, "ade20k": 150, "inria": 2}
    assert {n: sizes[n] for n in wanted} == wanted


def test_spacenet_lines_are_drawn_with_their_width(tmp_path):
    image = tmp_path / "PS-RGB/SN3_roads_train_AOI_2_Vegas_PS-RGB_img1.tif"
    write(image, (np.random.default_rng(0).random((40, 40, 3)) * 3000).astype(np.uint16))
    line = {"type": "LineString", "coordinates": [[500000, 4999980], [500040, 4999980]]}
    collection = {"type": "FeatureCollection", "features": [{"type": "Feature", "properties": {}, "geometry": line}]}
    label = tmp_path / "geojson_roads/SN3_roads_train_AOI_2_Vegas_geojson_roads_img1.geojson"
    label.parent.mkdir()
    label.write_text(json.dumps(collection))
    data = open_set("spacenet", DatasetEntry(layout="spacenet", root=str(tmp_path)), tmp_path, None)
    rgb, labels = data.read(data.samples()[0])
    assert rgb.max() == 255
    assert (labels.sum(0) == 8).all()  # eight metres at one metre


def test_what_is_missing_is_named(tmp_path):
    data = open_set("loveda", DatasetEntry(layout="loveda", root=str(tmp_path)), tmp_path, None)
    with pytest.raises(CatalogError, match=r"no images Val/\*/images_png/\*\.png below .*Zenodo"):
        data.samples()
    write(tmp_path / "Val/Urban/images_png/7.png", np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(CatalogError, match=r"7\.png has no label Val/Urban/masks_png/7\.png"):
        data.samples()
    with pytest.raises(CatalogError, match="no layout 'lvda'; known: pairs, openearthmap"):
        open_set("x", DatasetEntry(layout="lvda", root="."), tmp_path, None)
    with pytest.raises(CatalogError, match="layout pairs needs images, labels, vocabulary"):
        open_set("x", DatasetEntry(layout="pairs", root="."), tmp_path, None)
    (tmp_path / "Val/Urban/masks_png").mkdir()
    (tmp_path / "Val/Urban/masks_png/7.png").write_bytes(b"no image")
    with pytest.raises(SceneReadError, match=r"masks_png/7\.png cannot be read"):
        data.read(data.samples()[0])


@pytest.fixture
def folder(tmp_path):
    """Three images of flat colours with their labels, and a catalog."""
    words = vocabulary.from_names(["building", "water"])
    (tmp_path / "w.yaml").write_text(vocabulary.dump(words))
    rng = np.random.default_rng(0)
    for i in range(3):
        labels = np.zeros((90, 70), np.uint8)
        labels[:, 20 + 10 * i :] = 1
        rgb = np.where(labels[..., None] == 1, (30, 60, 200), (200, 90, 60)) + rng.integers(-20, 20, (90, 70, 1))
        write(tmp_path / f"d/images/{i}.png", rgb.clip(0, 255).astype(np.uint8))
        write(tmp_path / f"d/masks/{i}.png", labels)
    (tmp_path / "c.yaml").write_text(
        "version: 1\nvocabularies: {w: w.yaml}\ndatasets:\n"
        '  flat: {layout: pairs, root: d, vocabulary: w, images: "images/*.png", labels: "masks/{stem}.png"}\n'
        '  half: {layout: pairs, root: d, vocabulary: w, images: "images/*.png", labels: "masks/{stem}.png", shrink: 2}\n'
    )
    return tmp_path


def bench(folder, *arguments):
    return CliRunner().invoke(
        app, ["bench", "accuracy", "--catalog", str(folder / "c.yaml"), *map(str, arguments)], catch_exceptions=False
    )


def test_the_bench_scores_writes_and_goes_on(folder, monkeypatch):
    out = folder / "r"
    methods = "none+prompts=names,tmpa"
    done = bench(
        folder,
        "--dataset",
        "flat,half",
        "--method",
        methods,
        "--corruption",
        "none,contrast",
        "-o",
        out,
        "--panels",
        "2",
    )
    assert done.exit_code == 0, done.output
    import pyarrow.parquet as pq

    table = pq.read_table(out / "accuracy.parquet").to_pylist()
    assert len(table) == 2 * 2 * 2 * 2  # sets, corruptions, methods, classes
    one = [r for r in table if r["dataset"] == "flat" and r["corruption"] == "clean" and r["method"] == "tmpa"]
    assert sum(r["labelled_pixels"] for r in one) == 3 * 90 * 70
    assert {r["images"] for r in one} == {3}
    page = (out / "accuracy.md").read_text()
    assert "| tmpa |" in page
    assert "flat, corrupted, severity 5" in page
    assert {p.name for p in out.glob("*.png")} >= {"flat-corruptions.png", "flat-panels.png", "flat-confusion-tmpa.png"}
    before = (out / "accuracy.parquet").read_bytes()
    for file in list(out.glob("cells/flat-clean-*/0-*.npz")):
        file.unlink()
    scored = []
    real = accuracy.score
    monkeypatch.setattr(accuracy, "score", lambda cell, *a: scored.append(cell.row.label) or real(cell, *a))
    bench(folder, "--dataset", "flat,half", "--method", methods, "--corruption", "none,contrast", "-o", out)
    assert sorted(scored) == ["none+prompts=names", "tmpa"]  # only what was missing
    assert (out / "accuracy.parquet").read_bytes() == before  # and two runs give identical numbers


def test_processes_give_the_same_numbers(folder):
    for name, workers in (("a", 1), ("b", 2)):
        bench(
            folder,
            "--dataset",
            "flat",
            "--method",
            "none",
            "--model",
            "trivial",
            "-o",
            folder / name,
            "--workers",
            workers,
        )
    totals = [report.load_cells(folder / name)[0][1].matrix for name in ("a", "b")]
    assert np.array_equal(*totals)


def test_scores_are_resized_not_labels(folder):
    data = open_set(
        "half",
        DatasetEntry(layout="pairs", root="d", images="images/*.png", labels="masks/{stem}.png", shrink=2),
        folder / "d",
        vocabulary.load(folder / "w.yaml"),
    )
    cell = cells.Cell(data, rows.parse_row("none"), ModelOptions(model="trivial", crop=32), "clean", 0, 32)
    rgb, labels = data.read(data.samples()[0])
    guess = predict.predict(cell, rgb, labels.shape, 0)  # in parts of 32 shown pixels
    assert guess.shape == labels.shape


def test_a_model_is_told_how_large_the_pixels_are(folder):
    entry = DatasetEntry(
        layout="pairs", root="d", images="images/*.png", labels="masks/{stem}.png", shrink=2, pixel_size=0.1
    )
    data = open_set("half", entry, folder / "d", vocabulary.load(folder / "w.yaml"))
    row = rows.parse_row("none")
    bundled = cells.Cell(data, row, ModelOptions(), "clean", 0, 32)
    assert bundled.shown_model().pixel_size == pytest.approx(0.2)
    assert bundled.facts()["model"]["pixel_size"] == pytest.approx(0.2)
    given = cells.Cell(data, row, ModelOptions(pixel_size=1.0), "clean", 0, 32)
    assert given.shown_model().pixel_size == 1.0
    assert cells.Cell(data, row, ModelOptions(model="trivial"), "clean", 0, 32).shown_model().pixel_size is None


def test_a_label_of_another_shape_is_left_out_and_told(folder, caplog):
    write(folder / "d/masks/1.png", np.zeros((10, 70), np.uint8))
    bench(folder, "--dataset", "flat", "--method", "none", "--model", "trivial", "-o", folder / "r")
    assert "left out: images/1.png" in caplog.text
    summary = json.loads(next((folder / "r").glob("cells/*/summary.json")).read_text())
    assert len(summary["images"]) == 2
    assert len(summary["left_out"]) == 1


def test_single_class_tasks_report_that_class():
    score = Confusion(np.array([[90, 0, 0], [5, 5, 0]]))
    assert report.headline({"classes": ["background", "road"]}, score) == 50.0
    assert report.headline({"classes": ["field", "road"]}, score) == pytest.approx(100 * (90 / 95 + 0.5) / 2)


def test_tuned_rows_stand_apart(folder):
    bench(folder, "--dataset", "flat", "--method", "none", "--preset", "tmpa_released/vaihingen", "-o", folder / "r")
    page = (folder / "r/accuracy.md").read_text()
    first, second = page.split("tuned on labels")
    assert "| none |" in first
    assert "| tmpa_released/vaihingen |" in second.split("## Per class")[0]


def test_wrong_words_are_named(folder):
    with pytest.raises(OptionError, match="no corruption rain"):
        cells.corruptions("rain")
    assert len(cells.corruptions("all")) == 16
    with pytest.raises(OptionError, match="no such option"):
        rows.parse_row("none+magic=1")
    with pytest.raises(OptionError, match="--method none,tmpa"):
        bench(folder, "--dataset", "flat", "-o", folder / "r")
    with pytest.raises(OptionError, match="holds no results"):
        report.write_report(folder)
    with pytest.raises(OptionError, match="choose one of tmpa-table1"):
        papers.side_by_side("table9", None)


def test_list_of_layouts():
    done = subprocess.run(
        [sys.executable, "-m", "ovrs", "bench", "datasets"], capture_output=True, text=True, check=True
    )
    assert "openearthmap" in done.stdout
    assert "ade20k" in done.stdout
