"""`mpiboot boot`, on the first node of a job: from the allocation to a running cluster, and to its end."""
