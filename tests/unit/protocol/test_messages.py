"""Messages: their way through JSON, and what is not a message."""

import json
import types
import typing

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpiboot.protocol.channel_messages import (
    KINDS,
    ChannelAddress,
    Close,
    NodeReport,
    Orders,
    Peers,
    StageReport,
)
from mpiboot.protocol.messages import MessageError, from_json, to_dict, to_json

INTERFACE = {
    "address": "10.0.0.1",
    "network": "10.0.0.0/24",
    "kind": 32,
    "loopback": False,
    "speed_mbits": -1,
}
REPORT = NodeReport(
    number=0,
    interfaces={"ib0": INTERFACE},
    memory_bytes=2**40,
    cpus=1,
    root_is_memory=True,
    has_stage=False,
    port=0,
)
ORDERS = Orders(
    number=0,
    first_node="n1",
    n_nodes=2,
    root="/tmp",
    job_key="k",
    threads=1,
    prefix=None,
    pack_id=None,
    cancel_command=["scancel", "1"],
)
STAGE = StageReport(1, {"size_bytes": 1, "start": 1.5, "reused": True, "prefix": "/p"})


def values(annotation):
    """Return a strategy for the values of a field."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*map(values, arguments))
    if origin is list:
        return st.lists(values(arguments[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(st.text(max_size=3), values(arguments[1]), max_size=3)
    if typing.is_typeddict(annotation):
        return st.fixed_dictionaries(
            {name: values(kind) for name, kind in typing.get_type_hints(annotation).items()}
        )
    if annotation is float:
        return st.floats(allow_nan=False)
    return {
        str: st.text(st.characters(), max_size=20),
        int: st.integers(),
        bool: st.booleans(),
        types.NoneType: st.none(),
    }[annotation]


def messages():
    return st.one_of(
        *(
            st.builds(kind, **{name: values(hint) for name, hint in typing.get_type_hints(kind).items()})
            for kind in (*KINDS.values(), ChannelAddress)
        )
    )


@given(messages())
@hypothesis.settings(database=None, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
def test_every_message_comes_through_json_as_it_was(message):
    kinds = {**KINDS, "ChannelAddress": ChannelAddress}
    assert from_json(to_json(message), kinds) == message


@given(st.one_of(st.binary(max_size=50), st.recursive(st.none() | st.text(), st.lists).map(json.dumps)))
@hypothesis.settings(database=None, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
def test_rubbish_is_no_message(data):
    with pytest.raises(MessageError):
        from_json(data if isinstance(data, bytes) else data.encode(), KINDS)


@pytest.mark.parametrize(
    ("message", "path", "value"),
    [
        (REPORT, ("number",), "0"),
        (REPORT, ("number",), 1.0),
        (REPORT, ("number",), True),
        (REPORT, ("number",), None),
        (REPORT, ("root_is_memory",), 1),
        (REPORT, ("interfaces",), []),
        (REPORT, ("interfaces", "ib0"), None),
        (REPORT, ("interfaces", "ib0", "address"), 1),
        (REPORT, ("interfaces", "ib0"), {**INTERFACE, "mtu": 1500}),
        (REPORT, ("interfaces", "ib0"), {"address": "10.0.0.1"}),
        (ORDERS, ("cancel_command",), "scancel"),
        (ORDERS, ("cancel_command", 1), 1),
        (ORDERS, ("prefix",), 0),
        (STAGE, ("stage", "prefix"), None),
        (STAGE, ("stage", "prefix"), [1]),
        (Peers({"n1": ["10.0.0.1", 1]}), ("addresses", "n1"), {}),
        (Close("why"), ("reason",), None),
    ],
)
def test_a_value_of_another_type_is_refused(message, path, value):
    content = json.loads(to_json(message))
    assert from_json(json.dumps(content).encode(), KINDS) == message
    place = content
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(MessageError, match=rf"{type(message).__name__}\.{path[0]} is not of type"):
        from_json(json.dumps(content).encode(), KINDS)


def test_a_whole_number_is_a_float_too():
    assert from_json(b'{"kind":"StageReport","number":1,"stage":{"start":1}}', KINDS).stage == {"start": 1}


@pytest.mark.parametrize("kind", KINDS.values())
def test_a_missing_and_an_unknown_field_are_refused(kind):
    names = typing.get_type_hints(kind)
    right = {"kind": kind.__name__, **dict.fromkeys(names)}
    for wrong in ({**right, "more": 1}, *({k: v for k, v in right.items() if k != name} for name in names)):
        with pytest.raises(MessageError, match=f"{kind.__name__} has the fields "):
            from_json(json.dumps(wrong).encode(), KINDS)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"{}",
        b'"Close"',
        b'{"kind":"Shutdown"}',
        b'{"kind":null}',
        b'{"kind":["Close"],"reason":""}',
        b'{"kind":{},"reason":""}',
        b'{"kind":"Close","reason":"why"',
        b'{"kind":"Close","reason":"why"}}',
        b"[" * 100_000,
        b'{"kind":"StageReport","number":' + b"9" * 10_000 + b',"stage":{}}',
    ],
)
def test_what_is_no_message(data):
    with pytest.raises(MessageError):
        from_json(data, KINDS)


def test_the_error_of_a_long_message_is_short():
    with pytest.raises(MessageError) as error:
        from_json(json.dumps({"kind": "Close", "reason": ["x" * 10**6]}).encode(), KINDS)
    assert len(str(error.value)) < 500


def test_a_message_of_another_kind_is_refused():
    with pytest.raises(MessageError, match="none of ChannelAddress"):
        ChannelAddress.from_json(to_json(Close("why")))


def test_a_dict_of_a_message_has_its_kind_first():
    assert list(to_dict(Close("why")).items()) == [("kind", "Close"), ("reason", "why")]
