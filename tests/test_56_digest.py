"""A law over all options: where two values can give other scores, they give another digest; where they cannot, the same."""

import dataclasses
import functools
import json
import shutil

import numpy as np
import pytest
import timm
import torch
from conftest import DATA, smooth, write_clip_directory
from safetensors.torch import load_file, save_file

from ovrs import options
from ovrs.errors import DigestMismatchError
from ovrs.methods.registry import METHODS
from ovrs.model.clip import build as clip_build
from ovrs.model.clip import loading
from ovrs.model.sam3 import build as sam3_build
from ovrs.model.sam3 import probe
from ovrs.options import MapOptions, MethodOptions, ModelOptions, RunOptions, SceneOptions
from ovrs.run import begin, network, segmenters
from ovrs.words import vocabulary

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers", "ignore::FutureWarning:transformers")
CLIP, TINY = {"model": "CLIP"}, {"model": "sam3-tiny"}
ASKS = {"model": "ASKS"}
"""A model that wants to be shown pixels of given sizes."""
JBU = {"upsampler": "jbu_one", "upsampler_weights": "JBU"}
PROXY = {"method": "none", "dense": "proxyclip", "proxy_model": "vit_tiny_patch16_224", "proxy_weights": "VIT"}


def method(name, **given):
    return {"model": CLIP, "method": {"method": name, **given}}


def in_sam3(name="coco_sam3", *, space="none", **given):
    """A request to SAM 3, for a field of its options; the prior is used without a probe unless asked for."""
    own = {"prior_space": space, "require_probe": False} if name == "coco_sam3" else {}
    return {"model": TINY, "method": {"method": name, **own, **given}}


CLIP_NONE, TMPA = method("none"), method("tmpa", adaptation="tile")
OTHER = {
    SceneOptions: {
        "bands": (CLIP_NONE, (1, 2, 3), (3, 2, 1)),
        "gsd": (CLIP_NONE, None, 1.0),
        "bbox": (CLIP_NONE, None, (500000, 5599980, 500030, 5600000)),
        "aoi": (CLIP_NONE, "AOI", "OTHER_AOI"),
        "stretch": (CLIP_NONE, None, (2, 90)),
        "nodata": (CLIP_NONE, None, 7),
    },
    ModelOptions: {
        "model": ({"method": {"method": "none"}}, "CLIP", "OTHER_CLIP"),
        "pretrained": ({"model": {"model": "ViT-B-16"}, "method": {"method": "none"}}, "one", "another"),
        "dtype": (CLIP_NONE, "float32", "bfloat16"),
        "compile": (CLIP_NONE, False, True),
        "tiles_at_once": (CLIP_NONE, 1, 2),
        "crop": (CLIP_NONE, 64, 96),
        "stride": (CLIP_NONE, 32, 48),
        "zoom": (CLIP_NONE, None, 2),
        "wide": (CLIP_NONE, None, (2,)),
        "turned": ({"model": {**CLIP, "wide": (2,)}, "method": {"method": "none"}}, False, True),
        "pixel_size": ({"model": ASKS, "method": {"method": "none"}}, 0.1, 0.4),
    },
    MethodOptions: {
        "method": ({"model": CLIP}, "tmpa", "none"),
        "adaptation": (TMPA, "tile", "scene"),
        "bias": (method("tmpa", adaptation="scene"), "entropy", "learned"),
        "scene_tiles": (method("tmpa", adaptation="scene"), 3, 4),
        "dense": (CLIP_NONE, "segearth", "naclip"),
        "proxy_model": ({"model": CLIP, "method": PROXY}, "vit_tiny_patch16_224", "deit_tiny_patch16_224"),
        "proxy_weights": ({"model": CLIP, "method": PROXY}, "VIT", "OTHER_VIT"),
        "upsampler": (CLIP_NONE, "bilinear", "jbu_one"),
        "upsampler_rank": (method("none", **JBU), 64, 0),
        "upsampler_weights": (method("none", **JBU), "JBU", "OTHER_JBU"),
        "cls_weight": (CLIP_NONE, -0.3, 0.0),
        "logit_scale": (CLIP_NONE, None, 40),
        "threshold": (CLIP_NONE, None, 0.7),
        "examples": (CLIP_NONE, "AOI", "OTHER_AOI"),
        "aggregate": (CLIP_NONE, None, "mean"),
        "aggregate_weight": (method("none", aggregate="mixed"), 0.8, 0.5),
        "balance": (CLIP_NONE, False, True),
        "prompts": (CLIP_NONE, "all", "names"),
        "bare": (CLIP_NONE, None, True),
        "split_names": (CLIP_NONE, None, True),
        "prefix": (CLIP_NONE, None, False),
        "shares": (CLIP_NONE, False, True),
        "pamr": (CLIP_NONE, 0, 2),
        "area_threshold": (CLIP_NONE, 0, 0.1),
        "crop_blend": (CLIP_NONE, "taper", "mean"),
        "steps": (TMPA, None, 5),
        "alpha_init": (TMPA, None, 0.1),
        "alpha_max": (TMPA, 0.5, 0.4),
        "absent": (TMPA, None, "mean"),
        "keep_shares": (TMPA, None, 10),
        "lr": (TMPA, None, 0.02),
        "lr_shift": (method("tmpa_shift"), 1e-4, 1e-3),
        "anchors": (TMPA, None, 5),
        "layers": (method("mlmp"), None, 1),
        "image_weight": (method("mlmp"), None, 0),
        "beta": (method("mlmp"), None, 0),
        "templates": (method("mlmp"), None, "weights"),
        "template_count": (method("mlmp"), None, 20),
        "gaussian_tau": (method("coninfer"), 50, 5),
        "confident": (method("coninfer"), 8, 2),
        "joint_scale": (method("coninfer"), 5, 50),
        "top": (method("clipartt"), None, 2),
        "inner_steps": (method("watt"), None, 1),
        "rounds": (method("watt"), None, 2),
        "mode": (method("watt"), None, "parallel"),
        "cluster_height": ({"model": CLIP, "method": {**PROXY, "method": "cass", "dense": "cass"}}, None, 0.1),
        "amount": ({"model": CLIP, "method": {**PROXY, "method": "cass", "dense": "cass"}}, None, 0.05),
        "structure_head": (in_sam3(), "both", "semantic"),
        "structure_prompts": (in_sam3(), None, "all"),
        "score_floor": (in_sam3(), 0.3, 0.5),
        "confidence": (in_sam3("segearth_ov3"), 0.3, 0.5),
        "presence_weight": (in_sam3(), 1, 0),
        "presence_rescue": (in_sam3(), False, True),
        "presence_floor": (in_sam3(), None, -1.0),
        "presence": (in_sam3("proc_sam3"), "product", "logit"),
        "presence_gate": (in_sam3("proc_sam3", presence="gate"), 0.5, 0.4),
        "decode": (in_sam3("proc_sam3"), "all", "present"),
        "present_floor": (in_sam3("proc_sam3", decode="present"), 0.01, 0.1),
        "prior_space": (in_sam3(), "none", "sam3"),
        "prior_preset": (in_sam3(space="sam3"), "stabilised", "literal"),
        "prior_layer": (in_sam3(space="sam3"), None, 0),
        "prior_weight": (in_sam3(space="sam3"), 1, 0.5),
        "prior_tau": (in_sam3(space="sam3"), 0.1, 0.2),
        "class_tau": (in_sam3(space="sam3"), 1, 2),
        "synonym_join": (in_sam3(space="sam3"), "mean", "sum"),
        "windows": (in_sam3("segearth_ov3"), "class", "phrase"),
        "prior_model": (in_sam3(space="rs_clip"), "CLIP", "OTHER_CLIP"),
        "prior_pretrained": (in_sam3(space="rs_clip", prior_model="ViT-B-16"), "one", "another"),
        "require_probe": (in_sam3(space="sam3"), True, False),
        "probe": (in_sam3(space="sam3", require_probe=True), "PASSED", "FAILED"),
        "alignment": (in_sam3(space="aligned"), "ALIGNED", "OTHER_ALIGNED"),
        "synonyms": (in_sam3(), 3, 1),
        "background": (in_sam3(), None, "prompt"),
        "prompt_chunk": (in_sam3(), None, 1),
    },
    RunOptions: {
        "block_pitches": (CLIP_NONE, 8, 1),
        "zarr_format": (CLIP_NONE, 3, 2),
        "store_scores": (CLIP_NONE, False, True),
        "shards": (CLIP_NONE, None, True),
    },
}
"""Class, field: the rest of the request, and two values that give other scores, or another store."""
SAME = {
    SceneOptions: {
        "allow_ungeoreferenced": (CLIP_NONE, False, True),
        "acquired": (CLIP_NONE, None, "2024-06-01"),
    },
    ModelOptions: {"device": (CLIP_NONE, "cpu", "auto")},
    RunOptions: {
        "executor": (CLIP_NONE, "serial", "threads"),
        "workers": (CLIP_NONE, 2, 3),
        "scheduler": (CLIP_NONE, None, "tcp://host:8786"),
        "tls_ca": (CLIP_NONE, None, "/ca.pem"),
        "tls_cert": (CLIP_NONE, None, "/cert.pem"),
        "tls_key": (CLIP_NONE, None, "/key.pem"),
        "allow_mixed": (CLIP_NONE, False, True),
        "resources": (CLIP_NONE, {}, {"GPU": 1}),
        "batch": (CLIP_NONE, 4, 1),
        "pyramid": (CLIP_NONE, True, False),
        "allow_holes": (CLIP_NONE, False, True),
    },
}
"""Two values that cannot give other pixels: a run may go on with the other one."""
WORDS = vocabulary.Vocabulary(
    name="law",
    classes=(
        {"name": "roofs and walls", "synonyms": ("house",), "descriptions": ("a red surface",)},
        {"name": "water", "synonyms": ("lake", "river"), "descriptions": ("a dark smooth surface",)},
        {"name": "other"},
    ),
    background={"class_name": "other", "threshold": 0.1},
)
SECTION = {SceneOptions: "scene", ModelOptions: "model", MethodOptions: "method", RunOptions: "run"}


@pytest.fixture(scope="module")
def places(tmp_path_factory, tiny_clip):
    """Name to path: models, weights and zones that the requests speak of."""
    root = tmp_path_factory.mktemp("places")
    found = {name: root / name for name in ("CLIP", "OTHER_CLIP", "ASKS", "GELU", "MEAN")}
    for name, folder in found.items():
        folder.mkdir()
        write_clip_directory(tiny_clip, folder, quick_gelu=name != "GELU", mean=0.4 if name == "MEAN" else 0.5)
    state = {**tiny_clip.state_dict(), "visual.ln_post.bias": tiny_clip.visual.ln_post.bias + 1}
    save_file(state, found["OTHER_CLIP"] / "open_clip_model.safetensors")
    (found["ASKS"] / "ovrs.json").write_text(json.dumps({"windows": {"zoom": 2, "pixel_sizes": [0.1, 0.2]}}))
    whole = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
    for name, shift in (("VIT", 0.0), ("OTHER_VIT", 1.0)):
        found[name] = root / f"{name}.pth"
        torch.save({**whole, "norm.bias": whole["norm.bias"] + shift}, found[name])
    jbu = load_file(DATA / "jbu_one.safetensors")
    first = sorted(jbu)[0]
    for name, shift in (("JBU", 0.0), ("OTHER_JBU", 1.0)):
        found[name] = root / f"{name}.safetensors"
        save_file({**jbu, first: jbu[first] + shift}, found[name])
    shutil.copy(found["JBU"], found["CLIP"] / "jbu_one.safetensors")  # a model's own
    for name, side in (("AOI", 20), ("OTHER_AOI", 24)):
        found[name] = root / f"{name}.geojson"
        corners = [(500000, 5600000), (500000 + side, 5600000), (500000 + side, 5599980), (500000, 5599980)]
        ring = {"type": "Polygon", "coordinates": [[*corners, corners[0]]]}
        crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
        feature = {"type": "Feature", "properties": {"class": "water"}, "geometry": ring}
        found[name].write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": [feature]}))
    return found | _sam3_files(root)


def _sam3_files(root):
    """Verdicts and alignments for the tiny SAM 3 and the classes of `words`."""
    asked = options.build(**in_sam3(space="sam3"))
    segmenter = sam3_build.build_sam3_segmenter(asked.model, asked.method, WORDS)
    found = {}
    for name, passed in (("PASSED", True), ("FAILED", False)):
        report = {"space": "sam3", "auc": 0.9, "pairs": 99, "collapse": 0.0, "passed": passed}
        found[name] = root / f"{name}.json"
        found[name].write_text(json.dumps({**probe.identity(segmenter), "spaces": [report], "accepted": None}))
    for name, factor in (("ALIGNED", 1.0), ("OTHER_ALIGNED", 2.0)):
        found[name] = root / f"{name}.npz"
        arrays = {"matrix": factor * np.eye(64), "text_mean": np.zeros(64), "vision_mean": np.zeros(64)}
        facts = {"weights": np.array(segmenter.backend.weights_hash), "layer": np.array(segmenter.backend.layer)}
        np.savez(found[name], **{k: v.astype(np.float32) for k, v in arrays.items()}, **facts)
    return found


@pytest.fixture(scope="module", autouse=True)
def networks_loaded_once(places, tiny_clip):
    """Each network once, and published tags without a download: `one` is the tiny CLIP, `another` has other weights."""
    patch = pytest.MonkeyPatch()
    once = functools.cache(loading.load)

    def tagged(given):
        if given.pretrained is None:
            return once(given)
        path = places["CLIP" if given.pretrained == "one" else "OTHER_CLIP"]
        own = once(ModelOptions(**{**dict(given), "model": str(path), "pretrained": None}))
        return dataclasses.replace(own, name=given.model, directory=None)

    patch.setattr(clip_build, "load", tagged)
    patch.setattr(sam3_build, "load", functools.cache(sam3_build.load))

    patch.setattr(torch.nn.Module, "compile", lambda *args, **kwargs: None)  # takes seconds, changes no fact
    yield
    patch.undo()


@pytest.fixture
def digest(places, write_raster, tmp_path):
    """The digest of a request on a small scene of 0.5 m."""
    scene = write_raster(smooth(96, 128))

    def digest(sections):
        chosen = options.build(**_placed(sections, places))
        return begin.build_job(scene, WORDS, tmp_path / "m.zarr", chosen)[1].digest

    return digest


def _placed(value, places):
    """`value` with names of `places` replaced by their paths."""
    if isinstance(value, dict):
        return {k: _placed(v, places) for k, v in value.items()}
    return str(places[value]) if isinstance(value, str) and value in places else value


def _with(sections, kind, field, value):
    """The request with one field set."""
    section = SECTION[kind]
    return {**sections, section: {**sections.get(section, {}), field: value}}


def _cases(table):
    return [pytest.param(k, f, *case, id=f"{k.__name__}.{f}") for k, own in table.items() for f, case in own.items()]


@pytest.mark.parametrize(("kind", "field", "rest", "one", "another"), _cases(OTHER))
def test_another_value_is_another_digest(kind, field, rest, one, another, digest):
    assert digest(_with(rest, kind, field, one)) != digest(_with(rest, kind, field, another))


@pytest.mark.parametrize(("kind", "field", "rest", "one", "another"), _cases(SAME))
def test_what_cannot_change_a_pixel_changes_no_digest(kind, field, rest, one, another, digest, monkeypatch):
    if field == "scheduler":  # none stands there: this process answers what a worker would
        monkeypatch.setattr(network.execute, "ask", lambda run, question, **_: question())
    if field == "device" and torch.cuda.is_available():
        pytest.skip("auto is another kind of device here")
    assert digest(_with(rest, kind, field, one)) == digest(_with(rest, kind, field, another))


@pytest.mark.parametrize("kind", SECTION, ids=lambda k: k.__name__)
def test_every_option_stands_in_one_of_the_tables(kind):
    """A new option is not done before it is decided whether it changes scores."""
    fields = set(kind.model_fields)
    if kind is MethodOptions:
        assert set(OTHER[kind]) == fields.union(*(m.fields for m in METHODS.values()))
        return
    assert set(OTHER.get(kind, {})) | set(SAME.get(kind, {})) == fields
    assert not set(OTHER.get(kind, {})) & set(SAME.get(kind, {}))
    assert set(kind.APART) <= fields
    assert set(kind.APART) >= set(SAME.get(kind, {}))
    assert all(kind.APART.values())
    assert set(MapOptions.model_fields) == set(SECTION.values())


@pytest.mark.parametrize("name", METHODS)
def test_every_field_of_every_method_enters_its_digest_or_says_why_not(name):
    kind = METHODS[name].settings
    told = kind().decisive()
    assert set(told) | set(kind.APART) == set(kind.model_fields)
    assert not set(told) & set(kind.APART)
    assert all(kind.APART.values())


def test_options_enter_unless_a_reason_stands_beside_them():
    class More(RunOptions):
        colour: int = 3

    assert More(colour=4).decisive() == {**RunOptions().decisive(), "colour": 4}
    assert set(RunOptions().decisive()) == {"block_pitches", "zarr_format", "store_scores"}


def test_what_is_a_default_and_what_is_given_alike_are_the_same_run(digest):
    descent = {"steps": 3, "lr": 0.01, "alpha_init": 0.02, "absent": "text"}
    assert digest(TMPA) == digest(method("tmpa", adaptation="tile", bias="learned", **descent))
    assert digest(method("tmpa")) == digest(method("tmpa", adaptation="scene", bias="entropy"))
    assert digest(method("mlmp")) == digest(method("mlmp", templates="separate", beta=1, image_weight=1, steps=10))
    assert digest(method("watt")) == digest(method("watt", rounds=5, lr=1e-4))
    assert digest({"model": {"model": "CLIP", "stride": 32}}) == digest({"model": CLIP})


def test_a_network_is_more_than_its_weights(digest):
    """Equal weights with another activation or normalisation score otherwise."""
    of = [digest({"model": {"model": name}})["model"] for name in ("CLIP", "GELU", "MEAN")]
    assert len(set(of)) == 3


def test_a_zone_is_known_by_its_polygons_not_by_its_path(digest, places):
    request = {**CLIP_NONE, "scene": {"aoi": "AOI"}}
    before, kept = digest(request), places["AOI"].read_bytes()
    try:
        shutil.copy(places["OTHER_AOI"], places["AOI"])
        assert digest(request) != before
    finally:
        places["AOI"].write_bytes(kept)
    assert digest(request) == before


@pytest.mark.parametrize("name", ["threshold", "adaptation"])
def test_shared_options_count_for_sam3_too(name, digest):
    values = {"threshold": (None, 0.7), "adaptation": ("tile", "scene")}[name]
    one, another = (digest(_with(in_sam3(), MethodOptions, name, value)) for value in values)
    assert one != another


def test_a_second_run_with_other_templates_is_refused(places, write_raster, tmp_path):
    scene, out = write_raster(smooth(64, 64)), tmp_path / "m.zarr"
    given = {"method": "mlmp", "dense": "naclip", "steps": 1}
    first, second = (
        options.build(model={"model": str(places["CLIP"])}, method={**given, "templates": name})
        for name in ("single", "mean")
    )
    begin.prepare(scene, WORDS, out, first)
    begin.prepare(scene, WORDS, out, first)
    with pytest.raises(DigestMismatchError, match="another model"):
        begin.prepare(scene, WORDS, out, second)


def test_numbers_of_other_code_are_another_run(places, write_raster, tmp_path, monkeypatch):
    from ovrs.run import record

    scene, out = write_raster(smooth(64, 64)), tmp_path / "m.zarr"
    chosen = options.build(model={"model": str(places["CLIP"])}, method={"method": "none"})
    begin.prepare(scene, WORDS, out, chosen)
    monkeypatch.setattr(record, "NUMERICS", record.NUMERICS + 1)
    with pytest.raises(DigestMismatchError, match="another code"):
        begin.prepare(scene, WORDS, out, chosen)


def test_a_process_that_lives_long_sees_replaced_files(places, tmp_path):
    file = tmp_path / "up.safetensors"
    shutil.copy(places["JBU"], file)
    chosen = options.build(
        model={"model": str(places["CLIP"])},
        method={"method": "none", "upsampler": "jbu_one", "upsampler_weights": file},
    )
    spec = segmenters.SegmenterSpec.of(chosen.model, chosen.method, WORDS)
    before, weights = spec.key, segmenters.build(spec).describe()["upsampler_weights"]
    assert spec.key == before
    shutil.copy(places["OTHER_JBU"], file)
    assert spec.key != before
    assert segmenters.build(spec).describe()["upsampler_weights"] != weights
