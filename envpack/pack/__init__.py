"""Make an archive, on the login node. Imports `envpack.archive` and `envpack.common`, never `envpack.stage`.

`packing` has the functions to call. `archive_writer` writes one archive: `conda` or `venv` collect the members, `scan`
finds what is to be relocated, `pyc` compiles, `frame_writer` compresses. `store` tells when an archive can be reused.
"""
