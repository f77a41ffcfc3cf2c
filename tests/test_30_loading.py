"""Models from every source: bundled, a directory in open_clip's format, open_clip's names; unsafe or unfit ones refused."""

import json

import numpy as np
import pytest
import torch
from conftest import DATA, smooth
from PIL import Image
from pydantic import ValidationError

from ovrs.errors import OptionError, OvrsError, WeightsError
from ovrs.methods.recommended import of_model, place_of
from ovrs.methods.registry import METHOD_NAMES, NORM_METHODS
from ovrs.model.clip.build import build_clip_segmenter
from ovrs.model.clip.loading import hash_weights, load
from ovrs.options import MethodOptions, ModelOptions, build
from ovrs.scene.grid import Window
from ovrs.words import vocabulary

CROPS = tuple(Window(r, c, 64, 64) for r in (0, 32) for c in (0, 32))


def segment(model, method="none", **more):
    segmenter = build_clip_segmenter(model, MethodOptions(method=method, **more), vocabulary.load("demo"))
    return segmenter.segment(smooth(96, 96), np.ones((96, 96), bool), CROPS).scores


def test_a_local_directory_loads_with_its_own_normalisation(directory, tiny_clip):
    model = load(ModelOptions(model=str(directory)))
    assert model.mean == (0.5, 0.5, 0.5)
    assert model.weights_hash == hash_weights(tiny_clip)
    assert segment(ModelOptions(model=str(directory))).shape == (6, 96, 96)


def test_models_without_recommendations_use_segearth_settings(directory):
    facts = build_clip_segmenter(
        ModelOptions(model=str(directory)), MethodOptions(method="none"), vocabulary.load("demo")
    ).describe()
    assert (facts["dense"], facts["cls_weight"], facts["logit_scale"]) == ("segearth", -0.3, 50.0)


def test_windows_as_the_papers_as_the_model_recommends_and_as_asked(directory):
    def windows(**options):
        given = ModelOptions(model=str(directory), **options)
        segmenter = build_clip_segmenter(given, MethodOptions(), vocabulary.load("demo"))
        return segmenter.geometry.crop, segmenter.geometry.stride, segmenter.describe()["zoom"]

    assert windows() == (64, 32, 1)
    assert windows(zoom=2) == (32, 16, 2)
    assert windows(zoom=2, crop=48) == (48, 24, 2)
    assert windows(zoom=1.6, crop=48) == (48, 24, 5 / 3)  # 80 px: whole patches
    (directory / "ovrs.json").write_text(json.dumps({"windows": {"zoom": 2, "stride": 24}}))
    assert windows() == (32, 24, 2)
    assert windows(stride=16) == (32, 16, 2)
    assert windows(zoom=1) == (64, 32, 1)
    with pytest.raises(OptionError, match="multiple of the patch size 16"):
        windows(zoom=1, crop=40)


def test_an_enlarged_window_is_what_the_model_sees_of_an_enlarged_image(directory):
    """Away from the borders, where the enlarged image has neighbours that a window lacks."""
    rgb = smooth(32, 32)
    large = np.asarray(Image.fromarray(np.moveaxis(rgb, 0, -1)).resize((64, 64), Image.Resampling.BILINEAR))
    seen = {}
    for zoom, image in ((1, np.moveaxis(large, -1, 0)), (2, rgb)):
        model = ModelOptions(model=str(directory), zoom=zoom)
        segmenter = build_clip_segmenter(model, MethodOptions(method="none"), vocabulary.load("demo"))
        side = image.shape[1]
        image = np.ascontiguousarray(image)
        seen[zoom] = segmenter.encode(image, np.ones((side, side), bool), (Window(0, 0, side, side),))
        assert segmenter.segment(image, np.ones((side, side), bool), (Window(0, 0, side, side),)).scores.shape[1:] == (
            side,
            side,
        )
    assert seen[1].grid == seen[2].grid == (4, 4)
    torch.testing.assert_close(seen[1].patches, seen[2].patches, atol=0.03, rtol=0)


@pytest.mark.parametrize("upsampler", ["bilinear", "jbu_one"])
@pytest.mark.parametrize("method", ["none", "tmpa", "tent", "tmpa_compat"])
def test_enlarged_scenes_smaller_than_a_window_keep_their_shape(directory, method, upsampler):
    options = MethodOptions(method=method, upsampler=upsampler, upsampler_weights=jbu_of(upsampler))
    segmenter = build_clip_segmenter(ModelOptions(model=str(directory), zoom=1.5), options, vocabulary.load("demo"))
    scores = segmenter.segment(smooth(27, 41), np.ones((27, 41), bool), (Window(0, 0, 27, 41),)).scores
    assert scores.shape == (6, 27, 41)
    assert np.isfinite(scores).all()


def jbu_of(upsampler):
    return DATA / "jbu_one.safetensors" if upsampler == "jbu_one" else None


def test_an_open_clip_name_loads_with_a_tag_or_file(tmp_path):
    import open_clip

    torch.manual_seed(0)
    clip = open_clip.create_model("ViT-S-32-alt")
    torch.save(clip.state_dict(), tmp_path / "weights.pt")
    model = load(ModelOptions(model="ViT-S-32-alt", pretrained=str(tmp_path / "weights.pt")))
    assert model.weights_hash == hash_weights(clip)
    segmenter = build_clip_segmenter(
        ModelOptions(model="ViT-S-32-alt", pretrained=str(tmp_path / "weights.pt")),
        MethodOptions(method="none"),
        vocabulary.from_names(["tree", "water"]),
    )
    assert (segmenter.geometry.crop, segmenter.geometry.tile) == (224, 560)


def test_pickled_code_is_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (print, ("executed",))

    torch.save({"trap": Trap()}, tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match="cannot be loaded"):
        load(ModelOptions(model="ViT-S-32-alt", pretrained=str(tmp_path / "weights.pt")))


def test_weights_that_do_not_fit_the_config_are_refused(directory):
    config = json.loads((directory / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["layers"] = 3
    (directory / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="do not fit"):
        load(ModelOptions(model=str(directory)))


def test_damaged_weights_are_noticed(directory):
    (directory / "ovrs.json").write_text(json.dumps({"sha256": "0" * 64}))
    with pytest.raises(WeightsError, match="damaged"):
        load(ModelOptions(model=str(directory)))


def test_towers_without_class_token_attention_are_refused():
    with pytest.raises(WeightsError, match="this one is a ResNet"):
        load(ModelOptions(model="RN50"))
    import open_clip

    from ovrs.model.clip.dense import check_vit

    with pytest.raises(WeightsError, match="CLIP's ViTs with a class token"):
        check_vit(open_clip.create_model("RN50", pretrained_image=False).visual)


@pytest.mark.parametrize(
    ("model", "method", "message"),
    [
        ({"device": "cuda:9"}, {}, "no CUDA device"),
        ({"crop": 100, "zoom": 1}, {}, "multiple of the patch size 16"),
        ({}, {"method": "magic"}, "choose one of none, tmpa"),
        ({}, {"dense": "magic"}, "'vanilla', 'maskclip'"),
    ],
)
def test_impossible_settings_are_named(model, method, message):
    if torch.cuda.is_available() and "CUDA" in message:
        pytest.skip("this machine has a CUDA device")
    with pytest.raises((OptionError, ValidationError), match=message):
        segment(ModelOptions(**model), **method)


def test_an_unknown_device_is_named():
    with pytest.raises(OptionError, match=r"model\.device"):
        build(model={"device": "abacus"})


def test_the_bundled_model_is_whole_and_small():
    model = load(ModelOptions())
    card = json.loads((place_of("bundled") / "ovrs.json").read_text())
    assert card["sha256"] == model.weights_hash
    assert sum(f.stat().st_size for f in place_of("bundled").iterdir()) < 40e6
    assert of_model("bundled").of("tmpa")["dense"] == "segearth"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_agrees_with_float32(dtype):
    full, low = (segment(ModelOptions(crop=64, dtype=d)) for d in ("float32", dtype))
    assert np.abs(full - low).max() < 0.1
    assert (full.argmax(0) == low.argmax(0)).mean() > 0.97


@pytest.mark.parametrize("method", [m for m in METHOD_NAMES if m != "cass"])
@pytest.mark.parametrize("dense", ["vanilla", "naclip", "gem"])
def test_every_method_on_every_feature_scores_odd_tiles(directory, method, dense):
    """Tiles smaller than a crop, no multiple of the patch, partly without data; what makes no sense says so."""
    options = MethodOptions(method=method, dense=dense)
    if dense == "gem" and method in NORM_METHODS:
        with pytest.raises(OptionError, match="choose dense vanilla"):
            build_clip_segmenter(ModelOptions(model=str(directory)), options, vocabulary.load("demo"))
        return
    segmenter = build_clip_segmenter(ModelOptions(model=str(directory)), options, vocabulary.load("demo"))
    odd_tile(segmenter)


@pytest.mark.parametrize("dense", ["proxyclip", "cass"])
@pytest.mark.parametrize("method", ["none", "tmpa", "cass"])
def test_methods_with_a_second_network(directory, tmp_path, method, dense):
    """A timm ViT from a local checkpoint; random weights do for shapes."""
    import timm

    torch.manual_seed(0)
    weights = tmp_path / "dino.pth"
    torch.save(timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict(), weights)
    options = MethodOptions(method=method, dense=dense, proxy_model="vit_tiny_patch16_224", proxy_weights=weights)
    if method == "cass" and dense != "cass":
        with pytest.raises(OptionError, match="choose dense cass"):
            build_clip_segmenter(ModelOptions(model=str(directory)), options, vocabulary.load("demo"))
        return
    segmenter = build_clip_segmenter(ModelOptions(model=str(directory)), options, vocabulary.load("demo"))
    assert segmenter.describe()["external"]["name"] == "vit_tiny_patch16_224"
    odd_tile(segmenter)


def test_a_second_network_needs_its_weights(directory, tmp_path):
    options = MethodOptions(method="none", dense="proxyclip", proxy_weights=tmp_path / "absent.pth")
    with pytest.raises(WeightsError, match="there is no file"):
        build_clip_segmenter(ModelOptions(model=str(directory)), options, vocabulary.load("demo"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"method": "none", "steps": 3}, "none does not use steps"),
        ({"method": "tent", "beta": 0.5}, "beta belongs to mlmp"),
        ({"method": "mlmp", "anchors": 3}, "anchors belongs to tmpa"),
        ({"upsampler": "magic"}, "'bilinear', 'jbu_one' or 'jbu_stack'"),
        ({"upsampler": "jbu_one", "upsampler_weights": "absent.ckpt"}, "there is no file"),
        ({"upsampler_weights": "some.ckpt"}, "only upsampler jbu_one or jbu_stack uses it"),
        ({"method": "none", "upsampler_rank": 8}, "upsampler_rank would be ignored"),
        ({"proxy_weights": "some.pth"}, "only dense proxyclip or cass uses it"),
        ({"aggregate_weight": 0.3}, "only aggregate mixed"),
        ({"method": "mlmp", "cls_weight": -0.3}, "no global term"),
    ],
)
def test_options_that_would_be_ignored_are_refused(directory, options, told):
    with pytest.raises((OvrsError, ValidationError), match=told):
        build_clip_segmenter(ModelOptions(model=str(directory)), MethodOptions(**options), vocabulary.load("demo"))


def test_a_tag_for_a_model_with_its_own_weights_is_refused(directory):
    given = ModelOptions(model=str(directory), pretrained="openai")
    with pytest.raises(OptionError, match="brings its own weights"):
        build_clip_segmenter(given, MethodOptions(method="none"), vocabulary.load("demo"))


def test_upsampler_of_a_local_file(directory):
    options = MethodOptions(
        method="tmpa", upsampler="jbu_one", upsampler_weights=DATA / "jbu_one.safetensors", pamr=1, area_threshold=0.01
    )
    segmenter = build_clip_segmenter(ModelOptions(model=str(directory)), options, vocabulary.load("demo"))
    assert segmenter.describe()["upsampler"] == "jbu_one"
    rgb, valid = smooth(96, 96), np.ones((96, 96), bool)
    crops = (Window(0, 0, 96, 96),)
    scores = segmenter.segment(rgb, valid, crops).scores
    assert np.isfinite(scores).all()
    assert scores.shape == (6, 96, 96)


def test_the_bundled_model_has_an_upsampler_of_its_own():
    """Trained for this encoder, found beside its weights, and named by its hash in the provenance."""
    plain, jbu = (
        build_clip_segmenter(ModelOptions(), MethodOptions(upsampler=kind), vocabulary.load("demo"))
        for kind in ("bilinear", "jbu_one")
    )
    assert plain.describe()["upsampler_weights"] is None
    assert len(jbu.describe()["upsampler_weights"]) == 64
    rgb, valid, crops = smooth(160, 160), np.ones((160, 160), bool), (Window(0, 0, 160, 160),)
    coarse, fine = (segmenter.segment(rgb, valid, crops).scores for segmenter in (plain, jbu))
    assert np.abs(coarse - fine).max() > 0
    assert np.abs(coarse - fine).mean() < 0.1  # moves outlines, does not repaint


def odd_tile(segmenter):
    valid = np.ones((37, 51), bool)
    valid[:, :20] = False
    scores = segmenter.segment(smooth(37, 51), valid, (Window(0, 0, 37, 51),)).scores
    assert scores.shape == (6, 37, 51)
    assert np.isfinite(scores).all()
    assert scores.min() >= 0
    assert scores.max() <= 1.0001


def test_text_vectors_are_cached_by_content(directory, tmp_path, monkeypatch):
    monkeypatch.setenv("OVRS_CACHE", str(tmp_path / "cache"))
    from ovrs.model.clip import text

    model = load(ModelOptions(model=str(directory)))
    queries = text.queries_of(vocabulary.load("demo"))
    first = text.build_text_bank(model, *queries).vectors
    monkeypatch.setattr(text, "embed", None)  # a second call must not encode anything
    assert torch.equal(first, text.build_text_bank(model, *queries).vectors)
    assert len(list((tmp_path / "cache/text").glob("*.npy"))) == 1
