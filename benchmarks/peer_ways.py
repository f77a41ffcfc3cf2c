"""How other tiled inference engines map the scene of `benchmarks/engine.py`: each by its own interface, same tiles.

Imported in the environment of the peer: nothing here needs `ovrs`. Peers that only cut and merge get the reading, the
model and the writing around them that their documentation shows.
"""

from __future__ import annotations

import math
import sys
import types
from pathlib import Path

import numpy as np

from benchmarks.engine import CLASSES, HALO, TILE, model

SIDE = TILE  # the peers' tile: 512 px with an overlap of 64
OVERLAP, BATCH = 2 * HALO, 4
STEP = SIDE - OVERLAP


def image(source: Path):
    """The whole scene as float32 in 0..1 `(1, 3, h, w)`: these peers work on tensors in memory."""
    import rasterio
    import torch

    with rasterio.open(source) as scene:
        return torch.from_numpy(scene.read()).float().div_(255)[None]


def write(out: Path, source: Path, labels: np.ndarray) -> None:
    import rasterio

    with rasterio.open(source) as scene:
        profile = {**scene.profile, "count": 1, "dtype": "uint8", "nodata": 255}
    with rasterio.open(out, "w", **profile) as target:
        target.write(labels.astype(np.uint8), 1)


def geoai(source: Path, out: Path) -> None:
    from geoai.inference import predict_geotiff

    def classes(scores):
        return scores.argmax(0).astype(np.uint8)

    predict_geotiff(
        model(),
        str(source),
        str(out),
        tile_size=SIDE,
        overlap=OVERLAP,
        batch_size=BATCH,
        num_classes=CLASSES,
        output_dtype="uint8",
        output_nodata=255,
        blend_mode="spline",
        postprocess_fn=classes,
        device="cpu",
        verbose=False,
    )


def geoai_semantic(source: Path, out: Path) -> None:
    import torch
    from geoai.train import semantic_inference_on_geotiff

    semantic_inference_on_geotiff(
        model(),
        str(source),
        str(out),
        window_size=SIDE,
        overlap=OVERLAP,
        batch_size=BATCH,
        num_channels=3,
        num_classes=CLASSES,
        device=torch.device("cpu"),
        quiet=True,
    )


def samgeo(source: Path, out: Path) -> None:
    """Its tiling alone: `segment_anything`, which its import wants and this does not use, is stood in for."""
    stub = types.SimpleNamespace(SamAutomaticMaskGenerator=object, SamPredictor=object, sam_model_registry={})
    sys.modules.setdefault("segment_anything", stub)
    import torch
    from samgeo.common import tiff_to_tiff

    net = model()

    def classes(tile, **_):
        with torch.inference_mode():
            return net(torch.from_numpy(tile).permute(2, 0, 1).float().div_(255)[None])[0].max(0).indices.byte().numpy()

    tiff_to_tiff(str(source), str(out), classes, sample_size=(STEP, STEP), bound=HALO)


def terratorch(source: Path, out: Path) -> None:
    from terratorch.tasks.tiled_inference import tiled_inference

    scores = tiled_inference(model(), image(source), crop=SIDE, stride=STEP, delta=8, batch_size=BATCH)
    write(out, source, scores[0].max(0).indices.numpy())


def torchgeo(source: Path, out: Path) -> None:
    import rasterio
    import torch
    from rasterio.windows import Window
    from torch.utils.data import DataLoader
    from torchgeo.datasets import RasterDataset, stack_samples
    from torchgeo.samplers import GridGeoSampler

    dataset, net = RasterDataset([str(source)]), model()
    sampler = GridGeoSampler(dataset, size=SIDE, stride=STEP)
    loader = DataLoader(dataset, batch_size=BATCH, sampler=sampler, collate_fn=stack_samples)
    with rasterio.open(source) as scene, torch.inference_mode():
        h, w, place = scene.height, scene.width, scene.transform
        profile = {**scene.profile, "count": 1, "dtype": "uint8", "nodata": 255}
        with rasterio.open(out, "w", **profile) as target:
            for batch in loader:
                labels = net(batch["image"] / 255).max(1).indices.byte().numpy()
                for bounds, tile in zip(batch["bounds"], labels, strict=True):
                    x = round((bounds[0].start - place.c) / place.a)
                    y = round((bounds[1].stop - place.f) / place.e)
                    left, top = (0 if x <= 0 else HALO), (0 if y <= 0 else HALO)
                    right = w - x if x + SIDE >= w else SIDE - HALO
                    bottom = h - y if y + SIDE >= h else SIDE - HALO
                    left, top = max(x + left, 0) - x, max(y + top, 0) - y
                    kept = tile[top:bottom, left:right]
                    if kept.size:
                        target.write(kept, 1, window=Window(x + left, y + top, kept.shape[1], kept.shape[0]))


def tiler(source: Path, out: Path) -> None:
    import torch
    from tiler import Merger, Tiler

    pixels, net = (image(source)[0].numpy() * 255).round(), model()
    cut = Tiler(
        data_shape=pixels.shape,
        tile_shape=(3, SIDE, SIDE),
        overlap=(0, OVERLAP, OVERLAP),
        channel_dimension=0,
        mode="reflect",
    )
    shape, padding = cut.calculate_padding()
    cut.recalculate(data_shape=shape)
    pixels = np.pad(pixels, padding, mode="reflect")
    whole = Tiler(
        data_shape=(CLASSES, *pixels.shape[1:]),
        tile_shape=(CLASSES, SIDE, SIDE),
        overlap=(0, OVERLAP, OVERLAP),
        channel_dimension=0,
    )
    merger = Merger(whole, window="hann", save_visits=False)
    with torch.inference_mode():
        for number, batch in cut(pixels, batch_size=BATCH):
            merger.add_batch(number, BATCH, net(torch.from_numpy(batch.astype(np.float32) / 255)).numpy())
    write(out, source, merger.merge(unpad=True, extra_padding=padding).argmax(0))


def toolbelt(source: Path, out: Path) -> None:
    import torch
    from pytorch_toolbelt.inference.tiles import ImageSlicer, TileMerger

    pixels, net = image(source)[0].permute(1, 2, 0).numpy(), model()
    cut = ImageSlicer(pixels.shape, tile_size=(SIDE, SIDE), tile_step=(STEP, STEP), weight="pyramid")
    merger = TileMerger(cut.target_shape, CLASSES, cut.weight, device="cpu")
    tiles = list(cut.iter_split(pixels))
    with torch.inference_mode():
        for i in range(0, len(tiles), BATCH):
            part = np.stack([tile for tile, _ in tiles[i : i + BATCH]])
            scores = net(torch.from_numpy(part).permute(0, 3, 1, 2))
            merger.integrate_batch(scores, [place for _, place in tiles[i : i + BATCH]])
        labels = merger.merge_().max(0).indices.numpy()
    write(out, source, cut.crop_to_orignal_size(labels))


def monai(source: Path, out: Path) -> None:
    import torch
    from monai.inferers import sliding_window_inference

    with torch.inference_mode():
        scores = sliding_window_inference(
            image(source), (SIDE, SIDE), BATCH, model(), overlap=OVERLAP / SIDE, mode="gaussian"
        )
    write(out, source, scores[0].max(0).indices.numpy())


def patchly(source: Path, out: Path) -> None:
    import torch
    from patchly import Aggregator, GridSampler

    pixels, net = image(source)[0].numpy(), model()
    size = pixels.shape[1:]
    given = {"spatial_size": size, "patch_size": (SIDE, SIDE), "step_size": (STEP, STEP), "spatial_first": False}
    cut = GridSampler(**given, chunk_size=(2 * SIDE, 2 * SIDE), image=pixels)
    labels = np.zeros(size, np.uint8)
    merger = Aggregator(sampler=cut, output=labels, weights="gaussian", softmax_dim=0, spatial_first=False)
    with torch.inference_mode():
        for patch, place in cut:
            merger.append(net(torch.from_numpy(np.ascontiguousarray(patch))[None])[0].numpy(), place)
    write(out, source, np.asarray(merger.get_output()))


def xbatcher(source: Path, out: Path) -> None:
    import torch
    import xarray as xr
    import xbatcher as xb

    pixels, net = xr.DataArray(image(source)[0].numpy(), dims=("band", "y", "x")), model()
    h, w = pixels.shape[1:]
    full = [math.ceil((k - SIDE) / STEP) * STEP + SIDE for k in (h, w)]  # it drops a remainder
    pixels = pixels.pad(y=(0, full[0] - h), x=(0, full[1] - w), mode="edge")
    labels = np.zeros(full, np.uint8)
    size = {"band": 3, "y": SIDE, "x": SIDE}
    batches = xb.BatchGenerator(
        pixels, input_dims=size, input_overlap={"band": 0, "y": OVERLAP, "x": OVERLAP}, preload_batch=False
    )
    across = (full[1] - SIDE) // STEP + 1
    with torch.inference_mode():
        for i, batch in enumerate(batches):
            y, x = (i // across) * STEP, (i % across) * STEP
            found = net(torch.from_numpy(np.ascontiguousarray(batch.values))[None])[0].max(0).indices.byte().numpy()
            top, left = (HALO if y else 0), (HALO if x else 0)
            labels[y + top : y + SIDE, x + left : x + SIDE] = found[top:, left:]
    write(out, source, labels[:h, :w])


PEERS = {
    "patchly": patchly,
    "xbatcher": xbatcher,
    "pytorch_toolbelt": toolbelt,
    "samgeo tiff_to_tiff": samgeo,
    "torchgeo GridGeoSampler": torchgeo,
    "MONAI sliding_window_inference": monai,
    "tiler": tiler,
    "geoai predict_geotiff": geoai,
    "TerraTorch tiled_inference": terratorch,
    "geoai semantic_inference_on_geotiff": geoai_semantic,
}
