"""Copy the Processing provider into a profile of QGIS 3, with the way to this environment's `ovrs`.

QGIS runs the provider with its own Python, where nothing is installed: the provider starts `ovrs` as a process.
"""

from __future__ import annotations

import configparser
import json
import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ovrs import __version__, files
from ovrs.errors import OptionError, told
from ovrs.methods.registry import METHODS
from ovrs.words.vocabulary import shipped

PLUGIN = "ovrs_processing"
"""Folder of the provider in a profile's `python/plugins`."""
SETUP = "ovrs.json"
"""What the provider is told of this environment."""
_METADATA = "metadata.txt"
_MARK = "name=ovrs for Processing\n"


@dataclass(frozen=True, kw_only=True)
class Installed:
    """A provider in a profile."""

    folder: Path
    version: str
    """Of the ovrs that installed it."""
    command: list[str]
    """How it starts `ovrs`."""

    @property
    def text(self) -> str:
        """One line for people."""
        gone = "" if Path(self.command[0]).exists() else " (which is gone: run `ovrs qgis install` again)"
        old = "" if self.version == __version__ else f"; this is {__version__}: run `ovrs qgis install` again"
        return f"{self.folder}: ovrs {self.version}, runs {' '.join(self.command)}{gone}{old}"


def default_profile() -> Path:
    """Return the profile that QGIS starts with.

    Raises:
        OptionError: There is none.
    """
    base = _settings_folder()
    profiles = base / "profiles"
    told_by = configparser.ConfigParser(interpolation=None)
    try:
        told_by.read(profiles / "profiles.ini", "utf-8")
    except (configparser.Error, UnicodeDecodeError) as error:
        raise OptionError(
            f"{profiles / 'profiles.ini'} cannot be read ({error}); name the profile by --profile"
        ) from error
    found = profiles / told_by.get("core", "defaultProfile", fallback="default").strip('"')
    if not found.is_dir():
        raise OptionError(f"no profile of QGIS 3 in {profiles}; start QGIS once, or name a profile by --profile DIR")
    return found


def _settings_folder() -> Path:
    """Where QGIS 3 keeps its profiles on this system."""
    if own := os.environ.get("QGIS_CUSTOM_CONFIG_PATH"):
        return Path(own)
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA", str(Path.home() / "AppData/Roaming"))) / "QGIS/QGIS3"
    if sys.platform == "darwin":
        return Path.home() / "Library/Application Support/QGIS/QGIS3"
    return Path(os.environ.get("XDG_DATA_HOME", str(Path.home() / ".local/share"))) / "QGIS/QGIS3"


def install(profile: Path | None = None) -> Installed:
    """Copy the provider into a profile; an older copy is replaced.

    Args:
        profile: Folder of the profile; None: the one that QGIS starts with.

    Raises:
        OptionError: No profile, or another plugin has the provider's place.
        OutputError: The profile cannot be written.
    """
    folder = _place(profile)
    if folder.exists() and not _is_ours(folder):
        raise OptionError(f"{folder} is a plugin of somebody else; remove it, or choose another --profile")
    sources = _sources()
    for name, text in sources.items():
        files.write_text(folder / name, text)
    files.write_text(folder / SETUP, json.dumps(_setup(), indent=1) + "\n")
    with files.writing(folder):
        for left in folder.glob("*.py"):
            if left.name not in sources:
                left.unlink()
    found = status(profile)
    assert found is not None  # it was written above
    return found


def uninstall(profile: Path | None = None) -> Path:
    """Remove the provider from a profile.

    Raises:
        OptionError: It is not there.
        OutputError: It cannot be removed.
    """
    folder = _place(profile)
    if not _is_ours(folder):
        raise OptionError(f"{folder} is not there, or no provider of ovrs")
    with files.writing(folder):
        shutil.rmtree(folder)
    return folder


def status(profile: Path | None = None) -> Installed | None:
    """Return what a profile holds; None: no provider of ovrs.

    Raises:
        OptionError: No profile, or the provider is damaged.
    """
    folder = _place(profile)
    if not _is_ours(folder):
        return None
    try:
        content: Any = json.loads((folder / SETUP).read_text("utf-8"))
        return Installed(folder=folder, version=str(content["version"]), command=[str(c) for c in content["command"]])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OptionError(f"{folder / SETUP} is damaged ({told(error)}); run `ovrs qgis install` again") from error


def _place(profile: Path | None) -> Path:
    chosen = default_profile() if profile is None else profile
    if not chosen.is_dir():
        raise OptionError(
            f"--profile {chosen} is no folder; QGIS shows it by Settings > User Profiles > Open Active Profile Folder"
        )
    if (chosen / "profiles").is_dir() or (chosen / "profiles.ini").is_file():
        raise OptionError(f"--profile {chosen} holds profiles; name one of them, such as {chosen / 'default'}")
    return chosen.absolute() / "python" / "plugins" / PLUGIN


def _is_ours(folder: Path) -> bool:
    try:
        return _MARK in (folder / _METADATA).read_text("utf-8").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError):  # not there, or not a file of ours
        return False


def _sources() -> dict[str, str]:
    """Name and text of each file of the provider."""
    found = resources.files("ovrs.qgis") / "plugin"
    names = sorted(entry.name for entry in found.iterdir() if entry.name.endswith(".py") or entry.name == _METADATA)
    texts = {name: (found / name).read_text("utf-8") for name in names}
    return {**texts, _METADATA: texts[_METADATA].replace("VERSION", __version__)}


def _setup() -> dict[str, object]:
    path = Path(str(resources.files("ovrs"))).parent
    installed = path.resolve() in {Path(sysconfig.get_path(k)).resolve() for k in ("purelib", "platlib")}
    return {
        "version": __version__,
        "command": [sys.executable, "-m", "ovrs"],
        "path": None if installed else str(path),
        "methods": list(METHODS),
        "vocabularies": shipped(),
    }
