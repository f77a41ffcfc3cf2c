"""Published weights by open_clip's names: each tag with its own activation and colours, and open_clip's own numbers.

No weights are fetched: the download is a stub, and every architecture keeps its description but shrinks.
"""

import copy
import functools
import json

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from conftest import smooth
from PIL import Image

from ovrs.errors import OptionError, WeightsError
from ovrs.model.clip.build import build_clip_segmenter
from ovrs.model.clip.loading import load
from ovrs.model.clip.text import encode_sentences
from ovrs.options import MethodOptions, ModelOptions
from ovrs.scene.grid import Window
from ovrs.words import vocabulary

QUICK_TAGS = {"openai", "metaclip_400m", "metaclip_fullcc", "dfn2b", "dfn5b"}
QUICK_ELSE = {
    ("ViT-B-32", "laion400m_e31"),
    ("ViT-B-32", "laion400m_e32"),
    ("ViT-H-14-worldwide", "metaclip2_worldwide"),
}
"""Which weights were trained with QuickGELU, written down apart from open_clip's table."""


def has_vit(name):
    """Whether the vision tower is a plain ViT that pools by its class token."""
    vision = open_clip.get_model_config(name)["vision_cfg"]
    plain = isinstance(vision.get("layers"), int) and "timm_model_name" not in vision
    return plain and vision.get("pool_type", "tok") == "tok" and not vision.get("attentional_pool")


def has_plain_text(name):
    """Whether the text tower is open_clip's own."""
    config = open_clip.get_model_config(name)
    return "hf_model_name" not in config["text_cfg"] and "multimodal_cfg" not in config


PAIRS = [
    (name, tag)
    for name, tag in open_clip.list_pretrained()
    if has_vit(name) and has_plain_text(name) and not (tag.startswith("commonpool") and "_s1" in tag)
]
"""Without the many small runs of CommonPool."""
SAMPLE = [
    ("ViT-B-16", "openai"),
    ("ViT-B-16-quickgelu", "openai"),
    ("ViT-B-16", "laion2b_s34b_b88k"),
    ("ViT-B-32", "laion400m_e32"),
    ("ViT-L-14", "datacomp_xl_s13b_b90k"),
    ("ViT-B-16", "metaclip_fullcc"),
    ("ViT-H-14-378-quickgelu", "dfn5b"),
]


def wants_quick_gelu(name, tag):
    return tag in QUICK_TAGS or (name.removesuffix("-quickgelu"), tag) in QUICK_ELSE


def small(config):
    """The same kind of network, small: everything but its sizes stays."""
    config = copy.deepcopy(config)
    config["embed_dim"] = 24
    config["vision_cfg"] |= {
        "image_size": 224,
        "patch_size": 32,
        "width": 32,
        "layers": 2,
        "head_width": 16,
        "mlp_ratio": 2,
    }
    config["text_cfg"] |= {"width": 16, "heads": 2, "layers": 2, "vocab_size": 49408}
    return config


BPE = functools.cache(open_clip.SimpleTokenizer)
"""Read once."""


class EndTokens:
    """In the place of a tokenizer from a hub: ends with token 2."""

    def __init__(self, *_, context_length, **__):
        self.context_length = context_length

    def __call__(self, texts):
        tokens = torch.ones(len(texts), self.context_length, dtype=torch.long)
        for row, text in enumerate(texts):
            tokens[row, :4] = torch.tensor([0, 3 + len(text), 9, 2])
        return tokens


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights that fit every shrunk architecture, by text length."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    for length in {open_clip.get_model_config(n)["text_cfg"].get("context_length", 77) for n, _ in PAIRS}:
        config = small(open_clip.get_model_config("ViT-B-16"))
        config["text_cfg"]["context_length"] = length
        state = {
            k: v * 3 for k, v in open_clip.CLIP(**config).state_dict().items()
        }  # small nets hardly leave GELU's linear part
        save_file(state, folder / f"{length}.safetensors")
    return folder


@pytest.fixture
def stub(monkeypatch, weights):
    """Shrunk architectures under their names, and a download that hands out random weights; what was asked for."""
    asked, configs = [], open_clip.factory._MODEL_CONFIGS
    shrunk = {
        name: small(config) if has_vit(name) and has_plain_text(name) else config for name, config in configs.items()
    }
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", shrunk)
    monkeypatch.setattr(open_clip.factory, "HFTokenizer", EndTokens)
    monkeypatch.setattr(open_clip.factory, "SimpleTokenizer", BPE)

    def download(published, **_):
        asked.append(published)
        lengths = [
            shrunk[name]["text_cfg"].get("context_length", 77)
            for name, tag in open_clip.list_pretrained()
            if open_clip.get_pretrained_cfg(name, tag) == published
        ]
        return str(weights / f"{lengths[0]}.safetensors")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", download)
    return asked


@pytest.mark.parametrize(("name", "tag"), PAIRS)
def test_every_tag_runs_with_the_activation_and_colours_of_its_weights(stub, name, tag):
    model = load(ModelOptions(model=name, pretrained=tag))
    kind = open_clip.model.QuickGELU if wants_quick_gelu(name, tag) else torch.nn.GELU
    for tower in (model.clip.visual, model.clip):
        assert all(type(block.mlp.gelu) is kind for block in tower.transformer.resblocks)
    assert {value.split("(")[0] for value in model.facts["activation"].values()} == {kind.__name__}
    published = open_clip.get_pretrained_cfg(name, tag)
    assert (model.mean, model.std) == (tuple(published["mean"]), tuple(published["std"]))
    assert stub == [published]


@pytest.mark.parametrize(("name", "tag"), SAMPLE)
def test_a_crop_and_sentences_equal_open_clips_own(stub, name, tag):
    segmenter = build_clip_segmenter(
        ModelOptions(model=name, pretrained=tag),
        MethodOptions(method="none", dense="vanilla", bare=True),
        vocabulary.from_names(["tree", "water"]),
    )
    reference, _, preprocess = open_clip.create_model_and_transforms(
        name, pretrained=tag, force_quick_gelu=wants_quick_gelu(name, tag)
    )
    reference.eval()
    rgb = smooth(224, 224)
    ours = segmenter.encode(rgb, np.ones((224, 224), bool), (Window(0, 0, 224, 224),))
    sentences = ["a photo of a tree", "water", "an aerial photo of a very long and winding gravel road"]
    model = load(ModelOptions(model=name, pretrained=tag))
    with torch.no_grad():
        image = reference.encode_image(preprocess(Image.fromarray(np.moveaxis(rgb, 0, -1)))[None])
        text = reference.encode_text(open_clip.get_tokenizer(name)(sentences))
    torch.testing.assert_close(ours.cls, F.normalize(image, dim=-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        encode_sentences(model.clip, model.tokenize, sentences), F.normalize(text, dim=-1), atol=1e-5, rtol=0
    )
    other = open_clip.create_model(name.removesuffix("-quickgelu"), force_quick_gelu=not wants_quick_gelu(name, tag))
    other.load_state_dict(reference.state_dict())
    with torch.no_grad():
        wrong = other.eval().encode_image(preprocess(Image.fromarray(np.moveaxis(rgb, 0, -1)))[None])
    assert (F.normalize(wrong, dim=-1) - ours.cls).abs().max() > 1e-3, "the other activation would show"


def test_weights_decide_against_the_name(stub, monkeypatch, caplog):
    """A tag without QuickGELU under a name that has it."""
    tags = dict(open_clip.pretrained._PRETRAINED["ViT-B-16-quickgelu"])
    for tag, told in (("says_no", {"quick_gelu": False}), ("says_nothing", {})):
        plain = {k: v for k, v in tags["openai"].items() if k != "quick_gelu"}
        monkeypatch.setitem(
            open_clip.pretrained._PRETRAINED["ViT-B-16-quickgelu"], tag, {**plain, **told, "mean": (0.1, 0.2, 0.3)}
        )
        with caplog.at_level("INFO", "ovrs"):
            model = load(ModelOptions(model="ViT-B-16-quickgelu", pretrained=tag))
        assert model.facts["activation"] == {"vision": "GELU(approximate='none')", "text": "GELU(approximate='none')"}
        assert "runs with GELU, as its weights want" in caplog.text
        assert model.facts["mean"] == [0.1, 0.2, 0.3]
        caplog.clear()


def test_an_architecture_described_with_quick_gelu_for_its_only_weights_keeps_it():
    from ovrs.model.clip.published import _quick_gelu

    name = "roberta-ViT-B-32"
    assert _quick_gelu(name, open_clip.get_model_config(name), open_clip.get_pretrained_cfg(name, "laion2b_s12b_b32k"))


def test_equal_weights_with_another_activation_are_another_model(stub, tmp_path, monkeypatch):
    """In the record of a map and in the cache of text vectors."""
    monkeypatch.setenv("OVRS_CACHE", str(tmp_path))
    words = vocabulary.from_names(["tree", "water"])
    made = [
        build_clip_segmenter(
            ModelOptions(model="ViT-B-16", pretrained=tag), MethodOptions(method="none", bare=True), words
        )
        for tag in ("openai", "datacomp_xl_s13b_b90k")
    ]
    facts = [segmenter.describe() for segmenter in made]
    assert facts[0]["weights"] == facts[1]["weights"]
    assert facts[0]["activation"] != facts[1]["activation"]
    assert facts[0]["architecture"] != facts[1]["architecture"]
    assert len(list(tmp_path.glob("text/*.npy"))) == 2


def pools_by_attention(name):
    """SigLIP, SigLIP 2 and PE-Core: towers of timm with a pooling query (`test_33_towers.py`). Two sizes are no whole patches."""
    return ("SigLIP" in name or "siglip" in name or name.startswith("PE-Core")) and "14-SigLIP-384" not in name


@pytest.mark.parametrize("name", [n for n in open_clip.list_models() if not has_vit(n) and not pools_by_attention(n)])
def test_unfit_towers_are_refused_before_anything_is_fetched(stub, name):
    tags = open_clip.list_pretrained_tags_by_model(name)
    with pytest.raises(WeightsError, match=r"Supported are CLIP's ViTs .*SigLIP 2, SigLIP, PE-Core\) and TIPSv2"):
        load(ModelOptions(model=name, pretrained=tags[0] if tags else "openai"))
    assert stub == []


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"model": "ViT-B-16", "pretrained": "openai2"}, WeightsError, "its tags are: openai, laion400m_e31"),
        (
            {"model": "ViT-B-16-quickgelu", "pretrained": "laion2b_s34b_b88k"},
            WeightsError,
            "its tags are: openai, dfn2b",
        ),
        ({"model": "ViT-B-16", "pretrained": ""}, WeightsError, "needs --pretrained TAG"),
        ({"model": "bundled", "pretrained": "openai"}, OptionError, "brings its own weights"),
        ({"model": "x" * 5000}, WeightsError, "neither 'bundled'"),
        ({"model": "a\0b"}, WeightsError, "neither 'bundled'"),
    ],
)
def test_wrong_names_and_tags_fetch_nothing(stub, options, error, told):
    with pytest.raises(error, match=told):
        load(ModelOptions(**options))
    assert stub == []


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        (
            "visual.positional_embedding",
            lambda t: t[:26],
            "visual.positional_embedding is \\(26, 32\\) in the file and \\(50, 32\\)",
        ),
        (
            "positional_embedding",
            lambda t: torch.cat([t, t]),
            "positional_embedding is \\(154, 16\\) in the file and \\(77, 16\\)",
        ),
        ("ln_final.weight", lambda t: None, "1 tensors are missing, such as ln_final.weight"),
        ("ln_final.weight", lambda t: t.int(), "not floating-point"),
        ("ln_final.weight", lambda t: t * torch.nan, "NaN or infinite values in ln_final.weight"),
    ],
)
def test_files_that_open_clip_would_bend_to_fit_are_refused(stub, weights, tmp_path, name, change, told):
    from safetensors.torch import load_file

    state = load_file(weights / "77.safetensors")
    state[name] = change(state[name])
    torch.save({k: v for k, v in state.items() if v is not None}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=told):
        load(ModelOptions(model="ViT-B-16", pretrained=str(tmp_path / "w.pt")))


def test_a_file_leaves_the_activation_to_the_name_and_says_so(stub, weights, caplog):
    file = str(weights / "77.safetensors")
    plain, quick = (load(ModelOptions(model=n, pretrained=file)) for n in ("ViT-B-16", "ViT-B-16-quickgelu"))
    assert plain.facts["activation"]["text"].startswith("GELU")
    assert quick.facts["activation"]["text"].startswith("QuickGELU")
    assert "do not tell their activation" in caplog.text


def test_a_failed_download_says_what_to_do_without_internet(stub, monkeypatch):
    def fail(*_, **__):
        raise OSError("no route\nto host")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", fail)
    with pytest.raises(
        WeightsError, match=r"cannot be loaded: no route to host\. Without internet, point --model to a local"
    ):
        load(ModelOptions(model="ViT-B-16", pretrained="openai"))


def test_methods_may_differentiate_through_text(stub):
    """Vectors of sentences are constants of a graph, not tensors that no graph can hold."""
    model = load(ModelOptions(model="ViT-B-16", pretrained="openai"))
    base = encode_sentences(model.clip, model.tokenize, ["tree", "water"])
    assert not base.is_inference()
    move = torch.zeros_like(base, requires_grad=True)
    weight = torch.ones(base.shape[1], requires_grad=True)
    scores = F.normalize(base + move, dim=-1) @ (weight * base).T
    scores.softmax(dim=-1).diagonal().log().sum().backward()
    assert move.grad.abs().sum() > 0
    assert weight.grad.isfinite().all()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A repository `somebody/net` in the place of the hub's; what was fetched from it."""
    from safetensors.torch import save_file

    fetched = []
    config = small(open_clip.get_model_config("ViT-B-16"))
    content = {"model_cfg": {**config, "quick_gelu": True}, "preprocess_cfg": {"mean": [0.1] * 3, "std": [0.2] * 3}}
    torch.manual_seed(2)
    save_file(open_clip.CLIP(**config).state_dict(), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))

    def fetch(repository, filename=None, **_):
        name = filename or "open_clip_model.safetensors"
        fetched.append(name)
        if repository != "somebody/net":
            raise FileNotFoundError("no such\nrepository")
        return str(tmp_path / name)

    monkeypatch.setattr(open_clip.factory, "download_pretrained_from_hf", fetch)
    return tmp_path, content, fetched


def test_a_repository_of_a_hub_loads_as_in_open_clip_and_as_a_directory(hub):
    directory, _, _ = hub
    model = load(ModelOptions(model="hf-hub:somebody/net"))
    reference = open_clip.create_model("hf-hub:somebody/net").eval()
    with torch.no_grad():
        wanted = reference.encode_text(open_clip.tokenize(["a tree", "water"]), normalize=True)
    vectors = encode_sentences(model.clip, model.tokenize, ["a tree", "water"])
    torch.testing.assert_close(vectors, wanted, atol=1e-5, rtol=0)
    assert model.facts["activation"]["vision"] == "QuickGELU()"
    assert (model.mean, model.std) == ((0.1, 0.1, 0.1), (0.2, 0.2, 0.2))
    for name in (str(directory), f"local-dir:{directory}"):
        local = load(ModelOptions(model=name))
        assert (local.facts, local.weights_hash) == (model.facts, model.weights_hash)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"vision_cfg": {"timm_model_name": "vit_base_patch16_224"}}, "this one is timm's vit_base_patch16_224"),
        ({"vision_cfg": {"layers": [1, 1, 1, 1]}}, "this one is a ResNet"),
        ({"text_cfg": {"tokenizer_kwargs": {"trust_remote_code": True}}}, "has 'trust_remote_code', unknown"),
        ({"depth": {}}, "unknown keys .'depth'."),
    ],
)
def test_an_unfit_repository_is_refused_before_its_weights_are_fetched(hub, change, told):
    directory, content, fetched = hub
    for key, values in change.items():
        content["model_cfg"][key] = {**content["model_cfg"].get(key, {}), **values}
    (directory / "open_clip_config.json").write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=told):
        load(ModelOptions(model="hf-hub:somebody/net"))
    assert fetched == ["open_clip_config.json"]


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"model": "hf-hub:nobody/net"}, WeightsError, "no such repository. Without internet"),
        ({"model": "hf-hub:"}, WeightsError, "the form is hf-hub:ORG/NAME"),
        ({"model": "hf-hub:../../etc"}, WeightsError, "the form is hf-hub:ORG/NAME"),
        ({"model": "hf-hub:somebody/net", "pretrained": "openai"}, OptionError, "brings its own weights"),
        ({"model": "local-dir:nowhere"}, WeightsError, "there is no directory nowhere"),
    ],
)
def test_wrong_repositories_and_directories_are_named(hub, options, error, told):
    with pytest.raises(error, match=told) as caught:
        load(ModelOptions(**options))
    assert "\n" not in str(caught.value)
