"""Making an archive, on the login node. May import anything that envpack requires."""
