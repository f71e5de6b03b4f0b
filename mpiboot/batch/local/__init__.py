"""This machine as a batch system of one node: `submission` for the client, `allocation` for inside the job."""
