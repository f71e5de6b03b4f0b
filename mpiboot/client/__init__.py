"""Room of the user's process: submits jobs, finds them again, waits for them, connects to them, and shows them.

`watch`, `published`, `verify`, `scheduler_file`, `connect` and `cluster` import distributed when they are imported; the
others do not. The command line and the examples import this room. It imports the batch systems, `config`, `protocol` and
the rooms below, and never boot, agent or rank: it communicates with them through a job's directory.
"""
