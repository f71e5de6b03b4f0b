"""Messages as dataclasses: their JSON, and the check of what arrives against the types of the fields.

`protocol.channel` has the messages. This module imports the standard library alone.
"""

import functools
import json
import types
import typing
from typing import Any, TypeVar, cast

Message = TypeVar("Message")


class MessageError(ValueError):
    """What arrived is not a message of this protocol. The connection cannot be used any more."""


def to_dict(message: Any) -> dict[str, Any]:
    """Return a message, an instance of a dataclass, as JSON can hold it."""
    return {"kind": type(message).__name__, **vars(message)}


def to_json(message: Any) -> bytes:
    """Return a message as JSON."""
    return json.dumps(to_dict(message), separators=(",", ":")).encode()


def from_json(data: bytes, kinds: dict[str, type[Message]]) -> Message:
    """Return the message that JSON from elsewhere describes.

    Parameters
    ----------
    data : bytes
        The JSON, which may be anything.
    kinds : dict of str to type
        The dataclasses that are accepted, by name.

    Raises
    ------
    MessageError
        It is none of them, or a field is missing, unknown, or of another type.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MessageError(f"no JSON: {error}") from error
    name = content.pop("kind", None) if isinstance(content, dict) else None
    kind = kinds.get(name) if isinstance(name, str) else None
    if kind is None:
        raise MessageError(f"none of {', '.join(kinds)}: {data[:100]!r}")
    fields = _field_types(cast(Any, kind))
    if content.keys() != fields.keys():
        raise MessageError(f"{kind.__name__} has the fields {', '.join(fields)}, not {', '.join(content)}")
    for name, annotation in fields.items():
        if not _fits(content[name], annotation):
            raise MessageError(f"{kind.__name__}.{name} is not of type {annotation}: {content[name]!r:.100}")
    return kind(**content)


@functools.cache
def _field_types(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a value of JSON has the type of an annotation: simple types, lists, dicts, TypedDicts and unions."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, arguments[1]) for item in value.values())
    if typing.is_typeddict(annotation):
        fields = _field_types(annotation)
        return (
            isinstance(value, dict)
            and value.keys() == fields.keys()
            and all(_fits(value[name], kind) for name, kind in fields.items())
        )
    if annotation is float:  # JSON does not distinguish 1 from 1.0
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, annotation) and (annotation is bool or not isinstance(value, bool))
