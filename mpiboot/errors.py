"""What can go wrong, by name.

MpibootError                 one line for the user: what failed, where, why, and the next command to type
├── UsageError               bad input, refused before anything is touched (exit status 2)
├── EnvironmentUnfitError    the environment lacks what a boot needs
├── AllocationError          the batch system's variables make no sense, or there are none
├── BatchError               the batch system refused, or could not be asked
│   └── BatchAwayError       it does not answer for now, as while it restarts
├── StageError               a node could not be given the environment; names every such node
├── LaunchError              mpirun, or what it started, failed
├── SecurityError            a path or a secret that is not to be trusted; never passed over in silence
├── RendezvousError          an endpoint or job directory that is not to be trusted or not there
├── JobEndedError            the job ended before it was ready
├── ClusterLostError         a running cluster ended by itself
└── DeadlineError            a deadline passed (exit status 124)
"""


class MpibootError(Exception):
    """Base of all: `str(error)` is the whole message, `exit_status` what the command line returns."""

    exit_status = 1


class UsageError(MpibootError):
    exit_status = 2


class EnvironmentUnfitError(MpibootError):
    pass


class AllocationError(MpibootError):
    pass


class BatchError(MpibootError):
    pass


class BatchAwayError(BatchError):
    pass


class StageError(MpibootError):
    pass


class LaunchError(MpibootError):
    pass


class SecurityError(MpibootError):
    pass


class RendezvousError(MpibootError):
    pass


class JobEndedError(MpibootError):
    pass


class ClusterLostError(MpibootError):
    pass


class DeadlineError(MpibootError, TimeoutError):
    exit_status = 124
