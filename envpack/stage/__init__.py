"""Put an archive on a node, check it, remove it. Imports `envpack.archive` and `envpack.common`, never `envpack.pack`.

`staging` has the functions to call, `stager` is the sequence: `root` and `temporaries` keep the folder, `warm_check`
reuses a stage, `extract` writes with `writers` and `relocate`. Nodes import all of it from a slow file system.
"""
