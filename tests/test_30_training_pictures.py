"""What the training scripts make pictures of: mosaics, colour infrared, and parts that are looked up in their whole."""

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ovrs.demo.synth import World
from ovrs.model.clip.upsample import load_jbu
from training import bank, losses, phrases, texts, train_upsampler, train_vision, unpack
from training.bank import Boxes, Labels, Pictures
from training.crops import looked_up, scene_boxes
from training.infrared import REFLECTS, colour_infrared
from training.material import Group
from training.model import EMBED_DIM, build
from training.mosaics import CONCEPTS, Mosaics, find, names_with
from training.sets import UNKNOWN, load_sets, read

ASSETS = Path(__file__).parent.parent / "ovrs/assets"

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
        bare = rng.choice(("soil", "land"))
        rgb, labels = mosaics.draw(bare, rng)
        names = names_with(bare)
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
    torch.manual_seed(3)
    names = list(REFLECTS)
    labels = torch.arange(len(names) + 1).repeat_interleave(8)[None].expand(8, -1).clone()
    labels[labels == len(names)] = 255
    image = torch.tensor([0.2, 0.4, 0.2])[:, None, None].expand(3, *labels.shape)
    shown = colour_infrared(image[None], labels[None], names)[0]
    torch.testing.assert_close(shown[1:], image[:2])
    level = {n: shown[0][2:6, labels[0] == i][:, 2:6].mean().item() for i, n in enumerate([*names, "unknown"][:-1])}
    for name, (low, high) in REFLECTS.items():
        assert low - 1e-3 <= level[name] / (0.8 / 3) <= high + 1e-3
    unlabelled = shown[0][:, labels[0] == 255][:, 3:].mean()
    grey = colour_infrared(torch.full((1, 3, 8, 8), 0.3), torch.full((1, 8, 8), 255), names)[0]
    assert unlabelled > 1.8 * 0.8 / 3
    assert grey[0].mean() == pytest.approx(0.3, abs=0.01)


def test_what_the_whole_says_is_found_under_its_part():
    torch.manual_seed(1)
    across = np.broadcast_to(np.arange(176, dtype=np.uint8), (176, 176))
    pictures = Pictures([np.stack([across, across.T, 200 - across], -1)], torch.device("cpu"), levels=1)
    parts, wholes, places = scene_boxes(torch.zeros(16, dtype=torch.long), 176)
    assert len(set(parts.turn.tolist())) > 5

    def encode(images):  # a patch says its mean colour
        return F.avg_pool2d(images, 16).flatten(2).transpose(1, 2)

    want = encode(pictures.crops(parts, 160)).view(16, 10, 10, 3)[:, 1:-1, 1:-1]
    found = looked_up(encode(pictures.crops(wholes, 160)), places).view(16, 10, 10, 3)[:, 1:-1, 1:-1]
    torch.testing.assert_close(found, want, atol=0.01, rtol=0)


def test_labels_turn_with_their_pictures():
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 5, (9, 13)).repeat(16, 0).repeat(16, 1).astype(np.uint8)
    other = np.full((40, 300), 7, np.uint8)
    device = torch.device("cpu")
    pictures = Pictures([np.stack([v * 20] * 3, -1) for v in (other, labels)], device)
    masks = Labels([other, labels], device)
    for turn in range(8):
        boxes = Boxes(*(torch.tensor([v]) for v in (1, 16.0, 32.0, 96.0, turn)))
        shown = pictures.crops(boxes, 96)[0, 0].mul(255 / 20).round().long()
        want = np.rot90(labels[16:112, 32:128], turn % 4)
        want = want[:, ::-1] if turn >= 4 else want
        np.testing.assert_array_equal(shown.numpy(), want)
        np.testing.assert_array_equal(masks.crops(boxes, 96)[0].numpy(), want)
    far = Boxes(*(torch.tensor([v]) for v in (1, 0.0, 0.0, 144.0, 0)))
    torch.testing.assert_close(
        pictures.crops(far, 36).mean(), pictures.crops(far, 144).mean(), atol=2e-3, rtol=0
    )  # the quarter level, without a shift


def test_a_bank_is_read_as_it_was_written(tmp_path, monkeypatch):
    monkeypatch.setattr(bank, "LIMIT", 3000)
    draw = np.random.default_rng(0)
    records = []
    for number in range(9):
        rgb = draw.integers(0, 255, (24, 24, 3), dtype=np.uint8)
        mask = draw.integers(0, 4, (24, 24), dtype=np.uint8) if number % 2 else None
        records.append((f'{{"n": {number}}}', bank.jpeg(rgb), bank.png(mask) if mask is not None else b""))
    files = bank.save(tmp_path, "some", records)
    assert len(files) > 2
    assert list(bank.load(tmp_path, "some")) == records


def test_sets_number_their_concepts_and_what_is_denied(tmp_path):
    sets = load_sets()
    known = phrases.concepts()
    for name, given in sets.items():
        assert set(given.concepts) | set(given.among) <= set(known), name
        assert set(given.values.values()) == set(range(len(given.concepts) + len(given.denied))), name
        assert 0 < given.scale[0] < given.scale[1] < 2
        assert set(given.among).isdisjoint(given.concepts)
    for folder in ("images", "masks"):
        (tmp_path / "more/roads_la_boston" / folder).mkdir(parents=True)
    raw = np.array([[0, 1], [2, 9]], np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "more/roads_la_boston/images/a.png")
    Image.fromarray(raw).save(tmp_path / "more/roads_la_boston/masks/a.png")
    (only,) = read(sets["roads"], tmp_path)
    np.testing.assert_array_equal(only.labels[::8, ::8], [[UNKNOWN, 0], [1, UNKNOWN]])


class Words(dict):
    """Each phrase is the axis of its concept."""

    far_off = ()
    vehicles = ()

    def astray(self, vectors, rng):
        return vectors


def material():
    names = ["road", "building", "tree", "low_vegetation", "soil", "water"]
    concepts = {n: {"names": [n], "descriptions": [n]} for n in names}
    texts = Words({n: torch.eye(6)[i] for i, n in enumerate(names)})
    texts |= {f"{n} {n}": texts[n] for n in names}
    weights = {"roads": torch.ones(1)}
    return SimpleNamespace(texts=texts, concepts=concepts, weights=weights, device=torch.device("cpu")), names


def test_a_denied_class_is_unlearned_and_nothing_else_is_said(monkeypatch):
    monkeypatch.setattr(losses, "wrong_answers", lambda *_: [])
    m, names = material()
    roads = load_sets()["roads"]
    rng, scale = random.Random(0), torch.tensor(3.0)

    def loss(label, shown):
        z = torch.eye(6)[names.index(shown)].expand(1, 4, 6)
        group = Group(set=roads, rows=slice(0, 1), labels=torch.full((1, 32, 32), label, dtype=torch.uint8))
        return losses.dense_loss(m, z, [group], scale, rng)

    assert loss(0, "road")[0] < 0.01 < 3 < loss(0, "tree")[0]  # labelled road
    assert loss(1, "tree")[0] < 0.01 < 3 < loss(1, "road")[0]  # anything but road
    assert loss(1, "soil")[0] == pytest.approx(loss(1, "tree")[0].item())
    assert loss(UNKNOWN, "road")[0] == 0
    assert loss(UNKNOWN, "road")[1] == pytest.approx(0, abs=1e-6)  # both wordings say the same


def test_wordings_that_disagree_cost(monkeypatch):
    monkeypatch.setattr(losses, "wrong_answers", lambda *_: [])
    m, names = material()
    m.texts["track"] = torch.eye(6)[names.index("soil")]
    m.texts["track track"] = m.texts["track"]
    drawn = iter(["road", *names[1:], "track", *names[1:]])
    monkeypatch.setattr(losses, "draw_phrase", lambda concept, rng: next(drawn))
    z = torch.eye(6)[0].expand(1, 4, 6)
    roads = load_sets()["roads"]
    group = Group(set=roads, rows=slice(0, 1), labels=torch.full((1, 32, 32), UNKNOWN, dtype=torch.uint8))
    assert losses.dense_loss(m, z, [group], torch.tensor(3.0), random.Random(0))[1] > 0.1


def world(seed):
    rgb, labels = World(seed=seed, gsd=0.5).render(0, 0, 384, 384)
    return np.ascontiguousarray(np.moveaxis(rgb, 0, -1)), labels


@pytest.mark.slow
def test_the_tower_is_trained_from_a_bank_and_a_set_is_left_out(tmp_path, monkeypatch):
    """A few steps of the whole command on tiny material: losses are finite, weights move, the left-out set is scored."""
    monkeypatch.setattr("sys.argv", ["unpack", "--model", str(ASSETS), "--work", str(tmp_path)])
    unpack.main()
    monkeypatch.setattr(texts, "TEMPLATES", texts.TEMPLATES[:1])
    records = []
    for seed, name in enumerate(["synth", "synth", "naip"]):
        rgb, labels = world(seed)
        told = json.dumps({"set": name, "name": str(seed), "held": False})
        records.append((told, bank.jpeg(rgb), bank.png(np.where(labels == 4, 255, labels).astype(np.uint8))))
    bank.save(tmp_path, "labelled", records)
    scenes = [
        (json.dumps({"set": "rsicd", "name": str(i), "held": False}), bank.jpeg(world(i)[0]), b"") for i in range(4)
    ]
    bank.save(tmp_path, "scenes", scenes)
    (tmp_path / "scenes.json").write_text(json.dumps([["a road beside trees and a lake"]] * 4))
    (tmp_path / "classes.json").write_text(json.dumps(["forest", "pond", "parking", "farmland"]))
    before = torch.load(tmp_path / "vision.pt", weights_only=True)["visual"]
    told = ["--work", str(tmp_path), "--out", str(tmp_path / "out"), "--minutes", "0.05", "--device", "cpu", "--resume"]
    (tmp_path / "out").mkdir()
    args = train_vision.parser().parse_args([*told, "--batch", "4", "2", "--every", "1", "--hold", "naip"])
    scores = train_vision.train(args)
    assert set(scores["after"]) == {"naip"}
    after = torch.load(tmp_path / "out/vision.pt", weights_only=True)["visual"]
    assert any((after[k] != v).any() for k, v in before.items())
    steps = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    assert all(math.isfinite(v) for step in steps for v in step["losses"].values())
    with pytest.raises(SystemExit, match="no such sets: nowhere"):
        train_vision.train(train_vision.parser().parse_args([*told, "--hold", "nowhere"]))


def test_the_upsampler_is_trained_from_scenes_and_a_tower(tmp_path, monkeypatch):
    """A few steps: its command runs, and what it writes is loaded by the program."""
    torch.manual_seed(0)
    torch.save({"visual": build().visual.state_dict()}, tmp_path / "vision.pt")
    pixels = np.random.default_rng(0).integers(0, 255, (3, 176, 176, 3), dtype=np.uint8)
    bank.save(tmp_path, "scenes", [("{}", bank.jpeg(rgb), b"") for rgb in pixels])
    given = ["train_upsampler", "--work", str(tmp_path), "--minutes", "0.02", "--threads", str(torch.get_num_threads())]
    monkeypatch.setattr("sys.argv", given)
    train_upsampler.main()
    net = load_jbu("jbu_one", tmp_path / "jbu_one.safetensors", EMBED_DIM, torch.device("cpu"))
    assert net.up.sigma_spatial.item() != pytest.approx(0.3, abs=1e-4)
