"""This machine as a batch system of one node: `submission` for the client, `allocation` for boot inside the job."""

from mpiboot.batch.facts import Facts

FACTS = Facts(name="local", title="this machine")
