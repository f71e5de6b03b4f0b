"""A minute of `make soak`: random faults, as many as fit."""

import json
import secrets

import pytest
from soak import soak, verdict

pytestmark = pytest.mark.cluster

SECONDS = 45.0


def test_a_short_soak(alice):
    seed = secrets.randbelow(10**6)
    print(f"seed {seed}")
    figures = soak(alice, SECONDS, seed)
    print(json.dumps(figures, indent=1))
    assert verdict(figures) == []
    assert figures["results"] > 0
