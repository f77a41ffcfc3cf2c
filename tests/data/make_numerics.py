"""Record what small requests score, so that a change of numbers does not go by unseen.

    PYTHONPATH=.:tests python tests/data/make_numerics.py

Run it after raising `ovrs.provenance.NUMERICS`, and look at what changed before committing `numerics.npz`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from rasterio.transform import from_origin

from ovrs import options
from ovrs.engine.block import map_block
from ovrs.methods.clip import LAST_BLOCK_VARIANTS
from ovrs.methods.registry import METHOD_NAMES, SAM3_METHOD_NAMES
from ovrs.provenance import NUMERICS
from ovrs.run import adaptation, begin, segmenters
from ovrs.words import vocabulary

HERE = Path(__file__).parent
RECORD = HERE / "numerics.npz"
WORDS = vocabulary.Vocabulary(
    name="numerics",
    classes=(
        {"name": "roof", "synonyms": ("house",), "descriptions": ("a red surface seen from above",)},
        {"name": "water", "synonyms": ("lake", "river")},
        {"name": "other ground"},
    ),
    background={"class_name": "other ground", "threshold": 0.1},
)
STEP = 5
"""Every fifth pixel of rows and columns is kept."""
EXTERNAL = {"dense": "cass", "proxy_model": "vit_tiny_patch16_224"}


def requests() -> dict[str, dict[str, Any]]:
    """Name to sections of options: every method, every variant, and the options that pass through code of their own.

    Whatever a model may recommend is given, so that a recommendation can change without a change of numbers.
    """
    own = {"prompts": "all", "prefix": True, "bare": False, "split_names": False, "upsampler": "bilinear"}
    own |= {"cls_weight": 0.0, "logit_scale": 50, "aggregate": "max", "dense": "segearth"}
    tmpa = {
        "method": "tmpa",
        "adaptation": "tile",
        "bias": "learned",
        "alpha_init": 0.02,
        "absent": "text",
        "keep_shares": 0,
        "lr": 0.01,
    }
    frozen = {"method": "none"}
    found: dict[str, dict[str, Any]] = {"trivial": {"model": {"model": "trivial", "crop": 64}}}

    def clip(name: str, method: dict[str, Any], **model: Any) -> None:
        found[name] = {"model": {"model": "tiny", "crop": 64, "stride": 32, **model}, "method": {**own, **method}}

    for name in METHOD_NAMES:
        further = {"cass": EXTERNAL, "tmpa": tmpa, "watt": {"rounds": 1}, "watt_compat": {"rounds": 1}}.get(name, {})
        clip(name, {"method": name, **further})
    for name in (*(v for v in LAST_BLOCK_VARIANTS if v != own["dense"]), "gem", "proxyclip"):
        external = {**EXTERNAL, "dense": name} if name == "proxyclip" else {"dense": name}
        clip(f"dense {name}", {**frozen, **external})
    clip("global term", {**frozen, "cls_weight": -0.3})
    clip("windows", frozen, zoom=2, wide=(2,), turned=True)
    clip("means", {**frozen, "crop_blend": "mean", "aggregate": "mean", "balance": True, "bare": True})
    clip("refined", {**frozen, "pamr": 3, "area_threshold": 0.05})
    clip("upsampler", {**frozen, "upsampler": "jbu_one", "upsampler_weights": str(HERE / "jbu_one.safetensors")})
    clip("tmpa shares", {**tmpa, "absent": "mean", "keep_shares": 100})
    clip("tmpa on several tiles", tmpa, crop=32, stride=16)
    clip("tmpa scene", {**tmpa, "adaptation": "scene"}, crop=32, stride=16)
    clip("tmpa entropy", {"method": "tmpa", "adaptation": "scene", "bias": "entropy"}, crop=32, stride=16)
    clip("mlmp weights", {"method": "mlmp", "templates": "weights", "steps": 1})
    clip("watt parallel", {"method": "watt", "mode": "parallel", "rounds": 1, "inner_steps": 1})
    clip("bundled", {**frozen, "logit_scale": 28.8}, model="bundled", zoom=1)
    for name in SAM3_METHOD_NAMES:
        sam3: dict[str, Any] = {"prior_space": "sam3", "require_probe": False} if name == "coco_sam3" else {}
        if name == "proc_sam3":  # no instance of random weights is above its mask: as SegEarth-OV3 otherwise
            sam3 = {"presence": "logit"}
        found[name] = {"model": {"model": "sam3-tiny"}, "method": {"method": name, "sam3": sam3}}
    return found


def scores(folder: Path, names: list[str], tiny: Path) -> dict[str, Any]:
    """What the named requests score: name to uint8 `(class, y, x)`, every `STEP`th pixel.

    Args:
        folder: Scratch.
        names: Of `requests`.
        tiny: Folder of the tiny CLIP.
    """
    scene = folder / "scene.tif"
    _write_scene(scene)
    found = {}
    for name in names:
        sections = requests()[name]
        if sections["model"]["model"] == "tiny":
            sections["model"]["model"] = str(tiny)
        if "proxy_model" in sections.get("method", {}):
            sections["method"]["proxy_weights"] = _external(folder / "vit.pth")
        chosen = options.build(**sections, run={"block_pitches": 64})
        run, _ = begin.build_job(scene, WORDS, folder / "map.zarr", chosen)
        segmenter = segmenters.build(run.spec)
        if run.spec.adapts_to_scene:
            segmenter = segmenter.with_state(segmenter.adapt_scene(adaptation.sample_tiles(run.scene, run.plan, 3)))
        result = map_block(run.scene, segmenter, run.plan, run.plan.block(0, 0), run.rule, keep_scores=True)
        found[name] = result.score[:, ::STEP, ::STEP]
    return found


def _write_scene(path: Path) -> None:
    """Smooth colours `(3, 80, 112)` with a corner of no data, always the same."""
    rows, cols = np.mgrid[0:80, 0:112]
    waves = [
        np.sin(rows / a + np.cos(cols / b)) + np.cos(cols / c) for a, b, c in ((9, 13, 21), (14, 8, 17), (25, 11, 6))
    ]
    rgb = np.clip(128 + 55 * np.stack(waves), 1, 255).astype(np.uint8)
    rgb[:, :20, :30] = 0
    profile = {"driver": "GTiff", "crs": "EPSG:32633", "transform": from_origin(500000, 5600000, 0.5, 0.5), "nodata": 0}
    with rasterio.open(path, "w", height=80, width=112, count=3, dtype="uint8", **profile) as target:
        target.write(rgb)


def _external(path: Path) -> str:
    """Weights of a second network, drawn by NumPy, so that PyTorch's way of drawing does not matter."""
    import timm

    if not path.is_file():
        rng = np.random.default_rng(0)
        state = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
        drawn = {k: torch.from_numpy(rng.normal(0, 0.05, v.shape).astype(np.float32)) for k, v in state.items()}
        torch.save({k: v + 1 if "norm" in k and k.endswith("weight") else v for k, v in drawn.items()}, path)
    return str(path)


def main() -> None:
    """Record all."""
    from conftest import _tiny, write_clip_directory

    with tempfile.TemporaryDirectory() as scratch:
        tiny = Path(scratch) / "tiny"
        tiny.mkdir()
        write_clip_directory(_tiny(16), tiny)
        found = scores(Path(scratch), list(requests()), tiny)
    np.savez_compressed(RECORD, number=np.array(NUMERICS), **found)


if __name__ == "__main__":
    main()
