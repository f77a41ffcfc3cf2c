"""Every code block of README and docs is true: Python runs, YAML loads, commands exist."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from conftest import environment
from typer.main import get_command
from typer.testing import CliRunner

from ovrs import __version__
from ovrs.cli.app import app
from ovrs.demo.run import WORLD
from ovrs.demo.synth import write_scene
from ovrs.words import vocabulary

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "ovrs/assets/MODEL_CARD.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
    *(ROOT / name for name in ("infra/README.md", "training/README.md")),
]


def blocks(language):
    return [(p.name, b) for p in PAGES for b in re.findall(rf"```{language}\n(.*?)```", p.read_text(), re.S)]


def commands():
    texts = [(p.name, re.sub(r" \\\n\s*", " ", p.read_text())) for p in PAGES]  # a command may go on in the next line
    lines = [(name, line.strip()) for name, text in texts for line in text.splitlines() if line.startswith("    ")]
    return [(page, line.split("#")[0].strip().removeprefix(".venv/bin/")) for page, line in lines]


@pytest.mark.parametrize(("page", "text"), blocks("yaml"))
def test_yaml_blocks_are_vocabularies(page, text):
    assert vocabulary.parse(text, page).classes


@pytest.mark.parametrize(("page", "text"), blocks("python"))
def test_python_blocks_run(page, text, tmp_path):
    (tmp_path / "demo").mkdir()
    write_scene(tmp_path / "demo/scene.tif", height=200, width=200, world=WORLD)
    done = subprocess.run(
        [sys.executable, "-c", text],
        check=False,
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "building" in done.stdout


@pytest.mark.parametrize(("page", "line"), [c for c in commands() if c[1].startswith("ovrs ")])
def test_ovrs_commands_parse(page, line):
    words = shlex.split(line)[1:]
    command = get_command(app)
    while words and hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    context = command.make_context(command.name, words, resilient_parsing=False)
    assert context.params


@pytest.mark.parametrize(("page", "line"), [c for c in commands() if re.search(r"python -m [a-z]+\.", c[1])])
def test_modules_named_in_commands_have_their_options(page, line):
    module = re.search(r"python -m ([\w.]+)", line)[1]
    source = (ROOT / (module.replace("ovrs.flows.", "flows.").replace(".", "/") + ".py")).read_text()
    for option in re.findall(r"--[a-z-]+", line):
        assert f'"{option}"' in source, (module, option)


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in PAGES:
        assert set(re.findall(r"(?:`|^ {4})make ([a-z-]+)", page.read_text(), re.M)) <= targets | {"your"}


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)


def test_version_stands_in_citation_and_changelog():
    """The package's metadata are built from `ovrs.__version__`; two files repeat it for readers."""
    released = re.findall(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert released[0] == __version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "ovrs.__version__"}
    shown = CliRunner().invoke(app, ["--version"])
    assert (shown.exit_code, shown.output) == (0, f"ovrs {__version__}\n")


def test_pages_speak_of_the_present_model():
    """The diary is `training/HISTORY.md`."""
    told = re.compile(r"\b(?:first|second|third|fourth|fifth|sixth)(?: bundled)? model\b|\bcommit [0-9a-f]{7}\b", re.I)
    assert not {page.name: found for page in PAGES if (found := told.findall(page.read_text()))}


def test_every_fault_names_what_holds_it():
    """Each row of the tables of faults ends with tests that exist, or with the command of the soak."""
    rows = [r for r in (ROOT / "docs/faults.md").read_text().splitlines() if r.startswith("| ") and r.count(" | ") == 2]
    assert len(rows) > 70
    for row in (r for r in rows if not r.startswith("| fault ")):
        held = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row.rsplit(" | ", 1)[1])
        assert held or "python -m benchmarks.soak" in row, row
        for file, name in held:
            assert f"def {name}(" in (ROOT / "tests" / file).read_text(), (file, name)


def tutorial():
    lines = [line.strip() for line in (ROOT / "docs/tutorial.md").read_text().splitlines() if line.startswith("    ")]
    return [line for line in lines if not line.startswith("ovrs view")]  # that one serves until it is ended


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_tutorial_works_as_written(tmp_path):
    assert len(tutorial()) >= 7
    env = {k: v for k, v in environment(tmp_path).items() if k != "PYTHONWARNINGS"}  # as a user would
    for line in tutorial():
        command = [sys.executable, "-m", *shlex.split(line)]
        done = subprocess.run(command, check=False, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, (line, done.stderr)
    for product in (
        "town.tif",
        "town.qml",
        "town.gpkg",
        "town.png",
        "town.json",
        "town.csv",
        "town.html",
        "points.gpkg",
        "accuracy.json",
        "change.csv",
        "plain.zarr",
    ):
        assert (tmp_path / product).exists(), product


NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_kept_without_results_and_places_of_a_machine(path):
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert book.cells[0].source.startswith("# ")
    assert not re.search(r"/(?:home|root|work|tmp|Users)/", path.read_text())


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize(
    ("name", "pictures", "told"),
    [("first_map", 2, "'tmpa'"), ("teach_and_assess", 1, "'taught'"), ("cluster_run", 2, "(12, 12)")],
)
def test_notebooks_run(tmp_path, name, pictures, told):
    from nbclient import NotebookClient

    book = nbformat.read(ROOT / f"docs/notebooks/{name}.ipynb", as_version=4)
    NotebookClient(book, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(shown) == pictures
    assert any(told in o.get("data", {}).get("text/plain", "") for o in outputs)


def test_there_is_a_test_for_each_notebook():
    assert {path.stem for path in NOTEBOOKS} == {"first_map", "teach_and_assess", "cluster_run"}
