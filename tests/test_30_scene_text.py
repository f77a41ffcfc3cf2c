"""Text calibrated to a scene: the entropy rule, its limits, and the tiles that are encoded only once."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ovrs import options, pipeline
from ovrs.methods.tmpa import Tmpa
from ovrs.model.adapt.scene_text import calibrate_scene
from ovrs.model.clip.encoder import TileMemory
from ovrs.model.clip.text import TextBank
from ovrs.run.adaptation import spread
from ovrs.store.map import open_map
from ovrs.words import vocabulary

SETTINGS = Tmpa(logit_scale=30.0, aggregate="mean")


def world(shift=0.6, classes=4, each=400, seed=0):
    """Patches round class centres, and a text that lies `shift` away from the centres in a direction of its own."""
    random = torch.Generator().manual_seed(seed)
    centres = F.normalize(torch.randn(classes, 24, generator=random), dim=1)
    text = F.normalize(centres + shift * F.normalize(torch.randn(classes, 24, generator=random), dim=1), dim=1)
    truth = torch.arange(classes).repeat_interleave(each)
    noise = torch.randn(len(truth), 24, generator=random) * 0.17
    patches = F.normalize(centres[truth] + noise + 0.5 * F.normalize(torch.ones(24), dim=0), dim=1)
    return patches, truth, TextBank(text, torch.arange(classes), classes)


def guessed(found, patches):
    return (SETTINGS.scale * found.text @ patches.T + found.offsets[:, None]).argmax(dim=0)


def calibrated(patches, bank, crops=1e6, settings=SETTINGS):
    return calibrate_scene(patches, bank, settings, crops=crops, per_crop=100)


@pytest.mark.parametrize("seed", range(5))
def test_a_scene_mends_words_that_miss_its_patches(seed):
    patches, truth, bank = world(shift=1.2, seed=seed)
    before = float(((bank.vectors @ patches.T).argmax(dim=0) == truth).float().mean())
    found = calibrated(patches, bank)
    after = float((guessed(found, patches) == truth).float().mean())
    assert found.event == "adapted"
    assert after >= before


def test_bias_follows_entropy_and_the_ground_that_the_sample_shows():
    patches, _, bank = world()
    unsure = calibrated(patches, bank)
    sure = calibrated(patches, bank, settings=Tmpa(logit_scale=300.0, aggregate="mean"))
    little = calibrated(patches, bank, crops=100.0)
    assert sure.entropy < unsure.entropy
    assert sure.bias < unsure.bias
    assert unsure.bias == pytest.approx(unsure.entropy, rel=1e-3)
    assert little.bias == pytest.approx(unsure.entropy / 2, rel=1e-6)
    assert little.weight == pytest.approx(min(0.7, unsure.entropy), rel=1e-6)


def test_the_order_of_patches_does_not_matter():
    patches, _, bank = world()
    mixed = patches[torch.randperm(len(patches), generator=torch.Generator().manual_seed(1))]
    a, b = calibrated(patches, bank), calibrated(mixed, bank)
    torch.testing.assert_close(a.text, b.text, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(a.offsets, b.offsets, rtol=1e-3, atol=1e-3)


def test_a_class_that_the_scene_lacks_does_not_take_the_others_patches():
    patches, truth, bank = world(classes=4)
    there = truth != 3
    found = calibrated(patches[there], bank)
    assert float((guessed(found, patches[there]) == 3).float().mean()) < 0.02
    assert torch.isfinite(found.text).all()


def test_queries_of_one_class_move_together_and_keep_their_offsets():
    patches, _, bank = world()
    double = TextBank(bank.vectors.repeat_interleave(2, dim=0), bank.class_of.repeat_interleave(2), 4).balanced()
    found = calibrated(patches, double)
    torch.testing.assert_close(found.text[0], found.text[1])
    assert found.text.shape == (8, 24)
    assert (found.offsets[0::2] == found.offsets[1::2]).all()


@pytest.mark.parametrize(("count", "event"), [(0, "no_valid_patch"), (1, "no_prototype")])
def test_too_little_to_look_at_leaves_the_text_as_it_is(count, event):
    patches, _, bank = world()
    found = calibrated(patches[:count], bank)
    assert found.event == event
    assert (found.text == bank.vectors).all()
    assert not found.offsets.any()


def test_one_class_is_left_alone():
    patches, _, bank = world()
    assert calibrated(patches, TextBank(bank.vectors[:1], bank.class_of[:1], 1)).event == "single_class"


@pytest.mark.parametrize(("rows", "cols", "count"), [(1, 1, 5), (3, 40, 8), (20, 20, 32), (7, 5, 100)])
def test_sampled_tiles_are_spread_and_complete(rows, cols, count):
    order = spread(rows, cols, count)
    assert sorted(order) == [(r, c) for r in range(rows) for c in range(cols)]
    first = np.array(order[: min(count, rows * cols)])
    if count < rows * cols:  # both halves of the longer side are looked at alike
        long = first[:, int(cols >= rows)]
        assert abs((long < max(rows, cols) / 2).mean() - 0.5) <= 0.26
    assert order == spread(rows, cols, count)


def test_memory_gives_each_tile_once_and_is_bounded():
    memory, valid = TileMemory(), np.ones((4, 4), bool)
    tiles = [np.full((3, 4, 4), i, np.uint8) for i in range(TileMemory.ROOM + 3)]
    for i, tile in enumerate(tiles):
        memory.keep(tile, valid, (torch.tensor(float(i)), torch.zeros(1), (1, 1)))
    assert memory.take(tiles[2], ~valid) is None
    assert float(memory.take(tiles[2], valid)[0]) == 2
    assert memory.take(tiles[2], valid) is None
    assert memory.take(tiles[-1], valid) is None


def test_remembered_tiles_leave_the_map_as_it_is(tmp_path, noise_scene, words, monkeypatch):
    """The default method samples first; whether a sampled tile is encoded again must not change a byte."""
    scene = noise_scene(300, 300)
    run = options.build(run={"pyramid": False})
    assert options.resolved(run.model, run.method, words).scene_level
    first = pipeline.map_scene(scene, words, tmp_path / "a.zarr", run)
    monkeypatch.setattr(TileMemory, "ROOM", 0)
    pipeline.map_scene(scene, words, tmp_path / "b.zarr", run)
    labels = [np.asarray(open_map(tmp_path / n).label[:]) for n in ("a.zarr", "b.zarr")]
    assert (labels[0] == labels[1]).all()
    facts = first["scene_adaptation"]
    assert 0 < facts["bias"] < facts["entropy"] < 1
    assert len(facts["support"]) == len(words.classes)


def test_names_are_asked_by_the_bundled_model_and_sentences_only_if_wanted(caplog):
    from ovrs.model.clip.build import build_clip_segmenter

    words = vocabulary.load("demo")
    caplog.set_level("INFO", "ovrs")
    names = build_clip_segmenter(options.ModelOptions(), options.MethodOptions(method="none"), words)
    assert "--set prompts=all" in caplog.text
    every = build_clip_segmenter(options.ModelOptions(), options.MethodOptions(method="none", prompts="all"), words)
    assert names.channels < every.channels
    assert names.describe()["prompts"] == "names"


def test_options_of_the_descent_are_not_ignored():
    from ovrs.errors import OptionError
    from ovrs.model.clip.build import build_clip_segmenter

    words, model = vocabulary.load("demo"), options.ModelOptions()
    learned = build_clip_segmenter(model, options.MethodOptions(steps=2), words)
    assert learned.describe()["bias"] == "learned"
    with pytest.raises(OptionError, match="bias=learned"):
        build_clip_segmenter(model, options.MethodOptions(steps=2, bias="entropy"), words)
