"""Small modules that every room may import: trust, units, processes, network interfaces."""
