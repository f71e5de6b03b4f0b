"""From the launcher's start of a rank to Dask. What is here runs on every node, from the staged prefix."""
