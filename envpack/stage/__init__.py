"""Put an archive on a node, check it, mend it, remove it.

`staging` has the functions to call, `stager` is the sequence. `root`, `temporaries`, `marker` and `gc` keep the folder
and its room. `compare` tells what differs between a stage and its index; `verify` reports it, and `existing` decides
whether the stage is used. `delta` takes files from an older stage; `extract` writes the others, with `frames`,
`writers`, `relocate` and `recompile`; `repair` puts them back. Nodes import all of it but `verify` from a slow file
system. It imports `envpack.archive` and `envpack.common`, never `envpack.pack`.
"""
