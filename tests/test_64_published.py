"""Published words: each preset asks for the lists of its source, and maps tell whose words they were asked in."""

import json

import pytest
from typer.testing import CliRunner

from ovrs.cli.app import app
from ovrs.errors import OptionError
from ovrs.methods import preset, published
from ovrs.model.clip.text import queries_of
from ovrs.words import vocabulary

# likyoo/SegEarth-OV@3e22a96, configs/cls_*.txt
SEGEARTH = {
    "openearthmap": "background|bareland,barren|grass|pavement|road|tree,forest|water,river|cropland|building,roof,house",
    "loveda": "background|building,roof,house|road|water|barren|forest|agricultural",
    "isaid": "background|ship|store tank|baseball diamond|tennis court|basketball court|ground track field|bridge|"
    "large vehicle|small vehicle|helicopter|swimming pool|roundabout|soccer ball field|plane|harbor",
    "potsdam": "road,parking lot|building|low vegetation|tree|car|clutter,background",
    "vaihingen": "impervious surface|building|low vegetation|tree|car|clutter",
    "uavid": "background|building|road|car|tree|vegetation|human",
    "udd5": "vegetation|building|road|vehicle|background",
    "vdd": "background|facade|road|vegetation|vehicle|roof|water",
}
# earth-insights/SegEarth-OV-3@87e5cc1, configs/cls_*.txt
SEGEARTH_OV3 = SEGEARTH | {
    "loveda": "background|building,house|road|water|barren,bareland,soil|forest,tree|agricultural",
    "potsdam": "road|building|grass|tree|car|clutter",
    "vaihingen": "road|building|grass|tree|car|clutter",
}
# Dog-Yang/ConInfer@ebaddcc, prompts/cls_*.txt
CONINFER = SEGEARTH | {
    "loveda": "background|roof|road|river|barren|forest|agricultural",
    "isaid": "background,grass,agriculture,water,forest,road,building,barren,urban|boat|industrial cylindrical storage tank|"
    "baseball diamond|tennis court|basketball court|ground track field|bridge|large vehicle|small vehicle|helicopter|"
    "swimming pool|roundabout|soccer ball field|plane|harbor",
    "vdd": "background,barren|exterior|road|grass|car|roof|water",
}
SOURCES = {
    "segearth": (SEGEARTH, "likyoo/SegEarth-OV@3e22a96"),
    "segearth_ov3": (SEGEARTH_OV3, "earth-insights/SegEarth-OV-3@87e5cc1"),
    "coninfer": (CONINFER, "Dog-Yang/ConInfer@ebaddcc"),
}


def lines(text):
    return [line.split(",") for line in text.split("|")]


@pytest.mark.parametrize(("file", "name"), [(f, n) for f, (sets, _) in SOURCES.items() for n in sets])
def test_a_preset_asks_exactly_for_the_published_words(file, name):
    sets, source = SOURCES[file]
    words = published.vocabulary_of(f"{file}/{name}")
    prompts = preset.method_options(f"{file}/{name}").get("prompts", "synonyms")
    queries, class_of = queries_of(words, prompts)
    wanted = lines(sets[name])
    assert queries == [w.lower() for line in wanted for w in line]
    assert class_of == [i for i, line in enumerate(wanted) for _ in line]
    assert [list(c.concepts) for c in words.classes] == [[w.lower() for w in line] for line in wanted]
    assert source in words.provenance["words"]
    folder = "prompts" if file == "coninfer" else "configs"
    assert f"{folder}/cls_{'iSAID' if name == 'isaid' else name}.txt" in words.provenance["words"]
    assert words.class_names == vocabulary.load(name).class_names  # the legend keeps its names
    assert words.digest() != vocabulary.load(name).digest()


def test_names_of_one_word_come_from_the_published_list_too():
    words = published.vocabulary_of("segearth/isaid")
    assert queries_of(words, "names")[0][2] == "store tank"
    assert words.class_names[2] == "storage tank"


def test_class_extensions_of_mlmp():
    """dosowiechi/MLMP@2a887de, utils/class_extensions."""
    lists = published.word_lists("mlmp")
    assert lists.source == "dosowiechi/MLMP@2a887de"
    assert {n: len(s.lines) for n, s in lists.sets.items()} == {
        "voc20": 20,
        "voc21": 21,
        "context59": 59,
        "context60": 60,
        "cityscapes": 19,
        "coco_object": 81,
        "coco_stuff": 171,
    }
    background = lists.sets["voc21"].lines[0]
    assert len(background) == 26
    assert background[:3] == ("sky", "wall", "tree")
    assert background[-1] == "fence"
    assert lists.sets["coco_object"].lines[0] == background
    person = ["person", *(f"person in {w}" for w in ("shirt", "jeans", "dress", "sweater", "skirt", "jacket"))]
    assert list(lists.sets["voc20"].lines[14]) == list(lists.sets["voc21"].lines[15]) == person
    assert list(lists.sets["coco_object"].lines[1]) == [*person, "body"]
    assert len(lists.sets["voc20"].lines[19]) == 5
    assert lists.sets["voc20"].lines[3] == ("ship",)


def test_every_preset_of_a_set_has_words_for_its_classes():
    for file in ("segearth", "segearth_ov3", "tmpa", "tmpa_released"):
        for entry in preset.load(file).datasets:
            if entry in published.word_lists(preset.load(file).words).sets:
                assert published.vocabulary_of(f"{file}/{entry}").provenance["preset"] == f"{file}/{entry}"


def test_sentences_that_are_not_the_papers_are_told():
    words = published.vocabulary_of("tmpa_released/loveda")
    assert "the paper's are not published" in words.provenance["sentences"]
    assert words.classes[1].descriptions == vocabulary.load("loveda").classes[1].descriptions
    assert words.classes[6].words == ("agricultural",)
    tanks = published.vocabulary_of("tmpa_released/isaid")
    assert [q for q in queries_of(tanks, "all")[0] if q.startswith("st")][1].startswith(
        "store tank "
    )  # as name: sentence


def test_lists_of_another_length_are_refused():
    three = vocabulary.from_names(["building", "road", "water"])
    with pytest.raises(OptionError, match="7 classes of loveda, the vocabulary 'command-line' has 3"):
        published.with_words(three, "segearth/loveda", "loveda")


def run_map(scene, out, *arguments):
    options = [
        "--model",
        "trivial",
        "--set",
        "model.crop=64",
        "--set",
        "scene.allow_ungeoreferenced=true",
        "-o",
        str(out),
    ]
    done = CliRunner().invoke(app, ["map", str(scene), *options, *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    record = CliRunner().invoke(app, ["info", str(out), "--json"]).output
    return json.loads(record)["vocabulary"]


@pytest.fixture
def scene(tmp_path):
    import numpy as np
    import rasterio

    path = tmp_path / "s.tif"
    profile = {"driver": "GTiff", "height": 64, "width": 64, "count": 3, "dtype": "uint8", "crs": "EPSG:32633"}
    with rasterio.open(path, "w", transform=rasterio.Affine(1, 0, 5e5, 0, -1, 5e6), **profile) as target:
        target.write(np.full((3, 64, 64), 90, np.uint8))
    return path


def test_the_record_of_a_map_tells_whose_words_were_asked(scene, tmp_path):
    own = run_map(scene, tmp_path / "a.zarr", "--preset", "segearth/loveda")
    assert [c["asked"] for c in own["classes"]] == lines(SEGEARTH["loveda"])
    assert own["provenance"]["words"].endswith("likyoo/SegEarth-OV@3e22a96, configs/cls_loveda.txt")
    text = CliRunner().invoke(app, ["info", str(tmp_path / "a.zarr")]).output
    assert "preset segearth/loveda; words: class files of SegEarth-OV: likyoo/SegEarth-OV@3e22a96" in text
    assert "building: building, roof, house  [" in text
    mine = run_map(scene, tmp_path / "b.zarr", "--preset", "segearth/loveda", "--vocabulary", "udd5")
    assert [c["name"] for c in mine["classes"]] == list(vocabulary.load("udd5").class_names)
    assert mine["provenance"]["words"] == "given with the run, not the preset's"
    none = CliRunner().invoke(app, ["map", str(scene), "--preset", "mlmp/full", "-o", str(tmp_path / "c.zarr")])
    assert isinstance(none.exception, OptionError)
    assert "name the classes" in str(none.exception)


def test_the_listing_tells_words_and_sentences():
    text = CliRunner().invoke(app, ["methods"], catch_exceptions=False).output
    assert "words: class files of SegEarth-OV, likyoo/SegEarth-OV@3e22a96\n" in text
    assert "sentences: this project's own; the paper's are not published" in text
    assert "words: your own; the preset has none" in text
