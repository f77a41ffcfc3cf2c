"""Tiny copies of labelled sets in their publishers' own layouts, with procedural imagery: nothing of others is in them."""

import json
from dataclasses import dataclass

import numpy as np
import rasterio
from conftest import smooth
from PIL import Image
from rasterio.transform import from_origin

HEIGHT, WIDTH = 60, 80


@dataclass(frozen=True)
class Form:
    """How a publisher names the n-th image and its label, and how the label is written."""

    image: str
    label: str
    kind: str
    """index, colours, binary, mask (JPEG) or lines."""
    classes: int = 2
    first: int = 0
    """index: the number of class 0."""
    colours: tuple[str, ...] = ()
    listed: str | None = None
    """Text file that names the images of the split."""


ISPRS = ("FFFFFF", "0000FF", "00FFFF", "00FF00", "FFFF00", "FF0000")
ISAID = (
    "000000 00003F 003F3F 003F00 003F7F 003FBF 003FFF 007F3F 007F7F 00007F 0000BF 0000FF 00BF7F 007FBF 007FFF 00649B"
)
UAVID = ("000000", "800000", "804080", "C000C0", "008000", "808000", "404000")

FORMS = {
    "openearthmap": Form("aachen/images/aachen_{n}.tif", "aachen/labels/aachen_{n}.tif", "index", 9, listed="val.txt"),
    "loveda": Form("Val/Rural/images_png/{n}.png", "Val/Rural/masks_png/{n}.png", "index", 7, 1),
    "loveda_mmseg": Form("img_dir/val/{n}.png", "ann_dir/val/{n}.png", "index", 7),
    "isaid": Form(
        "val/images/images/P000{n}.png",
        "val/Semantic_masks/images/P000{n}_instance_color_RGB.png",
        "colours",
        16,
        colours=tuple(ISAID.split()),
    ),
    "isaid_mmseg": Form(
        "img_dir/val/P000{n}_0_896_0_896.png",
        "ann_dir/val/P000{n}_0_896_0_896_instance_color_RGB.png",
        "index",
        16,
    ),
    "potsdam": Form(
        "2_Ortho_RGB/top_potsdam_2_1{n}_RGB.tif",
        "5_Labels_all/top_potsdam_2_1{n}_label.tif",
        "colours",
        6,
        colours=ISPRS,
    ),
    "potsdam_mmseg": Form("img_dir/val/2_1{n}_0_0_512_512.png", "ann_dir/val/2_1{n}_0_0_512_512.png", "index", 6, 1),
    "vaihingen": Form(
        "top/top_mosaic_09cm_area{n}.tif",
        "gts_for_participants/top_mosaic_09cm_area{n}.tif",
        "colours",
        6,
        colours=ISPRS,
    ),
    "vaihingen_mmseg": Form(
        "img_dir/val/area{n}_0_0_512_512.png", "ann_dir/val/area{n}_0_0_512_512.png", "index", 6, 1
    ),
    "uavid": Form(
        "uavid_{split}/seq16/Images/00000{n}.png",
        "uavid_{split}/seq16/Labels/00000{n}.png",
        "colours",
        7,
        colours=UAVID,
    ),
    "udd5": Form("val/src/DJI_{n}.JPG", "val/gt/DJI_{n}.png", "index", 5),
    "vdd": Form("test/src/DJI_{n}.JPG", "test/gt/DJI_{n}.png", "index", 7),
    "whu_aerial": Form("val/image/{n}.tif", "val/label/{n}.tif", "binary"),
    "whu_sat2": Form("test/image/{n}.tif", "test/label/{n}.tif", "binary"),
    "inria": Form("train/images/austin{n}.tif", "train/gt/austin{n}.tif", "binary"),
    "xbd": Form("test/images/f_0{n}_pre_disaster.png", "test/targets/f_0{n}_pre_disaster_target.png", "index", 2),
    "chn6_cug": Form("val/images/am{n}_sat.jpg", "val/gt/am{n}_mask.png", "binary"),
    "deepglobe": Form("train/{n}_sat.jpg", "train/{n}_mask.png", "binary"),
    "massachusetts": Form("tiff/test/{n}.tiff", "tiff/test_labels/{n}.tif", "binary"),
    "spacenet": Form(
        "PS-RGB/SN3_roads_train_AOI_2_Vegas_PS-RGB_img{n}.tif",
        "geojson_roads/SN3_roads_train_AOI_2_Vegas_geojson_roads_img{n}.geojson",
        "lines",
    ),
    "wbs_si": Form("Images/water_body_{n}.jpg", "Masks/water_body_{n}.jpg", "mask", listed="val.txt"),
    "voc20": Form(
        "JPEGImages/2007_{n}.jpg",
        "SegmentationClass/2007_{n}.png",
        "index",
        21,
        listed="ImageSets/Segmentation/val.txt",
    ),
    "context59": Form(
        "JPEGImages/2008_{n}.jpg",
        "SegmentationClassContext/2008_{n}.png",
        "index",
        60,
        listed="ImageSets/SegmentationContext/val.txt",
    ),
    "cityscapes": Form(
        "leftImg8bit/val/ulm/ulm_{n}_leftImg8bit.png",
        "gtFine/val/ulm/ulm_{n}_gtFine_labelTrainIds.png",
        "index",
        19,
    ),
    "coco_stuff": Form("images/val2017/{n}.jpg", "annotations/val2017/{n}_labelTrainIds.png", "index", 171),
    "coco_object": Form("images/val2017/{n}.jpg", "annotations/val2017/{n}_instanceTrainIds.png", "index", 81),
    "ade20k": Form("images/validation/ADE_{n}.jpg", "annotations/validation/ADE_{n}.png", "index", 150, 1),
}
FORMS["voc21"], FORMS["context60"] = FORMS["voc20"], FORMS["context59"]


def write_copy(name, root, *, images=2, split="test"):
    """Write `images` images of a set with their labels below `root`."""
    form = FORMS[name]
    for n in range(1, images + 1):
        image, label = (root / text.format(n=n, split=split) for text in (form.image, form.label))
        if image.exists():
            continue
        for path in (image, label):
            path.parent.mkdir(parents=True, exist_ok=True)
        _write_image(image, smooth(HEIGHT, WIDTH, seed=n))
        _write_label(label, form, n)
    if form.listed:
        (root / form.listed).parent.mkdir(parents=True, exist_ok=True)
        names = [(root / form.image.format(n=n)).stem for n in range(1, images + 1)]
        (root / form.listed).write_text("\n".join(names) + "\n")


def patches(classes, seed):
    """Class numbers `(HEIGHT, WIDTH)` in blocks of ten pixels."""
    few = np.random.default_rng(seed).integers(0, classes, (HEIGHT // 10, WIDTH // 10))
    return np.kron(few, np.ones((10, 10), int)).astype(np.uint8)


def _write_image(path, rgb):
    if path.suffix in (".tif", ".tiff"):
        _write_tiff(path, rgb)
    else:
        Image.fromarray(np.moveaxis(rgb, 0, -1)).save(path)


def _write_tiff(path, bands):
    profile = {"driver": "GTiff", "height": HEIGHT, "width": WIDTH, "count": len(bands), "dtype": "uint8"}
    place = {"crs": "EPSG:32633", "transform": from_origin(5e5, 5e6, 1, 1)}
    with rasterio.open(path, "w", **profile, **place) as target:
        target.write(bands)


def _write_label(path, form, n):
    found = patches(form.classes, n)
    if form.kind == "lines":
        line = {"type": "LineString", "coordinates": [[5e5, 5e6 - 10 * n], [5e5 + WIDTH, 5e6 - 10 * n]]}
        feature = {"type": "Feature", "properties": {}, "geometry": line}
        path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
        return
    if form.kind == "colours":
        table = np.array([[int(c[i : i + 2], 16) for i in (0, 2, 4)] for c in form.colours], np.uint8)
        array = table[found]
    else:
        array = {"index": found + form.first, "binary": found * 255, "mask": found * 250}[form.kind].astype(np.uint8)
    if path.suffix in (".tif", ".tiff"):
        _write_tiff(path, np.moveaxis(array, -1, 0) if array.ndim == 3 else array[None])
    else:
        Image.fromarray(array).save(path)
