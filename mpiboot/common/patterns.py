"""Patterns of names of environment variables. Every room may import this module; it imports only typing's protocols."""

from collections.abc import Iterable


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name is among the patterns, which may end with `*`."""
    return any(
        name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern for pattern in patterns
    )
