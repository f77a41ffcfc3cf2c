"""What the training scripts make pictures of: mosaics, colour infrared, and parts that are looked up in their whole."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ovrs.model.clip.upsample import load_jbu
from training import train_upsampler
from training.crops import looked_up, scene_crop
from training.infrared import REFLECTS, colour_infrared
from training.model import EMBED_DIM, build
from training.mosaics import CONCEPTS, Mosaics, find

SHOWN = [c for c in CONCEPTS if c != "building"]


def colour_of(concept):
    return 20 + 25 * CONCEPTS.index(concept)


def one_colour_each():
    return np.stack([np.full((176, 176, 3), colour_of(c), np.uint8) for c in SHOWN])


def test_a_mosaic_is_labelled_by_what_lies_there():
    counts = np.ones((11, 11), bool)
    counts[:3] = False
    mosaics = Mosaics(one_colour_each(), {c: [(i, counts)] for i, c in enumerate(SHOWN)})
    rng, seen, unknown = random.Random(0), set(), 0
    for _ in range(40):
        _, rgb, labels, names, _ = mosaics.draw(rng)
        assert not {"soil", "land"} <= set(names)
        for value in np.unique(labels[labels < 255]):
            assert (rgb[labels == value] == colour_of(names[value])).all()
            seen.add(names[value])
        unknown += (labels == 255).mean() / 40
        assert rgb.min() > 0  # no cell is left empty
    assert seen == set(SHOWN)
    assert 3 / 11 * 0.7 < unknown < 3 / 11 * 1.3


def test_scenes_give_the_patches_that_the_network_does_not_contradict():
    vectors = torch.eye(len(CONCEPTS))
    concepts = {c: {"names": [c]} for c in CONCEPTS}
    classes = ["forest", "river", "meadow", "forest", "forest", "church"]
    scenes = np.full((6, 176, 176, 3), colour_of("tree"), np.uint8)
    scenes[0, :64] = colour_of("building")
    scenes[1, :, :48], scenes[1, :, 48:] = colour_of("water"), colour_of("low_vegetation")
    scenes[2] = colour_of("field")

    def encode(images):
        patches = F.avg_pool2d(images * 255, 16)[:, 0].flatten(1)
        return vectors[((patches - 20) / 25).round().long()]

    texts = SimpleNamespace(ensemble={c: vectors[i] for i, c in enumerate(CONCEPTS)}, classes=classes)
    sets = ["rsicd"] * 3 + ["eurosat", "rsicd", "rsicd"]
    usable = np.array([True, True, True, True, False, True])
    found = find(encode, 20.0, texts, concepts, scenes, sets, usable).found
    assert {c: [i for i, _ in v] for c, v in found.items() if v} == {"tree": [0], "water": [1], "low_vegetation": [2]}
    np.testing.assert_array_equal(found["tree"][0][1], np.arange(11)[:, None].repeat(11, 1) >= 4)
    np.testing.assert_array_equal(found["water"][0][1], np.arange(11)[None].repeat(11, 0) < 3)
    assert found["low_vegetation"][0][1].all()  # a meadow may look like a field


def test_infrared_shows_plants_bright_and_water_dark():
    names = list(REFLECTS)
    labels = torch.arange(len(names) + 1).repeat_interleave(8)[None].expand(8, -1).clone()
    labels[labels == len(names)] = 255
    image = torch.tensor([0.2, 0.4, 0.2])[:, None, None].expand(3, *labels.shape)
    shown = colour_infrared(image, labels, names, random.Random(3))
    torch.testing.assert_close(shown[1:], image[:2])
    level = {n: shown[0][2:6, labels[0] == i][:, 2:6].mean().item() for i, n in enumerate([*names, "unknown"][:-1])}
    for name, (low, high) in REFLECTS.items():
        assert low - 1e-3 <= level[name] / (0.8 / 3) <= high + 1e-3
    unlabelled = shown[0][:, labels[0] == 255][:, 3:].mean()
    grey = colour_infrared(torch.full((3, 8, 8), 0.3), torch.full((8, 8), 255), names, random.Random(3))
    assert unlabelled > 1.8 * 0.8 / 3
    assert grey[0].mean() == pytest.approx(0.3, abs=0.01)


def test_what_the_whole_says_is_found_under_its_part():
    across = np.broadcast_to(np.arange(176, dtype=np.uint8), (176, 176))
    pixels = np.stack([across, across.T, 200 - across], -1)
    rng = random.Random(1)

    def encode(image):  # a patch says its mean colour
        return F.avg_pool2d(image[None], 16).flatten(2).transpose(1, 2)

    for _ in range(8):
        part, whole, box = scene_crop(pixels, 160, 72, rng)
        assert all(0 <= v <= 1 for v in box)
        assert 72 / 176 <= box[2] <= 1
        want = encode(part).view(10, 10, 3)[1:-1, 1:-1]
        found = looked_up(encode(whole), [box]).view(10, 10, 3)[1:-1, 1:-1]
        torch.testing.assert_close(found, want, atol=0.01, rtol=0)


def test_the_upsampler_is_trained_from_scenes_and_a_tower(tmp_path, monkeypatch):
    """A few steps: its command runs, and what it writes is loaded by the program."""
    torch.manual_seed(0)
    torch.save({"visual": build().visual.state_dict()}, tmp_path / "vision.pt")
    pixels = np.random.default_rng(0).integers(0, 255, (3, 176, 176, 3), dtype=np.uint8)
    np.save(tmp_path / "scenes.npy", pixels)
    given = ["train_upsampler", "--work", str(tmp_path), "--minutes", "0.02", "--threads", str(torch.get_num_threads())]
    monkeypatch.setattr("sys.argv", given)
    train_upsampler.main()
    net = load_jbu("jbu_one", tmp_path / "jbu_one.safetensors", EMBED_DIM, torch.device("cpu"))
    assert net.up.sigma_spatial.item() != pytest.approx(0.3, abs=1e-4)
