"""Laws that hold without any reference: limits, permutations, counts of queries, presets."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_30_golden import tile_features
from typer.testing import CliRunner

from ovrs import options
from ovrs.cli.app import app
from ovrs.errors import OptionError
from ovrs.methods import preset
from ovrs.methods.clip import DENSE_VARIANTS
from ovrs.methods.norms import Mlmp
from ovrs.methods.recommended import Recommendations
from ovrs.methods.registry import DENSE, METHOD_NAMES, SAM3_METHOD_NAMES, resolve
from ovrs.methods.tmpa import Tmpa
from ovrs.model.adapt import mlmp
from ovrs.model.adapt.tmpa import Stack, calibrate, find_prototypes
from ovrs.model.clip import dense
from ovrs.model.clip.dense import encode_prelude, last_block
from ovrs.model.clip.head import class_scores, join_queries
from ovrs.model.clip.text import TextBank, clean, listed, queries_of
from ovrs.words.vocabulary import ClassEntry, Vocabulary


@pytest.mark.parametrize("variant", ["maskclip", "sclip", "clearclip", "naclip_kk", "segearth"])
def test_last_blocks_without_neighbourhood_are_permutation_equivariant(tiny_clip, variant):
    torch.manual_seed(0)
    order = torch.randperm(16)
    with torch.no_grad():
        x, grid = encode_prelude(tiny_clip.visual, torch.randn(1, 3, 64, 64))
        moved = torch.cat([x[:, :1], x[:, 1:][:, order]], 1)
        first, second = (last_block(tiny_clip.visual, t, grid, variant).patches for t in (x, moved))
    torch.testing.assert_close(second, first[:, order], atol=1e-5, rtol=0)


def test_naclip_of_a_wide_neighbourhood_is_key_key_attention(tiny_clip, monkeypatch):
    """A constant added to all patch logits shifts them against the class token alone: lengths change, directions do not."""
    torch.manual_seed(0)
    monkeypatch.setattr(dense, "_NACLIP_SIGMA", 1e6)
    prior = dense.gaussian_prior((4, 4), 1e6, torch.device("cpu"), torch.float64)
    torch.testing.assert_close(prior[1:, 1:], torch.ones(16, 16, dtype=torch.float64))
    assert prior[0].sum() == prior[:, 0].sum() == 0
    k = torch.randn(1, 2, 17, 64)
    v = torch.randn(1, 2, 17, 64)
    v[..., 0, :] = 0
    wide, plain = (dense.mixing(name)(k, k, v, (4, 4))[..., 1:, :] for name in ("naclip", "naclip_kk"))
    torch.testing.assert_close(F.normalize(wide, dim=-1), F.normalize(plain, dim=-1), atol=1e-5, rtol=0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=5), st.floats(0, 1))
def test_joined_queries(counts, share):
    torch.manual_seed(sum(counts))
    class_of = torch.tensor([i for i, n in enumerate(counts) for _ in range(n)])
    bank = TextBank(torch.zeros(len(class_of), 4), class_of, len(counts))
    values = torch.rand(len(class_of), 3)
    want = [
        share * values[class_of == c].amax(0) + (1 - share) * values[class_of == c].mean(0) for c in range(len(counts))
    ]
    torch.testing.assert_close(join_queries(values, bank, share), torch.stack(want))


def test_balanced_queries_make_a_repeated_query_worth_one():
    """A class that repeats its only query gains nothing, in the mean and in the sum of its probabilities."""
    logits = torch.tensor([[0.3], [0.1], [0.1], [0.1]])
    bank = TextBank(torch.zeros(4, 2), torch.tensor([0, 1, 1, 1]), 2)
    alone = class_scores(logits[:2], TextBank(torch.zeros(2, 2), torch.tensor([0, 1]), 2), 10)
    balanced = (10 * logits + bank.balanced().offsets[:, None]).softmax(0)
    np.testing.assert_allclose([balanced[0, 0], balanced[1:, 0].sum()], alone[:, 0], atol=1e-6)
    assert bank.offsets is None


def test_queries_of_a_vocabulary():
    words = Vocabulary(
        name="w",
        classes=(
            ClassEntry(name="Water", synonyms=("a lake",), descriptions=("Dark, smooth.",)),
            ClassEntry(name="tree"),
        ),
    )
    assert queries_of(words) == (["water", "a lake", "water dark, smooth", "tree"], [0, 0, 0, 1])
    assert queries_of(words, prefix=False)[0][2] == "dark, smooth"
    assert queries_of(words, "names") == (["water", "tree"], [0, 1])
    assert queries_of(words, "synonyms") == (["water", "a lake", "tree"], [0, 0, 1])


def test_classes_without_prototype_may_move_toward_the_mean_patch(golden, tiny_clip):
    features = tile_features(tiny_clip, golden["img150x130"][0], 96, 48)
    bank = TextBank(torch.from_numpy(golden["queries_avg80"]), torch.tensor(golden["query_idx"]), 5)
    plain = Tmpa(logit_scale=40.0, cls_weight=-0.3)
    fair = Tmpa(logit_scale=40.0, cls_weight=-0.3, absent="mean")
    before, after = (find_prototypes(Stack.of([features]), bank, s) for s in (plain, fair))
    assert not before.found.all()
    assert after.found.all()
    mean = F.normalize(features.patches.flatten(0, 1).mean(0), dim=0)
    torch.testing.assert_close(after.vectors[~before.found], mean.expand(int((~before.found).sum()), -1))
    torch.testing.assert_close(after.vectors[before.found], before.vectors[before.found])
    still = Tmpa(logit_scale=40.0, cls_weight=-0.3, absent="mean", steps=0)
    assert (calibrate(features, bank, still).alpha == 0.02).all()


def test_kept_shares_hold_the_classes_where_they_were(golden, tiny_clip):
    """Entropy still falls, and the tile's class shares move less than with entropy alone."""
    features = tile_features(tiny_clip, golden["img150x130"][0], 96, 48)
    bank = TextBank(torch.from_numpy(golden["queries_avg80"]), torch.tensor(golden["query_idx"]), 5)

    def shares(text):
        scores = class_scores(text @ features.patches.flatten(0, 1).T, bank, 40.0)
        return (scores / scores.sum(0)).mean(1)

    before, drift = shares(bank.vectors), []
    for weight in (0.0, 10.0):
        given = Tmpa(logit_scale=40.0, cls_weight=0.0, absent="mean", keep_shares=weight, steps=10)
        found = calibrate(features, bank, given)
        assert found.events == ("adapted",)
        drift.append(float((before * (before / shares(found.text)).log()).sum()))
    assert drift[1] < 0.5 * drift[0]


def test_batches_in_float32_give_the_same_labels(tiny_visual_p8, golden):
    """Probabilities to 1e-4 and 99.99 % equal labels after three steps."""
    torch.manual_seed(0)
    images = torch.from_numpy(golden["img80x112"]).repeat(4, 1, 1, 1) + 0.3 * torch.randn(4, 3, 80, 112)
    words = torch.from_numpy(golden["tent_naclip_text"]).float()
    given = Mlmp(dense="naclip", steps=3, logit_scale=100.0)

    def probabilities(batch):
        return (100 * mlmp.adapt(tiny_visual_p8, batch, words[None], words, given).patches @ words.T).softmax(-1)

    both = probabilities(images)
    alone = torch.cat([probabilities(images[i : i + 1]) for i in range(4)])
    assert (both - alone).abs().max() < 1e-4
    assert (both.argmax(-1) == alone.argmax(-1)).float().mean() >= 0.9999


def test_every_preset_is_valid_and_names_its_source():
    files = {n.partition("/")[0] for n in preset.names()}
    assert files == {
        "coninfer",
        "mlmp",
        "mlmp_ports",
        "naclip",
        "proc_sam3",
        "sam3",
        "segearth",
        "segearth_ov3",
        "tmpa",
        "tmpa_released",
    }
    for name in preset.names():
        chosen = options.build(method=preset.method_options(name)).method
        source = preset.load(name.partition("/")[0]).source
        if chosen.method in SAM3_METHOD_NAMES:
            assert "arXiv" in source
            continue
        assert chosen.method in METHOD_NAMES
        assert chosen.told["dense"] in DENSE_VARIANTS
        assert "@" in source
    assert preset.load("tmpa_released").tuned_on_labels
    assert preset.method_options("tmpa_released/vaihingen")["cls_weight"] == -0.48


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: preset.load("magic"), "choose one of coninfer"),
        (lambda: preset.method_options("segearth"), "an entry is needed"),
        (lambda: preset.method_options("segearth/mars"), "segearth/loveda"),
        (lambda: preset.parse_settings(["beta"]), "KEY=VALUE"),
        (lambda: preset.parse_settings(["magic=1"]), "no such option"),
        (lambda: preset.parse_settings(["beta=-1"]), "greater than or equal to 0"),
        (lambda: preset.parse_settings(["beta=.inf"]), "finite number"),
        (lambda: preset.parse_settings(["steps=[1"]), r"^--set steps[^\n]*no valid YAML[^\n]*$"),
        (lambda: preset.parse_settings(["steps=*a"]), "stands for nothing"),
        (lambda: preset.parse_settings(["logit_scale=!!python/object:os.system x"]), "is not taken here"),
        (lambda: preset.parse_settings(["steps="]), "steps=null for the default"),
        (lambda: preset.method_options(""), "there is no preset ''"),
        (lambda: options.build(scene={"bbox": (0, 0, float("inf"), 1)}), "finite number"),
    ],
)
def test_wrong_presets_and_settings_are_named(call, told):
    with pytest.raises(OptionError, match=told):
        call()


def test_methods_are_listed():
    assert {entry.name for entry in DENSE} == set(DENSE_VARIANTS)
    shown = CliRunner().invoke(app, ["methods"]).output
    for name in (*METHOD_NAMES, *DENSE_VARIANTS, "tmpa_released/vaihingen", "not zero-shot"):
        assert name in shown


@pytest.mark.parametrize(
    ("name", "things"),
    [
        ("trees, grass and crops", ["trees", "grass", "crops"]),
        ("Tarmac AND concrete", ["Tarmac", "concrete"]),
        ("road/street", ["road", "street"]),
        ("river, lake, or sea", ["river", "lake", "sea"]),
        ("sandy orchard", []),
        ("grassland", []),
        ("and", []),
    ],
)
def test_a_name_that_lists_things_is_asked_for_thing_by_thing(name, things):
    words = Vocabulary(name="w", classes=(ClassEntry(name=name), ClassEntry(name="other")))
    assert listed(name) == things
    asked = [clean(q) for q in [name, *things]]
    assert queries_of(words, "names", split_names=True) == ([*asked, "other"], [0] * len(asked) + [1])
    assert queries_of(words, "names") == ([clean(name), "other"], [0, 1])


def test_lists_are_split_where_a_model_wants_it_and_never_for_the_released_code(directory):
    from ovrs.model.clip.build import build_clip_segmenter
    from ovrs.options import MethodOptions, ModelOptions

    words = Vocabulary(name="w", classes=(ClassEntry(name="trees and grass"), ClassEntry(name="water")))
    own = ModelOptions(model=str(directory))

    def asked(method="none", **more):
        facts = build_clip_segmenter(own, MethodOptions(method=method, **more), words).describe()
        return facts["queries"], facts["split_names"]

    assert asked() == (2, False)
    assert asked(split_names=True) == (4, True)
    (directory / "ovrs.json").write_text(json.dumps({"defaults": {"split_names": True}}))
    assert asked() == (4, True)
    assert asked(split_names=False) == (2, False)
    assert asked("tmpa_compat") == (2, False)


def test_bare_words_leave_the_templates_out():
    from ovrs.model.clip.build import build_clip_segmenter
    from ovrs.model.clip.loading import load
    from ovrs.model.clip.text import embed
    from ovrs.options import MethodOptions, ModelOptions
    from ovrs.words import vocabulary

    words = vocabulary.from_names(["building", "water"])
    plain, bare = (
        build_clip_segmenter(ModelOptions(), MethodOptions(method="none", prompts="names", bare=b), words).bank.vectors
        for b in (False, True)
    )
    model = load(ModelOptions())
    assert torch.allclose(bare, embed(model.clip, model.tokenize, ["building", "water"], [str]), atol=1e-5)
    assert not torch.allclose(plain, bare, atol=1e-2)
    with pytest.raises(OptionError, match="templates of its own"):
        build_clip_segmenter(ModelOptions(), MethodOptions(method="mlmp", bare=True), words)
    as_recommended = {
        m: build_clip_segmenter(ModelOptions(), MethodOptions(method=m), words).describe()["bare"]
        for m in ("none", "tmpa", "mlmp", "tpt")
    }
    assert as_recommended == {"none": True, "tmpa": True, "mlmp": False, "tpt": False}


def test_the_steps_recommended_for_tmpa_are_its_alone():
    """A flat list of recommendations speaks of TMPA where it names a learning rate; sections speak of any method."""
    flat = Recommendations(defaults={"lr": 0.003})
    names = ("tmpa", "tmpa_shift", "tmpa_compat", "tent", "mlmp", "tpt", "clipartt", "watt")
    assert {n for n in names if "lr" in flat.of(n)} == {"tmpa", "tmpa_shift"}
    assert resolve("tmpa", recommended=flat.of("tmpa")).lr == 0.003
    assert resolve("tmpa", {"lr": 0.1}, recommended=flat.of("tmpa")).lr == 0.1
    own = Recommendations(text={"bare": True}, head={"logit_scale": 7}, methods={"tent": {"lr": 0.5}})
    assert own.of("tent") == {"bare": True, "logit_scale": 7, "lr": 0.5}
    assert own.of("mlmp") == {"bare": True, "logit_scale": 7}
