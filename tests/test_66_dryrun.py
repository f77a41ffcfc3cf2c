"""Dry runs: tiny copies of all sets in their publishers' layouts, and every printed command of every table run on them.

The catalog is the project's own, the networks are stand-ins with the blocks and patches of the papers' and random weights.
"""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from papersets import FORMS, HEIGHT, WIDTH, write_copy
from test_66_bench import bench

from ovrs.bench import accuracy, papers, plots
from ovrs.bench.evaluate import IGNORE
from ovrs.bench.layouts import layouts, open_set
from ovrs.collection import catalog
from ovrs.collection.catalog import DatasetEntry
from ovrs.errors import OptionError

ROOT = Path(__file__).parents[1]
COMMANDS = [(name, n) for name, table in papers.tables().items() for n in range(len(table.commands))]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The project's catalog, and below it `data/` as a researcher would lay it out."""
    root = tmp_path_factory.mktemp("world")
    shutil.copy(ROOT / "data_catalog.yaml", root / "c.yaml")
    known = catalog.load(root / "c.yaml")
    for entry in known.datasets.values():
        if entry.layout in FORMS:
            write_copy(entry.layout, Path(known.resolve(entry.root)))
            write_copy("uavid", root / "data/UAVid", split="val")
    return root


def test_every_layout_of_the_catalog_has_its_tiny_copy(world):
    known = catalog.load(world / "c.yaml")
    assert set(layouts()) == set(FORMS) == {e.layout for e in known.datasets.values()} - {"pairs"}
    for name, entry in known.datasets.items():
        if entry.layout in FORMS:
            data = open_set(name, entry, Path(known.resolve(entry.root)), None)
            found, lacking = data.find()
            assert (len(found), lacking) == (2, []), name
            for sample in found:
                rgb, labels = data.read(sample)
                assert rgb.shape == (3, HEIGHT, WIDTH)
                assert labels.shape == (HEIGHT, WIDTH)
                values = set(np.unique(labels)) - {IGNORE}
                assert values, name
                assert max(values) < len(data.words.classes), name


def printed(name):
    return re.findall(r"^    (ovrs bench accuracy .*)$", papers.side_by_side(name, None), re.M)


def run_printed(world, command, out, *more, corruption=None):
    words = shlex.split(command)[3:]
    assert words[-2:] == ["-o", "results"]
    if corruption and "--corruption" in words:
        words[words.index("--corruption") + 1] = corruption
    done = bench(world, *words[:-1], out, "--dry-run", *more)
    assert done.exit_code == 0, done.output


def rows_of_ours(name, out):
    """Label and cells of our rows in a table."""
    lines = [t for t in papers.side_by_side(name, out).splitlines() if t.startswith("| ↳ ours, ")]
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in lines]
    return {first: rest for first, *rest in cells}


def test_a_dry_run_is_read_back_as_what_it_is(world, tmp_path, monkeypatch):
    """A printed command on one of its sets: text, windows, refinement and table, with random weights."""
    monkeypatch.setattr(plots, "write", lambda *_: [])
    (command,) = printed("naclip-table")
    run_printed(world, re.sub(r"--dataset \S+", "--dataset voc20", command), tmp_path / "r", "--images", "1")
    table, found = papers.tables()["naclip-table"], rows_of_ours("naclip-table", tmp_path / "r")
    for row in table.rows.values():
        ((label, cells),) = ((k, v) for k, v in found.items() if k.startswith(f"↳ ours, {row.run}, "))
        assert label.endswith("ViT-B-16 openai, dry run with random weights")
        assert [c for c, v in zip(table.columns, cells, strict=True) if v != "–"] == ["voc20"]
    assert "dry run with random weights" in (tmp_path / "r/accuracy.md").read_text()
    facts = [facts for facts, _, _ in accuracy.load_cells(tmp_path / "r")]
    assert all(f["dry_run"] and f["model"]["model"] == "ViT-B-16" for f in facts)


def test_stand_ins_have_the_papers_blocks_and_patches():
    from ovrs.model.clip import standin

    large, base = standin.narrowed("ViT-L-14", "openai"), standin.narrowed("ViT-B/16", None)
    shape = ("image_size", "layers", "patch_size")
    assert [large["vision_cfg"][k] for k in shape] == [224, 24, 14]
    assert [base["vision_cfg"][k] for k in shape] == [224, 12, 16]
    assert (large["text_cfg"]["layers"], large["text_cfg"]["context_length"]) == (12, 77)
    assert large["quick_gelu"]
    assert "quick_gelu" not in base
    with pytest.raises(OptionError, match="a dry run stands in for ViTs that open_clip knows by name and for sam3"):
        standin.narrowed("bundled", None)


def test_a_dry_run_shows_two_windows_a_side_at_most(world):
    from ovrs.bench import cells, dryrun, predict, protocols, rows
    from ovrs.options import ModelOptions

    known = catalog.load(world / "c.yaml")
    entry = known.datasets["cityscapes"]
    data = open_set("cityscapes", entry, Path(known.resolve(entry.root)), None)
    row, data = rows.preset_row("mlmp/full", data)
    rgb, labels = data.read(data.samples()[0])
    for dry, size in ((True, (336, 336)), (False, (560, 1120))):
        cell = cells.Cell(data, row, ModelOptions(model="openai-b16"), cells.CLEAN, 0, 1024, dry)
        ((shown, _),) = predict._pictures(cell, row.protocol, rgb, labels.shape, 0)
        assert shown.shape[1:] == size
    for narrow in (protocols.Protocol(crop=224), protocols.Protocol(crop=224, stride=112, whole=True)):
        assert dryrun.shown_size((200, 240), narrow) == (200, 240)


def test_the_papers_split_of_water_bodies_needs_its_list(tmp_path):
    from ovrs.bench import rows
    from ovrs.errors import CatalogError

    write_copy("wbs_si", tmp_path, images=3)
    (tmp_path / "val.txt").write_text("water_body_2\n")
    everything = open_set("wbs_si", DatasetEntry(layout="wbs_si", root=str(tmp_path)), tmp_path, None)
    assert len(everything.samples()) == 3
    _, published = rows.preset_row("segearth", everything)
    assert [s.image.stem for s in published.samples()] == ["water_body_2"]
    (tmp_path / "val.txt").unlink()
    with pytest.raises(CatalogError, match=r"no list of images at .*val\.txt"):
        published.samples()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), COMMANDS)
def test_every_printed_command_runs_and_its_figures_stand_in_the_table(name, number, world, tmp_path, monkeypatch):
    """All rows on all sets. Of the corruptions one stands for all, but in the ablations on VOC20, where all are run once."""
    monkeypatch.setattr(plots, "write", lambda *_: [])
    command, table = printed(name)[number], papers.tables()[name]
    everything = name == "mlmp-table15"
    images = () if name.startswith("mlmp") else ("--images", "1")
    run_printed(world, command, tmp_path / "r", *images, corruption=None if everything else "none,contrast")
    sets = shlex.split(command)[4].split(",")
    found = rows_of_ours(name, tmp_path / "r")
    for row in table.rows.values():
        if row.run and not set(row.skip) & set(sets):
            ((label, cells),) = ((k, v) for k, v in found.items() if k.startswith(f"↳ ours, {row.run}, "))
            assert label.endswith("dry run with random weights")
            filled = {c for c, v in zip(table.columns, cells, strict=True) if v != "–"}
            mine = {c for c in table.columns if c != "mean" and table.data_set(c) in sets}
            broken = {c for c in mine if ":" in c or c.endswith("-C")}
            wanted = mine if everything else mine - broken | {c for c in broken if c.endswith(":contrast")}
            assert filled - {"mean"} == wanted


@pytest.mark.slow
def test_the_sets_that_no_table_names_run_too(world, tmp_path, monkeypatch):
    """Raw iSAID, Potsdam and Vaihingen, and LoveDA in mmsegmentation's folders: all 29 layouts have then been run."""
    monkeypatch.setattr(plots, "write", lambda *_: [])
    named = {d for t in papers.tables().values() for d in t.data_sets}
    rest = sorted(set(FORMS) - named)
    assert rest == ["isaid", "loveda_mmseg", "potsdam", "vaihingen"]
    command = f"ovrs bench accuracy --dataset {','.join(rest)} --model openai-b16 --preset segearth -o results"
    run_printed(world, command, tmp_path / "r")
    assert {f["dataset"] for f, _, _ in accuracy.load_cells(tmp_path / "r")} == set(rest)
