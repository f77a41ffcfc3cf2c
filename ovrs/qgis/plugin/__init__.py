"""The plugin of QGIS; `ovrs qgis install` copies this folder into a profile. Nothing of `ovrs` is imported here."""

from __future__ import annotations

from typing import Any


def classFactory(iface: Any) -> Any:
    """Return the plugin."""
    from .provider import Plugin

    return Plugin(iface)
