"""Presets are the rows they are called after: what each comes to on a network, whatever the network's makers recommend."""

import functools

import pytest
from conftest import write_clip_directory

from ovrs.methods import preset
from ovrs.methods.registry import METHODS, SAM3_METHOD_NAMES, resolve
from ovrs.model.clip import build as clip_build
from ovrs.model.clip.build import build_clip_segmenter
from ovrs.model.sam3 import build as sam3_build
from ovrs.model.sam3.build import build_sam3_segmenter
from ovrs.options import MethodOptions, ModelOptions
from ovrs.words import vocabulary

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers", "ignore::FutureWarning:transformers")
FULL = {"layers": None, "image_weight": 1, "beta": 1, "templates": "separate", "steps": 10}
MLMP = {
    "full": {},
    "one_image": {},
    "no_adaptation": {"layers": 1, "image_weight": 0, "steps": 0, "templates": "single"},
    "tent": {"layers": 1, "image_weight": 0, "templates": "single"},
    "no_image_level": {"image_weight": 0},
    "last_layer": {"layers": 1},
    "last_layer_one_prompt": {"layers": 1, "templates": "single", "image_weight": 0},
    "one_prompt": {"templates": "single"},
    "no_uncertainty_weights": {"beta": 0},
    "layers_and_uncertainty_only": {"templates": "single", "image_weight": 0},
    "prompts_only": {"layers": 1, "image_weight": 0},
    "mean_prompt": {"layers": 1, "templates": "mean", "image_weight": 0},
    "mean_weights": {"layers": 1, "templates": "weights", "image_weight": 0},
    "image_level_only": {"layers": 1, "templates": "single"},
    "levels_only": {"templates": "single", "image_weight": 0, "beta": 0},
    "levels_and_prompts": {"image_weight": 0, "beta": 0},
    "levels_and_image_level": {"templates": "single", "beta": 0},
    "tent_one_image": {"layers": 1, "image_weight": 0, "templates": "single"},
    "prompts_1": {"layers": 1, "templates": "single", "image_weight": 0},
    **{f"prompts_{n}": {"layers": 1, "image_weight": 0, "template_count": n} for n in (3, 7, 20, 80)},
}
"""What differs from the full method (arXiv 2505.21844, tables of ablations; released `prompt_integration`: loss, text)."""
RECOMMENDED = {
    "dense": "vanilla",
    "cls_weight": 0.7,
    "logit_scale": 7.0,
    "upsampler": "jbu_stack",
    "aggregate": "mean",
    "absent": "mean",
    "keep_shares": 9.0,
    "alpha_init": 0.3,
    "lr": 0.5,
    "prefix": False,
    "bare": True,
    "split_names": True,
}
"""The opposite of what any preset wants."""
WORDS = vocabulary.Vocabulary(
    name="presets",
    classes=({"name": "roof", "synonyms": ("house",)}, {"name": "water"}, {"name": "ground"}),
    background={"class_name": "ground", "threshold": 0.45},
)
OWN_UPSAMPLER = {"segearth", "tmpa", "tmpa_released"}
CLIP_PRESETS = [n for n in preset.names() if preset.method_options(n)["method"] not in SAM3_METHOD_NAMES]


@pytest.fixture(scope="module", autouse=True)
def folder(tiny_clip, tmp_path_factory):
    """The tiny CLIP; it and the tiny SAM 3 are loaded once."""
    found = tmp_path_factory.mktemp("tiny")
    write_clip_directory(tiny_clip, found)
    patch = pytest.MonkeyPatch()
    for room in (clip_build, sam3_build):
        patch.setattr(room, "load", functools.cache(room.load))
    yield str(found)
    patch.undo()


def chosen(name):
    return MethodOptions.model_validate(preset.method_options(name))


def test_every_row_of_mlmp_is_in_the_table():
    assert set(preset.load("mlmp").datasets) == set(MLMP)


@pytest.mark.parametrize("row", MLMP)
def test_rows_of_mlmp_come_to_the_papers_settings(row, folder):
    segmenter = build_clip_segmenter(ModelOptions(model=folder), chosen(f"mlmp/{row}"), WORDS)
    settings = segmenter.settings
    wanted = {**FULL, **MLMP[row]}
    assert {name: getattr(settings, name) for name in wanted} == wanted
    assert (settings.dense, settings.scale, settings.lr) == ("naclip", 100, 1e-3)
    assert settings.depths(24) == tuple(range(23, 24) if wanted["layers"] == 1 else range(6, 24))
    assert settings.max_share == 1  # the best of a class's names
    assert segmenter.frozen.ramp == 0
    facts = segmenter.describe()
    assert facts["cls_weight"] == 0
    assert facts["prompts"] == "synonyms"
    told = preset.method_options(f"mlmp/{row}")
    assert {name: facts[name] for name in told} == told


@pytest.mark.parametrize("name", CLIP_PRESETS)
def test_a_models_recommendations_change_no_preset(name):
    """`segearth`, `tmpa` and `tmpa_released` leave the upsampler to the model: its weights are the model's own."""
    told = chosen(name).told
    method = METHODS[chosen(name).method]
    plain, swayed = (resolve(method.name, told, recommended=own) for own in ({}, RECOMMENDED))
    unused = {"prefix"} if plain.prompts != "all" else set()
    unused |= {"upsampler"} if name.partition("/")[0] in OWN_UPSAMPLER else set()
    differ = {n for n in method.fields if getattr(plain, n) != getattr(swayed, n)}
    assert differ <= unused


@pytest.mark.parametrize("name", CLIP_PRESETS)
def test_presets_build(name, folder):
    if name.startswith("mlmp/"):
        return  # see above
    facts = build_clip_segmenter(ModelOptions(model=folder), chosen(name), WORDS).describe()
    for key, value in preset.method_options(name).items():
        if key in facts and value is not None:
            assert facts[key] == value, key


@pytest.mark.parametrize("name", sorted(set(preset.names()) - set(CLIP_PRESETS)))
def test_presets_of_sam3_come_to_what_they_say(name):
    wanted = preset.method_options(name)
    facts = build_sam3_segmenter(ModelOptions(model="sam3-tiny"), chosen(name), WORDS).describe()
    told = {k: v for k, v in wanted.items() if k != "threshold"}  # the rule of decision
    assert {k: facts[k] for k in told} == told
    if wanted.get("prior_space", "none") != "none":
        assert facts["prior_weight_used"] == 1  # as the row's name says, without a probe
