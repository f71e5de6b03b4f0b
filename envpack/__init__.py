"""envpack: one environment, one archive, a verified copy on a node.

    pack    a conda prefix or a venv -> `.tar.zst` with an index          (login node)
    stage   an archive -> `<root>/mpiboot-<uid>/<name>-<pack id>`         (every node)
    verify  is this archive, or this staged prefix, what it says it is
    gc      removes staged prefixes that nobody uses

Knows nothing of jobs or Dask. `import envpack` imports nothing; `envpack.archive`, `envpack.stage`, `envpack.gc`
and `envpack.verify` need the standard library and zstandard only, as nodes load them from a slow file system.
"""
