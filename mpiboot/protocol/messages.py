"""Converts messages, which are dataclasses, to JSON and back, and checks received ones against the fields' types.

`protocol.channel_messages` defines the messages. Boot and agents import this module; it imports only the standard
library.
"""

import functools
import json
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

Message = TypeVar("Message")

_UNIONS = (typing.Union, types.UnionType)


class MessageError(ValueError):
    """The received bytes are not a message of this protocol. The connection cannot be used any more."""


def to_dict(message: Any) -> dict[str, Any]:
    """Return a message, an instance of a dataclass, as a dict that `json.dumps` accepts."""
    return {"kind": type(message).__name__, **vars(message)}


def to_json(message: Any) -> bytes:
    """Return a message as JSON."""
    return json.dumps(to_dict(message), separators=(",", ":")).encode()


def from_json(data: bytes, kinds: dict[str, type[Message]]) -> Message:
    """Return the message that received JSON describes.

    Parameters
    ----------
    data : bytes
        The received bytes, which nothing has checked.
    kinds : dict of str to type
        The dataclasses that are accepted, by name.

    Raises
    ------
    MessageError
        The data is no JSON or none of `kinds`, or a field is missing, unknown, or of another type.
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
        if not _check(annotation)(content[name]):
            raise MessageError(f"{kind.__name__}.{name} is not of type {annotation}: {content[name]!r:.100}")
    return kind(**content)


@functools.cache
def _field_types(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


@functools.cache
def _check(annotation: Any) -> Callable[[Any], bool]:
    """Return a function that tests whether a JSON value has an annotation's type: simple, list, dict, TypedDict or union.

    A job of many nodes has messages with an entry per node: such lists and dicts are tested without a loop in Python.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if simple := _simple_types(annotation):
        return lambda value: type(value) in simple
    if origin in _UNIONS:
        either = [_check(argument) for argument in arguments]
        return lambda value: any(check(value) for check in either)
    if origin in (list, dict):
        item, items = _check(arguments[-1]), _simple_types(arguments[-1])

        def fit(values: Iterable[Any]) -> bool:
            return items.issuperset(map(type, values)) if items else all(map(item, values))

        if origin is list:
            return lambda value: type(value) is list and fit(value)
        return lambda value: type(value) is dict and fit(value.values())
    fields = {name: _check(kind) for name, kind in _field_types(annotation).items()}
    return lambda value: (
        type(value) is dict
        and value.keys() == fields.keys()
        and all(check(value[name]) for name, check in fields.items())
    )


def _simple_types(annotation: Any) -> frozenset[type]:
    """Return the types of JSON values that an annotation without lists and dicts allows; none for other annotations."""
    if typing.get_origin(annotation) in _UNIONS:
        types_of = [_simple_types(argument) for argument in typing.get_args(annotation)]
        return frozenset().union(*types_of) if all(types_of) else frozenset()
    if annotation is float:  # JSON does not distinguish 1 from 1.0
        return frozenset({int, float})
    return frozenset({annotation} & {str, int, bool, types.NoneType})
