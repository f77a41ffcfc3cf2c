"""Who may import whom, and what a bare import costs. Read from the source, so that a slip fails here first."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEAVES = {"errors", "allocator", "ground", "redact"}
LOW = {
    "grid",
    "tiling",
    "radiometry",
    "decide",
    "evaluate",
    "provenance",
    "vocabulary",
    "contract",
    "synth",
    "yamlfile",
}


def imports(file):
    """Modules a file imports at run time (imports for type checking are left out)."""
    tree = ast.parse(file.read_text())
    typing_only = {
        id(n)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING"
        for n in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
    return found


def rooms(file):
    return {m.split(".")[1] for m in imports(file) if m.startswith("ovrs.")}


SOURCES = sorted((ROOT / "ovrs").rglob("*.py"))


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: str(f.relative_to(ROOT)))
def test_layers(file):
    tops = {m.split(".")[0] for m in imports(file)}
    inside_model = "model" in file.parent.parts
    assert "prefect" not in tops
    assert "flows" not in tops
    if not inside_model:
        assert not tops & {"torch", "open_clip"}, "torch lives in ovrs/model"
    if inside_model:
        assert not rooms(file) & {"scene", "opening", "store", "job", "pipeline", "export", "rundir"}
    if file.stem in LOW and file.parent.name == "ovrs":
        assert rooms(file) <= LOW | LEAVES | {"vocabularies"}
    if file.stem == "execute":
        assert rooms(file) <= LEAVES
    if file.stem in LEAVES and file.parent.name == "ovrs":
        assert rooms(file) <= {"redact"}


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: str(f.relative_to(ROOT)))
def test_modules_stay_readable(file):
    assert len(file.read_text().splitlines()) <= 400


def test_nobody_but_flows_knows_prefect():
    for file in (ROOT / "flows").glob("*.py"):
        assert not any(m.startswith("torch") for m in imports(file))


@pytest.mark.parametrize("command", ["import ovrs", "from ovrs.__main__ import app", "import ovrs.job, ovrs.report"])
def test_imports_are_light(command):
    code = f"{command}; import sys; heavy = {{'torch', 'prefect', 'geopandas', 'open_clip', 'distributed'}} & set(sys.modules); assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_public_names_resolve():
    import ovrs

    for name in ovrs.__all__:
        assert getattr(ovrs, name) is not None
    with pytest.raises(AttributeError):
        _ = ovrs.nothing


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda f: f.stem)
def test_benchmarks_can_be_imported_and_tell_their_command(file, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    if file.stem != "__init__":
        module = importlib.import_module(f"benchmarks.{file.stem}")
        if hasattr(module, "main"):
            assert f"python -m benchmarks.{file.stem}" in module.__doc__
