"""Programs that ship with mpiboot: the demo, the scaling test, a notebook."""
