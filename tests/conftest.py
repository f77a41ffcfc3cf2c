"""Builders, not files: every raster a test needs is made here."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine, from_origin

import ovrs
from ovrs import options
from ovrs.words import vocabulary

DATA = Path(__file__).parent / "data"
ovrs.__path__.append(str(DATA.parents[1]))  # `ovrs.flows` of this tree, which need not be the one that is installed


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Two processes share the tests file by file; what starts servers, schedulers and workers stays in one of them."""
    for item in items if config.pluginmanager.hasplugin("xdist") else ():
        number = int(item.path.name.split("_")[1])
        processes = 50 <= number < 60 or 65 <= number < 80
        item.add_marker(pytest.mark.xdist_group("processes" if processes else item.path.name))


@pytest.fixture(autouse=True, scope="module")
def _own_garbage(request):
    """Clients that a module's libraries leave open are collected while its own filter of warnings holds, not in another's test."""
    yield
    if hasattr(request.module, "pytestmark"):
        gc.collect()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Text vectors are cached per session, never in the user's home."""
    monkeypatch.setenv("OVRS_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def prefect_server():
    """Prefect's own server, for the tests that run a flow."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def write_raster(tmp_path):
    """`write_raster(array, **profile)` writes `(band, y, x)` and returns the path."""

    def write(array: np.ndarray, name: str = "scene.tif", mask: np.ndarray | None = None, **profile) -> Path:
        path = tmp_path / name
        settings = {
            "crs": "EPSG:32633",
            "transform": from_origin(500000, 5600000, 0.5, 0.5),
            "driver": "GTiff",
            **profile,
        }
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
            rasterio.open(
                path,
                "w",
                height=array.shape[1],
                width=array.shape[2],
                count=array.shape[0],
                dtype=array.dtype,
                **settings,
            ) as target,
        ):
            target.write(array)
            if mask is not None:
                target.write_mask(mask)
        return path

    return write


@pytest.fixture
def noise_scene(write_raster):
    """A smooth random RGB scene of the given size."""

    def make(height: int, width: int, seed: int = 0, **profile) -> Path:
        return write_raster(smooth(height, width, seed), **profile)

    return make


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Random but smooth RGB uint8 `(3, height, width)`."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (3, height // 16 + 3, width // 16 + 3))
    fine = np.repeat(np.repeat(coarse, 16, axis=1), 16, axis=2)
    box = sum(np.roll(np.roll(fine, i, 1), j, 2) for i in range(0, 16, 3) for j in range(0, 16, 3)) / 36
    return np.clip(box[:, 16 : 16 + height, 16 : 16 + width], 0, 255).astype(np.uint8)


@pytest.fixture
def words():
    """Six classes of the demo."""
    return vocabulary.load("demo")


@pytest.fixture
def trivial():
    """Options for the shipped segmenter without a network."""

    def make(**run) -> options.MapOptions:
        scene = run.pop("scene", {})
        return options.build(model={"model": "trivial"}, scene=scene, run={"block_pitches": 1, **run})

    return make


@pytest.fixture(scope="session")
def golden():
    """Arrays computed by the authors' code, see `tests/data/make_golden.py`."""
    with np.load(DATA / "golden.npz") as arrays:
        found = dict(arrays)
    return found | json.loads((DATA / "golden.json").read_text())


def _tiny(patch: int):
    """The random CLIP that the golden arrays belong to (width 128, 4 layers, D 32)."""
    import open_clip
    import torch
    from safetensors.torch import load_file

    stored = load_file(DATA / f"tiny_clip_p{patch}.safetensors")
    state = {k: v.float() if v.is_floating_point() else v for k, v in stored.items()}
    table = torch.zeros(49408, 64)
    table[state.pop("token_embedding.ids").long()] = state.pop("token_embedding.rows")
    model = open_clip.CLIP(
        32,
        {"image_size": 64, "layers": 4, "width": 128, "patch_size": patch},
        {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
        quick_gelu=True,
    )
    model.load_state_dict({**state, "token_embedding.weight": table}, strict=True)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_clip():
    """Patches of 16 pixels."""
    return _tiny(16)


def write_clip_directory(clip, folder: Path, *, quick_gelu: bool = True, mean: float = 0.5) -> None:
    """The tiny CLIP of 16 pixels as a local model directory."""
    from safetensors.torch import save_file

    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 64, "layers": 4, "width": 128, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
        "quick_gelu": quick_gelu,
    }
    preprocess = {"mean": [mean] * 3, "std": [0.25] * 3}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    save_file(clip.state_dict(), folder / "open_clip_model.safetensors")


@pytest.fixture
def directory(tiny_clip, tmp_path):
    """The tiny CLIP as a local model directory."""
    write_clip_directory(tiny_clip, tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def tiny_clip_p8():
    """Patches of 8 pixels."""
    return _tiny(8)


@pytest.fixture(scope="session")
def tiny_visual_p8(tiny_clip_p8):
    """Vision tower of the latter."""
    return tiny_clip_p8.visual


def rotated(angle: float = 20.0, size: float = 0.5) -> Affine:
    """A georeference turned by `angle` degrees."""
    return Affine.translation(500000, 5600000) @ Affine.rotation(angle) @ Affine.scale(size, -size)


def environment(tmp: Path) -> dict[str, str]:
    """For subprocesses: the same cache, no colours."""
    return {**os.environ, "OVRS_CACHE": str(tmp / "cache"), "NO_COLOR": "1", "PYTHONWARNINGS": "error"}


def labelled_map(folder: Path, labels: np.ndarray, names, *, confidence=None, crs="EPSG:32633", transform=None) -> Path:
    """A finished map `folder/m.zarr` with given labels `(y, x)`, 255 for no data, and its scene `folder/s.tif`."""
    import zarr

    from ovrs import pipeline
    from ovrs.store.derived import counted
    from ovrs.store.map import open_map

    rgb = np.full((3, *labels.shape), 90, np.uint8)
    place = from_origin(500000, 5600000, 2, 2) if transform is None else transform
    with rasterio.open(
        folder / "s.tif", "w", driver="GTiff", height=labels.shape[0], width=labels.shape[1], count=3, dtype="uint8",
        crs=crs, transform=place, nodata=0,
    ) as target:  # fmt: skip
        target.write(rgb)
    chosen = options.build(model={"model": "trivial"}, run={"block_pitches": 1})
    pipeline.map_scene(folder / "s.tif", vocabulary.from_names(names), folder / "m.zarr", chosen)
    group = zarr.open_group(folder / "m.zarr", mode="r+")
    group["label"][:] = labels
    if confidence is not None:
        group["confidence"][:] = confidence
    with open_map(folder / "m.zarr") as mapped:
        areas = counted(mapped, [(n, c) for n, c in zip(mapped.names, mapped.colours, strict=True)])
    facts = dict(group.attrs["ovrs"])
    facts["classes"] = [
        {"name": c.name, "pixels": c.pixels, "hectares": c.hectares, "percent": c.percent} for c in areas
    ]
    group.attrs["ovrs"] = facts
    return folder / "m.zarr"
