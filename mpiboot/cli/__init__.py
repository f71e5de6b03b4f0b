"""The `mpiboot` command: parses arguments, prints results, turns errors into exit statuses.

One module for each group of commands; `main` puts them together and has the one boundary for errors. This room imports
any other and none imports it. A command imports what it needs when it runs: help and completion must be fast.
"""
