"""envpack: one environment, one archive, a verified copy on a node.

    pack    a conda prefix or a venv -> a `.tar.zst` with an index        (login node)
    stage   an archive -> `<root>/mpiboot-<uid>/<name>-<pack id>`         (every node)
    verify  compare an archive, or a staged prefix, with its index
    gc      remove staged prefixes that no process uses

envpack knows nothing of jobs or Dask; mpiboot imports it. `import envpack` imports nothing else.
"""
