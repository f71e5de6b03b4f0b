"""Finds out whether the first node is lost. The agents decide this together, no agent alone.

An agent that has not heard of boot for too long may itself be cut off. So it asks the other agents, and reads the sign of
life that boot leaves on the shared file system.

Only the agent imports this module. It imports `protocol.channel` and its messages.
"""

import asyncio
import ssl
from collections.abc import Mapping, Sequence

from mpiboot.protocol.channel import dial
from mpiboot.protocol.channel_messages import Question, Sighting

ASK_TIMEOUT_S = 5.0
# In a large job it is enough to ask this many agents, spread over all nodes.
ASKED_MAX = 32


def first_node_is_lost(sightings: Sequence[bool | None], sign_has_changed: bool | None) -> bool:
    """Decide whether the first node is lost, or this agent's own node is cut off.

    The first node is not lost if an agent still hears boot. Otherwise it is lost if all agents that were asked answer. If
    some do not answer, boot's sign of life decides; if that cannot be read, a majority of the agents, including this one.

    Parameters
    ----------
    sightings : sequence of bool or None
        For each agent that was asked, whether it still hears boot; None if it did not answer.
    sign_has_changed : bool or None
        Whether boot's sign of life on the shared file system has changed during the silence; None if it cannot be read.
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
    """Return the nodes whose agents to ask: all but this node and the first; at most ASKED_MAX, spread over the list."""
    others = [name for name in peers if name not in (own, first_node)]
    step = -(-len(others) // ASKED_MAX) or 1
    return others[::step]


async def ask(peers: Sequence[Sequence[str | int]], context: ssl.SSLContext) -> list[bool | None]:
    """Ask other agents whether they still hear boot.

    Parameters
    ----------
    peers : sequence
        Host and port of each agent.
    context : SSLContext
        From `channel.client_context`.

    Returns
    -------
    list of bool or None
        Each agent's answer, in the order of `peers`; None if it gave none.
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
