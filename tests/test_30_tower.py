"""Our towers, stem, tokenizer and constants against open_clip's and timm's; and what the bundled model imports."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_clip_directory

from ovrs.model.clip import architecture, directory, loading, singles, tower
from ovrs.model.clip.lite import SCALES, LiteFeatures
from ovrs.options import ModelOptions

PLAIN = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 48, "layers": 3, "width": 128, "head_width": 32, "mlp_ratio": 2.5, "patch_size": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 300, "width": 64, "heads": 4, "layers": 2},
}


@pytest.mark.parametrize("quick", [False, True])
def test_towers_are_those_of_open_clip(quick):
    import open_clip

    torch.manual_seed(0)
    theirs = open_clip.CLIP(**PLAIN, quick_gelu=quick).eval()
    ours = architecture.build({**PLAIN, "quick_gelu": quick}).eval()
    assert isinstance(ours, tower.Clip)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    assert loading.hash_weights(ours) == loading.hash_weights(theirs)
    assert architecture.activations(ours) == architecture.activations(theirs)
    images, tokens = torch.randn(2, 3, 48, 48), torch.randint(0, 300, (3, 20))
    with torch.no_grad():
        assert torch.equal(ours.encode_image(images), theirs.encode_image(images))
        assert torch.equal(ours.encode_text(tokens, normalize=True), theirs.encode_text(tokens, normalize=True))
    assert torch.equal(ours.attn_mask, theirs.attn_mask)
    for name in ("text_pool_type", "text_eos_id", "context_length", "vocab_size"):
        assert getattr(ours, name) == getattr(theirs, name)
    for name in ("image_size", "patch_size", "grid_size", "output_dim", "pool_type"):
        assert getattr(ours.visual, name) == getattr(theirs.visual, name)


def test_defaults_are_those_of_open_clip():
    import open_clip

    for kind, sizes, rest in (
        (open_clip.CLIPVisionCfg, tower.VISION_DEFAULTS, tower.VISION_REST),
        (open_clip.CLIPTextCfg, tower.TEXT_DEFAULTS, tower.TEXT_REST),
    ):
        assert {f.name: f.default for f in dataclasses.fields(kind)} == {**sizes, **rest}
    assert (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD) == (singles.COLOUR_MEAN, singles.COLOUR_STD)
    assert directory.describe(PLAIN)["vision_cfg"] == dataclasses.asdict(open_clip.CLIPVisionCfg(**PLAIN["vision_cfg"]))


@pytest.mark.parametrize(
    "change",
    [
        {"custom_text": True},
        {"init_logit_bias": -10.0},
        {"vision_cfg": {"pool_type": "avg"}},
        {"vision_cfg": {"layers": [1, 1, 1, 1]}},
        {"text_cfg": {"pool_type": "eos"}},
        {"vision_cfg": {"width": "128"}},
        {"embed_dim": 24.0},
        {"unheard": 1},
    ],
)
def test_everything_else_is_left_to_open_clip(change):
    assert not tower.is_plain({**PLAIN, **change})


@pytest.mark.parametrize("name", SCALES)
def test_the_stems_network_is_timms(name):
    import timm

    torch.manual_seed(0)
    theirs = timm.create_model(name, pretrained=False, features_only=True, out_indices=(3, 4)).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.normal_(module.running_mean)
    ours = LiteFeatures(name).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        for one, other in zip(ours(torch.ones(1, 3, 64, 96)), theirs(torch.ones(1, 3, 64, 96)), strict=True):
            assert torch.equal(one, other)
    assert ours.channels == theirs.feature_info.channels()


def test_parts_of_open_clip_are_the_packages():
    import open_clip
    from open_clip import tokenizer

    singles.part.cache_clear()
    assert singles.part("tokenizer") is tokenizer
    assert [t("x") for t in singles.part("zero_shot_metadata").OPENAI_IMAGENET_TEMPLATES] == [
        t("x") for t in open_clip.OPENAI_IMAGENET_TEMPLATES
    ]


def test_a_directory_of_half_precision_is_loaded_as_float32(tiny_clip, tmp_path):
    half = {n: t.half() for n, t in tiny_clip.state_dict().items()}
    write_clip_directory(tiny_clip, tmp_path)
    from safetensors.torch import save_file

    save_file(half, tmp_path / "open_clip_model.safetensors")
    found = directory.read(tmp_path).clip.state_dict()
    assert all(torch.equal(found[n], t.float()) for n, t in half.items())


def test_a_directory_gives_what_open_clip_gives(tiny_clip, tmp_path):
    write_clip_directory(tiny_clip, tmp_path)
    loaded = loading.load(ModelOptions(model=str(tmp_path), device="cpu"))
    assert isinstance(loaded.clip, tower.Clip)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        np.testing.assert_array_equal(loaded.clip.encode_image(images), tiny_clip.encode_image(images))


HEAVY = (
    "open_clip",
    "timm",
    "torchvision",
    "transformers",
    "scipy",
    "geopandas",
    "pandas",
    "distributed",
    "torch._dynamo",
)


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import ovrs.engine.block, ovrs.engine.testing", {"rasterio": False, "torch": False}),
        ("from ovrs.cli.app import app", {"torch": False}),
        (
            (
                "from ovrs.model.clip.build import build_clip_segmenter as b; from ovrs.options import MethodOptions as M, ModelOptions as O;"
                "from ovrs.words.vocabulary import from_names as n; b(O(device='cpu'), M(method='none'), n(['tree', 'water']))"
            ),
            {"rasterio": False, "torch": True},
        ),
    ],
    ids=["engine", "command line", "bundled model"],
)
def test_heavy_modules_stay_out(code, allowed):
    unwanted = [*HEAVY, *(name for name, fine in allowed.items() if not fine)]
    check = f"{code}; import sys; found = [m for m in {unwanted!r} if m in sys.modules]; assert not found, found"
    subprocess.run([sys.executable, "-c", check], check=True, cwd=Path(__file__).parents[1])
