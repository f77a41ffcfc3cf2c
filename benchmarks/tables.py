"""The tables of the pages, each made from results files (`python -m benchmarks.pages` puts them into the pages)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Results = Mapping[str, Any]
SEVERITY = 5


def number(value: float, form: str = ".1f") -> str:
    """A number with a true minus sign."""
    return format(value, form).replace("-", "−")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines).replace("|  |", "| |")


def ways(head: str, names: Mapping[str, str], kept: Mapping[str, Results], rows: Mapping[str, str]) -> str:
    """One row a way, one column a set: mIoU."""
    found = [[told, *(number(kept[s][row]) for s in names)] for row, told in rows.items()]
    return table([head, *names.values()], found)


def gains(kept: Results, row: str) -> list[float]:
    """Gain of a row over names, by set."""
    return [found["miou"][row] - found["miou"]["names"] for found in kept.values()]


def gained(found: Results, row: str) -> str:
    """mIoU of a row, its gain over names, and the interval of the gain."""
    score, (low, high) = found["miou"][row], found["gain_5_95"][row]
    gain = score - found["miou"]["names"]
    return f"{number(score)} ({number(gain, '+.1f')} [{number(low, '+.1f')}, {number(high, '+.1f')}])"


def mean_and_least(kept: Results, row: str) -> str:
    """Mean and least gain of a row over names."""
    own = gains(kept, row)
    return f"{number(sum(own) / len(own), '+.2f')}, {number(min(own), '+.2f')}"


def readme(left_out: Results) -> str:
    """README: three ways on one foreign and one familiar set."""
    chosen = {"Kampala": "Kampala (5 classes)", "Dubai, tiles 1 and 2": "Dubai (5 classes)"}
    rows = {
        "most frequent class everywhere": lambda found: found["majority"],
        "class names, no adaptation": lambda found: found["miou"]["names"],
        "class names, calibrated to the scene: the default": lambda found: found["miou"]["scene rule"],
    }
    body = [[told, *(number(pick(left_out[s])) for s in chosen)] for told, pick in rows.items()]
    return table(["", *chosen.values()], body)


def card_sets(left_out: Results) -> str:
    """Model card: names and the default on every set."""
    rows = [
        [title, number(found["miou"]["names"]), number(found["miou"]["scene rule"])]
        for title, found in left_out.items()
    ]
    return table(["", "names", "calibrated to the scene"], rows)


def unseen(left_out: Results) -> str:
    """Adaptation: three rules on every set, with intervals."""
    rules = ("TMPA per image", "scene rule per image", "scene rule")
    rows = [
        [f"{title} ({found['images']})", number(found["miou"]["names"]), *(gained(found, rule) for rule in rules)]
        for title, found in left_out.items()
    ]
    means = [mean_and_least(left_out, rule) for rule in rules]
    head = ["set (images)", "names", "TMPA per image", "scene rule per image", "scene rule, pooled"]
    return table(head, [*rows, ["mean gain, least gain", "", *means]])


def coninfer(left_out: Results) -> str:
    """Adaptation: ConInfer on every set, with intervals."""
    rules = ("ConInfer τ 50 per image", "ConInfer τ 50")
    rows = [
        [f"{title} ({found['images']})", number(found["miou"]["names"]), *(gained(found, rule) for rule in rules)]
        for title, found in left_out.items()
    ]
    means = [mean_and_least(left_out, rule) for rule in rules]
    head = ["set (images)", "names", "ConInfer per image", "ConInfer, pooled"]
    return table(head, [*rows, ["mean gain, least gain", "", *means]])


def windows(windows: Results) -> str:
    """Adaptation: wider windows on every set: accuracy by names and calibrated, and how far window edges show."""
    choices = list(next(iter(windows.values())))
    rows = [
        [title, *(f"{number(found[c]['names'])} / {number(found[c]['scene'])}" for c in choices)]
        for title, found in windows.items()
    ]

    def mean(choice: str, key: str) -> float:
        return sum(found[choice][key] for found in windows.values()) / len(windows)

    rows += [
        ["mean", *(f"{number(mean(c, 'names'))} / {number(mean(c, 'scene'))}" for c in choices)],
        ["straight borders, px per Mpx", *(number(mean(c, "straight"), ".0f") for c in choices)],
        ["their ratio in overlaps", *(number(mean(c, "ratio"), ".2f") for c in choices)],
        ["seconds of encoding", *(number(mean(c, "seconds"), ".0f") for c in choices)],
    ]
    return table(["set", *choices], rows)


TEXT_ROWS = {
    "names": "names",
    "+ synonyms": "+ synonyms",
    "+ descriptions": "+ descriptions",
    "fixed alpha 0.02": "+ descriptions, fixed α 0.02",
    "fixed alpha 0.1": "+ descriptions, fixed α 0.1",
    "TMPA": "+ descriptions, TMPA",
    "TMPA + shift": "+ descriptions, TMPA with shift",
}
BASE_ROWS = {
    "majority class": "most frequent class everywhere",
    "nearest mean colour": "nearest mean colour of the training images",
}
PARAPHRASES = {f"paraphrase {k}": f"names, paraphrase {k}" for k in (1, 2, 3)}


def prompts(adaptation: Results, adaptation_coarse: Results) -> str:
    """Results: what is asked for, on the held-out parts of the model's own sets."""
    kept = {
        "czech": adaptation["czortho"]["none"],
        "coarse": adaptation_coarse["czortho"]["none"],
        "dubai": adaptation["dubai"]["none"],
    }
    names = {
        "czech": f"Czech T8 ({adaptation['czortho']['images']})",
        "coarse": f"Czech T8 at 0.3 m ({adaptation_coarse['czortho']['images']})",
        "dubai": f"Dubai 1, 2 ({adaptation['dubai']['images']})",
    }
    return ways("", names, kept, BASE_ROWS | TEXT_ROWS | PARAPHRASES)


def templates(adaptation: Results, templates: Results) -> str:
    """Results: bare words against CLIP's templates."""
    names = {"czortho": "Czech T8", "dubai": "Dubai 1, 2"}
    rows = []
    for asked, told in (("names", "names"), ("+ descriptions", "with descriptions")):
        for kept, way in ((adaptation, "bare"), (templates, "in CLIP's 80 templates")):
            rows.append([f"{told}, {way}", *(number(kept[s]["none"][asked]) for s in names)])
    return table(["", *names.values()], rows)


def corrupted(corrupted_czech: Results, corrupted_dubai: Results) -> str:
    """Results: fifteen corruptions at severity 5."""
    czech, dubai = corrupted_czech["czortho"], corrupted_dubai["dubai"]
    kinds = [kind for kind in czech if kind.endswith(f" {SEVERITY}")]
    rows = {"names": "names", "+ descriptions": "+ descriptions", "TMPA": "TMPA"}
    head = ["severity 5", *(f"{place}, {told}" for place in ("Czech T8", "Dubai") for told in rows.values())]
    columns = [(found, row) for found in (czech, dubai) for row in rows]
    body = [
        [kind.removesuffix(f" {SEVERITY}"), *(number(found[kind][row]) for found, row in columns)] for kind in kinds
    ]
    means = [number(sum(found[kind][row] for kind in kinds) / len(kinds)) for found, row in columns]
    return table(head, [*body, [f"**mean of {len(kinds)}**", *means]])


def methods(methods_czech: Results, methods_dubai: Results) -> str:
    """Adaptation: other methods on small clean samples."""
    kept = {"czech": methods_czech["czortho"]["none"], "dubai": methods_dubai["dubai"]["none"]}
    names = {"czech": "Czech T8 at 0.3 m", "dubai": "Dubai 1, 2"}
    return ways("", names, kept, TEXT_ROWS | {k: k for k in ("TENT", "TPT", "CLIPArTT", "WATT", "MLMP")})


def teach(teach: Results) -> str:
    """Guide: what ten examples a class gain."""
    rows = []
    for title, found in teach.items():
        for points, told in found.items():
            gain, least = number(told["gain"], "+.1f"), number(told["least"], "+.1f")
            rows.append([title, points, number(told["before"]), gain, least])
    return table(["set", "points a class", "mIoU before", "mean gain", "least gain"], rows)


def loop(loop: Results) -> str:
    """Guide: two scenes before and after a few clicks, assessed by points set by eye."""
    rows = []
    for title, found in loop.items():
        first, taught = found["first"], found["taught"]
        overall = [f"{number(step['overall'])} ± {number(step['half'])}" for step in (first, taught)]
        rows.append([title, str(found["clicks"]), str(first["points"]), *overall])
        for name, told in taught["classes"].items():
            before = first["classes"].get(name)
            shares = [f"F1 {number(step['f1'])}, {number(step['mapped'])} ha" for step in (before, told) if step]
            rows.append([f"… {name}", "", f"{number(told['hectares'])} ha", *(shares if before else ["–", *shares])])
    return table(["scene", "clicks", "reference", "first map", "taught"], rows)


def scenes(scenes: Results) -> str:
    """Model card: scene classes."""
    rows = [
        [name, str(found["images"]), str(found["classes"]), number(found["class token"])]
        for name, found in scenes.items()
    ]
    return table(["set", "images", "classes", "right, %"], rows)


def text(text: Results) -> str:
    """Model card: phrases that are ranked first for their own concept."""
    told = {
        "held_out_words": "words and synonyms",
        "held_out_descriptions": "descriptions",
        "held_out_contexts": "sentences, most without their class's name",
    }
    rows = [
        [f"{text[name]['phrases']} {what}", str(text[name]["concepts"]), number(text[name]["bare"])]
        for name, what in told.items()
    ]
    return table(["phrases", "concepts to choose from", "ranked first, %"], rows)


def demo(demo: Results) -> str:
    """Model card: whole maps of the demo scene."""
    rows = [
        [name, number(found["miou"]), number(found["mpx_min"])]
        for name, found in demo["demo scene"].items()
        if "mpx_min" in found
    ]
    return table(["demo scene of 2,048 × 2,048 pixels", "mIoU", "megapixels per minute"], rows)


def memory(memory: Results) -> str:
    """Memory: peak of whole processes by size of the scene."""
    sizes = list(memory["map"])
    rows = [[f"{int(size):,}²", *(f"{memory[way][size]['peak_mb']:,.0f}" for way in memory)] for size in sizes]
    return table(["scene, pixels", *(f"`ovrs {way}`, peak MB" for way in memory)], rows)


def engine(engine: Results) -> str:
    """Memory: the engine against bare loops."""
    zarr, raster = (engine[way] for way in ("bare Zarr loop, halo 32", "bare rasterio loop, no overlap"))
    rows = [
        [
            way,
            number(found["seconds"]),
            number(found["seconds"] / zarr["seconds"], ".2f"),
            number(found["whole"]),
            number(found["whole"] / raster["whole"], ".2f"),
            f"{found['peak_mb']:,.0f}",
            number(found["agree"], ".4f"),
        ]
        for way, found in engine.items()
    ]
    head = ["way", "after imports, s", "over bare Zarr", "whole process, s", "over bare rasterio", "peak MB", "agree"]
    return table(head, rows)


def peers(peers: Results) -> str:
    """Memory: the engine beside other programs' tiling."""
    return _beside(peers)


def peers_large(peers_large: Results) -> str:
    """Memory: the engine beside the quickest of them on a scene of four times the size."""
    return _beside(peers_large)


def _beside(peers: Results) -> str:
    rows = [
        [
            name,
            number(found["whole"]),
            number(found["seconds"]),
            f"{found['peak_mb']:,.0f}",
            number(found["agree"], ".4f"),
        ]
        for name, found in sorted(peers.items(), key=lambda one: one[1]["whole"])
    ]
    return table(["engine", "whole process, s", "of it mapping, s", "peak MB", "agree"], rows)


def startup(startup: Results) -> str:
    """Memory: seconds from a command to its first tile, and what imports cost."""
    rows = [
        [name, number(found["wall"]), number(found["processor"]), ", ".join(found.get("imported", ())) or "–"]
        for name, found in startup.items()
    ]
    return table(["process", "seconds", "processor seconds", "heavy packages imported"], rows)


def allocator(allocator: Results) -> str:
    """Memory: batches per second under each rule of the allocator."""
    rows = [[rule, " + ".join(number(rate, ".2f") for rate in rates)] for rule, rates in allocator.items()]
    return table(["rule", "batches of 16 crops per second"], rows)


def speed(speed: Results) -> str:
    """Methods: seconds of each method against a plain implementation."""
    rows = [[f"`{name}`", number(found["ours_s"]), number(found["plain_s"])] for name, found in speed.items()]
    return table(["method", "`ovrs`, s", "plain, s"], rows)


def sam3(sam3: Results) -> str:
    """SAM 3: passes and seconds of decoding all classes, and of those that are there."""
    rows = [
        [
            *(str(row[key]) for key in ("classes", "decode", "small_passes", "decoder_passes")),
            *(number(row[key], ".2f") for key in ("vision_seconds", "detector_seconds", "agreement")),
        ]
        for row in sam3["rows"]
    ]
    head = ["classes", "decode", "small passes", "decoder passes", "vision, s", "detector, s", "agreement"]
    return table(head, rows)


def bookkeeping(bookkeeping: Results) -> str:
    """Scale: what the first process does for a large scene."""
    rows = [[name, number(told["seconds"]), number(told["mb"], ".0f")] for name, told in bookkeeping["steps"].items()]
    side, blocks = (format(bookkeeping[key], ",") for key in ("side", "blocks"))
    return table([f"step of the first process ({side}² pixels, {blocks} blocks)", "s", "MB after it"], rows)


def soak(soak: Results) -> str:
    """Scale: what was killed and delivered, and how it ended."""

    def counted(found: Mapping[str, int]) -> str:
        return f"{sum(found.values())}: " + ", ".join(f"{name} {count}" for name, count in found.items())

    end = "; ".join(soak["faults"]) or (
        "every image mapped, each content once, labels and confidence equal to a serial run, pixel for pixel"
    )
    rows = [
        ["killed (SIGKILL)", counted(soak["killed"])],
        ["delivered", counted(soak["delivered"])],
        ["at rest", f"{number(soak['seconds_to_rest'], '.0f')} s after the last kill"],
        ["contents", str(soak["contents"])],
        ["load of the machine", number(soak["load"])],
        ["end", end],
    ]
    return table(["what", "figures"], rows)


TABLES: dict[str, Callable[..., str]] = {
    made.__name__: made
    for made in (
        readme,
        card_sets,
        unseen,
        coninfer,
        windows,
        prompts,
        templates,
        corrupted,
        methods,
        teach,
        loop,
        scenes,
        text,
        demo,
        memory,
        engine,
        peers,
        peers_large,
        startup,
        allocator,
        speed,
        sam3,
        bookkeeping,
        soak,
    )
}
"""By name. The parameters of a table are the names of its results files."""
