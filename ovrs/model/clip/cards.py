"""Several GPUs in one machine: each local Dask worker has a card of its own."""

from __future__ import annotations

import os

import torch

from ovrs.engine.workers import LOCAL_WORKER
from ovrs.errors import OptionError


def own_card(device: torch.device) -> torch.device:
    """Return the card of this process where `device` names no card and this is one of several local workers."""
    worker = os.environ.get(LOCAL_WORKER, "")
    if str(device) != "cuda" or not worker.isdecimal():
        return device
    return torch.device("cuda", int(worker) % torch.cuda.device_count())


def require_cards(device: str, workers: int) -> None:
    """Refuse more local workers than cards, unless a card is named that they share.

    Args:
        device: The option `model.device`.
        workers: Processes that load the network.

    Raises:
        OptionError: Says how to go on.
    """
    named = device if device != "auto" else os.environ.get("OVRS_DEVICE", "cuda")
    cards = torch.cuda.device_count() if named == "cuda" and torch.cuda.is_available() else workers
    if workers > cards:
        raise OptionError(
            f"{workers} local Dask workers for {cards} GPU{'s' if cards > 1 else ''}: each needs one of its own; give "
            f"--workers {cards}, or --device cuda:0 to let all share that one"
        )
