import asyncio

import pytest

from mpiboot import distributed_internals
from mpiboot.client import verify
from mpiboot.errors import RendezvousError


def test_a_node_that_has_just_died_is_said_to_be_silent(monkeypatch):
    """Nothing answers there, not even with a refusal."""

    async def never(*_, **__):
        await asyncio.sleep(60)

    monkeypatch.setattr(distributed_internals, "connect", never)
    message = r"no Dask scheduler answers at tcp://x:1: no answer within 0\.1 s"
    with pytest.raises(RendezvousError, match=message):
        verify.ask_scheduler("tcp://x:1", None, 0.1)
