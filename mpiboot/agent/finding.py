"""Whether the first node is lost: a finding of the agents together, never of one alone.

An agent that has heard nothing of boot for too long may itself be cut off. So it asks the other agents, and looks at the
sign of life that boot leaves on the shared file system. Only the agent imports this module.
"""

import asyncio
import ssl
from collections.abc import Mapping, Sequence

from mpiboot.protocol.channel import Question, Sighting, dial

ASK_TIMEOUT_S = 5.0
# In a large job this many agents, from all over it, are enough.
ASKED_MAX = 32


def first_node_is_lost(sightings: Sequence[bool | None], sign_has_changed: bool | None) -> bool:
    """Decide whether the first node is lost, or this agent's own node is cut off.

    It is lost if all other agents say so; if only some answer, as boot's sign of life says; without that, if more than
    half say so.

    Parameters
    ----------
    sightings : sequence of bool or None
        For each other agent that was asked, whether it has heard of boot; None if it did not answer.
    sign_has_changed : bool or None
        Whether boot has left signs of life on the shared file system meanwhile; None if that cannot be read.
    """
    if any(sightings):
        return False
    agreeing = 1 + sum(sighting is False for sighting in sightings)
    if sightings and agreeing == 1 + len(sightings):
        return True
    if sign_has_changed is not None:
        return not sign_has_changed
    return bool(sightings) and 2 * agreeing > 1 + len(sightings)


def to_be_asked(peers: Mapping[str, Sequence[str | int]], own: str, first_node: str) -> list[str]:
    """Return the names of the agents to ask: all others but that of the first node; of many, some from all over."""
    others = [name for name in peers if name not in (own, first_node)]
    step = -(-len(others) // ASKED_MAX) or 1
    return others[::step]


async def ask(peers: Sequence[Sequence[str | int]], context: ssl.SSLContext) -> list[bool | None]:
    """Ask other agents whether they have heard of boot.

    Parameters
    ----------
    peers : sequence
        Host and port of each agent.
    context : SSLContext
        From `channel.client_context`.

    Returns
    -------
    list of bool or None
        The answers; None if there is none.
    """

    async def ask_one(host: str, port: int) -> bool | None:
        try:
            connection = await dial(host, port, context)
        except OSError:
            return None
        try:
            await connection.send(Question())
            answer, _ = await connection.receive(ASK_TIMEOUT_S)
            return answer.boot_lives if isinstance(answer, Sighting) else None
        except OSError:
            return None
        finally:
            connection.close()

    return list(await asyncio.gather(*(ask_one(str(host), int(port)) for host, port in peers)))
