"""Draw the structure of `ovrs` from its imports, and a pixel's way, for `docs/architecture.md`.

    python -m benchmarks.structure --write

Rooms are the folders and modules of `ovrs/`; their floors are those that `tests/test_80_structure.py` enforces. An arrow
goes from a room to one that it imports. Arrows that follow from others are left out.
"""

from __future__ import annotations

import argparse
import ast
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURES = {"structure": "docs/structure.svg", "pixel": "docs/pixel.svg"}
PAGE = "docs/architecture.md"
BEGIN, END = "<!-- rooms: made by benchmarks/structure.py -->", "<!-- end of rooms -->"
STYLE = (
    "<style>text{font:13px sans-serif;fill:#222}.s{font-size:11px;fill:#555}rect{fill:#f4f6f8;stroke:#5b7083}"
    "path{fill:none;stroke:#5b7083}</style>"
    '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0L8 4L0 8" style="fill:#5b7083"/></marker></defs>'
)
WAY = (
    ("read window", "block and all its tiles, uint8 RGB", "scene/raster.py"),
    ("tile", "crops of one scene-wide grid", "engine/tiling.py"),
    ("crops", "enlarged, normalised, one batch", "model/clip/inputs.py"),
    ("scores", "features against text, per class", "model/clip/segmenter.py"),
    ("blend", "weights sum over tiles or crops", "engine/block.py"),
    ("decide", "best class, threshold, confidence", "engine/decide.py"),
    ("chunk", "label and confidence of the core", "store/layout.py"),
    ("marker", "counts, areas, CRC: the block is done", "run/rundir.py"),
)
"""Stations of a pixel: name, what happens, where."""


def floors() -> tuple[tuple[str, ...], ...]:
    """Rooms from the ground up, as the test of the structure has them."""
    for node in ast.parse((ROOT / "tests/test_80_structure.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "FLOORS":
            return ast.literal_eval(node.value)
    raise LookupError("tests/test_80_structure.py has no FLOORS")


def files_of(room: str) -> list[Path]:
    """The modules of a room."""
    folder = ROOT / ("flows" if room == "flows" else f"ovrs/{room}")
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def imported(room: str, rooms: set[str]) -> set[str]:
    """Other rooms that a room imports, type-only imports included."""
    found = set()
    for file in files_of(room):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or "", *(f"{node.module}.{n}" for n in names)]
            found |= {n.split(".")[1] for n in names if n.startswith("ovrs.")}
    return (found & rooms) - {room}


def purpose(room: str) -> str:
    """The first sentence of a room's docstring."""
    first = files_of(room)[0]
    text = ast.get_docstring(ast.parse(first.read_text())) or ""
    return " ".join(text.split("\n\n")[0].split()).split(". ")[0].rstrip(".:")


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The graph without arrows that follow from others."""

    def reach(room: str) -> set[str]:
        return graph[room].union(*(reach(other) for other in graph[room])) if graph[room] else set()

    return {room: {o for o in found if not any(o in reach(p) for p in found - {o})} for room, found in graph.items()}


def graph() -> dict[str, set[str]]:
    """What each room imports, without circles of the ground floor."""
    levels = floors()
    height = {room: number for number, rooms in enumerate(levels) for room in rooms}
    return {room: {o for o in imported(room, set(height)) if height[o] < height[room]} for room in height}


def structure() -> str:
    """The rooms by floor as SVG, the ground floor below."""
    levels, step, width = floors(), 66, 1100
    high = len(levels) * step + 20
    place = {}
    for number, rooms in enumerate(levels):
        for index, room in enumerate(rooms):
            across = (2 * index + 1) / (2 * len(rooms)) if len(rooms) > 1 else (0.34, 0.5, 0.66)[number % 3]
            place[room] = (width * across, high - number * step - 44)
    parts = []
    for room, others in sorted(reduced(graph()).items()):
        x, y = place[room]
        for other in sorted(others):
            u, v = place[other]
            parts.append(
                f'<path d="M{x:.0f} {y + 14:.0f}C{x:.0f} {y + 40:.0f} {u:.0f} {v - 40:.0f} {u:.0f} {v - 15:.0f}" marker-end="url(#a)"/>'
            )
    for room, (x, y) in place.items():
        parts.append(f'<rect x="{x - 52:.0f}" y="{y - 14:.0f}" width="104" height="28" rx="4"/>')
        parts.append(f'<text x="{x:.0f}" y="{y + 4:.0f}" text-anchor="middle">{room}</text>')
    return _svg(width, high, parts)


def pixel() -> str:
    """A pixel's way through the program as SVG."""
    across, wide, high = 4, 262, 118
    parts = []
    for number, (name, what, where) in enumerate(WAY):
        row, column = divmod(number, across)
        column = across - 1 - column if row % 2 else column
        x, y = 14 + column * wide, 14 + row * high
        parts.append(f'<rect x="{x}" y="{y}" width="226" height="74" rx="4"/>')
        parts.append(f'<text x="{x + 10}" y="{y + 22}" font-weight="bold">{number + 1}. {escape(name)}</text>')
        parts.append(f'<text x="{x + 10}" y="{y + 42}" class="s">{escape(what)}</text>')
        parts.append(f'<text x="{x + 10}" y="{y + 60}" class="s">ovrs/{escape(where)}</text>')
        if number + 1 < len(WAY):
            if (number + 1) % across == 0:
                line = f"M{x + 113} {y + 74}L{x + 113} {y + high - 2}"
            else:
                line = f"M{x} {y + 37}L{x - 34} {y + 37}" if row % 2 else f"M{x + 226} {y + 37}L{x + 260} {y + 37}"
            parts.append(f'<path d="{line}" marker-end="url(#a)"/>')
    return _svg(across * wide, -(-len(WAY) // across) * high, parts)


def _svg(width: int, height: int, parts: list[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{STYLE}'
    return (
        "\n".join([head, '<rect width="100%" height="100%" style="fill:#fff;stroke:none"/>', *parts, "</svg>"]) + "\n"
    )


def table() -> str:
    """Every room with its purpose and what it imports, from the top floor down."""
    lines = ["| floor | room | what | imports |", "|---|---|---|---|"]
    found = {room: imported(room, {r for level in floors() for r in level}) for level in floors() for room in level}
    for number, rooms in reversed(list(enumerate(floors()))):
        lines += [f"| {number} | `{r}` | {purpose(r)} | {', '.join(sorted(found[r])) or '–'} |" for r in sorted(rooms)]
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with the present table of rooms."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="into docs/; else the table is printed")
    if not parser.parse_args().write:
        print(table())
        return
    for name, draw in (("structure", structure), ("pixel", pixel)):
        (ROOT / PICTURES[name]).write_text(draw())
    (ROOT / PAGE).write_text(page((ROOT / PAGE).read_text()))


if __name__ == "__main__":
    main()
