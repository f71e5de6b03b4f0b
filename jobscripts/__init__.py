"""One static script per batch system; read with importlib.resources."""
