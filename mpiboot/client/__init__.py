"""The user's process: submit a job, find it again, wait for it, connect to it, show it."""
