"""The user's process: submit a job, find it again, wait for it, connect to it, show it.

`watch`, `published`, `verify`, `scheduler_file`, `connect` and `cluster` import distributed when they are imported; the
others do not. The command line and the examples import this room. It imports the batch systems, `config`, `protocol` and
what is below them, and never boot, agent or rank: it meets them in a job's directory.
"""
