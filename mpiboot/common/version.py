"""The version of mpiboot. setup.cfg reads it here; so do boot and agents, which do not read package metadata.

Every room may import this module; it imports nothing.
"""

VERSION = "0.1.0"
