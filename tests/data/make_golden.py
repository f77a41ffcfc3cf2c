"""Cut the golden arrays down to what the tests compare (about 3 MB).

    python tests/data/make_golden.py GOLDEN_DIRECTORY

The full set was computed by running the authors' public code on a tiny random CLIP: SegEarth-OV (likyoo/SegEarth-OV
@3e22a96), ClearCLIP's fork for vanilla (mc-lan/ClearCLIP@ad68a40), the text tower of dosowiechi/MLMP@2a887de, and for
TMPA a transcription of the path stored as dawndaa/TMPA@660b5b2. Float32, CPU; tolerance 1e-4.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

HERE = Path(__file__).parent


def main(golden: Path) -> None:
    for patch in (8, 16):
        weights = load_file(golden / f"common/tiny_clip_p{patch}.safetensors")
        # every value is exactly representable in float16 (README of the full set)
        small = {k: v.astype(np.float16) if v.dtype == np.float32 else v for k, v in weights.items()}
        assert all((small[k].astype(v.dtype) == v).all() for k, v in weights.items())
        if patch == 8:  # the text tower is the same kind of thing; its vectors are stored with each run
            small = {k: v for k, v in small.items() if k.startswith("visual.")}
        save_file(small, HERE / f"tiny_clip_p{patch}.safetensors")
    common = json.loads((golden / "common/common.json").read_text())
    (HERE / "golden.json").write_text(json.dumps({k: common[k] for k in ("queries", "query_idx")}, indent=1) + "\n")

    inputs, text = np.load(golden / "common/inputs.npz"), np.load(golden / "common/text_p16.npz")
    arrays = {
        "img64": inputs["img64"][:1],
        "img80x112": inputs["img80x112"],
        "img150x130": inputs["img150x130"],
        "queries_avg80": text["queries_avg80"],
    }
    for variant in ("vanilla", "MaskCLIP", "SCLIP", "ClearCLIP", "SegEarth"):
        tokens = np.load(golden / f"segearth/tokens_{variant}_p16.npz")
        kind = "noresid" if variant in ("ClearCLIP", "SegEarth") else "resid"
        for image in ("img64", "img80x112"):
            for part in ("tokens", "cls"):
                arrays[f"{variant.lower()}_{image}_{part}"] = tokens[f"{kind}_{image}_{part}"]
    segmentor = np.load(golden / "segearth/segmentor_noup_lam-0.3.npz")
    arrays["segmentor_slide"] = segmentor["forward_slide"][0, :, ::3, ::3]
    arrays["segmentor_probs"] = segmentor["final_probs"][:, ::3, ::3]
    for name in ("noup_max_alpha_only_lr1e-2", "noup_max_lr1e-3"):
        run = np.load(golden / f"tmpa/{name}.npz")
        tag = "tmpa_alpha" if "alpha" in name else "tmpa_shift"
        for key in (
            "losses",
            "alpha_after",
            "shift_after",
            "anchors_first_window",
            "prototypes_first_window",
            "params",
            "ori_shape",
        ):
            arrays[f"{tag}_{key}"] = run[key]
        arrays[f"{tag}_probs_before"], arrays[f"{tag}_probs_after"] = (
            run["probs_before"][:, ::5, ::5],
            run["probs_after"][:, ::5, ::5],
        )
        arrays["tmpa_image"] = run["image"]
    norm_runs = {
        "tent_naclip": "tent/p8_naclip_s3",
        "tent_vanilla": "tent/p8_clip_s3",
        "mlmp_naclip_3": "mlmp/p8_naclip_L3_alpha1_loss_s3",
        "mlmp_sclip_1": "mlmp/p8_sclip_L1_alpha1_loss_s2",
        "mlmp_naclip_4": "mlmp/p8_naclip_L4_alpha1_loss_s10",
    }
    for tag, name in norm_runs.items():
        run = np.load(golden / f"{name}.npz")
        arrays |= {
            f"{tag}_losses": run["losses"],
            f"{tag}_text": run["text_x"],
            f"{tag}_logits": run["logits_after"][:, :, ::4, ::4],
        }
        arrays[f"{tag}_ln_post"] = run["ln_after/visual.ln_post.weight"]
        arrays[f"{tag}_ln_1"] = run["ln_after/visual.transformer.resblocks.2.ln_1.bias"]
        if "layer_weights_eval_after" in run:
            arrays[f"{tag}_layers"] = run["layer_weights_eval_after"]
        arrays["norm_image"] = run["image"]
    miou = np.load(golden / "metrics/miou.npz")
    arrays |= {
        "miou_pred": miou["pred"].astype(np.uint8),
        "miou_label": miou["label"].astype(np.uint8),
        "miou": miou["mIoU"],
        "aacc": miou["aAcc"],
    }
    np.savez_compressed(HERE / "golden.npz", **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
