"""Room of `mpiboot boot`, which runs on the first node of a job. Other rooms import `sequence` alone."""
