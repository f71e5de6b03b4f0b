import json
from pathlib import Path

import pytest

from mpiboot.errors import RendezvousError
from mpiboot.protocol.endpoint import ENDPOINT_VERSION, Endpoint, parse_endpoint

PATH = Path("/jobs/slurm-c-1/endpoint.json")


def test_what_is_written_is_read(endpoint):
    assert parse_endpoint(json.dumps(endpoint._asdict()).encode(), PATH) == endpoint


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "[" * 100_000, json.dumps({"version": ENDPOINT_VERSION})], ids=range(6)
)
def test_what_is_no_endpoint_is_refused(text):
    with pytest.raises(RendezvousError, match=r"endpoint\.json is not an endpoint"):
        parse_endpoint(text.encode(), PATH)


@pytest.mark.parametrize("name", Endpoint._fields)
def test_a_field_of_another_type_or_no_field_is_refused(endpoint, name):
    content = endpoint._asdict()
    for wrong in (True, [{"a": 1}] if name != "nodes" else "n1", {"a": 1}):
        with pytest.raises(RendezvousError, match=rf"{name}|version"):
            parse_endpoint(json.dumps(content | {name: wrong}).encode(), PATH)
    del content[name]
    with pytest.raises(RendezvousError, match=name):
        parse_endpoint(json.dumps(content).encode(), PATH)


def test_another_version_is_refused(endpoint):
    other = endpoint._replace(version=endpoint.version + 1)
    with pytest.raises(RendezvousError, match="Use the same mpiboot in the job and here"):
        parse_endpoint(json.dumps(other._asdict()).encode(), PATH)
