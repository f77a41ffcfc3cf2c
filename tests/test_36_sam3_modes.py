"""SAM 3: ProC-SAM3's rule, modes of presence, only what is there is decoded, the light text tower, batches, arithmetic."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import ovrs
from ovrs import options, pipeline
from ovrs.errors import WeightsError
from ovrs.methods import preset, published
from ovrs.methods.sam3 import CocoSam3
from ovrs.model.sam3 import active, deviations, fuse
from ovrs.model.sam3.backend import Detection, Sam3Backend
from ovrs.model.sam3.build import build_sam3_segmenter
from ovrs.model.sam3.presence import in_instances, weighted
from ovrs.model.sam3.tiny import build, config
from ovrs.model.sam3.weights import TINY, load
from ovrs.options import MethodOptions, ModelOptions
from ovrs.run.report import info_of
from ovrs.scene.grid import Window
from ovrs.words import vocabulary

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers", "ignore::FutureWarning:transformers")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network():
    return build()


@pytest.fixture(autouse=True)
def _built_once(network, monkeypatch):
    """Segmenters in single precision share one tiny network."""
    monkeypatch.setattr(
        "ovrs.model.sam3.build.load",
        lambda model, dtype: (network, TINY) if model == TINY and dtype == torch.float32 else load(model, dtype),
    )


@pytest.fixture
def image():
    rgb = np.random.default_rng(0).integers(0, 255, (3, 64, 64), dtype=np.uint8)
    return rgb, np.ones((64, 64), bool)


def detection(seed=0, prompts=3, queries=5, size=12):
    g = torch.Generator().manual_seed(seed)
    return Detection(
        torch.randn(prompts, size, size, generator=g) * 4,
        torch.randn(prompts, queries, size, size, generator=g) * 4,
        torch.randn(prompts, queries, generator=g),
        torch.randn(prompts, generator=g) * 3,
    )


def upsampled(mask, size):
    return F.interpolate(mask[None, None], size, mode="bilinear", align_corners=False)[0, 0]


# ---- ProC-SAM3 and presence


@pytest.mark.parametrize("confidence", [0.0, 0.2, 0.99])
def test_proc_equals_the_equations_pixel_by_pixel(confidence):
    """Term by term, as in the released `_pgrf_prompt_fusion` and `reduce_slot_outputs`."""
    d, size = detection(), (20, 16)
    (ours,) = fuse.proc(d, size, confidence)
    for c in range(3):
        p = torch.sigmoid(d.presence[c])
        score = torch.sigmoid(d.objects[c]) * p
        s = torch.sigmoid(upsampled(d.semantic[c], size))
        i0 = torch.zeros(size)
        for q in range(5):
            if score[q] > confidence:
                i0 = torch.maximum(i0, torch.sigmoid(upsampled(d.masks[c, q], size)) * score[q])
        b = torch.maximum(s, i0)
        a = 1 - (s - b).abs()
        k = (p * score.max() * a).clamp(0, 1)
        wanted = p * (s + k * (b - s).clamp(min=0)).clamp(1e-4, 1 - 1e-4)
        torch.testing.assert_close(ours[c], wanted, atol=1e-6, rtol=0)


def planted(semantic, instance, score, presence):
    """One phrase on two pixels, all of known probability."""
    logit = lambda v: torch.logit(torch.tensor(v, dtype=torch.float64)).float()  # noqa: E731
    return Detection(
        logit(semantic)[None, None], logit(instance)[None, None, None], logit([score])[None], logit([presence])
    )


def test_proc_lets_an_instance_in_as_far_as_presence_score_and_agreement_go():
    d = planted([0.2, 0.9], [0.8, 0.8], 0.9, 0.9)
    (found,) = fuse.proc(d, (1, 2), 0.3)
    best = 0.9 * 0.9 * 0.8
    k = 0.9 * 0.81 * (1 - (best - 0.2))
    assert found[0, 0].tolist() == pytest.approx([0.9 * (0.2 + k * (best - 0.2)), 0.9 * 0.9], abs=1e-5)
    assert fuse.segearth(d, (1, 2), 0.3)[0][0, 0].tolist() == pytest.approx([0.9 * best, 0.9 * 0.9], abs=1e-5)
    (alone,) = fuse.proc(d, (1, 2), 0.99)  # no instance counts: the class-wide mask times presence
    assert alone[0, 0].tolist() == pytest.approx([0.18, 0.81], abs=1e-5)


def test_modes_of_presence_on_a_road_that_is_sure_and_hardly_present():
    """Presence 0.08 and a mask logit of +10, as has been reported."""
    road = planted([1 - 4.5e-5], [0.5], 0.6, 0.08)
    value = {
        mode: float(fuse.segearth(road, (1, 1), 0.3, mode=mode, gate=0.5)[0])
        for mode in ("product", "gate", "logit", "instances", "none")
    }
    assert value["product"] == pytest.approx(0.08, abs=1e-3)
    assert value["gate"] == 0
    assert value["instances"] == value["none"] == pytest.approx(1, abs=1e-3)
    assert value["logit"] == pytest.approx(
        torch.sigmoid(torch.tensor(9.21) + torch.logit(torch.tensor(0.08))).item(), abs=1e-3
    )
    assert float(fuse.segearth(road, (1, 1), 0.3, mode="gate", gate=0.05)[0]) == pytest.approx(1, abs=1e-3)
    logits = torch.tensor([0.0, -3.0])
    assert in_instances(logits, "product").tolist() == pytest.approx([0.5, 0.0474], abs=1e-3)
    assert in_instances(logits, "logit").tolist() == [1, 1]
    sure = weighted(torch.full((2, 1, 1), 0.9), torch.tensor([9.0, -9.0]), "logit", 0.5)
    assert sure[0] > 0.99
    assert sure[1] < 0.01


@pytest.mark.parametrize("row", ["gate", "logit", "instances", "off"])
@pytest.mark.parametrize("method", ["proc", pytest.param("segearth", marks=pytest.mark.slow)])
def test_every_mode_is_a_preset_row(method, row, image):
    told = MethodOptions.model_validate(preset.method_options(f"sam3/{method}_{row}"))
    made = build_sam3_segmenter(ModelOptions(model=TINY), told, vocabulary.load("loveda"))
    assert made.describe()["presence"] == ("none" if row == "off" else row)
    scores = made.segment(*image, (Window(0, 0, 64, 64),)).scores
    assert np.isfinite(scores).all()
    assert (scores.min() >= 0) & (scores.max() <= 1)


def test_windows_are_averaged_phrase_by_phrase_before_the_best_phrase_counts():
    """Two windows, two phrases of one class: the mean of each phrase, then the larger; not the mean of the larger ones."""
    words = vocabulary.load("loveda")
    made = build_sam3_segmenter(ModelOptions(model=TINY), MethodOptions(method="proc_sam3"), words)
    rows, class_of = made.rows()
    assert made.channels == len(rows) > len(made.groups)
    evidence = np.zeros((len(rows), 1, 1), np.float32)
    first = [i for i, c in enumerate(class_of.tolist()) if c == 1][:2]
    evidence[first, 0, 0] = [0.45, 0.5]  # means of (0.9, 0) and (0, 1)
    scores = made.finish(evidence).scores
    assert scores[made.phrases.class_index[1], 0, 0] == pytest.approx(0.5)
    rgb = np.random.default_rng(1).integers(0, 255, (3, 64, 96), dtype=np.uint8)
    crops = (Window(0, 0, 64, 64), Window(0, 32, 64, 64))
    total, weights = made.evidence(rgb, np.ones((64, 96), bool), crops)
    alone = [made.evidence(rgb[:, :, c : c + 64], np.ones((64, 64), bool), (Window(0, 0, 64, 64),))[0] for c in (0, 32)]
    both = sum(np.pad(a, ((0, 0), (0, 0), (c, 32 - c))) for a, c in zip(alone, (0, 32), strict=True))
    np.testing.assert_allclose(total, both, atol=1e-5)
    assert weights.min() > 0


def test_published_pools_are_marked_as_tuned_and_asked_as_published():
    found = preset.load("proc_sam3")
    assert found.tuned_on_labels
    assert "red lawn" in found.note
    assert {n: preset.method_options(f"proc_sam3/{n}")["threshold"] for n in ("openearthmap", "uavid")} == {
        "openearthmap": 0.02,
        "uavid": 0.3,
    }
    lists = published.word_lists("proc_sam3").sets
    assert lists["vaihingen"].lines[2] == ("grass", "red lawn", "yard")
    assert lists["udd5"].lines[0] == ("vegetation", "lotus leaves")
    for name in found.datasets:
        words = published.vocabulary_of(f"proc_sam3/{name}")
        phrases = [p for c in words.classes for p in c.concepts]
        assert len(phrases) == len(set(phrases)), name
        assert words.class_names == vocabulary.load(name).class_names


# ---- only what is there


class Planted(torch.nn.Module):
    """A decoder whose presence is known: high for chosen phrases, low for all others, on any image of any size."""

    def __init__(self, inner, tokens, mask, present):
        super().__init__()
        self.inner, self.present = inner, set(present)
        self.key = self._mean(tokens, mask)

    @staticmethod
    def _mean(tokens, mask):
        return (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    def forward(self, *, text_features, text_mask, **more):
        out = self.inner(text_features=text_features, text_mask=text_mask, **more)
        words = self._mean(text_features[:, :-1], text_mask[:, :-1])  # without the token of geometry
        rows = torch.cdist(words, self.key).argmin(dim=1)
        logits = torch.tensor([6.0 if int(r) in self.present else -8.0 for r in rows])
        out.presence_logits = logits[None, :, None].expand_as(out.presence_logits)
        return out


def planted_backend(phrases, present, floor, chunk=4):
    backend = Sam3Backend(build(), TINY, CPU, prompt_chunk=chunk, present_floor=floor)
    bank = backend.encode_text(phrases)
    backend.network.detr_decoder = Planted(backend.network.detr_decoder, bank.tokens, bank.mask, present)
    return backend, bank


def plain_rule(d):
    return (d.semantic, d.presence)


def test_fifty_classes_of_which_five_are_there_need_five_times_fewer_decoder_passes(image):
    phrases = [f"thing number {i}" for i in range(50)]
    present = [3, 11, 12, 30, 49]
    full, bank = planted_backend(phrases, present, None)
    some, _ = planted_backend(phrases, present, 0.01)
    all_masks = full.ground(full.encode_image(*image, phrases=50), bank, range(50), plain_rule)
    state = some.encode_image(*image, phrases=50)
    ours = some.ground(state, bank, range(50), plain_rule)
    assert full.passes["decoder"] == 50
    assert some.passes["decoder"] == 8  # five, in buckets of four
    assert full.passes["decoder"] / some.passes["decoder"] >= 5
    assert some.passes["small_decoder"] == 50
    assert some.passes["masks"] == 8
    torch.testing.assert_close(ours[0][present], all_masks[0][present], atol=1e-5, rtol=0)
    rest = sorted({*range(50)} - {*present})
    assert (ours[0][rest] == -10).all()
    scores = [torch.sigmoid(m) * torch.sigmoid(z)[:, None, None] for m, z in (all_masks, ours)]
    sure = scores[0].amax(0) > 0.01  # where anything that is there says anything
    assert (scores[0].argmax(0) == scores[1].argmax(0))[sure].float().mean() == 1


def test_what_is_decoded_does_not_depend_on_what_else_is_there(image):
    phrases = [f"thing number {i}" for i in range(20)]
    few, bank = planted_backend(phrases, [2, 9], 0.01)
    more, _ = planted_backend(phrases, [0, 2, 5, 9, 13, 19], 0.01)
    a = few.ground(few.encode_image(*image, phrases=20), bank, range(20), plain_rule)[0]
    b = more.ground(more.encode_image(*image, phrases=20), bank, range(20), plain_rule)[0]
    torch.testing.assert_close(a[[2, 9]], b[[2, 9]], atol=1e-5, rtol=0)


def test_the_likeliest_phrase_is_always_decoded_and_few_phrases_take_no_small_pass(image):
    phrases = [f"thing number {i}" for i in range(12)]
    none, bank = planted_backend(phrases, [], 0.5)
    found = none.ground(none.encode_image(*image, phrases=12), bank, range(12), plain_rule)[0]
    assert none.passes["decoder"] == 4
    assert (found != -10).any()
    state = none.encode_image(*image, phrases=active.FEW)
    assert state.preview is None
    assert active.likely(torch.tensor([-9.0, -3.0, -5.0]), 0.99) == [1]


@torch.no_grad()
def test_the_small_pass_is_the_same_network_on_a_smaller_image(network, image):
    """Its vision encoder shares the parameters and equals a network that is built for that size."""
    from transformers import Sam3Model

    side = active.small_size(network.config.vision_config.backbone_config)
    assert side == 32
    full = config()
    full.vision_config.backbone_config.image_size = 1008
    full.vision_config.backbone_config.patch_size, full.vision_config.backbone_config.window_size = 14, 24
    assert active.small_size(full.vision_config.backbone_config) == 672
    encoder = active.small_encoder(network)
    own = dict(network.vision_encoder.named_parameters())
    assert all(p is own[n] for n, p in encoder.named_parameters())
    smaller = config()
    smaller.vision_config.backbone_config.image_size = side
    other = Sam3Model(smaller).eval()
    other.load_state_dict(network.state_dict())
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    for ours, theirs in zip(
        encoder(pixels).fpn_hidden_states, other.vision_encoder(pixels).fpn_hidden_states, strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert network.vision_encoder.backbone.layers[1].position_ids.shape[0] == 64  # its own positions are as they were


@pytest.mark.parametrize(
    "method", ["proc_sam3", *(pytest.param(n, marks=pytest.mark.slow) for n in ("sam3", "segearth_ov3", "coco_sam3"))]
)
def test_every_method_decodes_only_what_is_there_on_request(method, image):
    words = vocabulary.from_names([f"thing number {i}" for i in range(12)])
    told = MethodOptions.model_validate({"method": method, "decode": "present", "present_floor": 0.3})
    made = build_sam3_segmenter(ModelOptions(model=TINY), told, words)
    scores = made.segment(*image, (Window(0, 0, 64, 64),)).scores
    assert scores.shape == (12, 64, 64)
    assert np.isfinite(scores).all()
    assert made.backend.passes["small_decoder"] == 12
    everything = build_sam3_segmenter(
        ModelOptions(model=TINY),
        MethodOptions.model_validate({**told.told, "method": method, "present_floor": 0.0}),
        words,
    )
    full = build_sam3_segmenter(ModelOptions(model=TINY), MethodOptions(method=method), words)
    np.testing.assert_allclose(
        everything.segment(*image, (Window(0, 0, 64, 64),)).scores,
        full.segment(*image, (Window(0, 0, 64, 64),)).scores,
        atol=1e-5,
    )


# ---- published layouts


@pytest.mark.parametrize("prefix", ["", "detector_model."])
def test_published_names_of_tensors_load(network, tmp_path, prefix):
    """transformers' own, and those of facebook/sam3 with the tracker of the video model."""
    from safetensors.torch import load_file, save_file

    network.save_pretrained(tmp_path)
    state = {prefix + name: tensor for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    if prefix == "detector_model.":
        state["tracker_model.shared.weight"] = torch.zeros(2)
        own = {"model_type": "sam3_video", "detector_config": json.loads((tmp_path / "config.json").read_text())}
        (tmp_path / "config.json").write_text(json.dumps(own))
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    loaded, _ = load(str(tmp_path), torch.float32)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


# ---- light text tower, batches, arithmetic


def lite(tmp_path, pad="<|endoftext|>"):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Sam3LiteTextConfig, Sam3LiteTextModel

    parts = config().to_dict()
    text = {"hidden_size": 64, "intermediate_size": 128, "projection_dim": 16, "num_hidden_layers": 4}
    text |= {"num_attention_heads": 4, "max_position_embeddings": 32, "vocab_size": 49408}
    names = ("geometry_encoder_config", "detr_encoder_config", "detr_decoder_config", "mask_decoder_config")
    torch.manual_seed(0)
    network = Sam3LiteTextModel(
        Sam3LiteTextConfig(vision_config=parts["vision_config"], text_config=text, **{n: parts[n] for n in names})
    ).eval()
    network.save_pretrained(tmp_path)
    words = {"!": 0, "<|startoftext|>": 49406, "<|endoftext|>": 49407}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="!")), pad_token=pad
    ).save_pretrained(tmp_path)
    return network


@torch.no_grad()
def test_the_light_text_tower_equals_transformers_own_forward(tmp_path, image):
    theirs = lite(tmp_path)
    options.ModelOptions(model=str(tmp_path))
    assert ModelOptions(model=str(tmp_path)).family == "sam3"
    network, _ = load(str(tmp_path), torch.float32)
    backend = Sam3Backend(network, "lite", CPU)
    assert (backend.lite, backend.context, backend.padding) == (True, 32, 49407)
    phrases = ["building", "a very long row of old trees"]
    bank = backend._encode_text(phrases)
    ids = backend._tokenize(phrases)
    mask = torch.arange(32) <= (ids == 49407).int().argmax(1)[:, None]
    ids = ids.masked_fill(~mask, 49407)
    wanted = theirs.get_text_features(input_ids=ids, attention_mask=mask.long()).pooler_output
    torch.testing.assert_close(bank.tokens, wanted, atol=1e-5, rtol=0)
    state = backend.encode_image(*image)
    ours = backend.ground(state, bank, range(2), lambda d: (d.semantic, d.masks, d.objects, d.presence))
    pixels = torch.from_numpy(image[0])[None].float() / 127.5 - 1
    for row in range(2):
        box = {"input_boxes": torch.full((1, 1, 4), 0.5), "input_boxes_labels": torch.full((1, 1), -10)}  # masked out
        out = theirs(
            pixel_values=pixels, input_ids=ids[row : row + 1], attention_mask=mask[row : row + 1].long(), **box
        )
        for mine, his in zip(
            ours, (out.semantic_seg[:, 0], out.pred_masks, out.pred_logits, out.presence_logits[:, 0]), strict=True
        ):
            torch.testing.assert_close(mine[row : row + 1], his, atol=1e-5, rtol=0)


def test_the_light_text_tower_without_its_tokenizer_is_refused(tmp_path):
    lite(tmp_path)
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(WeightsError, match="the tokenizer"):
        load(str(tmp_path), torch.float32)


def test_windows_in_one_batch_equal_windows_one_by_one(network):
    backend = Sam3Backend(network, TINY, CPU)
    rng = np.random.default_rng(3)
    images = [(rng.integers(0, 255, (3, 64, 64), dtype=np.uint8), np.ones((64, 64), bool)) for _ in range(3)]
    together = backend.encode_images(images)
    for one, (rgb, valid) in zip(together, images, strict=True):
        alone = backend.encode_image(rgb, valid)
        for a, b in zip((*one.neck, one.layer), (*alone.neck, alone.layer), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    made = build_sam3_segmenter(
        ModelOptions(model=TINY), MethodOptions(method="segearth_ov3"), vocabulary.load("loveda")
    )
    assert made.tiles_at_once == 1  # on a CPU
    tiles = [(rgb, valid, (Window(0, 0, 64, 64),)) for rgb, valid in images]
    tiles.append((images[0][0], np.zeros((64, 64), bool), (Window(0, 0, 64, 64),)))  # nothing valid
    for (total, weights, events), tile in zip(made.look(tiles), tiles, strict=True):
        own = made.evidence(*tile)
        np.testing.assert_allclose(total, own[0], atol=1e-5)
        np.testing.assert_array_equal(weights, own[1])
        assert events == ()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_agrees_with_single(dtype, image):
    words = vocabulary.load("loveda")
    told = MethodOptions(method="proc_sam3")
    crops = (Window(0, 0, 64, 64),)
    single = build_sam3_segmenter(ModelOptions(model=TINY), told, words).segment(*image, crops).scores
    half = build_sam3_segmenter(ModelOptions(model=TINY, dtype=dtype), told, words).segment(*image, crops).scores
    assert half.dtype == np.float32
    assert np.abs(single - half).max() < (0.1 if dtype == "bfloat16" else 0.02)


# ---- deviations


def test_deviations_are_named_and_the_paper_itself_has_none():
    literal = CocoSam3(prior_space="sam3", prior_preset="literal", synonyms=0, require_probe=False)
    assert deviations.of_run(literal, 1.0) == []
    told = " | ".join(deviations.of_run(CocoSam3(), 0.0))
    assert "lambda is 0, not 1" in told
    assert told.endswith("--preset sam3/coco_literal")
    told = " | ".join(deviations.of_run(CocoSam3(prior_weight=0.5), 0.5))
    for part in ("lambda is 0.5", "log-mean-exp", "space rs_clip"):
        assert part in told
    told = " | ".join(
        deviations.of_run(CocoSam3(prior_space="sam3", presence_weight=0, structure_head="semantic"), 1.0)
    )
    for part in ("centred", "presence has weight 0", "semantic head alone"):
        assert part in told


def test_deviations_stand_in_the_maps_record_and_in_info(noise_scene, tmp_path):
    chosen = options.build(model={"model": TINY}, method={"method": "coco_sam3", "prior_space": "none"})
    facts = pipeline.map_scene(noise_scene(64, 64), vocabulary.load("loveda"), tmp_path / "out.zarr", chosen)
    assert "lambda is 0" in json.dumps(
        facts["model"]["deviations"] if isinstance(facts, dict) else facts.model.deviations
    )
    told = info_of(ovrs.open(tmp_path / "out.zarr"))
    assert "deviates   lambda is 0" in told
    assert "coco_literal" in told
