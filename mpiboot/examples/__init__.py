"""Programs that ship with mpiboot: the demo, the scaling test, a notebook. They use it as a user's program does.

`cli` alone imports this room, for `mpiboot demo`.
"""
