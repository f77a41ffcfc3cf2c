"""Towers without CLIP's last block: SigLIP 2, PE-Core and TIPSv2 with random weights, against the libraries they come from."""

import json
import logging
from functools import partial

import numpy as np
import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import register_model
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.nn import functional as F

from ovrs.errors import OptionError, WeightsError
from ovrs.model.clip import fetching, known
from ovrs.model.clip.build import build_clip_segmenter
from ovrs.model.clip.dense import dense_tokens, native_size, patch_size
from ovrs.model.clip.loading import load
from ovrs.model.clip.text import encode_sentences
from ovrs.model.clip.towers import METHODS
from ovrs.options import MethodOptions, ModelOptions
from ovrs.scene.grid import Window
from ovrs.words import vocabulary

transformers = pytest.importorskip("transformers")
SENTENCES = ["a field", "the road beside a long river", "houses " * 90]
_ONLY = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


def _tiny(kind, more):
    def build(**given):
        given = {k: v for k, v in given.items() if k not in _ONLY}
        return kind(**{"img_size": 64, "patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3, **more, **given})

    return build


@register_model
def ovrs_tiny_siglip(**given):
    """As timm's `vit_base_patch16_siglip_224`, smaller."""
    return _tiny(VisionTransformer, {"class_token": False, "global_pool": "map"})(**given)


@register_model
def ovrs_tiny_pe_core(**given):
    """As timm's `vit_pe_core_base_patch16_224`, smaller: class token, turned positions, attention pooling, a head."""
    own = {
        "global_pool": "map",
        "attn_type": "rope",
        "use_pre_transformer_norm": True,
        "use_rot_pos_emb": True,
        "ref_feat_shape": (4, 4),
        "rope_grid_offset": 1.0,
        "rope_grid_indexing": "xy",
        "attn_pool_num_heads": 3,
        "attn_pool_mlp_ratio": 4.0,
        "norm_layer": partial(timm.layers.LayerNorm, eps=1e-5),
    }
    return _tiny(Eva, own)(**given)


WORDS = ["<pad>", "<eos>", "<unk>", "a", "field", "the", "road", "beside", "long", "river"]
WORDS += ["houses", "tree", "water", "photo", "of", "bad"]


def described(kind):
    """open_clip's description of a published network, with this kind of tower, small."""
    config = open_clip.get_model_config({"siglip": "ViT-B-16-SigLIP2", "pe_core": "PE-Core-B-16"}[kind])
    config["vision_cfg"] |= {"timm_model_name": f"ovrs_tiny_{kind}", "image_size": 64}
    config["text_cfg"] |= {"width": 48, "heads": 3, "layers": 2}
    config["embed_dim"] = 48 if kind == "siglip" else 32
    if kind == "siglip":
        config["text_cfg"]["vocab_size"] = len(WORDS)
    return config


def fast_tokenizer(*, end="<eos>"):
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if end:
        tokenizer.post_processor = processors.TemplateProcessing(f"$A {end}", special_tokens=[(end, WORDS.index(end))])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="right"
    )


@pytest.fixture(scope="module", params=["siglip", "pe_core"])
def place(request, tmp_path_factory):
    """A model directory in open_clip's format, as the makers' repositories are; and open_clip's own network of it."""
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    config = described(kind)
    torch.manual_seed(3)
    clip = open_clip.CustomTextCLIP(**{k: v for k, v in config.items() if k != "custom_text"})
    state = {n: t * 3 if t.ndim > 1 else t for n, t in clip.state_dict().items()}  # leave GELU's linear part
    save_file({n: t.contiguous() for n, t in state.items()}, folder / "open_clip_model.safetensors")
    cfg = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": cfg}))
    if kind == "siglip":
        fast_tokenizer().save_pretrained(folder)
    return folder


def given(place, **more):
    return load(ModelOptions(model=str(place), device="cpu", **more))


@torch.no_grad()
def test_image_and_text_are_those_of_open_clip(place):
    model = given(place)
    theirs = open_clip.create_model(f"local-dir:{place}").eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.clip.encode_image(images), theirs.encode_image(images), atol=1e-5, rtol=0)
    tokens = open_clip.get_tokenizer(f"local-dir:{place}")(SENTENCES)
    assert torch.equal(model.tokenize(SENTENCES), tokens)
    assert tokens.shape[1] == (64 if "siglip" in place.name else 32)
    wanted = theirs.encode_text(tokens, normalize=True)
    torch.testing.assert_close(encode_sentences(model.clip, model.tokenize, SENTENCES), wanted, atol=1e-5, rtol=0)
    assert (model.mean, model.std) == ((0.5,) * 3, (0.5,) * 3)
    assert model.facts["activation"]["vision"] == "GELU(approximate='none')"
    assert model.facts["activation"]["text"] == (
        "GELU(approximate='tanh')" if "siglip" in place.name else "GELU(approximate='none')"
    )
    assert (patch_size(model.clip.visual), native_size(model.clip.visual)) == (16, 64)


@torch.no_grad()
def test_a_patch_is_what_the_pool_says_when_it_looks_at_that_patch_alone(place):
    visual = given(place).clip.visual
    trunk = visual.inner.trunk
    images = torch.randn(2, 3, 48, 80, generator=torch.Generator().manual_seed(1))  # any whole number of patches
    found = dense_tokens(visual, images, "maskclip")
    assert found.grid == (3, 5)
    assert found.patches.shape == (2, 15, visual.output_dim)
    tokens = trunk.forward_features(images)
    for patch in (0, 7, 14):
        alone = tokens[:, trunk.num_prefix_tokens + patch][:, None]
        wanted = trunk.head(trunk.fc_norm(trunk.attn_pool(alone)))
        torch.testing.assert_close(found.patches[:, patch], wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.cls, visual(images), atol=1e-5, rtol=0)


@torch.no_grad()
def test_rows_and_columns_of_the_grid_lie_as_in_the_image(place):
    visual = given(place).clip.visual
    images = torch.zeros(1, 3, 48, 80)
    images[:, :, 16:32, 64:80] = 4.0
    difference = dense_tokens(visual, images, "maskclip").patches - dense_tokens(visual, images * 0, "maskclip").patches
    assert difference.norm(dim=-1).argmax() == 1 * 5 + 4


def test_what_fits_is_one_rule_and_the_rest_is_refused(place):
    words = vocabulary.from_names(["tree", "water", "road"])
    rgb = np.random.default_rng(0).integers(0, 255, (3, 96, 96), dtype=np.uint8)
    crops = (Window(0, 0, 64, 64), Window(32, 32, 64, 64), Window(0, 32, 64, 64), Window(32, 0, 64, 64))
    options = ModelOptions(model=str(place), device="cpu")
    for method in METHODS:
        made = build_clip_segmenter(
            options, MethodOptions(method=method, **({} if method == "none" else {"adaptation": "tile"})), words
        )
        scores = made.segment(rgb, np.ones((96, 96), bool), crops).scores
        assert scores.shape == (3, 96, 96)
        assert np.isfinite(scores).all()
        assert made.describe()["dense"] == "maskclip"
        assert made.describe()["cls_weight"] == 0
    for method in ("tent", "mlmp", "tpt", "clipartt", "watt", "tmpa_compat"):
        with pytest.raises(OptionError, match="it takes --method none, tmpa, tmpa_shift, not"):
            build_clip_segmenter(options, MethodOptions(method=method), words)
    with pytest.raises(OptionError, match="it takes --dense maskclip, not segearth"):
        build_clip_segmenter(options, MethodOptions(method="none", dense="segearth"), words)
    with pytest.raises(OptionError, match="no global term"):
        build_clip_segmenter(options, MethodOptions(method="none", cls_weight=-0.3), words)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"timm_pool": "avg"}, "Supported are CLIP's ViTs"),
        ({"timm_pool": "tok"}, "Supported are CLIP's ViTs"),
        ({"timm_proj": "linear"}, "Supported are CLIP's ViTs"),
        ({"timm_model_name": "hf-hub:somebody/net"}, "which timm does not know"),
        ({"timm_model_name": "resnet18"}, "cannot be|no network|Supported are"),
    ],
)
def test_other_towers_of_timm_are_refused_with_what_is_supported(place, tmp_path, change, told):
    content = json.loads((place / "open_clip_config.json").read_text())
    content["model_cfg"]["vision_cfg"] |= change
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    (tmp_path / "open_clip_model.safetensors").symlink_to(place / "open_clip_model.safetensors")
    with pytest.raises(WeightsError, match=told):
        given(tmp_path)


def test_timms_own_weights_are_never_fetched(place, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda *a, pretrained=False, _make=timm.create_model, **k: (
            asked.append(pretrained) or _make(*a, pretrained=pretrained, **k)
        ),
    )
    content = json.loads((place / "open_clip_config.json").read_text())
    content["model_cfg"]["vision_cfg"]["timm_model_pretrained"] = True
    for file in place.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "open_clip_config.json").unlink()
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    assert given(tmp_path).mean
    assert asked
    assert not any(asked)


def test_words_without_their_tokenizer_are_refused(place, tmp_path):
    if "siglip" not in place.name:
        pytest.skip("PE-Core has CLIP's words")
    for name in ("open_clip_config.json", "open_clip_model.safetensors"):
        (tmp_path / name).symlink_to(place / name)
    with pytest.raises(WeightsError, match=r"whose files are not there; put its tokenizer\.json"):
        given(tmp_path)


@pytest.fixture(scope="module")
def tips(tmp_path_factory):
    """A folder of transformers, as google/tipsv2-b14 is one, small."""
    folder = tmp_path_factory.mktemp("tips")
    shared = {"hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 2}
    config = transformers.Tipsv2Config(
        vision_config={**shared, "image_size": 56, "patch_size": 14},
        text_config={**shared, "intermediate_size": 96, "vocab_size": len(WORDS), "max_position_embeddings": 16},
    )
    torch.manual_seed(0)
    network = transformers.Tipsv2Model(config).eval()
    with torch.no_grad():
        for tensor in network.parameters():
            if tensor.ndim > 1:
                tensor.normal_(std=0.2)
    network.save_pretrained(folder)
    fast_tokenizer(end="").save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_rescale": True, "do_normalize": False}))
    return folder


@torch.no_grad()
def test_tips_is_transformers_own_forward(tips):
    model = given(tips)
    theirs = transformers.Tipsv2Model.from_pretrained(tips).eval()
    images = torch.rand(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    words = transformers.AutoTokenizer.from_pretrained(tips)(
        SENTENCES, padding="max_length", truncation=True, max_length=16, return_tensors="pt"
    )
    out = theirs(pixel_values=images, **{k: words[k] for k in ("input_ids", "attention_mask")})
    torch.testing.assert_close(model.clip.encode_image(images, normalize=True), out.image_embeds, atol=1e-5, rtol=0)
    ours = encode_sentences(model.clip, model.tokenize, SENTENCES)
    torch.testing.assert_close(ours, out.text_embeds, atol=1e-5, rtol=0)
    wide = torch.rand(1, 3, 42, 70, generator=torch.Generator().manual_seed(1))
    found = dense_tokens(model.clip.visual, wide, "vanilla")
    assert found.grid == (3, 5)
    whole = theirs.vision_model(pixel_values=wide).last_hidden_state
    torch.testing.assert_close(found.patches, whole[:, 2:], atol=1e-5, rtol=0)
    assert (model.mean, model.std) == ((0.0,) * 3, (1.0,) * 3)
    assert model.facts["activation"] == {"vision": "gelu", "text": "relu"}
    assert len(model.facts["tokenizer"]) == 64


def test_tips_maps_a_tile_and_refuses_what_does_not_fit(tips):
    words = vocabulary.from_names(["tree", "water"])
    options = ModelOptions(model=str(tips), device="cpu")
    made = build_clip_segmenter(options, MethodOptions(method="tmpa", adaptation="tile"), words)
    rgb = np.random.default_rng(0).integers(0, 255, (3, 56, 84), dtype=np.uint8)
    scores = made.segment(rgb, np.ones((56, 84), bool), (Window(0, 0, 56, 56), Window(0, 28, 56, 56))).scores
    assert np.isfinite(scores).all()
    assert made.describe()["dense"] == "vanilla"
    with pytest.raises(
        OptionError, match="TIPSv2 is no CLIP ViT with a class token: it takes --dense vanilla, not maskclip"
    ):
        build_clip_segmenter(options, MethodOptions(method="none", dense="maskclip"), words)


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("tokenizer.json", None, "lacks the tokenizer's words"),
        ("model.safetensors", None, "cannot be loaded as TIPSv2"),
        (
            "model.safetensors",
            lambda s: {k: v for k, v in s.items() if "ln_final" not in k},
            "tensors are missing, such as",
        ),
        ("model.safetensors", lambda s: {k: v * torch.nan for k, v in s.items()}, "NaN or infinite"),
        ("preprocessor_config.json", {"do_rescale": False}, "wants others"),
        ("preprocessor_config.json", {"do_normalize": True, "image_mean": [1]}, "must be three numbers"),
        ("config.json", "{", "no JSON"),
    ],
)
def test_a_damaged_folder_of_tips_is_refused(tips, tmp_path, name, change, told):
    from safetensors.torch import load_file

    for file in tips.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    target = tmp_path / name
    if change is None:
        target.unlink()
    elif callable(change):
        save_file({k: v.contiguous() for k, v in change(load_file(tips / name)).items()}, target, {"format": "pt"})
    else:
        target.write_text(change if isinstance(change, str) else json.dumps(change))
    with pytest.raises((WeightsError, OptionError), match=told) as caught:
        given(tmp_path)
    assert "\n" not in str(caught.value)


def test_tips_by_its_name_is_a_folder_of_the_hub_or_of_the_cache(tips, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("OVRS_CACHE", str(tmp_path))
    asked = []

    def snapshot(repository, **_):
        asked.append(repository)
        if len(asked) == 1:
            raise OSError("no\nnetwork")
        return str(tips)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with pytest.raises(
        WeightsError, match=rf"hf download google/tipsv2-b14 --local-dir tipsv2-b14; put that folder here as {tmp_path}"
    ):
        load(ModelOptions(model="tipsv2-b14"))
    with caplog.at_level(logging.WARNING):
        model = load(ModelOptions(model="tipsv2-b14", device="cpu"))
    assert asked == ["google/tipsv2-b14"] * 2
    assert (model.name, model.licence) == ("tipsv2-b14", "Apache-2.0")
    assert "under this licence: Apache-2.0" in caplog.text
    assert fetching.imported_directory("tipsv2-b14") == tips


def test_names_of_the_table_lead_to_towers_that_are_supported():
    from ovrs.model.clip import architecture

    for name in ("siglip2-b16", "pe-core-b16"):
        entry = known.table().models[name]
        config = open_clip.get_model_config(entry.architecture)
        assert architecture.sketch(config, text=False)
        tag = open_clip.get_pretrained_cfg(entry.architecture, entry.tag)
        assert (tuple(tag["mean"]), tuple(tag["std"])) == ((0.5,) * 3, (0.5,) * 3)


@torch.no_grad()
def test_the_first_half_of_a_joint_projection_holds_the_keys(place):
    """The order of keys and values in timm's pooling, told by what the pool does: values move its answer, keys do not."""
    visual = given(place).clip.visual
    pool = visual.inner.trunk.attn_pool
    one = torch.randn(1, 1, 48)
    before = pool(one)
    pool.kv.weight[:48] += 1
    assert torch.equal(pool(one), before)  # one token: its weight is 1 whatever its key
    pool.kv.weight[48:] += 1
    assert not torch.allclose(pool(one), before)
    assert F.cosine_similarity(before, before).item() == pytest.approx(1)
