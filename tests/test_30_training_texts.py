"""What the text tower learns from: no held-out phrase, sentences set against names, and a space that can be found again."""

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from benchmarks.text import HERE, TABLES
from training import phrases, unpack
from training.contexts import CLASSES, Contexts
from training.text_tower import encode_all, encode_short, text_tower, tokens_of
from training.texts import FAR_OFF, SHOWS_VEHICLES, VEHICLES, wrong_answers

ASSETS = Path(__file__).parent.parent / "ovrs/assets"


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    return text_tower()


@pytest.fixture(scope="module")
def bundled_tower(tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["unpack", "--model", str(ASSETS), "--work", str(work)])
        unpack.main()
    return text_tower(work / "text.pt")


def test_held_out_phrases_are_not_among_the_sentences():
    held = {
        p.lower() for f in TABLES for group in yaml.safe_load((HERE / f"{f}.yaml").read_text()).values() for p in group
    }
    taught = {p.lower() for p in [*phrases.context_phrases(), *phrases.concept_phrases()]}
    assert not held & taught


def test_every_class_has_sentences_of_its_own():
    table = phrases.contexts()
    said = [s for sentences in table.values() for s in sentences]
    assert len(set(said)) == len(said)
    assert min(map(len, table.values())) >= 6


@pytest.mark.slow
def test_contrast_is_below_chance_for_the_bundled_tower_and_at_it_for_a_random_one(tower, bundled_tower):
    chance = 2 * np.log(CLASSES)
    with torch.no_grad():
        assert Contexts(seed=1).loss(bundled_tower) < 0.8 * chance
        assert Contexts(seed=1).loss(tower) > 0.95 * chance


@pytest.mark.slow
def test_a_class_within_another_is_not_set_apart():
    contexts = Contexts()
    order = [names[0] for names in phrases.contexts()]
    i, j, k = (order.index(n) for n in ("water", "river", "lake"))
    assert contexts.overlap[i, j]
    assert contexts.overlap[j, i]
    assert not contexts.overlap[j, k]
    assert not contexts.overlap.diagonal().any()


def test_vectors_do_not_depend_on_what_else_is_encoded(tower):
    few = ["a lake", "tiers of seats rise around a green pitch", "road"]
    many = encode_all(tower, [*few, *(f"{w} near a very long wall of grey stone" for w in phrases.THINGS)])[:3]
    torch.testing.assert_close(many, torch.cat([encode_short(tower, tokens_of([p])) for p in few]).detach())


def test_a_space_is_found_again_from_its_vectors():
    draw = np.random.default_rng(0)
    raw = draw.normal(size=(2000, 384)).astype(np.float32)
    first, again = (object.__new__(phrases.Teacher) for _ in range(2))
    first.dim = 256
    first.fit(raw + 0.3)
    vectors = first.project(raw)
    again.fit_to(raw, vectors)
    assert (again.project(raw) * vectors).sum(1).min() > 0.99


def said_of(concept):
    """All that `draw_phrase` may say."""
    names, sentences = concept["names"], concept["descriptions"]
    return {*names, *sentences, *(f"{a} {b}" for a in names for b in (*sentences, *(f"and {n}" for n in names)))}


def test_wrong_answers_are_no_names_of_what_is_shown_and_vehicles_only_where_none_are_meant():
    table = phrases.contexts_of([*FAR_OFF, *VEHICLES])
    shown = {n for name, c in phrases.concepts().items() if name != "vehicle" for n in c["names"]}
    assert not shown & {n for c in table.values() for n in c["names"]}
    texts = SimpleNamespace(far_off=[table[n] for n in FAR_OFF], vehicles=[table[n] for n in VEHICLES])
    of_vehicles = {p for n in VEHICLES for p in said_of(table[n])}

    def share(of_set):
        rng = random.Random(0)
        drawn = [wrong_answers(texts, of_set, rng) for _ in range(300)]
        assert max(map(len, drawn)) == 3 + (of_set not in SHOWS_VEHICLES)
        return np.mean([any(said in of_vehicles for said in d) for d in drawn])

    for of_set in SHOWS_VEHICLES:
        assert share(of_set) == 0
    assert 0.4 < share("dubai") < 0.6
