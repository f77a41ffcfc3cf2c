"""Models of the table (`known.yaml`) by their names: fetched once, imported into the cache, loaded from there.

`$OVRS_CACHE/models/NAME` is the imported directory. A file laid into `$OVRS_CACHE/models` by hand is taken in the place of a
download, so that machines without internet can be served.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ovrs import files
from ovrs.cache import cache_directory
from ovrs.errors import OptionError, WeightsError
from ovrs.foreign import is_file
from ovrs.model.clip.directory import CONFIG_FILE
from ovrs.model.clip.foreign import FAULTS, one_line
from ovrs.model.clip.known import HUB, commands, hub_address, table

if TYPE_CHECKING:
    from ovrs.model.clip.known import Known

log = logging.getLogger(__name__)


def imported_directory(name: str) -> Path | None:
    """Return the directory of a model of the table, fetched and imported if it is not there yet.

    Args:
        name: Any name.

    Returns:
        None where the table has no such name, or open_clip itself fetches the model.

    Raises:
        WeightsError: No file is published, it cannot be fetched, or it is not what the table says.
        OptionError: The activation must be told, so the model cannot be had by its name alone.
    """
    model = table().models.get(name)
    if model is None or model.tag is not None:
        return None
    if model.whole:
        return _folder(name, model)
    if model.file is None:
        raise WeightsError(f"{name} has no published file: {model.title}. {_near(name)}")
    place = cache_directory() / "models" / name
    if is_file(place / CONFIG_FILE):
        return place
    if model.quick_gelu is None:
        raise OptionError(
            f"no source tells the activation of {name}, so it takes these steps: {'; '.join(commands(name))}"
        )
    _import(name, model, place)
    return place


def tell_licence(name: str, licence: str | None, weights_hash: str) -> None:
    """Say under which licence weights are, the first time that this machine loads them."""
    marker = cache_directory() / "licences" / weights_hash[:32]
    if licence is None or files.exists(marker):
        return
    log.warning("the weights of %s are under this licence: %s", name, licence)
    files.keep(marker, lambda temporary: temporary.write_text(f"{name}: {licence}\n", "utf-8"))


def _import(name: str, model: Known, place: Path) -> None:
    from ovrs.model.clip.importing import Choices, import_model

    assert model.file is not None
    file = _file(name, model)
    log.warning("%s: %s becomes a model directory in %s", name, file.name, place)
    try:
        done = import_model(file, place, Choices(quick_gelu=model.quick_gelu, licence=model.licence))
    except OptionError:
        if not is_file(place / CONFIG_FILE):  # another process was faster
            raise
        return
    if done.architecture != model.architecture:
        log.warning("%s was expected to be %s and is %s", name, model.architecture, done.architecture)


def _file(name: str, model: Known) -> Path:
    """Return the published file, laid into the cache by hand or fetched through the ordinary client of its host."""
    own = cache_directory() / "models" / str(model.basename)
    if is_file(own):
        return own
    try:
        if model.where.startswith(HUB):
            from huggingface_hub import hf_hub_download

            return Path(hf_hub_download(model.where.removeprefix(HUB), str(model.file)))
        return _from_address(model.where, own)
    except FAULTS as error:
        raise WeightsError(
            f"{name} cannot be fetched: {one_line(error)}. Where there is internet, download {hub_address(model)} and put it "
            f"here as {own}; the same command then goes on"
        ) from error


def _folder(name: str, model: Known) -> Path:
    """Return a folder of transformers, laid into the cache by hand or fetched into the cache of the hub."""
    own = cache_directory() / "models" / name
    if is_file(own / "config.json"):
        return own
    try:
        from huggingface_hub import snapshot_download

        kinds = ["*.json", "*.safetensors", "tokenizer*", "*.model"]
        return Path(snapshot_download(model.where.removeprefix(HUB), allow_patterns=kinds))
    except FAULTS as error:
        raise WeightsError(
            f"{name} cannot be fetched: {one_line(error)}. Where there is internet: hf download "
            f"{model.where.removeprefix(HUB)} --local-dir {name}; put that folder here as {own}, and the same command goes on"
        ) from error


def _from_address(address: str, target: Path) -> Path:
    """Fetch a file of the web, with open_clip's progress bar; the file takes its name when it is whole."""
    from huggingface_hub import is_offline_mode
    from open_clip.pretrained import download_pretrained_from_url

    if is_offline_mode():
        raise OSError("HF_HUB_OFFLINE is set")
    with files.atomic(target) as temporary:
        folder = temporary.with_suffix(".fetch")
        got = Path(download_pretrained_from_url(address, str(folder)))
        got.replace(temporary)
        with suppress(OSError):
            folder.rmdir()
    return target


def _near(name: str) -> str:
    """Models of the table with the same beginning of their names."""
    kin = [
        other for other, m in table().models.items() if other.split("-")[0] == name.split("-")[0] and (m.file or m.tag)
    ]
    return f"Published are {', '.join(kin)}" if kin else "`ovrs models` lists those that are"
