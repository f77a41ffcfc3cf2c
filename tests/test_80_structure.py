"""Who may import whom, and what a bare import costs. Read from the source, so that a slip fails here first."""

import ast
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = (
    (
        "errors",
        "encoding",
        "files",
        "provenance",
        "redact",
        "foreign",
        "yamlfile",
        "names",
        "cache",
        "objects",
        "telemetry",
    ),
    ("words",),
    ("methods",),
    ("options",),
    ("request",),
    ("scene",),
    ("collection",),
    ("engine",),
    ("store", "testing"),
    ("model",),
    ("clean",),
    ("export",),
    ("run", "assess"),
    ("view", "qgis"),
    ("bench", "pipeline", "preview"),
    ("demo", "repair", "flows"),
    ("cli",),
)
"""Rooms (folders or modules of `ovrs/`) from the ground up: a room imports from floors below its own, and from itself."""
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def imports(file, *, typing=True):
    """Modules that a file imports; with `typing` false, without imports for type checking."""
    tree = ast.parse(file.read_text())
    typing_only = {
        id(n)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING"
        for n in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing_only and not typing:
            continue
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
    return found


def room_of(file):
    parts = file.relative_to(ROOT / "ovrs").with_suffix("").parts
    return parts[0]


SOURCES = sorted((ROOT / "ovrs").rglob("*.py"))


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: str(f.relative_to(ROOT)))
def test_a_room_imports_only_rooms_below_it(file):
    own = room_of(file)
    if own in ("__init__", "__main__"):
        return
    for module in imports(file):
        if module.startswith("ovrs.") and (other := module.split(".")[1]) != own:
            if other == "__version__":
                continue
            same_ground = FLOOR[own] == 0  # the ground floor is one: no circle there, see below
            assert FLOOR[other] < FLOOR[own] or (same_ground and FLOOR[other] == 0), f"{own} must not know {module}"


def test_modules_have_no_circles():
    """Type-only imports included: what cannot be told apart cannot be understood apart."""
    modules = {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in SOURCES}
    known = {name: {m for m in imports(f) if m in modules and m != name} for name, f in modules.items()}
    rooms = {name: (name.split(".")[1] if "." in name else name) for name in modules}
    across = {n: {m for m in found if rooms[m] != rooms[n] and m != "ovrs"} for n, found in known.items()}
    state = {}

    def visit(name, way):
        if state.get(name) == "done":
            return
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        for other in across[name]:
            visit(other, [*way, name])
        state[name] = "done"

    for name in modules:
        visit(name, [])


def test_settings_of_the_process_are_made_at_its_edges():
    """A library call changes nothing for the rest of a program: the command line, workers and flows do."""
    users = {
        str(file.relative_to(ROOT))
        for file in [*SOURCES, *(ROOT / "flows").glob("*.py")]
        if "keep_freed_memory()" in file.read_text() and room_of_any(file) != "engine"
    }
    assert users == {"ovrs/cli/app.py", "ovrs/run/work.py", "flows/map_scene.py"}
    ready = (ROOT / "ovrs/run/work.py").read_text().partition("def prepare(")[2].partition("def ")[0]
    assert "keep_freed_memory()" in ready


def room_of_any(file):
    return "flows" if file.parent.name == "flows" else room_of(file)


def test_a_module_is_no_word_for_a_value():
    for file in [*SOURCES, *(ROOT / "flows").glob("*.py")]:
        names = {
            a.asname
            for n in ast.walk(ast.parse(file.read_text()))
            for a in getattr(n, "names", [])
            if hasattr(a, "asname")
        }
        assert "room" not in names, file


def test_values_have_types_of_their_own():
    """A dictionary of anything is for JSON of others; what crosses the border of a room is a class."""
    assert sum(file.read_text().count("dict[str, " + "Any]") for file in SOURCES) < 40


def test_few_rooms_know_the_options():
    """Rooms that pass options on without reading them take a `Request` or a `Job`."""
    users = {room_of(f) for f in SOURCES if any(m.startswith("ovrs.options") for m in imports(f))} - {"__init__"}
    assert len(users) <= 11, sorted(users)


def test_the_drawn_structure_is_the_present_one():
    drawing = importlib.import_module("benchmarks.structure")
    found = {file: (ROOT / file).read_text() for file in (*drawing.PICTURES.values(), drawing.PAGE)}
    again = "run `python -m benchmarks.structure --write`"
    assert found[drawing.PICTURES["structure"]] == drawing.structure(), again
    assert found[drawing.PICTURES["pixel"]] == drawing.pixel(), again
    assert found[drawing.PAGE] == drawing.page(found[drawing.PAGE]), again
    for _, _, where in drawing.WAY:
        assert (ROOT / "ovrs" / where).is_file()


def test_every_room_has_a_floor():
    assert {room_of(f) for f in SOURCES} - {"__init__", "__main__"} == set(FLOOR) - {"flows"}


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: str(f.relative_to(ROOT)))
def test_torch_and_prefect_stay_in_their_rooms(file):
    tops = {m.split(".")[0] for m in imports(file, typing=False)}
    assert "prefect" not in tops
    assert "flows" not in tops
    if room_of(file) != "model":
        assert not tops & {"torch", "open_clip"}, "torch lives in ovrs/model"


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: str(f.relative_to(ROOT)))
def test_modules_stay_readable(file):
    assert len(file.read_text().splitlines()) <= 400


def test_nobody_but_flows_knows_prefect():
    for file in (ROOT / "flows").glob("*.py"):
        assert not any(m.startswith("torch") for m in imports(file))
        relative = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.ImportFrom) and n.level]
        assert all(n.level == 1 for n in relative)
        assert not any(m.startswith("flows") for m in imports(file) - {n.module for n in relative})


def test_the_wheel_has_every_folder_of_code_and_data():
    """`ovrs.flows` lies outside of `ovrs/`, so packages are listed by hand."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {f.parent for f in SOURCES}
    for package, patterns in settings["package-data"].items():
        where = ROOT / package.replace(".", "/")
        folders |= {f.parent for pattern in patterns for f in where.glob(pattern)}
    named = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert settings["package-dir"] == {"ovrs.flows": "flows"}
    assert sorted(settings["packages"]) == sorted(named | {"ovrs.flows"})


@pytest.mark.parametrize(
    "command", ["import ovrs", "from ovrs.cli.app import app", "import ovrs.run.job, ovrs.run.report"]
)
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
