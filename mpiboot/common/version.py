"""The version of mpiboot: setup.cfg reads it here, and so do boot and agents, which have no package metadata at hand.

Every room may import this module; it imports nothing.
"""

VERSION = "0.1.0"
