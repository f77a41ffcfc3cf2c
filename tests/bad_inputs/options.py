"""Options of the command line that cannot work, and TIFF files whose header lies."""

from __future__ import annotations

import random
from pathlib import Path

from .runner import Case

MAP = ["map", "scene.tif", "--classes", "water, road", "--model", "trivial"]
NUMBERS = [
    "nan",
    "inf",
    "-inf",
    "-1",
    "0",
    "1e309",
    "-0.0",
    "x",
    "",
    " ",
    "1,2",
    "0x10",
    "1e-320",
    "99999999999999999999",
    "٣",
    "½",
]
LISTS = [
    "",
    ",",
    "1,",
    "a",
    "1,2,3,4,5",
    "0",
    "-1",
    "99",
    "1,1",
    "nan,nan",
    "inf,1",
    "1,2,nan,4",
    "1;2",
    "1.5",
    "1,2,1,2",
    "5,5,5,5",
]
WORDS = ["", " ", "nonsense", "None", "\x00", "../x", "x" * 500, "é", "--", "cuda", "/dev/null", "a/b", "tmpa+x", "🌳"]
OPTIONS: dict[str, list[str]] = {
    "--bands": LISTS,
    "--gsd": NUMBERS,
    "--bbox": LISTS,
    "--stretch": LISTS,
    "--crop": NUMBERS,
    "--stride": NUMBERS,
    "--zoom": NUMBERS,
    "--wide": LISTS,
    "--pixel-size": NUMBERS,
    "--steps": NUMBERS,
    "--alpha": NUMBERS,
    "--threshold": NUMBERS,
    "--workers": ["0", "-1", "x", "nan", "", "1.5"],
    "--block": NUMBERS,
    "--zarr-format": ["1", "4", "0", "-1", "x", "", "nan", "2.5"],
    "--executor": WORDS,
    "--dtype": WORDS,
    "--preset": WORDS,
    "--crop-blend": WORDS,
    "--adaptation": WORDS,
    "--vocabulary": WORDS,
    "--catalog": WORDS,
    "--aoi": WORDS,
    "--set": [
        "",
        "=",
        "steps",
        "steps=",
        "steps=x",
        "steps=[1",
        "steps=-1",
        "steps={a: b}",
        "nothing=1",
        "sam3=1",
        "sam3.x=1",
        "lr=nan",
        "lr=inf",
        "lr=0",
        "steps=!!python/object:os.system x",
        "steps=*a",
        "steps=true",
        "threshold=2",
        "\x00=1",
        "steps=\x00",
        "steps=" + "[" * 500,
        "alpha_init=-0.5",
        "prompts=some",
    ],
}
"""Values of options of `ovrs map`; some are right for some options."""
OUTPUTS = [
    "",
    " ",
    "out",
    "out.zar",
    ".zarr",
    "/",
    ".",
    "scene.tif",
    "scene.tif/x.zarr",
    "/proc/x.zarr",
    "a\x00.zarr",
    "n" * 300 + ".zarr",
]
OUTPUTS += ["/dev/null/x.zarr", "out.zarr/", "nowhere://x/y.zarr", "s3:///x.zarr", "/sys/x.zarr", "out.ZARR"]
SCENES = [
    "",
    " ",
    "none.tif",
    ".",
    "/",
    "/dev/zero",
    "/dev/null",
    "a\x00.tif",
    "n" * 300,
    "s3://",
    "http://127.0.0.1:9/x.tif",
    "file:///none.tif",
]
SCENES += [
    "/vsizip/none.zip/a.tif",
    "/vsicurl/http://127.0.0.1:9/x.tif",
    "GTIFF_DIR:9:scene.tif",
    "<VRTDataset/>",
    "zip://none.zip!a.tif",
    "é.tif",
]
CALLS: list[list[str]] = [
    [],
    ["nonsense"],
    ["map"],
    ["map", "--nonsense"],
    ["map", "scene.tif", "scene.tif", "-o", "out.zarr"],
    ["map", "scene.tif", "-o"],
    ["map", "scene.tif", "-o", "out.zarr"],
    ["map", "scene.tif", "-o", "out.zarr", "--classes", "a", "--vocabulary", "demo"],
    [*MAP, "-o", "out.zarr", "--threshold", "0.5"],
    [*MAP, "-o", "out.zarr", "--adaptation", "planet"],
    [*MAP, "-o", "out.zarr", "--scheduler", "tcp://nowhere"],
    [*MAP, "-o", "out.zarr", "--scheduler", "nonsense"],
    ["info"],
    ["info", "none.zarr"],
    ["info", "scene.tif"],
    ["status", "none.zarr"],
    ["status", "."],
    ["verify", "none.zarr"],
    ["resume", "none.zarr"],
    ["resume", "scene.tif"],
    ["export", "none.zarr"],
    ["export", "none.zarr", "--cog", "x.tif"],
    ["export", "none.zarr", "--crs", "EPSG:4326"],
    ["export", "none.zarr", "--min-area", "-1", "--vectors", "x.gpkg"],
    ["export", "none.zarr", "--min-area", "nan"],
    ["stats", "none.zarr"],
    ["stats", "none.zarr", "--zones", "none.gpkg"],
    ["report", "none.zarr", "-o", "x.html"],
    ["publish", "none.zarr", "s3://"],
    ["publish", "none.zarr", ""],
    ["vocabulary"],
    ["vocabulary", "show"],
    ["vocabulary", "show", "nothing"],
    ["vocabulary", "show", "."],
    ["prompts", "demo"],
    ["prompts", "nothing", "--check"],
    ["prompts", "demo", "--count", "0", "--llm-model", "x", "-o", "x.yaml"],
    ["catalog"],
    ["catalog", "check", "none.yaml"],
    ["catalog", "check", "scene.tif"],
    ["catalog", "show", "x", "--catalog", "."],
    ["bench"],
    ["bench", "accuracy"],
    ["bench", "accuracy", "--dataset", "x", "-o", "results", "--catalog", "none.yaml"],
    ["bench", "accuracy", "--dataset", "", "-o", "results", "--method", "none"],
    ["bench", "table", "nothing"],
    ["bench", "report", "none"],
    ["sam3"],
    ["sam3", "check", "--model", "none"],
    ["sam3", "probe", "scene.tif", "--vocabulary", "nothing", "-o", "x.json"],
    ["view", "none.zarr", "--no-browser"],
]
"""Calls that ask for what is not there, or lack something."""


def option(rng: random.Random, _: Path) -> Case:
    """A call with a wrong option, output, scene or argument."""
    way = rng.random()
    if way < 0.2:
        call = rng.choice(CALLS)
        return Case(call, f"call {' '.join(call)!r:.80}", may_pass=not call)
    if way < 0.3:
        out = rng.choice(OUTPUTS)
        return Case([*MAP, "-o", out], f"-o {out!r:.60}", may_pass=out == "out.zarr/")
    if way < 0.4:
        scene = rng.choice(SCENES)
        return Case(["map", scene, *MAP[2:], "-o", "out.zarr"], f"scene {scene!r:.60}")
    names = rng.sample(list(OPTIONS), rng.choice([1, 1, 1, 2, 3]))
    given = [word for name in names for word in (name, rng.choice(OPTIONS[name]))]
    return Case([*MAP, "-o", "out.zarr", *given], f"{' '.join(given)!r:.80}", may_pass=True, keeps=RUN)


RUN = ("out.run/", "out.zarr.partial/")
"""What a run that stopped in the middle keeps, to be resumed."""


def header(rng: random.Random, folder: Path) -> Case:
    """A TIFF whose header has bytes flipped, or that is cut off."""
    file = folder / "scene.tif"
    content = bytearray(file.read_bytes())
    way = rng.choice(["flip", "flip", "flip", "flip", "cut", "zeros", "swap", "grow"])
    size = _header_size(content)
    if way == "flip":
        for _ in range(rng.randrange(1, 6)):
            content[rng.randrange(size)] ^= 1 << rng.randrange(8)
    elif way == "cut":
        content = content[: rng.randrange(1, len(content) - 1)]
    elif way == "zeros":
        at = rng.randrange(size)
        content[at : at + rng.randrange(1, 64)] = bytes(min(64, rng.randrange(1, 64)))
    elif way == "swap":
        content[:2] = rng.choice([b"MM", b"XX", b"\x00\x00", b"BM", b"PK"])
    else:
        at = rng.randrange(size)
        content[at:at] = rng.randbytes(rng.randrange(1, 16))
    file.write_bytes(content)
    return Case([*MAP, "-o", "out.zarr"], f"TIFF: {way}", may_pass=True, keeps=RUN)


def _header_size(content: bytearray) -> int:
    """Bytes before the pixels of a small strip TIFF that GDAL wrote: its directory and tags."""
    return min(len(content), 8 + int.from_bytes(content[4:8], "little") + 400) if content[:2] == b"II" else len(content)
