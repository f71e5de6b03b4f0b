"""Putting an archive on a node, checking it, removing it."""
