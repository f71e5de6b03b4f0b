"""The `mpiboot` command: parses arguments, prints results, turns errors into exit statuses.

One module for each group of commands; `main` puts them together and handles the errors. This room may import all others;
none imports it. A command imports what it needs when it runs: help and completion must be fast.
"""
