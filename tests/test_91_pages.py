"""Pages hold the figures of the results files, and nothing that no file holds; formulas and sections are there."""

import json
import re
from pathlib import Path

import pytest
import yaml

from benchmarks import figures, pages, record
from benchmarks.tables import PARAPHRASES, TABLES, TEXT_ROWS
from ovrs.methods.registry import DENSE, METHODS

ROOT = Path(__file__).parents[1]
METHODS_PAGE = (ROOT / "docs/methods.md").read_text()


def slug(heading):
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip())


def headings(text):
    return re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)


def test_pages_hold_what_the_results_files_hold():
    found = [str(page.relative_to(ROOT)) for page in pages.differing()]
    assert not found, "run `python -m benchmarks.pages`"


def test_every_figure_of_a_page_has_a_file_or_a_source():
    assert figures.unheld() == {}
    assert figures.unused() == {}


@pytest.mark.parametrize(
    "claim", ["It gains 57.3 mIoU.", "| TMPA | 57.3 |", "A map takes 57 s.", "57 %", "1,057 MB", "57.3 is best"]
)
def test_a_figure_without_a_file_is_found(claim):
    page = ROOT / "README.md"
    assert figures.figures(page.read_text()) == []
    found = figures.figures(f"{page.read_text()}\n{claim}\n")
    assert len(found) == 1
    assert found[0] not in figures.allowed(page)


def test_definitions_are_no_figures():
    assert (
        figures.figures("Pixels of 0.25 m with Python 3.11 (arXiv 2410.01768), `x=0.5`.\n\n    ovrs map --gsd 0.3\n")
        == []
    )


def test_a_figure_between_markers_is_written_anew():
    text = (
        "<!--=left_out/Kampala/miou/names:.1f-->99.9<!--/-->\n<!-- figures: readme -->\nlies\n<!-- end of figures -->\n"
    )
    told = json.loads((ROOT / "benchmarks/results/left_out.json").read_text())["results"]["Kampala"]["miou"]["names"]
    written = pages.written(text)
    assert "99.9" not in written
    assert "lies" not in written
    assert written.count(f"{told:.1f}") == 2
    assert pages.written(written) == written


def test_figures_of_other_weights_give_way_to_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "RESULTS", tmp_path)
    kept = {"command": "-", "machine": "-", "model": "0" * 16, "results": {}}
    (tmp_path / "left_out.json").write_text(json.dumps(kept))
    assert "Not measured with the present weights; `python -m benchmarks.left_out" in pages.table_of("readme")
    with pytest.raises(SystemExit, match=r"left_out\.json is absent or of other weights"):
        pages.value_of("left_out/Kampala/images", "d")


def test_results_files_tell_the_command_that_makes_them():
    for path in sorted(record.RESULTS.glob("*.json")):
        if path.stem in pages.COMMANDS:  # others belong to pages that wait
            kept = json.loads(path.read_text())
            assert kept["command"] == f"{pages.COMMANDS[path.stem]} --out benchmarks/results/{path.name}", path.name
            assert kept["model"] in (None, record.weights()), f"{path.name} is of other weights"


def made_up():
    """Results as the commands keep them, with one number for everything."""
    rows = [
        "majority class",
        "nearest mean colour",
        *TEXT_ROWS,
        *PARAPHRASES,
        "TENT",
        "TPT",
        "CLIPArTT",
        "WATT",
        "MLMP",
    ]
    both = {
        s: {"images": 4, "none": dict.fromkeys(rows, 31.25), "fog 5": dict.fromkeys(rows, 31.25)}
        for s in ("czortho", "dubai")
    }
    way = {"seconds": 31.25, "whole": 31.25, "peak_mb": 31.25, "agree": 1.0}
    seconds = dict.fromkeys(("vision_seconds", "detector_seconds", "agreement"), 31.25)
    step = {
        "points": 31,
        "overall": 31.25,
        "half": 8.0,
        "classes": {"road": {"f1": 31.25, "mapped": 1.0, "hectares": 1.0}},
    }
    phrases = {"concepts": 4, "phrases": 8, "bare": 31.25}
    return {
        **{name: both for name in pages.COMMANDS if re.match("adaptation|templates|methods|corrupted", name)},
        "teach": {"Kampala": {"10": {"before": 31.25, "gain": -31.25, "least": -31.25, "repeats": 5}}},
        "loop": {"Cologne": {"clicks": 31, "first": step, "taught": step}},
        "scenes": {"all names": {"images": 4, "classes": 2, "class token": 31.25}},
        "text": dict.fromkeys(("held_out_words", "held_out_descriptions", "held_out_contexts"), phrases),
        "demo": {"demo scene": {"default": {"miou": 31.25, "mpx_min": 31.25}, "majority class": {"miou": 31.25}}},
        "memory": {
            "map": {"64": {"peak_mb": 31.25, "seconds": 1.0}},
            "export": {"64": {"peak_mb": 31.25, "seconds": 1.0}},
        },
        "engine": dict.fromkeys(("bare Zarr loop, halo 32", "bare rasterio loop, no overlap", "ovrs, serial"), way),
        "peers": {"xbatcher": way},
        "peers_large": {"xbatcher": way},
        "startup": {"first tile": {"wall": 31.25, "processor": 31.25, "imported": ["torch"]}},
        "allocator": {"glibc's own": [31.25], "two at once": [31.25, 31.25]},
        "windows": {"Ohio": {"recommended": dict.fromkeys(("names", "scene", "straight", "ratio", "seconds"), 31.25)}},
        "sam3": {"rows": [{"classes": 31, "decode": "all", "small_passes": 0, "decoder_passes": 31, **seconds}]},
        "bookkeeping": {"side": 31, "blocks": 31, "steps": {"finish": {"seconds": 31.25, "mb": 31.25}}},
        "soak": {
            **{key: {"worker": 31} for key in ("killed", "delivered")},
            "seconds_to_rest": 31,
            "contents": 4,
            "load": 31.25,
            "faults": [],
        },
        "speed": {"tmpa": {"ours_s": 31.25, "plain_s": 31.25, "passes": 1.0}},
    }


@pytest.mark.parametrize("name", sorted(set(TABLES) - {"readme", "card_sets", "unseen", "coninfer"}))
def test_tables_are_made_of_results(name, tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "RESULTS", tmp_path)
    for file, results in made_up().items():
        kept = {"command": "-", "machine": "2 cores", "model": record.weights(), "results": results}
        (tmp_path / f"{file}.json").write_text(json.dumps(kept))
    told = pages.table_of(name).split("\n\n")[0].splitlines()
    assert len({line.count("|") for line in told}) == 1
    assert any("31" in cell for cell in told[2].split("|"))


def test_every_method_and_variant_has_its_section():
    told = {name for heading in headings(METHODS_PAGE) for name in re.findall(r"`(\w+)`", heading)}
    assert set(METHODS) <= told
    rows = set(re.findall(r"^\| `(\w+)` \|", METHODS_PAGE, re.M))
    assert {entry.name for entry in DENSE} <= rows


def test_formulas_become_mathml():
    convert = pytest.importorskip("latex2mathml.converter").convert
    plain = re.sub(r"```.*?```|`[^`\n]*`", "", METHODS_PAGE, flags=re.S)
    shown = re.findall(r"\$\$(.+?)\$\$", plain, re.S)
    inline = re.findall(r"\$([^$\n]+)\$", re.sub(r"\$\$.+?\$\$", "", plain, flags=re.S))
    assert len(shown) > 12
    assert len(inline) > 60
    for source in shown + inline:
        assert "\\" not in re.sub(r"<.*?>", "", convert(source)), source


def test_anchors_in_docstrings_and_pages_exist():
    """`docs/methods.md#none` in code, and `page.md#section` in a page, lead to a heading."""
    anchors = {p: {slug(h) for h in headings(p.read_text())} for p in ROOT.glob("docs/**/*.md")}
    for code in sorted(ROOT.glob("ovrs/**/*.py")):
        assert not re.search(r"`methods`|`docs/methods\.md`", code.read_text()), f"{code.name} names no section"
        for page, anchor in re.findall(r"`docs/([\w/.-]+\.md)#([\w-]+)`", code.read_text()):
            assert anchor in anchors[ROOT / "docs" / page], (code.name, page, anchor)
    for source in anchors:
        for page, anchor in re.findall(r"\]\(([\w/.-]*)#([\w-]+)\)", source.read_text()):
            assert anchor in anchors[(source.parent / page).resolve() if page else source], (source.name, page, anchor)


def test_allowed_figures_name_a_source():
    kinds = yaml.safe_load(figures.ALLOWED.read_text())
    assert set(kinds) == {"definitions", "published", "waiting"}
    assert all(len(entry["source"]) > 20 for entry in kinds["published"])


@pytest.mark.parametrize("page", sorted((ROOT / "docs/decisions").glob("*.md")), ids=lambda p: p.stem[:4])
def test_decisions_have_a_date_a_status_and_alternatives(page):
    title, head, *rest = page.read_text().split("\n\n")
    assert title.startswith(f"# {int(page.stem[:4])}. ")
    assert re.fullmatch(r"Date: \d{4}-\d\d-\d\d\. Status: (?:accepted|superseded by .+)\.", head)
    assert re.search(r"^(?:\*\*)?Alternatives|^## Why not", "\n\n".join(rest), re.M)
    assert page.name in (ROOT / "infra/mkdocs.yml").read_text()
    assert page.name in (ROOT / "docs/index.md").read_text()


def test_the_tree_of_the_architecture_names_every_room():
    page = (ROOT / "docs/architecture.md").read_text()
    tree = page[page.index("## The tree") : page.index("## A pixel's way")]
    rooms = {f.name + "/" for f in (ROOT / "ovrs").iterdir() if (f / "__init__.py").exists() and f.name != "assets"}
    modules = {f.name for f in (ROOT / "ovrs").glob("*.py") if not f.name.startswith("__")}
    assert {name for name in rooms | modules if name not in tree} == set()
