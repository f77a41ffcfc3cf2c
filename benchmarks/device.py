"""The engine on a device: how near it comes to the bare encoder, and which stage holds it up.

    python -m benchmarks.device [--device auto] [--out benchmarks/results/device.json] [--budget 420]

Networks: the bundled model, ViT-B/16 and ViT-L/14 (random weights), in float32 and bfloat16. Methods: none, tmpa per
tile, tmpa per scene, mlmp (10 steps); 6 and 20 classes of five descriptions each, whose vectors are random. Measured: the
device's own rate of matrix products; the encoder alone at the engine's batch; the engine from a scene in memory; each
stage alone. Where rasterio is installed, first a whole run of the bundled model from a tiled GeoTIFF to Zarr. Rates are
megapixels of new map per second. Results are written after each measurement; what the budget (seconds) leaves out is
named in them. Needs PyTorch, safetensors, NumPy, pydantic, PyYAML and
array-api-compat. Encoder and engine are measured in turns, and the share is the middle one of the turns': other
work on the machine then slows both. Freed memory is kept, as the command line does.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F

from ovrs.engine.allocator import keep_freed_memory

ASSETS = Path(__file__).parents[1] / "ovrs" / "assets"
VIT_B = {"vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16}, "embed_dim": 512}
VIT_L = {"vision_cfg": {"image_size": 224, "layers": 24, "width": 1024, "patch_size": 14}, "embed_dim": 768}
MODELS = {"bundled": None, "ViT-B-16": VIT_B, "ViT-L-14": VIT_L}
METHODS = ("none", "tmpa", "tmpa per scene", "mlmp")
DESCRIPTIONS = 5
PIXEL_M = 0.3
TURNS = 5
"""Of encoder and engine, in which each measurement is divided."""


def network(name: str, device: torch.device, dtype: torch.dtype) -> SimpleNamespace:
    """A model as the segmenters want it; no tokenizer, as the texts' vectors are random."""
    from ovrs.model.clip.singles import COLOUR_MEAN, COLOUR_STD
    from ovrs.model.clip.tower import Clip

    torch.manual_seed(0)
    if name == "bundled":
        from safetensors.torch import load_file

        from ovrs.model.clip.stem import ConvStem

        config = json.loads((ASSETS / "open_clip_config.json").read_text())
        clip = Clip(**config["model_cfg"])
        clip.visual.conv1 = ConvStem(**config["stem"], width=config["model_cfg"]["vision_cfg"]["width"])
        clip.load_state_dict(load_file(ASSETS / "open_clip_model.safetensors"))
        clip.eval().visual.conv1.fuse()
    else:
        clip = Clip(**MODELS[name], text_cfg={"vocab_size": 64, "width": 64, "heads": 1, "layers": 1}).eval()
    clip.requires_grad_(False)
    clip.visual.to(device=device, dtype=dtype)
    return SimpleNamespace(clip=clip, mean=COLOUR_MEAN, std=COLOUR_STD, device=device, dtype=dtype)


def views_of(name: str):
    from ovrs.engine.tiling import TileGeometry
    from ovrs.model.clip.windows import Views

    if name == "bundled":
        return Views(TileGeometry(crop=96, stride=80), 160 / 96)
    return Views(TileGeometry(crop=224, stride=112))


def segmenter_of(model: SimpleNamespace, views, method: str, classes: int, tiles: int | None):
    """A segmenter of random vectors, and the number of tiles that it looks at in one batch."""
    from ovrs.methods.clip import Clip
    from ovrs.methods.norms import Mlmp
    from ovrs.methods.tmpa import Tmpa
    from ovrs.model.adapt import mlmp
    from ovrs.model.adapt.tmpa_segmenters import SceneTmpaSegmenter, TmpaSegmenter
    from ovrs.model.adapt.tuning import NormSegmenter
    from ovrs.model.clip.encoder import Encoder
    from ovrs.model.clip.memory import suited
    from ovrs.model.clip.segmenter import ClipSegmenter
    from ovrs.model.clip.text import TextBank
    from ovrs.model.clip.upsample import Bilinear

    queries = classes * (1 + DESCRIPTIONS)
    generator = torch.Generator().manual_seed(1)
    vectors = F.normalize(torch.randn(queries, model.clip.visual.output_dim, generator=generator), dim=-1)
    class_of = torch.arange(queries) // (1 + DESCRIPTIONS)
    bank = TextBank(vectors.to(model.device), class_of.to(model.device), classes)
    learns = method == "mlmp"
    count = tiles or suited(model, views, learns=learns, queries=queries)
    encoder = Encoder(model, "naclip" if learns else "segearth", None, views, tiles_at_once=count)
    geometry = views.geometry
    told = {"logit_scale": 50.0, "cls_weight": 0.0 if learns else -0.3}
    frozen = ClipSegmenter(encoder, Bilinear(), bank, Clip(method="none", **told), geometry, {})
    if method == "tmpa":
        return TmpaSegmenter(frozen, Tmpa(adaptation="tile", bias="learned", **told))
    if method == "tmpa per scene":
        return SceneTmpaSegmenter(frozen, Tmpa(**told))
    if learns:
        own = Mlmp(steps=10, **told)
        prompts, visual = bank.vectors[None].repeat(7, 1, 1), model.clip.visual
        return NormSegmenter(
            frozen, own, lambda images, sets: mlmp.adapt(visual, images, prompts, bank.vectors, own, sets=sets)
        )
    return frozen


class Scene:
    """Pixels in memory."""

    def __init__(self, height: int, width: int) -> None:
        rng = np.random.default_rng(1)
        coarse = rng.integers(0, 255, (3, height // 16 + 1, width // 16 + 1), np.uint8)
        self.rgb = np.repeat(np.repeat(coarse, 16, 1), 16, 2)[:, :height, :width]

    def read(self, window):
        rows, cols = slice(window.row_off, window.row_end), slice(window.col_off, window.col_end)
        rgb = self.rgb[:, rows, cols].copy()
        return SimpleNamespace(rgb=rgb, valid=np.ones(rgb.shape[1:], bool))


def done(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def loop(work, device: torch.device, seconds: float) -> float:
    """Seconds of one call, after a first one that is not counted."""
    work()
    done(device)
    calls, started = 0, time.perf_counter()
    while calls == 0 or time.perf_counter() - started < seconds:
        work()
        calls += 1
        if device.type == "cuda" and calls % 4 == 0:
            done(device)
    done(device)
    return (time.perf_counter() - started) / calls


def products(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """TFLOP/s of one large matrix product."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2e-12 * side**3 / loop(lambda: a @ b, device, seconds)


def flops_of_crop(name: str) -> float | None:
    """Of a ViT's forward pass; None where a convolutional stem is part of it."""
    if MODELS[name] is None:
        return None
    c = MODELS[name]["vision_cfg"]
    n, d = (c["image_size"] // c["patch_size"]) ** 2 + 1, c["width"]
    return c["layers"] * (24.0 * n * d * d + 4.0 * n * n * d) + 6.0 * n * c["patch_size"] ** 2 * d


def bare(encoder, name: str, seconds: float) -> dict[str, float | None]:
    """The encoder in a tight loop at the engine's batch."""
    model, views = encoder.model, encoder.views
    side = model.clip.visual.image_size[0]
    count = views.batch * encoder.tiles_at_once
    images = torch.randn(count, 3, side, side, device=model.device)

    def work() -> None:
        with torch.no_grad():
            encoder.tokens(images)

    each = loop(work, model.device, seconds)
    flops = flops_of_crop(name)
    return {"crops_s": count / each, "tflops": None if flops is None else 1e-12 * flops * count / each}


def engine(segmenter, pitches: int, seconds: float) -> dict[str, float]:
    """Blocks along a row, overhangs handed on; the first one is not counted."""
    from ovrs.engine.block import Overhang, map_block
    from ovrs.engine.decide import DecisionRule
    from ovrs.engine.tiling import Plan

    g = segmenter.geometry
    columns = 4
    height, width = g.tile + (pitches - 1) * g.pitch, columns * pitches * g.pitch + g.tile
    scene = Scene(height, width)
    if hasattr(segmenter, "with_state"):
        sample = Plan(height=height, width=width, geometry=g, block_pitches=pitches).tile(0, 0)
        pixels = scene.read(sample.window)
        crops = tuple(c.relative_to(sample.window) for c in sample.crops)
        segmenter = segmenter.with_state(segmenter.adapt_scene([(pixels.rgb, pixels.valid, crops)]))
    plan = Plan(height=height, width=width, geometry=g, block_pitches=pitches)
    overhang, rule, device = Overhang(), DecisionRule(), segmenter.place.__self__
    device = getattr(device, "frozen", device).encoder.model.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    spent = pixels_done = tiles = 0.0
    while spent < seconds:
        for column in range(columns):
            block = plan.block(0, column)
            given = scene.read(block.read)
            started = time.perf_counter()
            map_block(scene, segmenter, plan, block, rule, pixels=given, overhang=overhang)
            if column:
                spent += time.perf_counter() - started
                pixels_done += block.core.height * block.core.width
                tiles += sum(t.window.col_off >= block.core.col_off for t in plan.tiles_of(block.core))
            if column and spent >= seconds:
                break
    peak = torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None
    rate = pixels_done / 1e6 / spent
    return {
        "mpx_s": rate,
        "km2_h": rate * 1e6 * PIXEL_M**2 * 3600 / 1e6,
        "crops_s": tiles * g.crops_per_tile**2 / spent,
        "peak_device_mb": peak,
    }


def stages(segmenter, seconds: float) -> dict[str, float]:
    """Megapixels per second of each stage alone, on as many tiles as one batch has."""
    from ovrs.engine.arrays import as_numpy
    from ovrs.engine.decide import DecisionRule, decided
    from ovrs.model.adapt import tmpa
    from ovrs.model.adapt.tmpa_segmenters import TmpaSegmenter
    from ovrs.scene.grid import Window

    frozen = getattr(segmenter, "frozen", segmenter)
    device, g, count = frozen.encoder.model.device, frozen.geometry, frozen.tiles_at_once
    scene = Scene(g.tile, g.tile)
    starts = [i * g.stride for i in range(g.crops_per_tile)]
    crops = tuple(Window(r, c, g.crop, g.crop) for r in starts for c in starts)
    pixels = scene.read(Window(0, 0, g.tile, g.tile))
    placed = frozen.place(pixels.rgb, pixels.valid)
    samples = [(*placed, crops)] * count
    features = frozen.encode_tiles(samples)
    text, base = frozen.text, frozen.base_text
    scores = frozen.classify_tiles(features, text, base, [()] * count)
    labels = decided(scores[0].scores, DecisionRule())[0]
    work = {
        "read": (lambda: scene.read(Window(0, 0, g.tile, g.tile)), 1),
        "upload": (lambda: frozen.place(pixels.rgb, pixels.valid), 1),
        "encode": (lambda: frozen.encode_tiles(samples), count),
        "sum and classify": (lambda: frozen.classify_tiles(features, text, base, [()] * count), count),
        "decide": (lambda: decided(scores[0].scores, DecisionRule()), 1),
        "download": (lambda: as_numpy(labels), 1),
    }
    if isinstance(segmenter, TmpaSegmenter):
        work["adapt"] = (lambda: tmpa.calibrate_tiles(features, frozen.bank, segmenter.settings), count)
    new = g.pitch**2 / 1e6
    return {name: tiles * new / loop(call, device, seconds) for name, (call, tiles) in work.items()}


def agreement(name: str, device: torch.device, dtype: torch.dtype) -> float:
    """Share of pixels whose label is that of the processor in float32, on one tile with `none`."""
    from ovrs.engine.block import map_block
    from ovrs.engine.decide import DecisionRule
    from ovrs.engine.tiling import Plan

    views, labels = views_of(name), []
    g = views.geometry
    scene = Scene(g.tile, g.tile)
    plan = Plan(height=g.tile, width=g.tile, geometry=g, block_pitches=1)
    for where, kind in ((torch.device("cpu"), torch.float32), (device, dtype)):
        segmenter = segmenter_of(network(name, where, kind), views, "none", 6, None)
        labels.append(map_block(scene, segmenter, plan, plan.block(0, 0), DecisionRule()).label)
    return float((labels[0] == labels[1]).mean())


def whole_run(device: str, side: int) -> dict[str, float] | str:
    """The bundled model from a tiled GeoTIFF to Zarr, with everything between."""
    if importlib.util.find_spec("rasterio") is None:
        return "not measured: rasterio is not installed"
    import rasterio
    from rasterio.transform import from_origin

    from ovrs import options, pipeline
    from ovrs.words import vocabulary

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.tif"
        shape = {"driver": "GTiff", "height": side, "width": side, "count": 3, "dtype": "uint8"}
        tiles = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate"}
        with rasterio.open(
            path, "w", **shape, **tiles, crs="EPSG:32633", transform=from_origin(5e5, 5e6, PIXEL_M, PIXEL_M)
        ) as out:
            out.write(Scene(side, side).rgb)
        given = options.build(model={"device": device}, method={"method": "none"})
        words = vocabulary.from_names(["building", "road", "water", "tree", "grass", "field"])
        started = time.perf_counter()
        pipeline.map_scene(path, words, Path(folder) / "map.zarr", given)
        seconds = time.perf_counter() - started
    return {"mpx_s": side**2 / 1e6 / seconds, "seconds": seconds, "side": side}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--classes", nargs="+", type=int, default=[6, 20])
    parser.add_argument("--tiles", type=int, help="Tiles at once. Default: as the engine chooses.")
    parser.add_argument("--seconds", type=float, default=1.5, help="For each measurement.")
    parser.add_argument("--budget", type=float, default=420.0, help="No measurement begins later (seconds).")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/device.json"))
    args = parser.parse_args()
    begun = time.perf_counter()
    keep_freed_memory()
    auto = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(auto if args.device == "auto" else args.device)
    pitches = 8 if device.type == "cuda" else 1
    told = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    results = {"device": told, "threads": torch.get_num_threads(), "versions": versions, "command": sys.argv[1:]}
    results |= {"models": {}, "left_out": []}
    args.out.parent.mkdir(parents=True, exist_ok=True)

    def keep() -> None:
        results["seconds"] = time.perf_counter() - begun
        args.out.write_text(json.dumps(results, indent=1) + "\n")

    def in_time(what: str) -> bool:
        if time.perf_counter() - begun < args.budget:
            return True
        results["left_out"].append(what)
        return False

    results["geotiff_to_zarr"] = whole_run(str(device), 16384 if device.type == "cuda" else 1024)
    print("GeoTIFF to Zarr", json.dumps(results["geotiff_to_zarr"]), flush=True)
    for name in args.models:
        for kind in args.dtypes:
            if not in_time(f"{name} {kind}"):
                continue
            dtype = getattr(torch, kind)
            model, views = network(name, device, dtype), views_of(name)
            own = results["models"].setdefault(f"{name} {kind}", {"methods": {}})
            own["matrix_product_tflops"] = products(device, dtype, args.seconds / 2)
            own["agrees_with_cpu_float32"] = agreement(name, device, dtype)
            keep()
            for method in suited(args.methods, kind):
                for classes in args.classes:
                    label = f"{method}, {classes} classes"
                    if not in_time(f"{name} {kind} {label}"):
                        continue
                    try:
                        own["methods"][label] = one(model, views, name, method, classes, pitches, args)
                    except torch.OutOfMemoryError as error:
                        own["methods"][label] = {"failed": str(error).splitlines()[0]}
                    print(name, kind, label, json.dumps(own["methods"][label]), flush=True)
                    keep()
    keep()


def suited(methods: list[str], kind: str) -> list[str]:
    """Methods that a precision is fine enough for: half precision cannot hold the steps of layer norms."""
    return [m for m in methods if m != "mlmp" or kind == "float32"]


def one(
    model, views, name: str, method: str, classes: int, pitches: int, args: argparse.Namespace
) -> dict[str, object]:
    """One method on one network: encoder alone and engine in turns, stages, and tiles one by one."""
    segmenter = segmenter_of(model, views, method, classes, args.tiles)
    frozen = getattr(segmenter, "frozen", segmenter)
    found: dict[str, object] = {"tiles_at_once": frozen.tiles_at_once}
    turns = [
        (bare(frozen.encoder, name, args.seconds / TURNS), engine(segmenter, pitches, args.seconds / TURNS))
        for _ in range(TURNS)
    ]
    turns.sort(key=lambda turn: turn[1]["crops_s"] / turn[0]["crops_s"])
    found["encoder"], found["engine"] = alone, run = turns[TURNS // 2]
    shares = [engine_["crops_s"] / encoder_["crops_s"] for encoder_, engine_ in turns]
    found |= {"share_of_encoder": run["crops_s"] / alone["crops_s"], "least_share": shares[0], "most_share": shares[-1]}
    if method in ("none", "tmpa"):
        found["stages_mpx_s"] = stages(segmenter, args.seconds / 6)
    if method in ("tmpa", "mlmp") and frozen.tiles_at_once > 1:
        single = engine(
            segmenter_of(model, views, method, classes, 1), 1 if method == "mlmp" else pitches, args.seconds
        )
        found["one_by_one_mpx_s"] = single["mpx_s"]
        found["faster_than_one_by_one"] = run["mpx_s"] / single["mpx_s"]
    return found


if __name__ == "__main__":
    main()
