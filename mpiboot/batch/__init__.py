"""Batch systems: a folder for each, and what they share.

A folder's `__init__.py` holds its facts, `submission.py` serves the client, `allocation.py` serves boot inside the job.
Every word of a batch system (commands, variables, states) is in its folder and nowhere else. `registry` finds a batch
system by its name; `submission` says what one has to write; `system` and `runner` run it. Client, boot and config may
import this room; it imports `protocol` and the rooms below.
"""
