"""mpiboot's process on each node of a job: it stages, keeps the node's ranks, and cleans up."""
