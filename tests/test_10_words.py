"""Vocabularies, options, radiometry, decisions, metrics: the rooms without I/O."""

import numpy as np
import pytest
import yaml

from ovrs import options
from ovrs.bench.evaluate import Confusion
from ovrs.demo.synth import World
from ovrs.engine.decide import DecisionRule, decide
from ovrs.errors import OptionError, SceneReadError, VocabularyError
from ovrs.scene.radiometry import measure_stretch
from ovrs.store.pyramid import mean2, mode2
from ovrs.words import vocabulary

BENCHMARKS = {
    "openearthmap": 9,
    "loveda": 7,
    "isaid": 16,
    "potsdam": 6,
    "vaihingen": 6,
    "uavid": 7,
    "udd5": 5,
    "vdd": 7,
}


@pytest.mark.parametrize(("name", "classes"), [*BENCHMARKS.items(), ("landcover", 10), ("demo", 6)])
def test_shipped_vocabularies_are_complete(name, classes):
    words = vocabulary.load(name)
    assert len(words.classes) == classes
    assert words.provenance["written_by"]
    sentences = [s for c in words.classes for s in c.descriptions]
    assert all(len(c.descriptions) >= 5 and c.colour for c in words.classes)
    assert len(set(sentences)) == len(sentences)
    assert (words.background is not None) == (name in BENCHMARKS)


def test_unknown_words_are_asked_for_by_name_alone_and_known_ones_as_the_library_says():
    words = vocabulary.from_names(["house", "sausage stand", "tree"])
    assert words.class_names == ("house", "sausage stand", "tree")
    assert words.unknown_classes == ("sausage stand",)
    assert words.classes[1].queries == ("sausage stand",)
    assert words.composed_classes == ()
    assert vocabulary.from_names(["HOUSE"]).classes[0].descriptions == words.classes[0].descriptions
    assert "building" in words.classes[0].synonyms
    assert len(words.classes[0].descriptions) >= 5


def test_a_named_class_is_not_a_synonym_of_another():
    words = vocabulary.from_names(["tree", "forest"])
    assert "forest" not in words.classes[0].synonyms


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes: []", "name"),
        ("name: a\nclasses: [{name: x}, {name: X}]", "found twice: x"),
        ("name: a\nclasses: [{name: x, color: red}]", "classes.0.color"),
        ("name: a\nbackground: {class_name: q, threshold: 0}\nclasses: [{name: x}]", "'q' is not among"),
        ("- a", "mapping"),
        ("a: [", "no valid YAML"),
    ],
)
def test_faulty_vocabularies_name_the_fault(text, message):
    with pytest.raises(VocabularyError, match=message):
        vocabulary.parse(text, "file.yaml")


def test_missing_vocabulary_lists_the_shipped_ones():
    with pytest.raises(VocabularyError, match="landcover"):
        vocabulary.load("nope")
    with pytest.raises(VocabularyError, match="no class names"):
        vocabulary.from_names([" "])


def test_vocabulary_round_trip_and_digest():
    words = vocabulary.load("loveda")
    again = vocabulary.parse(yaml.safe_dump(words.model_dump(mode="json")), "dump")
    assert again == words
    recoloured = words.model_copy(
        update={"classes": tuple(c.model_copy(update={"colour": "#000000"}) for c in words.classes)}
    )
    assert recoloured.digest() == words.digest()
    renamed = words.model_copy(update={"classes": words.classes[:-1]})
    assert renamed.digest() != words.digest()


def test_wrong_options_are_named_with_their_limit():
    with pytest.raises(OptionError, match=r"method\.steps.*greater than or equal to 0.*-1"):
        options.build(method={"steps": -1})
    with pytest.raises(OptionError, match=r"run\.colour"):
        options.build(run={"colour": 3})


def test_stretch_limits_ignore_invalid_pixels():
    bands = np.stack([np.linspace(0, 1000, 10000).reshape(100, 100)]).astype(np.float32)
    bands[0, 0, 0] = np.nan
    valid = np.isfinite(bands[0])
    valid[50:] = False
    stretch = measure_stretch(bands, valid, (0, 100))
    assert stretch.high[0] == pytest.approx(bands[0, 49, 99])
    out = stretch.apply(bands)
    assert out[0, 0, 0] == 0
    assert out[0, 49, 99] == 255
    with pytest.raises(SceneReadError, match="no valid pixel"):
        measure_stretch(bands, np.zeros_like(valid), (2, 98))


def test_shares_are_divided_after_the_threshold():
    """NACLIP: the threshold judges the score itself; what is told is its share of all classes' scores."""
    scores = np.array([[[0.1, 0.05]], [[0.3, 0.06]]], np.float32)
    valid, rule = np.ones((1, 2), bool), DecisionRule(0, 0.2)
    labels, plain = decide(scores, valid, rule)
    shared, confidence = decide(scores, valid, DecisionRule(0, 0.2, shares=True))
    assert labels.tolist() == shared.tolist() == [[1, 0]]
    assert plain.tolist() == [[60, 12]]
    assert confidence.tolist() == [[150, round(200 * 0.06 / 0.11)]]
    assert "shares" not in rule.facts()
    assert DecisionRule(0, 0.2, shares=True).facts() == {"background": 0, "threshold": 0.2, "shares": True}
    assert decide(np.zeros((2, 1, 1), np.float32), valid[:, :1], DecisionRule(shares=True))[1].tolist() == [[0]]


def test_decide_matches_argmax_and_applies_the_background_rule():
    rng = np.random.default_rng(0)
    scores = rng.random((5, 40, 30), dtype=np.float32)
    scores[3, 0, 0] = scores[1, 0, 0] = 2.0  # a tie: the lower index wins
    valid = rng.random((40, 30)) > 0.2
    valid[0, 0] = True
    labels, confidence = decide(scores, valid, DecisionRule())
    np.testing.assert_array_equal(labels[valid], scores.argmax(axis=0)[valid])
    assert labels[0, 0] == 1
    assert (labels[~valid] == 255).all()
    assert (confidence[~valid] == 255).all()
    np.testing.assert_array_equal(confidence[valid], np.rint(np.clip(scores.max(axis=0), 0, 1)[valid] * 200))
    labels, _ = decide(scores, valid, DecisionRule(background=4, threshold=0.8))
    assert (labels[valid & (scores.max(axis=0) < 0.8)] == 4).all()


def test_more_than_254_classes_use_sixteen_bits():
    labels, _ = decide(np.eye(300, dtype=np.float32)[:, :, None], np.ones((300, 1), bool), DecisionRule())
    assert labels.dtype == np.uint16
    assert labels[299, 0] == 299


def test_classes_without_labels_count_only_as_wrong_answers():
    score = Confusion.empty(3).add(np.array([[0, 0, 1, 2]]), np.array([[0, 0, 1, 1]]))
    assert score.miou() == pytest.approx(100 * (1 + 1 / 2 + 0) / 3)
    assert score.labelled_miou() == pytest.approx(100 * (1 + 1 / 2) / 2)
    assert np.isnan(Confusion.empty(3).labelled_miou())


def test_confusion_against_the_golden_metrics(golden):
    score = Confusion.empty(6)
    for predicted, label in zip(golden["miou_pred"], golden["miou_label"], strict=True):
        score = score.add(predicted, label)
    assert round(score.miou(), 2) == pytest.approx(float(golden["miou"]), abs=1e-4)
    assert round(score.accuracy(), 2) == pytest.approx(float(golden["aacc"]), abs=1e-4)


def test_overviews_take_the_mode_and_keep_odd_borders():
    label = np.array([[1, 1, 2], [3, 1, 255], [255, 255, 4]], np.uint8)
    np.testing.assert_array_equal(mode2(label, 255), [[1, 2], [255, 4]])
    np.testing.assert_array_equal(mean2(np.array([[10, 20], [255, 30]], np.uint8)), [[20]])


def test_synthetic_windows_agree_with_the_whole():
    world = World(seed=3, gsd=0.5)
    rgb, labels = world.render(100, 50, 96, 128)
    part_rgb, part = world.render(120, 90, 40, 30)
    np.testing.assert_array_equal(labels[20:60, 40:70], part)
    np.testing.assert_array_equal(rgb[:, 20:60, 40:70], part_rgb)
    assert labels.max() < 6
