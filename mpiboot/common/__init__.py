"""Room of small modules that every other room may import: trust, MPI's names, processes, network interfaces, units.

It imports `envpack.common` and the errors.
"""
