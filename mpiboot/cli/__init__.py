"""The `mpiboot` command: parses, prints, maps errors to exit statuses. Imports any room; no room imports it."""
