"""Published protocols: sizes, tiles, windows, images adapted together, images without a label; presets as rows."""

import json

import numpy as np
import pytest
from conftest import write_clip_directory
from test_66_bench import bench, write

from ovrs.bench import accuracy, cells, predict, protocols, report, rows
from ovrs.bench.layouts import layouts, open_set
from ovrs.bench.protocols import Protocol, Resize
from ovrs.collection.catalog import DatasetEntry
from ovrs.errors import CatalogError, OptionError
from ovrs.model.adapt.tuning import NormSegmenter
from ovrs.options import ModelOptions
from ovrs.scene.grid import Window
from ovrs.words import vocabulary

# one channel of a random image, and what cv2.resize of opencv-python-headless makes of it (INTER_LINEAR, 8 rows of 10)
SMALL = [
    [248, 207, 237, 211, 5, 60, 109],
    [82, 36, 222, 8, 15, 144, 24],
    [11, 104, 226, 159, 163, 41, 70],
    [40, 0, 63, 255, 8, 25, 146],
    [219, 100, 72, 21, 16, 107, 61],
]
REDUCED = [[177, 221, 25, 83], [46, 218, 163, 59], [124, 73, 24, 86]]
ENLARGED = [
    [248, 225, 214, 235, 220, 139, 8, 46, 82, 109],
    [175, 152, 157, 225, 160, 83, 14, 75, 85, 72],
    [77, 57, 86, 213, 89, 20, 30, 109, 88, 27],
    [33, 60, 118, 217, 151, 114, 114, 84, 65, 56],
    [20, 48, 97, 170, 184, 163, 111, 55, 62, 94],
    [38, 21, 23, 70, 187, 168, 18, 24, 78, 141],
    [141, 94, 59, 67, 104, 84, 15, 56, 83, 98],
    [219, 154, 93, 73, 39, 19, 20, 84, 86, 61],
]


@pytest.mark.parametrize("wanted", [REDUCED, ENLARGED])
def test_images_are_resized_without_antialiasing(wanted):
    wanted = np.array(wanted)
    found = protocols.resized(np.array([SMALL] * 3, np.uint8), wanted.shape)
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - wanted).max() <= 1  # theirs rounds in fixed point


def test_scores_are_resized_as_torch_does():
    import torch

    scores = np.random.default_rng(0).random((3, 9, 14), np.float32)
    for size in ((4, 30), (20, 5)):
        wanted = torch.nn.functional.interpolate(torch.from_numpy(scores)[None], size, mode="bilinear")[0].numpy()
        np.testing.assert_allclose(protocols.bilinear(scores, size), wanted, atol=1e-5)


def test_labels_are_resized_by_the_nearest_pixel():
    found = protocols.nearest(np.array(SMALL, np.uint8), (8, 10))
    assert found[0].tolist() == [248, 248, 207, 237, 237, 211, 5, 5, 60, 109]
    assert found[:, 0].tolist() == [248, 248, 82, 82, 11, 40, 40, 219]


@pytest.mark.parametrize(
    ("size", "image", "wanted"),
    [
        (Resize(long=448), (1024, 1024), (448, 448)),
        (Resize(long=448), (1080, 1280), (378, 448)),
        (Resize(long=448), (300, 200), (448, 299)),
        (Resize(short=336, most=2048), (375, 500), (336, 448)),
        (Resize(short=336, most=2048), (100, 900), (228, 2048)),
        (Resize(to=(224, 224)), (375, 500), (224, 224)),
        (Resize(to=(560, 1120)), (1024, 2048), (560, 1120)),
        (Resize(to=(560, 1120)), (2048, 1024), (1120, 560)),
    ],
)
def test_sizes_are_the_published_ones(size, image, wanted):
    assert size.size(*image) == wanted


def test_tiles_cover_the_image_and_the_last_ones_are_moved_back():
    assert protocols.tiles((5, 7), None) == [(slice(0, 5), slice(0, 7))]
    found = protocols.tiles((2160, 4096), (1080, 1280))
    assert [(r.start, c.start) for r, c in found[:4]] == [(0, 0), (0, 1280), (0, 2560), (0, 2816)]
    assert len(found) == 8
    assert protocols.tiles((50, 30), (100, 20))[-1] == (slice(0, 100), slice(10, 30))


def test_published_protocols_as_data():
    loveda = protocols.of_preset("segearth/loveda", "loveda")
    assert loveda == Protocol(resize=Resize(long=448), crop=224, stride=112)
    assert protocols.of_preset("tmpa_released/loveda", "loveda") == loveda
    uavid = protocols.of_preset("segearth/uavid", "uavid")
    assert (uavid.split, uavid.tiles) == ("test", (1080, 1280))
    voc = protocols.of_preset("mlmp/full", "voc20")
    assert (voc.resize.to, voc.labels, voc.together, voc.crop, voc.stride) == ((224, 224), "resized", 2, 224, 112)
    assert protocols.of_preset("mlmp/full", "cityscapes").resize.to == (560, 1120)
    assert protocols.of_preset("mlmp/one_image", "cityscapes").together == 1
    assert protocols.of_preset("naclip/full", "voc21") == Protocol(
        resize=Resize(short=336, most=2048), whole=True, crop=224, stride=112, threshold=0.1
    )
    assert protocols.of_preset("segearth_ov3/openearthmap", "openearthmap").crop == 512
    assert protocols.of_preset("segearth_ov3/loveda", "loveda") == Protocol(whole=True)
    assert protocols.of_preset("segearth/loveda", None) is None
    assert protocols.of_preset("sam3/coco", "voc20") == Protocol(whole=True)
    assert protocols.of_preset("naclip/full", "loveda") is None
    for file, entry in protocols._table().items():
        assert "@" in entry["source"]
        for name in entry["sets"]:
            assert protocols.of_preset(f"{file}/x", name)
            assert name in layouts() or name in vocabulary.shipped()
    with pytest.raises(ValueError, match="one of long, short and to"):
        Resize(long=1, short=1)
    with pytest.raises(ValueError, match="adapted together need one size"):
        Protocol(together=2)


@pytest.fixture
def network(tiny_clip, tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    write_clip_directory(tiny_clip, folder)
    return ModelOptions(model=str(folder))


def loveda(root, sizes=((40, 60), (60, 40), (50, 50))):
    """A tiny LoveDA in its publisher's folders: each image half red, half blue; labels building and water."""
    for i, (height, width) in enumerate(sizes):
        labels = np.full((height, width), 2, np.uint8)
        labels[:, width // 2 :] = 4
        rgb = np.where(labels[..., None] == 4, (30, 60, 200), (200, 90, 60)).astype(np.uint8)
        write(root / f"Val/Rural/images_png/{i}.png", rgb)
        write(root / f"Val/Rural/masks_png/{i}.png", labels)
    return open_set("loveda", DatasetEntry(layout="loveda", root=str(root)), root, None)


def test_a_preset_brings_words_windows_and_size(tmp_path, monkeypatch):
    row, data = rows.preset_row("segearth", loveda(tmp_path))
    assert row.preset == "segearth/loveda"
    assert row.method["threshold"] == 0.3
    assert data.words.classes[6].words == ("agricultural",)
    cell = cells.Cell(data, row, ModelOptions(model="trivial"), "clean", 0, 1024)
    assert (cell.shown_model().crop, cell.shown_model().stride) == (224, 112)
    assert cells.Cell(data, row, ModelOptions(model="trivial", crop=64), "clean", 0, 1).shown_model().crop == 64
    facts = cell.facts()
    assert facts["shown"] == {"resize": {"long": 448}, "crop": 224, "stride": 112}
    assert facts["words"].endswith("likyoo/SegEarth-OV@3e22a96, configs/cls_loveda.txt")
    assert facts["preset"] == "segearth/loveda"
    assert (facts["sentences"], facts["part"], facts["shrink"]) == (None, None, 1.0)
    seen = []
    real = predict._mean_evidence
    monkeypatch.setattr(
        predict, "_mean_evidence", lambda s, rgb, crops: seen.append((rgb.shape, crops)) or real(s, rgb, crops)
    )
    score = accuracy.run_cell(cell, tmp_path / "r")
    assert [shape for shape, _ in seen] == [(3, 299, 448), (3, 448, 299), (3, 448, 448)]
    assert seen[0][1][:2] == (Window(0, 0, 224, 224), Window(0, 112, 224, 224))
    assert len(seen[0][1]) == 2 * 3
    assert score.matrix.sum() == 40 * 60 + 60 * 40 + 50 * 50  # compared at the labels' own size
    own, _ = rows.preset_row("segearth", loveda(tmp_path), as_published=False)
    assert own.protocol is None
    assert cells.Cell(data, own, ModelOptions(model="trivial"), "clean", 0, 1024).folder(tmp_path) != cell.folder(
        tmp_path
    )


def test_the_digest_of_a_cell_knows_the_protocol(tmp_path):
    row, data = rows.preset_row("segearth", loveda(tmp_path))
    model = ModelOptions(model="trivial")
    folders = set()
    for change in ({}, {"resize": Resize(long=449)}, {"whole": True}, {"together": 1}, {"threshold": 0.5}):
        other = rows.Row(**{**vars(row), "protocol": row.protocol.model_copy(update=change)})
        folders.add(cells.Cell(data, other, model, "clean", 0, 1024).folder(tmp_path))
    assert len(folders) == 4  # one image at a time is what it is anyhow
    parts = {cells.Cell(data, row, model, "clean", 0, part).folder(tmp_path) for part in (512, 1024)}
    assert len(parts) == 1  # a published size is never cut into parts


def test_frozen_scores_are_resized_before_softmax(tmp_path, network):
    """As published: cosines at the labels' size, softmax last; on equal pixels both orders agree, on edges they differ."""
    row, data = rows.preset_row("segearth", loveda(tmp_path))
    row = rows.Row(
        **{**vars(row), "method": {"method": "none"}, "protocol": Protocol(resize=Resize(long=32), crop=32, stride=16)}
    )
    cell = cells.Cell(data, row, network, "clean", 0, 1024)
    sample = data.samples()[2]
    rgb, labels = data.read(sample)
    segmenter = predict._segmenter(cell)
    picture = protocols.resized(rgb, (32, 32))
    total, hits = segmenter.evidence(picture, np.ones((32, 32), bool), (Window(0, 0, 32, 32),))
    wanted = segmenter.finish(protocols.bilinear(total / hits, labels.shape)).scores.argmax(0)
    assert np.array_equal(predict.predict(cell, rgb, labels.shape, 0), wanted)


def test_two_images_are_adapted_together(tmp_path, network, monkeypatch):
    data = loveda(tmp_path)
    protocol = Protocol(resize=Resize(to=(32, 32)), labels="resized", together=2, crop=32, stride=16)
    row = rows.Row("two", {"method": "tent", "steps": 1}, preset="mlmp/tent", protocol=protocol)
    data = rows.preset_row("mlmp/tent", data)[1]
    cell = cells.Cell(data, row, network, "clean", 0, 1024)
    seen = []
    real = NormSegmenter.segment
    monkeypatch.setattr(NormSegmenter, "segment", lambda self, *a: seen.append((a[0], a[2])) or real(self, *a))
    score = accuracy.run_cell(cell, tmp_path / "r")
    assert [rgb.shape for rgb, _ in seen] == [(3, 32, 64), (3, 32, 32)]
    assert seen[0][1] == (Window(0, 0, 32, 32), Window(0, 32, 32, 32))
    pixels = [protocols.resized(data.read(s)[0], (32, 32)) for s in data.samples()]
    assert np.array_equal(seen[0][0], np.concatenate(pixels[:2], axis=2))
    assert score.matrix.sum() == 3 * 32 * 32  # compared at the new size
    (_, _, images), *_ = accuracy.load_cells(tmp_path / "r")
    assert images == 3
    seen.clear()
    accuracy.run_cell(cell, tmp_path / "r")
    assert not seen
    accuracy.run_cell(cell, tmp_path / "r", images=2)  # other company, another result
    assert [rgb.shape for rgb, _ in seen] == [(3, 32, 64)]


def test_what_was_left_out_of_a_pair_is_remembered(tmp_path):
    data = loveda(tmp_path)
    write(tmp_path / "Val/Rural/masks_png/1.png", np.ones((60, 80), np.uint8))
    row, data = rows.preset_row("mlmp/tent", data)
    protocol = Protocol(resize=Resize(to=(32, 32)), labels="resized", together=2, crop=32, stride=16)
    row = rows.Row(**{**vars(row), "protocol": protocol, "method": {"method": "none"}})
    cell = cells.Cell(data, row, ModelOptions(model="trivial"), "clean", 0, 1024)
    for _ in range(2):
        assert accuracy.run_cell(cell, tmp_path / "r").matrix.sum() == 2 * 32 * 32
        ((facts, _, images),) = accuracy.load_cells(tmp_path / "r")
        assert (images, facts["left_out"]) == (2, 1)


def test_tiles_are_images_of_their_own(tmp_path, monkeypatch):
    data = loveda(tmp_path, ((40, 70),))
    row = rows.Row("t", {"method": "none"}, preset="x/y", protocol=Protocol(tiles=(20, 30), resize=Resize(long=60)))
    data = rows.preset_row("segearth", data)[1]
    cell = cells.Cell(data, row, ModelOptions(model="trivial", crop=64), "clean", 0, 1024)
    rgb, labels = data.read(data.samples()[0])
    assert predict.score(cell, [(0, rgb, labels)]).matrix.sum() == 6 * 20 * 30  # what two tiles share counts twice
    assert predict.predict(cell, rgb, labels.shape, 0).shape == (40, 70)
    with pytest.raises(OptionError, match="tiles need labels of the image's size"):
        predict.score(cell, [(0, rgb, labels[:39])])


def test_an_image_without_label_is_left_out_and_counted(tmp_path, caplog):
    data = loveda(tmp_path)
    (tmp_path / "Val/Rural/masks_png/1.png").unlink()
    assert [s.image.stem for s in data.samples()] == ["0", "2"]
    cell = cells.Cell(data, rows.parse_row("none"), ModelOptions(model="trivial", crop=32), "clean", 0, 64)
    accuracy.run_cell(cell, tmp_path / "r")
    assert "1 images of loveda are left out" in caplog.text
    ((facts, _, images),) = accuracy.load_cells(tmp_path / "r")
    assert (images, facts["left_out"]) == (2, 1)
    summary = json.loads(next((tmp_path / "r").glob("cells/*/summary.json")).read_text())
    assert summary["left_out"] == [f"data set loveda: 1.png has no label Val/Rural/masks_png/1.png below {tmp_path}"]
    report.write_report(tmp_path / "r")
    assert "loveda: 1 left out" in (tmp_path / "r/accuracy.md").read_text()


def test_a_split_that_is_a_list_of_file_names(tmp_path):
    """OpenEarthMap's val.txt names files with their suffix."""
    for i in (1, 2):
        write(tmp_path / f"aachen/images/aachen_{i}.tif", np.zeros((4, 4, 3), np.uint8))
        write(tmp_path / f"aachen/labels/aachen_{i}.tif", np.zeros((4, 4), np.uint8))
    entry = DatasetEntry(layout="openearthmap", root=str(tmp_path))
    with pytest.raises(CatalogError, match=r"no list of images at .*val\.txt; `split: all`"):
        open_set("oem", entry, tmp_path, None).samples()
    (tmp_path / "val.txt").write_text("aachen_2.tif\n")
    assert [s.image.name for s in open_set("oem", entry, tmp_path, None).samples()] == ["aachen_2.tif"]
    everything = entry.model_copy(update={"split": "all"})
    assert len(open_set("oem", everything, tmp_path, None).samples()) == 2


def test_the_published_split_yields_to_the_catalogs(tmp_path):
    for split, wanted in (("", "test"), ("train", "train")):
        entry = DatasetEntry(layout="uavid", root=str(tmp_path), split=split)
        assert rows.preset_row("segearth", open_set("u", entry, tmp_path, None))[1].split == wanted


def test_words_of_ones_own_stay_and_are_told(tmp_path):
    own = vocabulary.from_names(["a", "b", "c", "d", "e", "f", "g"])
    data = open_set("mine", DatasetEntry(layout="loveda", root=str(tmp_path)), tmp_path, own)
    row, data = rows.preset_row("segearth/loveda", data)
    assert data.words.class_names == own.class_names
    assert data.words.provenance["words"] == "given with the run, not the preset's"
    assert row.protocol is None
    with pytest.raises(
        OptionError, match="preset segearth has no entry for data set mine; name one of segearth/openearth"
    ):
        rows.preset_row("segearth", data)
    same = open_set(
        "m", DatasetEntry(layout="pairs", root=".", images="*", labels="x"), tmp_path, vocabulary.load("udd5")
    )
    assert rows.preset_row("segearth", same)[0].preset == "segearth/udd5"


def test_a_preset_takes_options(tmp_path):
    row, data = rows.preset_row("mlmp/full+layers=3", loveda(tmp_path))
    assert row.method["layers"] == 3
    assert row.preset == "mlmp/full+layers=3"
    assert data.words.provenance["words"] == "the data set's own; the preset has no published list for it"
    with pytest.raises(OptionError, match="no such option"):
        rows.preset_row("mlmp/full+layer=3", data)


def test_presets_run_from_the_command_line(tmp_path):
    loveda(tmp_path / "d")
    (tmp_path / "c.yaml").write_text("version: 1\ndatasets:\n  loveda: {layout: loveda, root: d}\n")
    common = [
        "--dataset",
        "loveda",
        "--model",
        "trivial",
        "--preset",
        "segearth",
        "--images",
        "1",
        "-o",
        tmp_path / "r",
    ]
    done = bench(tmp_path, *common)
    assert done.exit_code == 0, done.output
    bench(tmp_path, *common, "--own-protocol")
    found = [facts for facts, _, _ in accuracy.load_cells(tmp_path / "r")]
    assert [f["preset"] for f in found] == ["segearth/loveda"] * 2
    assert sorted(f["shown"] is None for f in found) == [False, True]
