"""Room of `mpiboot boot`, which runs on the first node of a job. `sequence` is its start; nothing else imports it."""
