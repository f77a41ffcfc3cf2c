"""SAM 3 and CoCo-SAM3 on a tiny random network: laws, planted structure, weights, and the whole way into Zarr."""

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from ovrs import options, pipeline
from ovrs.errors import OptionError, Sam3WeightsMissing, VocabularyError, WeightsError
from ovrs.methods.sam3 import CocoSam3
from ovrs.model.sam3 import fuse, probe
from ovrs.model.sam3.backend import Detection, PhraseBank, Sam3Backend
from ovrs.model.sam3.build import build_sam3_segmenter
from ovrs.model.sam3.prior import PrototypeSpace, Sam3Space, View
from ovrs.model.sam3.tiny import build
from ovrs.model.sam3.weights import TINY, find_directory, load
from ovrs.options import MethodOptions, ModelOptions
from ovrs.scene.grid import Window
from ovrs.words import vocabulary

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers", "ignore::FutureWarning:transformers")
PHRASES = ["building", "road surface", "a very long row of old trees", "water"]


@pytest.fixture(scope="module")
def network():
    return build()


@pytest.fixture
def backend(network):
    return Sam3Backend(network, TINY, torch.device("cpu"))


@pytest.fixture
def image():
    rgb = np.random.default_rng(0).integers(0, 255, (3, 64, 64), dtype=np.uint8)
    return rgb, np.ones((64, 64), bool)


MASKED_BOX = {"input_boxes": torch.full((1, 1, 4), 0.5), "input_boxes_labels": torch.full((1, 1), -10)}
"""A box that counts for nothing: with it transformers adds the token of geometry, as the authors' code always does."""


def raw(detection):
    return detection.semantic, detection.masks, detection.objects, detection.presence


def segmenter(method="coco_sam3", words=None, **own):
    words = words or vocabulary.load("loveda")
    return build_sam3_segmenter(ModelOptions(model=TINY), MethodOptions(method=method, **own), words)


def test_submodules_equal_the_networks_own_forward(backend, network, image):
    state, bank = backend.encode_image(*image), backend.encode_text(PHRASES)
    pixels = torch.from_numpy(image[0])[None].float() / 127.5 - 1
    ids = backend._tokenize(PHRASES)
    mask = (torch.arange(ids.shape[1]) <= (ids == 49407).int().argmax(1)[:, None]).long()
    ours = backend.ground(state, bank, range(4), raw)
    with torch.inference_mode():
        for row in range(4):
            theirs = network(
                pixel_values=pixels, input_ids=ids[row : row + 1], attention_mask=mask[row : row + 1], **MASKED_BOX
            )
            wanted = (theirs.semantic_seg[:, 0], theirs.pred_masks, theirs.pred_logits, theirs.presence_logits[:, 0])
            for mine, his in zip(ours, wanted, strict=True):
                assert torch.allclose(mine[row : row + 1], his, atol=1e-5)


def test_shared_vision_in_any_batch_equals_one_by_one(network, image):
    results = []
    for chunk in (1, 2, 4):
        backend = Sam3Backend(network, TINY, torch.device("cpu"), prompt_chunk=chunk)
        results.append(backend.ground(backend.encode_image(*image), backend.encode_text(PHRASES), range(4), raw))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.allclose(a, b, atol=1e-5)


def test_layer_hook_is_the_hidden_state_after_that_layer(backend, network, image):
    state = backend.encode_image(*image)
    pixels = torch.from_numpy(image[0])[None].float() / 127.5 - 1
    with torch.inference_mode():
        hidden = network.get_vision_features(pixel_values=pixels, output_hidden_states=True).hidden_states
    assert backend.layer == 1
    assert torch.allclose(state.layer, hidden[backend.layer + 1][0], atol=1e-6)


def test_text_bank_is_cached_by_content_and_independent_of_company(backend, tmp_path, monkeypatch):
    monkeypatch.setenv("OVRS_CACHE", str(tmp_path))
    fresh = backend.encode_text(PHRASES)
    assert len(list(tmp_path.rglob("*.npz"))) == 1
    monkeypatch.setattr(backend, "_encode_text", lambda phrases: pytest.fail("encoded again"))
    again = backend.encode_text(PHRASES)
    assert torch.equal(fresh.tokens, again.tokens)
    monkeypatch.undo()
    monkeypatch.setenv("OVRS_CACHE", str(tmp_path))
    alone = backend.encode_text(PHRASES[:1])  # another padding length, other neighbours
    assert torch.allclose(alone.vectors[0], fresh.vectors[0], atol=1e-5)
    assert not torch.allclose(fresh.vectors[0], fresh.vectors[1], atol=1e-3)


def test_absent_phrases_skip_the_mask_decoder_and_nothing_else_changes(backend, image, monkeypatch):
    state, bank = backend.encode_image(*image), backend.encode_text(PHRASES)
    full = backend.ground(state, bank, range(4), raw)
    floor = float(full[3].median())
    asked = []
    decode = backend.network.mask_decoder.forward
    monkeypatch.setattr(
        backend.network.mask_decoder, "forward", lambda **k: asked.append(len(k["decoder_queries"])) or decode(**k)
    )
    some = backend.ground(state, bank, range(4), raw, presence_floor=floor)
    there = full[3] >= floor
    assert sum(asked) == int(there.sum()) < 4
    assert torch.allclose(some[0][there], full[0][there], atol=1e-5)
    assert (some[0][~there] == -10).all()
    assert torch.equal(some[3], full[3])


def random_detection(seed=0, prompts=3, queries=5, size=12):
    g = torch.Generator().manual_seed(seed)
    return Detection(
        torch.randn(prompts, size, size, generator=g) * 4,
        torch.randn(prompts, queries, size, size, generator=g) * 4,
        torch.randn(prompts, queries, generator=g),
        torch.randn(prompts, generator=g) * 3,
    )


def upsampled(mask, size):
    return F.interpolate(mask[None, None], size, mode="bilinear", align_corners=False)[0, 0]


@pytest.mark.parametrize("confidence", [0.0, 0.2, 0.99])
def test_segearth_rule_equals_a_loop_over_queries(confidence):
    d, size = random_detection(), (20, 16)
    (ours,) = fuse.segearth(d, size, confidence)
    for c in range(3):
        p = torch.sigmoid(d.presence[c])
        best = torch.zeros(size)
        for q in range(5):
            score = torch.sigmoid(d.objects[c, q]) * p
            if score > confidence:
                best = torch.maximum(best, torch.sigmoid(upsampled(d.masks[c, q], size)) * score)
        wanted = p * torch.maximum(torch.sigmoid(upsampled(d.semantic[c], size)), best)
        assert torch.allclose(ours[c], wanted, atol=1e-6)


def test_structure_keeps_presence_out_and_is_finite_without_instances():
    d = random_detection()
    evidence, presence = fuse.structure(d, "both", 0.3)
    moved = Detection(d.semantic, d.masks, d.objects, d.presence + 5)
    assert torch.equal(fuse.structure(moved, "both", 0.3)[0], evidence)
    assert torch.equal(presence, d.presence)
    none = Detection(d.semantic, d.masks, d.objects - 50, d.presence)
    assert torch.allclose(
        fuse.structure(none, "both", 0.3)[0], fuse.structure(none, "semantic", 0.3)[0].clamp(min=-9.2104)
    )
    assert fuse.structure(none, "instance", 0.3)[0].isfinite().all()
    both = torch.maximum(fuse.structure(d, "semantic", 0.3)[0], fuse.structure(d, "instance", 0.3)[0])
    assert torch.equal(evidence, both)


def test_prior_is_a_distribution_and_counts_of_synonyms_do_not_matter():
    g = torch.Generator().manual_seed(1)
    u = [torch.randn(1, 6, 6, generator=g) for _ in range(3)]
    prior = fuse.log_prior(u, 0.1)
    assert torch.allclose(prior.exp().sum(0), torch.ones(6, 6), atol=1e-5)
    assert torch.allclose(fuse.log_prior([u[0].expand(4, -1, -1), u[1].expand(2, -1, -1), u[2]], 0.1), prior, atol=1e-5)
    sharp = fuse.log_prior([torch.cat([u[0], u[0] - 1]), u[1], u[2]], 1e-3) * 1e-3  # tau to 0: the best synonym counts
    assert torch.allclose(sharp, fuse.log_prior(u, 1e-3) * 1e-3, atol=1e-2)
    assert torch.equal(fuse.log_prior(u[:1], 0.1), torch.zeros(1, 6, 6))


def test_the_papers_sum_lets_a_class_win_by_having_more_synonyms():
    """log Σ exp(u / τ) per class, then softmax at its own temperature, written out."""
    u = [torch.tensor([0.2, 0.1, 0.3]).view(3, 1, 1), torch.tensor([0.25]).view(1, 1, 1)]
    for class_tau in (1.0, 2.0):
        joined = np.array([np.log(np.exp(v.numpy().ravel() / 0.1).sum()) for v in u]) / class_tau
        wanted = joined - np.log(np.exp(joined).sum())
        found = fuse.log_prior(u, 0.1, join="sum", class_tau=class_tau)
        assert np.allclose(found.numpy().ravel(), wanted, atol=1e-5)
    same = [u[1], u[1] - 0.01]
    twice = [u[1].expand(2, 1, 1), u[1] - 0.01]
    assert torch.allclose(fuse.log_prior(twice, 0.1), fuse.log_prior(same, 0.1))
    assert (fuse.log_prior(twice, 0.1, join="sum") - fuse.log_prior(same, 0.1, join="sum"))[0, 0, 0] > 0
    bare = torch.stack([v[0] for v in same])  # one phrase and both temperatures 1: softmax of the cosines themselves
    assert torch.allclose(fuse.log_prior(same, 1.0, join="sum"), bare.log_softmax(dim=0))


def test_fusion_laws():
    d = random_detection()
    evidence, z = fuse.structure(d, "both", 0.3)
    prior = fuse.log_prior([torch.randn(1, 4, 4) for _ in range(3)], 0.1)
    assert torch.equal(fuse.fuse(evidence, z, prior, 0.0, 1.0), evidence + z[:, None, None])
    scores = fuse.fuse(evidence, z, prior, 1.0, 1.0)
    assert torch.equal(fuse.fuse(evidence, z + 3, prior, 1.0, 1.0).argmax(0), scores.argmax(0))
    assert torch.equal(fuse.fuse(evidence, z, prior, 1.0, 0.0), fuse.fuse(evidence, z * 0, prior, 1.0, 1.0))
    mean = fuse.coco_evidence(scores, evidence, z, (24, 24), rescue=False)
    final = fuse.coco_scores(mean)
    up = fuse.resize(scores, (24, 24))
    assert torch.equal(final.argmax(0), up.argmax(0))
    chance = (fuse.resize(evidence, (24, 24)).sigmoid() * z.sigmoid()[:, None, None]).gather(0, up.argmax(0)[None])[0]
    assert torch.allclose(final.amax(0), chance, atol=1e-6)


def test_rescue_judges_by_the_masks_when_nothing_is_present():
    d = random_detection()
    evidence, z = fuse.structure(d, "both", 0.3)
    scores = evidence.clone()
    absent = z * 0 - 8
    low = fuse.coco_scores(fuse.coco_evidence(scores, evidence, absent, (12, 12), rescue=False)).amax()
    high = fuse.coco_scores(fuse.coco_evidence(scores, evidence, absent, (12, 12), rescue=True)).amax()
    assert low < 0.01 < 0.9 < high


def planted(offset=0.0, noise=0.3, size=8, width=64):
    """Left half looks like phrase 0, right half like phrase 1; the masks say nothing."""
    g = torch.Generator().manual_seed(3)
    e = torch.randn(2, width, generator=g)
    f = torch.where((torch.arange(size) < size // 2)[None, :, None], e[0], e[1]) + noise * torch.randn(
        size, size, width, generator=g
    )
    image_offset, text_offset = offset * torch.randn(2, width, generator=g)
    state = type("State", (), {"layer": f + image_offset})()
    view = View(np.zeros((3, 8, 8), np.uint8), np.ones((8, 8), bool), state, torch.zeros(2, size, size), torch.zeros(2))
    bank = PhraseBank(torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.bool), e + text_offset)
    return view, bank, (torch.arange(size) >= size // 2).long().expand(size, size)


@pytest.mark.parametrize(
    ("literal", "offset", "solved"), [(True, 0, True), (False, 0, True), (True, 20, False), (False, 20, True)]
)
def test_planted_halves_are_found_by_the_prior(literal, offset, solved):
    view, bank, truth = planted(offset)
    prior = fuse.log_prior(Sam3Space(literal).cosines(view, bank, [(0,), (1,)]), 0.1)
    scores = fuse.fuse(view.evidence, view.presence, prior, 1.0, 1.0)
    assert ((scores.argmax(0) == truth).float().mean() > 0.95) == solved
    without = fuse.fuse(view.evidence, view.presence, prior, 0.0, 1.0)
    assert (without.argmax(0) == truth).float().mean() == 0.5


def test_prototypes_find_the_halves_from_weak_masks_and_absent_classes_abstain():
    view, bank, truth = planted()
    weak = torch.stack([1.0 - 2 * truth.float(), 2 * truth.float() - 1.0, torch.full((8, 8), -9.0)])
    view = View(view.rgb, view.valid, view.state, weak, torch.tensor([3.0, 3.0, -9.0]))
    u = torch.cat(PrototypeSpace().cosines(view, bank, [(0,), (1,), (1,)]))
    assert torch.equal(u[:2].argmax(0), truth)
    assert torch.allclose(u[2], u[:2].mean(0), atol=1e-5)


class _Planted:
    """What the probe needs of a segmenter, with a known answer."""

    prompted, groups = ("left", "right"), ((0,), (1,))

    def __init__(self, good):
        self.view, self.bank, truth = planted(noise=0.5)
        evidence = torch.stack([0.5 - truth.float(), truth.float() - 0.5]) * 8
        if not good:
            state = type("State", (), {"layer": torch.randn(8, 8, 64, generator=torch.Generator().manual_seed(9))})()
            self.view = View(self.view.rgb, self.view.valid, state, evidence, torch.ones(2))
        self.view = View(self.view.rgb, self.view.valid, self.view.state, evidence, torch.ones(2))
        self.options = CocoSam3(prior_space="sam3")
        self.backend = type("Backend", (), {"weights_hash": "x", "layer": 1})()

    def observe(self, rgb, valid):
        return self.view


@pytest.mark.parametrize("good", [True, False])
def test_probe_accepts_a_planted_space_and_refuses_noise(good):
    known = _Planted(good)
    verdict = probe.probe(known, [Sam3Space()], [(None, None)] * 16)
    report = verdict["spaces"][0]
    assert report["pairs"] == 32
    assert (report["auc"] > 0.9) == good
    assert verdict["accepted"] == ("sam3" if good else None)
    weight, reason = probe.allowed_weight(known, verdict)
    assert (weight, "did not pass" in reason) == ((1.0, False) if good else (0.0, True))
    assert probe.allowed_weight(known, {**verdict, "weights": "other"}) == (0.0, "the verdict is about another weights")
    assert probe.allowed_weight(known, None)[0] == 0


def test_auc_counts_ties_half():
    inside = torch.tensor([True, True, False, False])
    assert probe.auc(torch.tensor([2.0, 1.0, 1.0, 0.0]), inside) == 0.875
    assert probe.auc(torch.zeros(4), inside) == 0.5


def test_alignment_recovers_a_planted_linear_map(tmp_path):
    g = torch.Generator().manual_seed(0)
    true = torch.randn(16, 8, generator=g)
    vectors = torch.randn(12, 8, generator=g)

    class Known:
        bank = PhraseBank(torch.zeros(12, 1, 1), torch.ones(12, 1, dtype=torch.bool), vectors)
        groups = tuple((i,) for i in range(12))
        prompted = tuple(map(str, range(12)))
        backend = type("Backend", (), {"weights_hash": "w", "layer": 1})()

        def observe(self, rgb, valid):
            features = (true @ vectors[int(rgb)])[None, None].expand(6, 6, -1)
            evidence = torch.full((12, 6, 6), -9.0)
            evidence[int(rgb)] = 9.0
            state = type("State", (), {"layer": features})()
            return View(None, None, state, evidence, torch.where(torch.arange(12) == int(rgb), 5.0, -5.0))

    fitted = probe.align(Known(), [(i, None) for i in range(12)], ridge=1e-6)
    assert int(fitted["pairs"]) == 12
    moved = (vectors - torch.from_numpy(fitted["text_mean"])) @ torch.from_numpy(fitted["matrix"]).T
    wanted = F.layer_norm(vectors @ true.T, (16,)) - torch.from_numpy(fitted["vision_mean"])
    assert F.cosine_similarity(moved, wanted).min() > 0.9
    with pytest.raises(OptionError, match="confident masks"):
        probe.align(Known(), [])


@pytest.mark.parametrize("method", ["sam3", "segearth_ov3", "coco_sam3"])
def test_segmenters_score_any_shape_and_only_prompted_classes(method):
    seg = segmenter(method)
    rgb = np.random.default_rng(1).integers(0, 255, (3, 50, 90), dtype=np.uint8)
    scores = seg.segment(rgb, np.ones((50, 90), bool), (Window(0, 0, 50, 64), Window(0, 26, 50, 64))).scores
    assert scores.shape == (7, 50, 90)
    assert np.isfinite(scores).all()
    assert (scores.min() >= 0) & (scores.max() <= 1)
    assert (scores[0].max() == 0) == (method != "segearth_ov3")  # the background is asked for by that rule alone


def test_windows_are_averaged_phrase_by_phrase_before_the_best_is_taken():
    """As SegEarth-OV3 does it; in one window both ways are the same."""
    rgb = np.random.default_rng(1).integers(0, 255, (3, 64, 96), dtype=np.uint8)
    valid, crops = np.ones((64, 96), bool), (Window(0, 0, 64, 64), Window(0, 32, 64, 64))
    phrase, best = (segmenter("segearth_ov3", windows=w) for w in ("phrase", "class"))
    part = (rgb[:, :, :64], valid[:, :64], crops[:1])
    assert np.allclose(phrase.segment(*part).scores, best.segment(*part).scores, atol=1e-6)
    total, weights = phrase.evidence(rgb, valid, crops)
    asked, class_of = phrase.rows()
    assert len(total) == len(asked) > len(best.groups)
    mean = total / weights
    wanted = [mean[(class_of == c).numpy()].max(axis=0) for c in range(len(phrase.groups))]
    found = phrase.segment(rgb, valid, crops).scores[list(phrase.phrases.class_index)]
    assert np.allclose(found, np.stack(wanted))
    gap = best.segment(rgb, valid, crops).scores - phrase.segment(rgb, valid, crops).scores
    assert gap.min() >= -1e-6  # a mean of maxima is at least the maximum of means
    assert gap.max() > 1e-6


def test_a_constant_scene_looks_the_same_in_every_window():
    seg = segmenter()
    rgb, valid = np.full((3, 128, 128), 90, np.uint8), np.ones((128, 128), bool)
    alone = seg.segment(rgb[:, :64, :64], valid[:64, :64], (Window(0, 0, 64, 64),)).scores
    crops = tuple(Window(r, c, 64, 64) for r in (0, 64) for c in (0, 64))
    assert np.allclose(seg.segment(rgb, valid, crops).scores, np.tile(alone, (1, 2, 2)), atol=1e-5)
    overlapping = tuple(Window(r, c, 64, 64) for r in (0, 32, 64) for c in (0, 32, 64))
    assert np.isfinite(seg.segment(rgb, valid, overlapping).scores).all()


def test_every_space_works_and_the_prior_stays_off_until_it_passes(image, caplog):
    off = segmenter()
    assert off.prior_weight == 0
    assert "was not probed" in off.describe()["prior_reason"]
    assert "lambda 0" in caplog.text
    crops = (Window(0, 0, 64, 64),)
    base = off.segment(*image, crops).scores
    for space in ("rs_clip", "sam3", "sam3_neck", "prototype"):
        on = segmenter(prior_space=space, require_probe=False)
        assert on.prior_weight == 1
        assert np.abs(on.segment(*image, crops).scores - base).max() > 1e-3, space
    with pytest.raises(OptionError, match="sam3 align"):
        segmenter(prior_space="aligned")


def test_synonym_rows_and_doubled_phrases():
    assert [len(g) for g in segmenter(synonyms=0).groups] == [1] * 6
    assert [len(g) for g in segmenter(synonyms=3).groups] == [4] * 6
    assert len(segmenter("segearth_ov3").rows()[0]) == 25  # six classes with four phrases, and the background
    words = vocabulary.from_names(["house", "home"])
    twice = words.model_copy(
        update={"classes": tuple(c.model_copy(update={"phrases": ("house",)}) for c in words.classes)}
    )
    with pytest.raises(VocabularyError, match="stand in two classes: house"):
        segmenter(words=twice)


@pytest.mark.parametrize(
    ("model", "method", "message"),
    [
        ({"model": TINY}, {"method": "tmpa"}, "with SAM 3 choose one of sam3"),
        ({"model": TINY}, {"method": "sam3", "dense": "gem"}, "does not use dense"),
        (
            {"model": TINY},
            {"method": "sam3", "adaptation": "scene"},
            "adaptation belongs to tmpa, tmpa_shift, coco_sam3",
        ),
        ({"model": TINY, "compile": True}, {"method": "sam3"}, "does not use compile"),
        ({"model": TINY, "zoom": 2}, {"method": "sam3"}, "does not use zoom"),
    ],
)
def test_wrong_combinations_are_named(model, method, message):
    with pytest.raises((OptionError, ValidationError), match=message):
        build_sam3_segmenter(ModelOptions(**model), MethodOptions(**method), vocabulary.load("loveda"))


def test_clip_methods_refuse_sam3_options():
    from ovrs.model.clip.build import build_clip_segmenter

    with pytest.raises(OptionError, match="synonyms belongs to segearth_ov3, proc_sam3, coco_sam3"):
        build_clip_segmenter(ModelOptions(), MethodOptions(synonyms=1), vocabulary.load("demo"))
    with pytest.raises(OptionError, match="add --model sam3"):
        build_clip_segmenter(ModelOptions(), MethodOptions(method="coco_sam3"), vocabulary.load("demo"))


def test_missing_weights_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.delenv("OVRS_SAM3_DIR", raising=False)
    for model, expected in (("sam3", "OVRS_SAM3_DIR is not set"), (str(tmp_path / "none"), "is no directory")):
        with pytest.raises(Sam3WeightsMissing, match=expected) as caught:
            find_directory(model)
        assert "hf download facebook/sam3" in str(caught.value)
        assert caught.value.exit_code == 2
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setenv("OVRS_SAM3_DIR", str(empty))
    with pytest.raises(Sam3WeightsMissing, match=r"lacks config\.json and model\.safetensors"):
        find_directory("sam3")
    (empty / "sam3.pt").touch()
    assert find_directory("sam3") == empty


def test_saved_weights_come_back_and_incomplete_ones_are_refused(tmp_path, network, image):
    from safetensors.torch import load_file, save_file

    network.save_pretrained(tmp_path)
    assert ModelOptions(model=str(tmp_path)).family == "sam3"
    loaded, name = load(str(tmp_path), torch.float32)
    assert name == tmp_path.name
    a, b = (Sam3Backend(n, "n", torch.device("cpu")) for n in (network, loaded))
    assert a.weights_hash == b.weights_hash
    state = load_file(tmp_path / "model.safetensors")
    dropped = next(k for k in state if "mask_decoder" in k)
    del state[dropped]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match="tensors are missing"):
        load(str(tmp_path), torch.float32)
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(WeightsError, match="cannot be loaded"):
        load(str(tmp_path), torch.float32)


def numbers(change):
    """The weights with every floating-point tensor changed."""

    def apply(directory):
        from safetensors.torch import load_file, save_file

        state = load_file(directory / "model.safetensors")
        changed = {k: change(v).contiguous() if v.is_floating_point() else v for k, v in state.items()}
        save_file(changed, directory / "model.safetensors", {"format": "pt"})

    return apply


def config_with(**values):
    def apply(directory):
        content = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**content, **values}))

    return apply


def pickled(directory):
    (directory / "model.safetensors").unlink()
    torch.save({"trap": print}, directory / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (numbers(lambda t: t * torch.nan), "NaN or infinite values"),
        (numbers(lambda t: t.to(torch.int8)), "whole numbers"),
        (numbers(lambda t: torch.cat([t, t]) if t.ndim else t), "config.json and weights do not fit each other"),
        (config_with(vision_config=[]), "cannot be loaded as SAM 3: Validation error"),
        (config_with(text_config={"hidden_size": -1}), "cannot be loaded as SAM 3"),
        (config_with(dtype="nope"), "cannot be loaded as SAM 3"),
        (pickled, "holds pickled objects other than tensors"),
    ],
)
def test_damaged_weights_are_one_line_with_the_way_out(tmp_path, network, caplog, spoil, told):
    network.save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(WeightsError, match=told) as caught:
        load(str(tmp_path), torch.float32)
    assert "\n" not in str(caught.value)
    assert "again" in str(caught.value)
    assert len(caplog.text.splitlines()) < 3


def test_masks_of_a_chunk_are_all_that_is_kept(backend, image):
    """Memory is bounded by the chunk: the reducer never sees more phrases than `prompt_chunk`."""
    state, bank = backend.encode_image(*image), backend.encode_text([f"thing number {i}" for i in range(9)])
    seen = []
    backend.ground(state, bank, range(9), lambda d: seen.append(len(d.masks)) or (d.presence,))
    assert seen == [2, 2, 2, 2, 1]


def test_a_scene_is_mapped_into_zarr_with_the_probes_verdict(noise_scene, tmp_path):
    import zarr

    chosen = options.build(model={"model": TINY}, method={"adaptation": "scene", "scene_tiles": 3, "threshold": 0.05})
    assert chosen.method.method == "coco_sam3"
    out = tmp_path / "out.zarr"
    facts = pipeline.map_scene(noise_scene(150, 130), vocabulary.load("loveda"), out, chosen)
    group = zarr.open_group(out, mode="r")
    assert group["label"].shape == (150, 130)
    assert set(np.unique(group["label"][:])) <= set(range(7))
    text = json.dumps(facts)
    assert "coco_sam3" in text
    assert "probe_failed" in text  # random weights carry no signal
    assert TINY in text


@pytest.mark.parametrize("preset", ["plain", "evidence", "sec", "coco", "coco_literal"])
def test_ablation_rows_are_presets(preset, image):
    from ovrs.methods.preset import method_options

    method = MethodOptions.model_validate(method_options(f"sam3/{preset}"))
    seg = build_sam3_segmenter(ModelOptions(model=TINY), method, vocabulary.load("loveda"))
    assert np.isfinite(seg.segment(*image, (Window(0, 0, 64, 64),)).scores).all()
    if preset == "coco_literal":  # all synonyms, λ used without a probe, and the record says so
        assert [len(g) for g in seg.groups] == [len(c.concepts) for c in vocabulary.load("loveda").classes[1:]]
        assert (seg.describe()["prior_weight_used"], seg.prior_weight) == (1, 1)
        assert "not probed, as asked" in seg.describe()["prior_reason"]


def test_a_map_of_the_default_says_that_the_prior_was_off_and_why(noise_scene, tmp_path):
    import zarr

    chosen = options.build(model={"model": TINY})
    pipeline.map_scene(noise_scene(70, 70), vocabulary.load("loveda"), tmp_path / "o.zarr", chosen)
    told = json.dumps(dict(zarr.open_group(tmp_path / "o.zarr", mode="r").attrs))
    told += "".join(f.read_text() for f in (tmp_path / "o.zarr").rglob("*.json"))
    assert '"prior_weight_used": 0.0' in told
    assert "prior space rs_clip was not probed" in told
