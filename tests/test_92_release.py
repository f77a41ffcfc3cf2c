"""What is released: dependencies, the conda recipe, the wheel and what continuous integration does with it."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = {
    "array-api-compat": "array_api_compat",
    "odc-geo": "odc",
    "open_clip_torch": "open_clip",
    "pillow": "PIL",
    "pystac-client": "pystac_client",
    "pyyaml": "yaml",
}
"""Import names that differ from those of the packages."""
UNSEEN = {
    "bokeh": "pages of Dask's dashboard",
    "fastapi": "a bound for Prefect",
    "s3fs": "fsspec loads it for s3://",
    "sqlalchemy": "a bound for Prefect",
}
"""Dependencies that no module imports, each with the reason."""
BROUGHT = {
    "opentelemetry": "used where somebody installed it",
    "pydantic_core": "a part of pydantic",
    "qgis": "QGIS's own Python runs the plugin",
}
CONDA = {"isal": "python-isal", "open_clip_torch": "open-clip-torch", "torch": "pytorch"}


def parts(requirement):
    return re.match(r"([\w.-]+)(?:\[\w+\])?(.*)$", requirement).groups()


def imported():
    found = set()
    for file in [*ROOT.glob("ovrs/**/*.py"), *ROOT.glob("flows/*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"ovrs", "flows"}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    extras = PROJECT["optional-dependencies"]
    told = [*PROJECT["dependencies"], *(d for e, ds in extras.items() if e not in ("dev", "docs", "train") for d in ds)]
    names = {parts(d)[0] for d in told}
    modules = {MODULES.get(name, name) for name in names - set(UNSEEN)}
    assert imported() - set(BROUGHT) == modules


def test_tested_versions_are_those_of_all_dependencies():
    pinned = {
        re.sub(r"[-_.]+", "-", line.split("==")[0].lower()) for line in (ROOT / "constraints.txt").read_text().split()
    }
    names = {parts(d)[0] for d in PROJECT["dependencies"]}
    assert {re.sub(r"[-_.]+", "-", n.lower()) for n in names} <= pinned


def test_the_conda_recipe_follows_the_project():
    recipe = yaml.safe_load((ROOT / "infra/conda/recipe.yaml").read_text())
    from ovrs import __version__

    assert recipe["context"]["version"] == __version__
    assert f">={recipe['context']['python_min']}" == PROJECT["requires-python"]
    run = [r for r in recipe["requirements"]["run"] if not r.startswith("python ")]
    own = [parts(d) for d in PROJECT["dependencies"]]
    assert run == [f"{CONDA.get(name, name)} {bounds}" for name, bounds in own]


def test_the_workflow_runs_what_the_makefile_has():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert {c.split()[1] for c in commands if c.startswith("make ")} <= targets | {".venv/installed"}
    assert {".ci/run"} <= set(commands)
    classifiers = {c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if "Python ::" in c}
    assert set(jobs["wheel"]["strategy"]["matrix"]["python"]) == classifiers


@pytest.mark.slow
def test_the_wheel_has_code_and_data(tmp_path):
    """Code of all rooms, the flows, weights, templates, presets, words and the viewer's bundle; no tests."""
    tree = tmp_path / "tree"
    for folder in ("ovrs", "flows"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tree)
    build = f"from setuptools import build_meta; print(build_meta.build_wheel({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", build], cwd=tree, check=True, capture_output=True, text=True)
    with zipfile.ZipFile(tmp_path / done.stdout.split()[-1]) as wheel:
        names = set(wheel.namelist())
        metadata = wheel.read(next(n for n in names if n.endswith("METADATA"))).decode()
    sources = {
        str(f.relative_to(ROOT)) for f in ROOT.glob("ovrs/**/*") if f.suffix in (".py", ".j2", ".yaml", ".safetensors")
    }
    assert sources - names <= {f"ovrs/view/source/{n}" for n in ("package.json",)}
    assert {"ovrs/flows/map_scene.py", "ovrs/py.typed", "ovrs/assets/ovrs.json"} <= names
    assert any(n.startswith("ovrs/view/static/") and n.endswith(".js") for n in names)
    assert not [n for n in names if n.startswith(("tests", "benchmarks", "training", "flows"))]
    assert "Requires-Python: >=3.11" in metadata
