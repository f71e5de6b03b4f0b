"""Every error that mpiboot raises on purpose. The package exports them: `except mpiboot.DeadlineError`.

MpibootError
├── UsageError               exit status 2
├── EnvironmentUnfitError
├── AllocationError
├── BatchError
│   └── BatchAwayError
├── StageError
├── LaunchError
├── SecurityError
├── RendezvousError
├── JobEndedError
├── ClusterLostError
└── DeadlineError            also a TimeoutError; exit status 124

A message says what failed, where and why; its last line is the remedy. Every module may import this one.
"""

from envpack.errors import ExplainedError


class MpibootError(ExplainedError):
    """Something failed that mpiboot can explain: `MpibootError(problem, remedy)`.

    Raised directly if no class below fits: wrong results of the demo, a cluster without encryption that the user did not
    accept, a client with another Python than the cluster.
    """


class UsageError(MpibootError):
    """An option, a configuration file or a call is wrong; nothing was submitted or changed.

    Correct what the message names. Exit status 2.
    """

    exit_status = 2


class EnvironmentUnfitError(MpibootError):
    """The environment lacks something that a job needs, such as mpi4py or an MPI library that fits it.

    Install what the message names into that environment.
    """


class AllocationError(MpibootError):
    """The allocation cannot be used: `mpiboot boot` runs outside a job, or the job asked for too little.

    Type `mpiboot submit`, or ask for what the message names.
    """


class BatchError(MpibootError):
    """The batch system refused a request, is not installed, or knows no such job.

    The message contains the batch system's own words.
    """


class BatchAwayError(BatchError):
    """The batch system temporarily does not answer, such as during a restart.

    mpiboot raises this after several attempts. Try again later.
    """


class StageError(MpibootError):
    """The environment could not be copied to some nodes; the message names each of them, with its reason."""


class LaunchError(MpibootError):
    """The MPI launcher could not be found or started, or the ranks that it started have ended.

    `mpiboot doctor` checks the launcher; the end of `ranks.log` is in the message.
    """


class SecurityError(MpibootError):
    """A file or folder could have been changed by somebody else, or a rank has no TLS files.

    Do not ignore it. Remove what the message names, or set `MPIBOOT_HOME` to a folder that only you can change.
    """


class RendezvousError(MpibootError):
    """An endpoint or a scheduler file does not lead to a running cluster: it is damaged, or out of date.

    Nothing, or another scheduler, answers at the published address. `mpiboot status` shows the state of the job.
    """


class JobEndedError(MpibootError):
    """The job ended, or can never start, while somebody waited for its workers.

    The message contains the batch system's reason and the end of the job's log.
    """


class ClusterLostError(MpibootError):
    """A cluster that was running has ended by itself: the scheduler, or too many workers, were lost.

    `mpiboot logs` shows what happened. Submit the job again.
    """


class DeadlineError(MpibootError, TimeoutError):
    """A wait took longer than its timeout; the message says how far it got. The job goes on.

    `mpiboot connect` goes on waiting, `mpiboot stop` ends the job. Exit status 124.
    """

    exit_status = 124
