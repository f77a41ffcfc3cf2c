"""Random mutants: one small fault in engine, store, run or scene, and whether the tests of that room find it.

    python -m benchmarks.mutants --seed 1 --count 20

A mutant is one changed operator, condition, number or dropped call, drawn at random from all code of the four rooms.
It lives in a copy of the tree; the tree itself is never changed. A run that ends after `--seconds` counts as found.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPIED = ("ovrs", "flows", "tests", "benchmarks", "docs", "pyproject.toml", "README.md", "data_catalog.yaml")
TESTS = {
    "engine": ("test_10_tiling.py", "test_40_block.py"),
    "store": ("test_20_store.py", "test_20_map.py"),
    "run": ("test_20_damage.py", "test_57_planning.py"),
    "scene": ("test_20_scene.py", "test_20_pixels.py", "test_20_aoi.py", "test_20_identity.py", "test_10_ground.py"),
}
"""The quick tests of each room."""
WHOLE_RUNS = ("test_50_pipeline.py", "test_55_stopped.py", "test_61_hostile.py", "test_64_published.py")
"""Tests of whole runs; `--more` adds them."""
COMPARE = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult}
LOGIC = {ast.And: ast.Or, ast.Or: ast.And}


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One fault."""

    file: str
    line: int
    before: str
    after: str
    source: str
    """The whole module with the fault."""

    @property
    def room(self) -> str:
        return self.file.split("/")[1]


def mutants_of(file: Path) -> list[Mutant]:
    """Every mutant of a module, in the order of its lines."""
    tree = ast.parse(file.read_text())
    found = []
    for place, node in enumerate(ast.walk(tree)):
        if _is_changeable(node, tree):
            other = ast.parse(file.read_text())
            target = next(n for i, n in enumerate(ast.walk(other)) if i == place)
            before = ast.unparse(target)
            _change(target)
            name = str(file.relative_to(ROOT))
            after = ast.unparse(target)
            found.append(Mutant(file=name, line=node.lineno, before=before, after=after, source=ast.unparse(other)))
    return sorted(found, key=lambda m: (m.line, m.before))


def _is_changeable(node: ast.AST, tree: ast.Module) -> bool:
    if isinstance(node, ast.Compare):
        return type(node.ops[0]) in COMPARE
    if isinstance(node, ast.BinOp):
        return type(node.op) in ARITHMETIC and not _is_text(node)
    if isinstance(node, ast.BoolOp):
        return True
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.Not)
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return not ast.unparse(node.value.func).startswith(("log.", "warnings."))  # what is only said may be left out
    return isinstance(node, ast.Constant) and type(node.value) in (int, bool) and _counts(node, tree)


def _is_text(node: ast.BinOp) -> bool:
    return any(
        isinstance(n, ast.JoinedStr) or (isinstance(n, ast.Constant) and isinstance(n.value, str))
        for n in ast.walk(node)
    )


def _counts(node: ast.Constant, tree: ast.Module) -> bool:
    """Whether a number is part of a computation and not of a constant's definition, a default or an annotation."""
    return any(
        isinstance(parent, (ast.BinOp, ast.Compare, ast.Subscript, ast.Return))
        and node in list(ast.iter_child_nodes(parent))
        for parent in ast.walk(tree)
    )


def _change(node: ast.AST) -> None:
    if isinstance(node, ast.Compare):
        node.ops[0] = COMPARE[type(node.ops[0])]()
    elif isinstance(node, ast.BinOp):
        node.op = ARITHMETIC[type(node.op)]()
    elif isinstance(node, ast.BoolOp):
        node.op = LOGIC[type(node.op)]()
    elif isinstance(node, ast.UnaryOp):
        node.op, node.operand = ast.Not(), ast.UnaryOp(ast.Not(), node.operand)
    elif isinstance(node, ast.Expr):
        node.value = ast.Constant(None)
    elif isinstance(node, ast.Constant):
        node.value = (not node.value) if isinstance(node.value, bool) else node.value + 1


def drawn(seed: int, count: int) -> list[Mutant]:
    """`count` mutants, equally many of each room."""
    chooser = random.Random(seed)
    chosen = []
    for index, room in enumerate(TESTS):
        every = [m for f in sorted((ROOT / "ovrs" / room).glob("*.py")) for m in mutants_of(f)]
        chosen += chooser.sample(every, count // len(TESTS) + (index < count % len(TESTS)))
    return chosen


def killer(mutant: Mutant, tests: tuple[str, ...], copy: Path, seconds: float) -> str:
    """The test of the mutant's room that fails first; empty when none does."""
    file = copy / mutant.file
    original = file.read_text()
    file.write_text(mutant.source)
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        *(f"tests/{t}" for t in tests),
    ]
    try:
        done = subprocess.run(
            command, check=False, cwd=copy, env=environment, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return f"no end after {seconds:.0f} s"
    finally:
        file.write_text(original)
    failed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return (failed or ["the tests do not run"])[0] if done.returncode else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1200.0)
    parser.add_argument("--only", type=int, nargs="+", help="numbers of the mutants to run")
    parser.add_argument("--more", action="store_true", help="also the tests of whole runs: minutes for each survivor")
    parser.add_argument("--list", action="store_true", help="show them and run nothing")
    args = parser.parse_args()
    found = survived = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "tree"
        for name in () if args.list else COPIED:
            source = ROOT / name
            shutil.copytree(source, copy / name) if source.is_dir() else shutil.copy(source, copy / name)
        for number, mutant in enumerate(drawn(args.seed, args.count), 1):
            if args.only and number not in args.only:
                continue
            told = f"{number:2} {mutant.file}:{mutant.line}  {mutant.before[:70]}  ->  {mutant.after[:70]}"
            if args.list:
                print(told)
                continue
            started = time.monotonic()
            tests = TESTS[mutant.room] + (WHOLE_RUNS if args.more else ())
            test = killer(mutant, tests, copy, args.seconds)
            found, survived = found + bool(test), survived + (not test)
            word = "killed  " if test else "SURVIVED"
            print(f"{word} {told}  ({time.monotonic() - started:.0f} s) {test}", flush=True)
    if not args.list:
        print(f"{found} killed, {survived} survived")


if __name__ == "__main__":
    main()
