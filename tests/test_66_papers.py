"""The papers' tables: every printed command resolves and runs on tiny copies, and its results stand beside the paper's."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from test_66_bench import bench, write_set
from typer.main import get_command

from ovrs.bench import accuracy, cells, papers, plots, rows
from ovrs.bench.layouts import open_set
from ovrs.cli.app import app
from ovrs.collection import catalog
from ovrs.options import ModelOptions

ROOT = Path(__file__).parents[1]
TABLES = list(papers.tables())


def command_of(name):
    (line,) = re.findall(r"^    (ovrs .*)$", papers.side_by_side(name, None), re.M)
    return shlex.split(line)[1:]


@pytest.fixture(scope="module")
def known():
    return catalog.load(ROOT / "data_catalog.yaml")


def parsed(words):
    command = get_command(app)
    while words and hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    return command.make_context(command.name, words).params


@pytest.mark.parametrize("name", TABLES)
def test_printed_commands_resolve(name, known):
    """Each names data sets and models of the catalog, and presets that have options, words and protocol for each set."""
    given = parsed(command_of(name))
    model = known.models[given["model"]]
    for data_set in given["dataset"].split(","):
        entry = known.dataset(data_set)
        data = open_set(data_set, entry, Path("nowhere"), None)
        for preset in given["preset"].split(","):
            row, shown = rows.preset_row(preset, data)
            cell = cells.Cell(shown, row, model, "clean", 0, 1024)
            assert cell.options().method == row.method["method"]
            assert len(shown.words.classes) == len(data.words.classes)
            assert row.protocol is not None
            if not preset.startswith("sam3/"):  # the paper on SAM 3 has no code
                assert "@" in shown.words.provenance["words"]


def test_rows_are_the_papers_networks():
    assert {n: papers.tables()[n].model for n in TABLES} == {
        "tmpa-table1": "openai-b16",
        **{n: "openai-l14" for n in TABLES if n.startswith("mlmp")},
        **dict.fromkeys(("segearth-ov3", "remote-sensing-2026", "coco-sam3-table1", "coco-sam3-ablation"), "sam3"),
    }
    row, _ = rows.preset_row(
        "mlmp/full", open_set("voc20", catalog.DatasetEntry(layout="voc20", root="."), Path(), None)
    )
    assert (row.method["dense"], row.method["logit_scale"]) == ("naclip", 100)


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_quoted_with_source(name):
    text, table = papers.side_by_side(name, None), papers.tables()[name]
    assert "Theirs:" in text
    assert "ours," not in text
    for title in table.rows:
        assert f"| {title} |" in text
    if name == "remote-sensing-2026":
        assert all(row.source and row.date for row in table.rows.values())


@pytest.mark.parametrize("name", TABLES)
def test_printed_means_are_means(name):
    """Where a row has all its sets, its mean is theirs, within a digit: a slip of the pen would show."""
    table = papers.tables()[name]
    if "mean" in table.columns:
        for title, row in table.rows.items():
            values, mean = row.theirs[:-1], row.theirs[-1]
            if None not in values and mean is not None:
                assert np.mean(values) == pytest.approx(mean, abs=0.12), title
    if "voc20-C" in table.columns and len(table.columns) > 2:
        for title, row in table.rows.items():
            assert np.mean(row.theirs[1:-1]) == pytest.approx(row.theirs[-1], abs=0.02), title


@pytest.fixture(scope="module")
def world(tmp_path_factory, known):
    """Tiny copies of all sets in their publishers' layouts, and a catalog with stand-ins for the papers' networks."""
    root = tmp_path_factory.mktemp("papers")
    names = sorted({d for t in papers.tables().values() for d in t.data_sets})
    for name in names:
        write_set(known.dataset(name).layout, root / name)
    (root / "uavid/uavid_val").rename(root / "uavid/uavid_test")  # the split of the papers
    for file in (root / "voc20").glob("*/2007_1.*"):  # corruptions want 32 pixels
        with Image.open(file) as image:
            larger = image.resize((40, 40), Image.Resampling.NEAREST)
        larger.save(file)
    text = {
        "version": 1,
        "models": {n: {"model": "trivial"} for n in ("openai-b16", "openai-l14", "sam3")},
        "datasets": {n: {"layout": known.dataset(n).layout, "root": n} for n in names},
    }
    (root / "c.yaml").write_text(yaml.safe_dump(text))
    return root


@pytest.mark.parametrize("name", TABLES)
def test_printed_commands_run_and_their_results_are_found(name, world, monkeypatch):
    monkeypatch.setattr(plots, "write", lambda *_: [])  # they take most of the time
    words, table = command_of(name)[2:], papers.tables()[name]
    corrupted = "--corruption" in words
    if corrupted:  # all sixteen take long
        words[words.index("--corruption") + 1] = "none,contrast"
    done = bench(world, *words[:-1], world / name)
    assert done.exit_code == 0, done.output
    lines = papers.side_by_side(name, world / name).splitlines()
    wanted = {c for c in table.columns if not c.endswith("-C") and ":" not in c} | (
        {"voc20:contrast"} & set(table.columns) if corrupted else set()
    )
    for row in table.rows.values():
        if row.run:
            (line,) = {t for t in lines if t.startswith(f"| ↳ ours, {row.run}, trivial ")}
            found = [c.strip() for c in line.split("|")[2:-1]]
            assert {c for c, v in zip(table.columns, found, strict=True) if v != "–"} == wanted
    assert any("1 images of " in t for t in lines)


def test_other_experiments_are_not_taken_for_the_papers(tmp_path):
    data = write_set("loveda", tmp_path / "d")
    model = ModelOptions(model="trivial", crop=16)
    accuracy.run_cell(cells.Cell(data, rows.parse_row("none"), model, "clean", 0, 64), tmp_path / "r")
    assert "ours," not in papers.side_by_side("tmpa-table1", tmp_path / "r")
    for preset in ("segearth/loveda", "segearth/udd5"):  # the entry of the set, and another's
        row, mine = rows.preset_row(preset, data)
        accuracy.run_cell(cells.Cell(mine, row, ModelOptions(model="trivial"), "clean", 0, 64), tmp_path / "r")
    row, mine = rows.preset_row("segearth", data, as_published=False)
    accuracy.run_cell(cells.Cell(mine, row, model, "clean", 0, 64), tmp_path / "r")
    lines = [t for t in papers.side_by_side("tmpa-table1", tmp_path / "r").splitlines() if t.startswith("| ↳")]
    assert [t.split("|")[1].strip() for t in lines] == [
        "↳ ours, segearth, trivial",
        "↳ ours, segearth, trivial, images not shown as published",
    ] or [t.split("|")[1].strip() for t in lines] == [
        "↳ ours, segearth, trivial, images not shown as published",
        "↳ ours, segearth, trivial",
    ]
    assert "1 images of loveda" in papers.side_by_side("tmpa-table1", tmp_path / "r")
