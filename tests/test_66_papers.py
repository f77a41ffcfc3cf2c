"""The papers' tables: every printed command resolves, and figures are what their sources print (`test_66_dryrun` runs them)."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from test_66_bench import write_set
from typer.main import get_command

from ovrs.bench import accuracy, cells, papers, rows
from ovrs.bench.layouts import open_set
from ovrs.cli.app import app
from ovrs.collection import catalog
from ovrs.methods.preset import method_options
from ovrs.model.adapt import mlmp
from ovrs.options import ModelOptions

ROOT = Path(__file__).parents[1]
TABLES = list(papers.tables())


def commands_of(name):
    return [shlex.split(line)[1:] for line in re.findall(r"^    (ovrs .*)$", papers.side_by_side(name, None), re.M)]


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
    seen = []
    for given in map(parsed, commands_of(name)):
        model = known.models[given["model"]]
        for data_set in given["dataset"].split(","):
            seen.append(data_set)
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
    assert sorted(seen) == sorted(papers.tables()[name].data_sets)


def test_only_sets_with_corrupted_columns_are_corrupted_and_skipped_rows_are_left_out():
    first, second, third = (parsed(words) for words in commands_of("mlmp-table5"))
    assert first["dataset"] == "voc20,voc21,context59,context60"
    assert (second["dataset"], third["dataset"]) == ("cityscapes", "coco_object,coco_stuff")
    assert (first["corruption"], second["corruption"], third["corruption"]) == ("all", "all", "none")
    assert ["clipartt" in given["preset"] for given in (first, second, third)] == [True, False, True]


def test_the_twelve_columns_of_mlmps_table_3_are_its_twelve_settings():
    """Each row's options say which of the four parts are in it: levels, prompts, image level, weights."""
    wanted = ["0000", "1000", "1001", "0100", "0010", "1100", "1101", "1010", "1011", "0110", "1110", "1111"]
    found = []
    for row in papers.tables()["mlmp-table3"].rows.values():
        given = {"layers": None, "templates": "separate", "image_weight": 1.0, "beta": 1.0}
        given |= method_options(row.run)
        if given["method"] == "tent":
            given |= {"layers": 1, "templates": "single", "image_weight": 0.0}
        levels = given["layers"] != 1
        parts = (levels, given["templates"] != "single", given["image_weight"] > 0, levels and given["beta"] > 0)
        found.append("".join(str(int(p)) for p in parts))
    assert found == wanted


def test_the_numbers_of_prompts_of_mlmps_figure_4():
    """dosowiechi/MLMP@2a887de, templates_*.yaml: counts, ends and the plain prompt."""
    sets = {n: mlmp.template_set(n) for n in mlmp.TEMPLATE_COUNTS}
    assert all(len(set(found)) == n for n, found in sets.items())
    assert sets[1] == ("a photo of a {}",)
    assert sets[3] == mlmp.MLMP_TEMPLATES[:3]
    assert (sets[20][0], sets[20][1], sets[20][-1]) == ("a photo of a {}", "a bad photo of a {}.", "the plastic {}.")
    assert (sets[80][:20], sets[80][-1]) == (sets[20], "a tattoo of the {}.")
    assert [method_options(f"mlmp/prompts_{n}").get("template_count") for n in (3, 7, 20, 80)] == [3, None, 20, 80]


def test_rows_are_the_papers_networks():
    assert {n: papers.tables()[n].model for n in TABLES} == {
        **dict.fromkeys(
            ("tmpa-table1", "tmpa-ablation", "single-class-2026", "naclip-table", "coninfer-table1"), "openai-b16"
        ),
        **{n: "openai-l14" for n in TABLES if n.startswith("mlmp") and n != "mlmp-table10"},
        "mlmp-table10": "openai-b16",
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
    for mean in [c for c in table.columns if c.endswith("-C")]:
        kinds = [i for i, c in enumerate(table.columns) if c.startswith(mean.removesuffix("-C") + ":")]
        for title, row in table.rows.items():
            if kinds and row.theirs[kinds[0]] is not None:
                found = np.mean([row.theirs[i] for i in kinds])
                assert found == pytest.approx(row.theirs[table.columns.index(mean)], abs=0.02), title


def test_figures_of_the_same_experiment_agree_between_tables():
    """Tables of one paper quote the same runs: no set, row and network has two figures."""
    found = {}
    for name, table in papers.tables().items():
        if name.startswith("mlmp"):
            for row in table.rows.values():
                for column, value in zip(table.columns, row.theirs, strict=True):
                    if row.run and value is not None:
                        options = method_options(row.run.partition("+")[0])
                        key = (
                            table.model,
                            column,
                            str(sorted(options.items())),
                            row.run.partition("+")[2],
                            "one" in row.run,
                        )
                        assert found.setdefault(key, value) == value, (name, row.run, column)
    assert len(found) > 500


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
