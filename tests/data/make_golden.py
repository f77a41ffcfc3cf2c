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


def main(golden: Path) -> None:  # noqa: C901
    for patch in (8, 16):
        weights = load_file(golden / f"common/tiny_clip_p{patch}.safetensors")
        # every value is exactly representable in float16 (README of the full set)
        small = {k: v.astype(np.float16) if v.dtype == np.float32 else v for k, v in weights.items()}
        assert all((small[k].astype(v.dtype) == v).all() for k, v in weights.items())
        save_file(small, HERE / f"tiny_clip_p{patch}.safetensors")
    common = json.loads((golden / "common/common.json").read_text())
    (HERE / "golden.json").write_text(
        json.dumps({k: common[k] for k in ("queries", "query_idx", "classes")}, indent=1) + "\n"
    )

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
        "mlmp_text_2": "mlmp/p16_naclip_L2_alpha1_text_s2",
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
    for tag, name in {"clipartt": "p8_naclip_k3_s3", "watt": "p8_naclip_l2_m2", "tpt": "p8_naclip_s3_lr5e-3"}.items():
        run = np.load(golden / f"{tag}/{name}.npz")
        arrays |= {f"{tag}_losses": run["losses"], f"{tag}_logits": run["logits_after"][:, :, ::4, ::4]}
        arrays[f"{tag}_image"] = run["image"]
        if tag == "tpt":
            arrays |= {"tpt_context": run["ctx_after"], "tpt_text": run["text_after"]}
        else:
            arrays[f"{tag}_ln_post"] = run["ln_after/visual.ln_post.weight"]
    for tag, name in {"clipartt": "p16_naclip_k3_s3", "watt": "p16_naclip_l2_m2"}.items():  # two images, as published
        run = np.load(golden / f"{tag}/{name}.npz")
        arrays |= {f"{tag}_two_losses": run["losses"], f"{tag}_two_logits": run["logits_after"][:, :, ::4, ::4]}
        arrays[f"{tag}_two_ln_post"] = run["ln_after/visual.ln_post.weight"]
    for name in ("p16_depth4_iter2_tempNone", "p8_depth3_iter1_tempNone", "p8_depth4_iter1_temp4.0"):
        arrays[f"gem_{name}"] = np.load(golden / f"gem/{name}.npz")["gem_img80x112"]
    for name in ("kk", "nonly", "vanilla"):
        arrays[f"naclip_{name}"] = np.load(golden / f"naclip/p16_reduced_{name}_std5.npz")["tokens_img80x112"]
    arrays["naclip_residual"] = np.load(golden / "naclip/p16_vanilla_naclip_std5.npz")["tokens_img80x112"]
    arrays["naclip"] = np.load(golden / "naclip/p8_reduced_naclip_std5.npz")["tokens_img80x112"]
    proxy = np.load(golden / "proxyclip/tokens_p8.npz")
    arrays |= {"proxy_images": inputs["img96"], "proxy_external": proxy["ex_feats_img96"].astype(np.float32)}
    arrays["proxy_tokens"] = proxy["tokens_img96_beta1.2_gamma3.0"]
    for kind in ("jbu_one", "jbu_stack"):
        save_file(load_file(golden / f"segearth/{kind}_dim32.safetensors"), HERE / f"{kind}.safetensors")
        run = np.load(golden / f"segearth/upsampler_{kind}.npz")
        arrays |= {f"{kind}_stage1": run["stage1_out"], f"{kind}_out": run["out"][:, :, ::4, ::4]}
        arrays |= {f"{kind}_source": run["source"], f"{kind}_guide": run["guidance"]}
    segmentor = np.load(golden / "segearth/segmentor_up_lam-0.3.npz")
    arrays["segmentor_up_slide"] = segmentor["forward_slide"][0, :, ::3, ::3]
    arrays["segmentor_up_probs"] = segmentor["final_probs"][:, ::3, ::3]
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
