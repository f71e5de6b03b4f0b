"""The archive's format: index, relocation records, checks, bytecode headers.

Packing, staging and mpiboot import this room; it imports `envpack.common` and `envpack.errors`.
"""
