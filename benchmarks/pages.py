"""Write the figures of the pages from the results files.

    python -m benchmarks.pages            # writes the pages and benchmarks/results/README.md
    python -m benchmarks.pages --check    # writes nothing; tells what differs, exit code 1
    python -m benchmarks.pages --run DATA # first runs the commands whose files are absent or of other weights
    python -m benchmarks.pages --run DATA --only left_out text # only these

A table stands between `<!-- figures: NAME -->` and `<!-- end of figures -->`; `benchmarks/tables.py` makes it. A figure in
a sentence stands between `<!--=FILE/KEY/KEY:FORMAT-->` and `<!--/-->`. A table whose results file is absent, or was measured with other
weights than the bundled ones, names the command in the place of figures.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.figures import PAGES, ROOT
from benchmarks.record import RESULTS, weights
from benchmarks.tables import TABLES, gains, number

_ADAPT, _PART = "python -m benchmarks.adaptation --data DATA", "--side 320 --images 4"
COMMANDS = {
    "left_out": "python -m benchmarks.left_out --data DATA",
    "windows": "python -m benchmarks.windows --data DATA --every 3",
    "adaptation": f"{_ADAPT} --rows text paraphrases colour",
    "adaptation_coarse": f"{_ADAPT} --sets czortho --shrink 2.4 --rows text paraphrases colour",
    "templates": f"{_ADAPT} --rows text --set bare=false",
    "methods_czech": f"{_ADAPT} --sets czortho --shrink 2.4 --rows text norms {_PART}",
    "methods_dubai": f"{_ADAPT} --sets dubai --rows text norms {_PART}",
    "corrupted_czech": f"{_ADAPT} --sets czortho --shrink 2.4 --rows text {_PART} --corruption all --severity 5",
    "corrupted_dubai": f"{_ADAPT} --sets dubai --rows text {_PART} --corruption all --severity 5",
    "teach": "python -m benchmarks.teach --data DATA",
    "loop": "python -m benchmarks.loop --data DATA",
    "scenes": "python -m benchmarks.scenes --data DATA",
    "text": "python -m benchmarks.text",
    "demo": "python -m benchmarks.accuracy",
    "memory": "python -m benchmarks.memory --sizes 2048 8192",
    "engine": "python -m benchmarks.engine --size 8192 --repeats 3",
    "peers": "python -m benchmarks.peers --size 8192 --repeats 3",
    "peers_large": "python -m benchmarks.peers --size 16384 --repeats 2 --only xbatcher --work FOLDER",
    "startup": "python -m benchmarks.startup --repeats 3",
    "allocator": "python -m benchmarks.allocator",
    "speed": "python -m benchmarks.speed --steps 3",
    "bookkeeping": "python -m benchmarks.bookkeeping --pieces 0",
    "sam3": "python -m benchmarks.sam3 --classes 5 20 50 --present 5 --size small --threads 1",
    "soak": "python -m benchmarks.soak --minutes 60 --seed 22 --pace 40",
}
"""By results file, without `--out`."""
TABLE = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end of figures -->)", re.S)
VALUE = re.compile(r"(<!--=([^:>]+):([^>]+?)-->).*?(<!--/-->)", re.S)


def load(name: str) -> dict[str, Any] | None:
    """Return one results file; None where it is absent or its figures are those of other weights."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return None
    kept = json.loads(path.read_text())
    return kept if kept["model"] in (None, weights()) else None


def derived(name: str, results: Any) -> Any:
    """Return results with what sentences quote besides: gains over names."""
    if name != "left_out":
        return results
    rule = dict(zip(results, gains(results, "scene rule"), strict=True))
    names = [found["miou"]["names"] for found in results.values()]
    scene = [found["miou"]["scene rule"] for found in results.values()]
    spans = {"names": {"least": min(names), "most": max(names)}, "scene": {"least": min(scene), "most": max(scene)}}
    return {**results, "gain": {**rule, "least": min(rule.values()), "most": max(rule.values())}, "span": spans}


def table_of(name: str) -> str:
    """Return a table with the command behind it, or the command alone."""
    made = TABLES[name]
    files = list(inspect.signature(made).parameters)
    kept = {file: load(file) for file in files}
    absent = [file for file in files if kept[file] is None]
    if absent:
        return f"Not measured with the present weights; {told_commands(absent)}.\n"
    body = made(**{file: found["results"] for file, found in kept.items() if found})
    machines = ", ".join(dict.fromkeys(found["machine"] for found in kept.values() if found))
    return f"{body}\n\nMade by {told_commands(files)} ({machines}).\n"


def told_commands(files: list[str]) -> str:
    """Name the commands of results files."""
    return " and ".join(f"`{COMMANDS[file]}`" for file in files)


def value_of(path: str, form: str) -> str:
    """Return one figure of a results file by its keys.

    Raises:
        SystemExit: The file is absent or of other weights.
    """
    name, *keys = path.split("/")
    kept = load(name)
    if kept is None:
        raise SystemExit(f"benchmarks/results/{name}.json is absent or of other weights: run {COMMANDS[name]} --out …")
    found = derived(name, kept["results"])
    for key in keys:
        found = found[key]
    return number(found, form)


def written(text: str) -> str:
    """Return a page with today's figures."""
    text = TABLE.sub(lambda m: f"{m[1]}\n{table_of(m[2])}\n{m[3]}", text)
    return VALUE.sub(lambda m: f"{m[1]}{value_of(m[2], m[3])}{m[4]}", text)


def ledger(pages: Mapping[Path, str]) -> str:
    """Return the page that lists the results files."""
    users: dict[str, list[str]] = {name: [] for name in COMMANDS}
    for page, text in pages.items():
        files = {file for _, name, _ in TABLE.findall(text) for file in inspect.signature(TABLES[name]).parameters}
        files |= {path.split("/")[0] for _, path, _, _ in VALUE.findall(text)}
        for file in files:
            users[file].append(f"[{page.name}](../../{page.relative_to(ROOT)})")
    rows = [f"| `{name}.json` | `{command}` | {', '.join(users[name])} |" for name, command in COMMANDS.items()]
    head = (
        "# Results files\n\nEach file holds one command's figures, with the command, the machine and the digest of the weights.\n"
        "`python -m benchmarks.pages` writes the pages from them; `--run DATA` first runs what is absent or of other weights.\n"
        "The commands end with `--out benchmarks/results/FILE`. `allowed.yaml` lists the figures that pages may write by hand.\n"
        "Other files, such as `device.json` of `python -m benchmarks.device`, are results of commands that no page quotes from.\n\n"
        "| file | command | pages |\n|---|---|---|\n"
    )
    return head + "\n".join(rows) + "\n"


def differing() -> dict[Path, str]:
    """Return the pages that do not hold today's figures, with the text that they should have."""
    texts = {page: page.read_text() for page in PAGES}
    wanted = {page: written(text) for page, text in texts.items()} | {RESULTS / "README.md": ledger(texts)}
    return {page: text for page, text in wanted.items() if not page.exists() or page.read_text() != text}


def run(data: str, only: list[str]) -> None:
    """Run the commands whose files are absent or of other weights, one after the other."""
    for name, command in COMMANDS.items():
        if name in only and load(name) is None:
            words = [data if word == "DATA" else word for word in shlex.split(command)]
            out = ["--out", str(RESULTS / f"{name}.json")]
            print(f"# {command}", flush=True)
            subprocess.run([sys.executable, *words[1:], *out], check=True, cwd=ROOT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--run", metavar="DATA", help="folder of the labelled sets")
    parser.add_argument("--only", nargs="+", choices=list(COMMANDS), default=list(COMMANDS), help="results files")
    args = parser.parse_args()
    if args.run:
        run(args.run, args.only)
    found = differing()
    for page, text in found.items():
        print(page.relative_to(ROOT))
        if not args.check:
            page.write_text(text)
    raise SystemExit(1 if args.check and found else 0)


if __name__ == "__main__":
    main()
