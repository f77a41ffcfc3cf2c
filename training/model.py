"""The shape of the bundled model, in one place."""

from __future__ import annotations

import open_clip

EMBED_DIM = 256
CONFIG = {
    "embed_dim": EMBED_DIM,
    "vision_cfg": {"image_size": 160, "layers": 6, "width": 256, "head_width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 192, "heads": 3, "layers": 4},
}


def build() -> open_clip.CLIP:
    """Randomly initialised CLIP of the bundled size: 9.5 M token rows, 1.8 M text, 4.9 M vision parameters."""
    return open_clip.CLIP(EMBED_DIM, CONFIG["vision_cfg"], CONFIG["text_cfg"])
