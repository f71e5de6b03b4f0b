"""Connects to a scheduler as a user's script does. The examples use this module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpiboot.errors import RendezvousError, UsageError

if TYPE_CHECKING:
    from distributed import Client


def connect_to_scheduler(module: str, scheduler_file: str | None = None, *, insecure: bool = False) -> Client:
    """Connect to the cluster of a scheduler file, else to that of the environment, as `Client()` does.

    Parameters
    ----------
    module : str
        The module that the user runs, for the message.
    scheduler_file : str, optional
        Dask's scheduler file; it is verified before the connection.
    insecure : bool, default False
        Accept a scheduler file that names a `tcp://` address.

    Raises
    ------
    UsageError
        No scheduler is named: `Client()` would start another cluster on this host.
    RendezvousError
        Nothing answers there.
    """
    if scheduler_file is not None:
        import mpiboot

        return mpiboot.connect(scheduler_file=scheduler_file, insecure=insecure)
    import dask.config
    from distributed import Client

    address = dask.config.get("scheduler-address", None)
    if not address:
        raise UsageError(
            "DASK_SCHEDULER_ADDRESS names no scheduler",
            f"Pass --scheduler-file FILE, or type: mpiboot submit -- python -m {module}",
        )
    try:
        return Client()
    except OSError as error:
        raise RendezvousError(
            f"no scheduler answers at {address}: {error}", "See the state of its job: mpiboot status"
        ) from error
