"""Batch systems: a folder for each, and what they share.

A folder's `__init__.py` holds its facts, `submission.py` serves the client, `allocation.py` serves boot inside the job.
All words of a batch system (commands, variables, states) are in its folder and nowhere else. `registry` finds a batch
system by its name; `submission` and `allocation` define the interfaces; `system` and `runner` run the commands. Client,
boot and config may import this room; it imports `protocol` and the rooms below.
"""
