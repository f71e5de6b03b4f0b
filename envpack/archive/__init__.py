"""The archive's format: index, checks, and the bytecode that goes with relocated sources."""
