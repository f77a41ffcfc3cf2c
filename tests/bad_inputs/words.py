"""Vocabularies and catalogs that are wrong: bytes, YAML, structure, values, paths."""

from __future__ import annotations

import copy
import os
import random
from typing import TYPE_CHECKING, Any

import yaml

from .runner import Case

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

VOCABULARY: dict[str, Any] = {
    "name": "coast",
    "title": "North Sea",
    "imagery": "RGB, 0.2 m",
    "provenance": {"written_by": "hand"},
    "background": {"class_name": "other", "threshold": 0.1},
    "classes": [
        {"name": "other", "descriptions": ["open ground", "sand"]},
        {"name": "ship", "synonyms": ["boat", "vessel"], "phrases": ["ship"], "colour": "#203a7a"},
        {"name": "quay", "descriptions": ["a straight grey edge"], "colour": "#aaaaaa"},
    ],
}
CATALOG: dict[str, Any] = {
    "version": 1,
    "outputs": {"root": "maps"},
    "vocabularies": {"coast": "coast.yaml"},
    "models": {"plain": {"model": "trivial", "crop": 64}},
    "scenes": {
        "one": {"path": "scene.tif", "vocabulary": "coast", "model": "plain", "method": {"method": "none"}},
        "two": {"path": "*.tif", "vocabulary": "demo", "read": {"gsd": 1.0, "bands": [1, 2, 3]}},
    },
    "collections": {
        "drop": {"pattern": "incoming/*.tif", "vocabulary": "landcover"},
        "api": {
            "vocabulary": "demo",
            "stac": {"url": "https://127.0.0.1:9/stac", "collections": ["a"], "bbox": [6, 50, 7, 51]},
        },
    },
    "datasets": {"mine": {"layout": "pairs", "root": "data", "vocabulary": "demo", "shrink": 2.0}},
}
ODD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1.5,
    10**30,
    float("nan"),
    float("inf"),
    -float("inf"),
    "",
    " ",
    "\t",
    "\u00a0",
    "a\x00b",
    "a\x07b",
    "a\u202eb",
    "\u200b",
    "\ufeffname",
    "a\nb",
    "x" * 20000,
    "no",
    "2026-01-01",
    "${OVRS_NOT_SET}",
    "../../etc",
    "/",
    "-",
    "🌳",
    [],
    {},
    [[]],
    [None],
    {"a": 1},
    [{"name": "x"}],
    {"name": "x"},
]
BITS = [
    "\t",
    ": ",
    "{",
    "}",
    "[",
    "]",
    "&a ",
    "*a",
    "!",
    "|",
    ">",
    "%",
    "@",
    "`",
    "'",
    '"',
    "#",
    "- ",
    "? ",
    "---\n",
    "...\n",
]


def vocabulary(rng: random.Random, folder: Path) -> Case:
    """A vocabulary file that is wrong, shown or mapped with."""
    file, about, may_pass = _file(rng, folder, "words.yaml", VOCABULARY, _wrong_vocabulary)
    if rng.random() < 0.25:
        names = ["map", "scene.tif", "--vocabulary", file, "--model", "trivial", "-o", "out.zarr"]
        return Case(names, about, may_pass)
    return Case(["vocabulary", "show", file], about, may_pass)


def catalog(rng: random.Random, folder: Path) -> Case:
    """A catalog that is wrong: checked, listed, shown or mapped with."""
    (folder / "coast.yaml").write_text(_dump(VOCABULARY))
    file, about, may_pass = _file(rng, folder, "catalog.yaml", CATALOG, _wrong_catalog)
    calls = [
        ["catalog", "check", file],
        ["catalog", "check", file],
        ["catalog", "list", file],
        ["catalog", "show", "one", "--catalog", file],
        ["map", "one", "--catalog", file, "--model", "trivial"],
    ]
    return Case(rng.choice(calls), about, may_pass)


def class_list(rng: random.Random, _: Path) -> Case:
    """Words of `--classes` that cannot be classes."""
    bad = [
        "",
        " ",
        ",",
        " , ,",
        "tree,Tree",
        "tree, tree",
        "straße,STRASSE",
        "caf\u00e9,cafe\u0301",
        "a\x00b",
        "a\x1b[31mb",
        "a\nb",
        "tree,\u202ewater",
        "\u200b",
        "road,\u00a0",
        "x" * 6000,
        "a  b,a b",
        "a\udcffb",
        "\ufffe",
    ]
    text = rng.choice(bad)
    if text.strip(" ,"):
        text = ",".join(rng.sample(["water", text, "road"], 3))
    return Case(
        ["map", "scene.tif", "--classes", text, "--model", "trivial", "-o", "out.zarr"], f"--classes {text!r:.60}"
    )


def _file(
    rng: random.Random,
    folder: Path,
    name: str,
    base: dict[str, Any],
    wrong: Callable[[random.Random, dict[str, Any]], str],
) -> tuple[str, str, bool]:
    """Write a wrong file; returns its name, what is wrong, and whether it may be right by chance."""
    way = rng.choice(
        ["bytes", "surgery", "surgery", "value", "value", "value", "key", "wrong", "wrong", "shape", "path"]
    )
    file = folder / name
    if way == "path":
        return (*_path(rng, folder, file), False)
    if way == "bytes":
        content, about = _bytes(rng, _dump(base))
        file.write_bytes(content)
        return name, about, False
    if way == "shape":
        text, about = _shape(rng, base)
        file.write_text(text, "utf-8")
        return name, about, False
    if way == "surgery":
        text, about = _surgery(rng, _dump(base))
        file.write_text(text, "utf-8")
        return name, about, True
    content = copy.deepcopy(base)
    if way == "wrong":
        about = wrong(rng, content)
        file.write_text(_dump(content), "utf-8")
        return name, about, False
    about = _value(rng, content) if way == "value" else _key(rng, content)
    file.write_text(_dump(content), "utf-8")
    return name, about, True


def _dump(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _bytes(rng: random.Random, text: str) -> tuple[bytes, str]:
    content = text.encode()
    place = rng.randrange(len(content))
    ways: list[tuple[bytes, str]] = [
        (rng.randbytes(rng.randrange(1, 2000)) + b"\xff\xfe\xc3\x28", "random bytes"),
        (text.encode("utf-16"), "UTF-16"),
        (content.replace(b"e", "ž".encode("cp1250")), "cp1250"),
        (content[:place] + b"\x00" + content[place:], "a zero byte"),
        (content[:place] + bytes([rng.randrange(0x80, 0xC0)]) + content[place:], "a byte that is no UTF-8"),
        (content[:place] + bytes([rng.choice([1, 7, 8, 11, 12, 27, 127])]) + content[place:], "a control character"),
        (b"\x89PNG\r\n\x1a\n" + bytes(200), "a picture"),
        (b"", "nothing"),
        (b"\xef\xbb\xbf", "a byte order mark alone"),
        (b"a" * (17 << 20), "17 MiB"),
        (b"%PDF-1.7\n\xe2\xe3", "a PDF"),
        (content + b"\n" + content, "the content twice"),
    ]
    return rng.choice(ways)


def _shape(rng: random.Random, base: dict[str, Any]) -> tuple[str, str]:
    levels = rng.randrange(7, 12)
    laugh = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, levels)
    )
    deep = rng.choice([40, 300, 20_000])
    key = rng.choice(list(base))
    ways = [
        (laugh + _dump(base), "aliases that explode"),
        (_dump(base) + "extra: &x [*x]\n", "an alias of itself"),
        (_dump(base) + "extra: " + "[" * deep + "]" * deep + "\n", "deep nesting"),
        (_dump(base) + "".join(f"{' ' * i}k:\n" for i in range(min(deep, 1500))), "deep blocks"),
        (_dump(base) + f"{key}: 1\n", "a key twice"),
        (
            _dump(base) + f"extra: !!python/object/apply:os.system [{rng.choice(['true', 'ls'])}]\n",
            "a tag that runs code",
        ),
        (_dump(base) + "extra: !!timestamp nonsense\n", "a tag without sense"),
        (_dump(base) + "---\na: 1\n", "two documents"),
        (_dump([base]), "a list"),
        (_dump(str(base)), "a text"),
        (
            rng.choice(["1", "null", "true", "~", "1.0", "2026-01-01", "[]", "{}", "# only a comment", "---", "- a"]),
            "a scalar",
        ),
        (_dump(base) + "? [a, b]\n: 1\n", "a key that is a list"),
        (_dump(base) + "1: 2\n", "a key that is a number"),
        (_dump(base) + "<<: 5\n", "a merge of a number"),
        (_dump(base) + "extra: *nowhere\n", "an alias of nothing"),
        (_dump(base).replace(": ", ":\t"), "tabs") if rng.random() < 0 else ("\t" + _dump(base), "a tab"),
    ]
    return rng.choice(ways)


def _surgery(rng: random.Random, text: str) -> tuple[str, str]:
    for _ in range(rng.randrange(1, 4)):
        place = rng.randrange(len(text))
        lines = text.split("\n")
        row = rng.randrange(len(lines))
        way = rng.randrange(6)
        if way == 0:
            text = text[:place] + text[place + rng.randrange(1, 9) :]
        elif way == 1:
            text = text[:place] + rng.choice(BITS) + text[place:]
        elif way == 2:
            text = "\n".join([*lines[:row], *lines[row + 1 :]])
        elif way == 3:
            text = "\n".join([*lines[:row], lines[row], *lines[row:]])
        elif way == 4:
            text = "\n".join([*lines[:row], rng.choice([" ", "  ", "\t"]) + lines[row], *lines[row + 1 :]])
        else:
            text = text[: max(1, place)]
        text = text or "\n"
    return text, "text cut and patched"


def _places(content: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [place for key, value in inner for place in ((*at, key), *_places(value, (*at, key)))]


def _holder(content: Any, place: tuple[Any, ...]) -> Any:
    for key in place[:-1]:
        content = content[key]
    return content


def _value(rng: random.Random, content: Any) -> str:
    place, odd = rng.choice(_places(content)), rng.choice(ODD)
    _holder(content, place)[place[-1]] = odd
    return f"{'.'.join(map(str, place))} is {odd!r:.60}"


def _key(rng: random.Random, content: Any) -> str:
    place = rng.choice([p for p in _places(content) if isinstance(p[-1], str)])
    holder = _holder(content, place)
    value = holder.pop(place[-1])
    new = rng.choice([None, "nam", "", " ", "a\x00b", 1, True, None, 2.5, place[-1] + "s", place[-1].upper()])
    if new is not None:
        holder[new] = value
    return f"key {'.'.join(map(str, place))} becomes {new!r}"


def _wrong_vocabulary(rng: random.Random, content: dict[str, Any]) -> str:
    classes = content["classes"]
    ways: list[Callable[[], Any]] = [
        lambda: classes.append({"name": "Ship "}),
        lambda: classes.extend([{"name": "straße"}, {"name": "STRASSE"}]),
        lambda: classes.extend([{"name": "café"}, {"name": "cafe\u0301"}]),
        lambda: classes.append({"name": rng.choice([None, 1, 1.0, True, [], {}])}),
        lambda: classes.append(
            {"name": rng.choice(["", " ", "\t", "\u00a0", "\u200b", "a\x00", "\x1b[31m", "a\u202e", "\ufffe"])}
        ),
        lambda: classes.append(rng.choice(["plain", 1, None, []])),
        lambda: classes[1].update(
            colour=rng.choice(["#fff", "red", "#gggggg", "203a7a", "#203a7aff", 0x203A7A, [1, 2, 3]])
        ),
        lambda: classes[1].update(synonyms=rng.choice(["boat", [None], [""], [1], {"a": 1}, [["x"]], ["a\x00"]])),
        lambda: content["background"].update(
            threshold=rng.choice([2, -1, float("nan"), float("inf"), "much", None, True, [0]])
        ),
        lambda: content["background"].update(class_name=rng.choice(["nothing", "", None, "Other", 1])),
        lambda: content.update(classes=rng.choice([[], None, {}, "a, b", 3])),
        lambda: content.pop(rng.choice(["name", "classes"])),
        lambda: content.update(colour="red"),
        lambda: content.update(title=rng.choice(["a\x00b", "a\x1bb", 5, ["x"]])),
        lambda: content.update(classes=[{"name": "x" * 6000}]),
    ]
    number = rng.randrange(len(ways))
    ways[number]()
    return f"wrong in a vocabulary's own way ({number})"


def _wrong_catalog(rng: random.Random, content: dict[str, Any]) -> str:
    one, scenes = content["scenes"]["one"], content["scenes"]
    stac = content["collections"]["api"]["stac"]
    ways: list[Callable[[], Any]] = [
        lambda: content.update(version=rng.choice([2, "1.5", None, True, [1], -1])),
        lambda: one.update(vocabulary=rng.choice(["nope", "", None, 1, "../x", "x" * 5000, "a\x00"])),
        lambda: one.update(model=rng.choice(["nope", "", 1, ["plain"]])),
        lambda: one.update(path=rng.choice(["", None, 1, "a\x00b", [], {}])),
        lambda: one.update(
            method=rng.choice([{"method": 1}, {"steps": -1}, {"stepps": 3}, "none", {"lr": float("nan")}])
        ),
        lambda: one.update(
            read=rng.choice([{"gsd": 0}, {"gsd": float("inf")}, {"gsd": True}, {"bands": "1"}, {"bbox": [1, 2]}, 5])
        ),
        lambda: scenes.update(
            {rng.choice(["", " ", "../up", "a/../b", "/abs", "a\x00b", "x" * 300, "\u202e", "."]): one}
        ),
        lambda: scenes.update({rng.choice([1, None, True, 2.5]): one}),
        lambda: content["vocabularies"].update(coast=rng.choice(["gone.yaml", ".", None, 1, "a\x00", "scene.tif"])),
        lambda: content["models"]["plain"].update(
            rng.choice([{"crop": 1}, {"crop": "big"}, {"dtype": "int"}, {"x": 1}, {"wide": [1]}])
        ),
        lambda: content["collections"]["drop"].update(
            rng.choice([{"pattern": ""}, {"pattern": 1}, {"stac": stac}, {"pattern": "a\x00"}])
        ),
        lambda: content["collections"]["drop"].pop("pattern"),
        lambda: stac.update(
            rng.choice([{"bbox": [1, 2, 3]}, {"bbox": [6, 60, 7, 50]}, {"bbox": [6, 50, 7, 151]}, {"url": ""}])
        ),
        lambda: stac.update(
            rng.choice([{"max_items": 0}, {"collections": []}, {"collections": "a"}, {"bbox": [float("nan")] * 4}])
        ),
        lambda: content["datasets"]["mine"].update(
            rng.choice([{"shrink": 0}, {"pixel_size": -1}, {"root": ""}, {"vocabulary": "nope"}])
        ),
        lambda: content["outputs"].update(
            rng.choice([{"root": ""}, {"root": None}, {"root": "${OVRS_NOT_SET}"}, {"rot": "x"}])
        ),
        lambda: content.update({rng.choice(["scene", "base", "Version"]): {}}),
        lambda: content.pop("version"),
        lambda: content.update({rng.choice(["scenes", "models", "vocabularies"]): rng.choice([None, [], "x", 1])}),
    ]
    number = rng.randrange(len(ways))
    ways[number]()
    return f"wrong in a catalog's own way ({number})"


def _path(rng: random.Random, folder: Path, file: Path) -> tuple[str, str]:
    way = rng.choice(["missing", "folder", "circle", "dangling", "pipe", "long", "zero", "device", "below a file"])
    name = file.name
    if way == "folder":
        file.mkdir()
    elif way == "circle":
        file.symlink_to(folder / "other.yaml")
        (folder / "other.yaml").symlink_to(file)
    elif way == "dangling":
        file.symlink_to("nowhere.yaml")
    elif way == "pipe":
        os.mkfifo(file)
    elif way == "long":
        name = "n" * 400 + ".yaml"
    elif way == "zero":
        name = "a\x00b.yaml"
    elif way == "device":
        name = "/dev/zero"
    elif way == "below a file":
        file.write_text("name: x")
        name += "/inner.yaml"
    return name, f"path: {way}"
