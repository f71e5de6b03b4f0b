"""Room of the agent, mpiboot's process on each node of a job: it stages, starts the node's ranks, and cleans up."""
