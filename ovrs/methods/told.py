"""What people say about a method before it is resolved: as keys and values of a preset, a catalog or the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ovrs.methods import registry

if TYPE_CHECKING:
    from pydantic.json_schema import JsonSchemaValue

    from ovrs.methods.base import Settings

SECTION_OF_SAM3 = "sam3"
"""Options of SAM 3's methods may stand in a section of this name."""


def flat(told: Mapping[str, Any]) -> dict[str, object]:
    """`told` without the section `sam3`, whose options take its place."""
    section = told.get(SECTION_OF_SAM3)
    if isinstance(section, Mapping):
        return {**{k: v for k, v in told.items() if k != SECTION_OF_SAM3}, **section}
    return dict(told)


def checked(told: Mapping[str, Any], context: Any = None) -> dict[str, object]:
    """`told` with the types of the method's settings, in the order of their names; None is left out.

    Args:
        told: Option to value, `method` among them where it is chosen.
        context: Of the validation, see `ovrs.methods.base.AbsolutePath`.

    Raises:
        OptionError: An unknown method, or an option that belongs to others.
        ValidationError: An option of no method, or a value that does not fit.
    """
    said = {k: v for k, v in flat(told).items() if v is not None}
    name = said.pop("method", None)
    if name is None:
        return _of_any(said, context)
    registry.require_read(str(name), said)
    return {"method": name, **_typed(registry.method(str(name)).settings, said, context)}


def _of_any(said: dict[str, object], context: Any) -> dict[str, object]:
    """Options whose method is not chosen yet: each must fit a method that reads it."""
    found: dict[str, object] = {}
    for name, value in sorted(said.items()):
        users = registry.readers(name) or list(registry.METHODS)
        kinds = [registry.METHODS[user].settings for user in users]
        fault: ValidationError | None = None
        for kind in kinds:
            try:
                found |= _typed(kind, {name: value}, context)
                break
            except ValidationError as error:
                fault = fault or error
        else:
            assert fault is not None  # there are methods
            raise fault
    return found


def _typed(kind: type[Settings], said: dict[str, object], context: Any) -> dict[str, object]:
    own = kind.model_validate(said, context=context)
    return {name: getattr(own, name) for name in sorted(own.model_fields_set - {"method"})}


def schema(description: str) -> JsonSchemaValue:
    """JSON schema of what can be told: one alternative for each method, made of its settings."""
    return {
        "title": "MethodOptions",
        "description": description,
        "type": "object",
        "anyOf": [_alternative(name) for name in registry.METHODS],
    }


def _alternative(name: str) -> dict[str, object]:
    found = registry.METHODS[name]
    own = found.settings.model_json_schema()
    properties = own["properties"]
    for option in found.fixed.keys() & properties.keys():
        properties[option] = {**properties[option], "const": found.fixed[option].value}
    return {"title": name, "description": found.what, "type": "object", "properties": properties}
