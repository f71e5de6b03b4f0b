"""What a library says about itself, read from libraries of this machine."""

import sys
from pathlib import Path

import pytest

from envpack.common.elf import HEAD_BYTES, loaded_bytes, read_library


@pytest.fixture
def data():
    return Path(sys.executable).resolve().read_bytes()


def test_what_is_needed_and_loaded(data):
    library = read_library(data)
    assert any(name.startswith(b"libc.so") for name in library.needed)
    assert 0 < library.loaded_bytes <= len(data)
    assert read_library(data[: library.loaded_bytes]) == library
    assert loaded_bytes(data[:HEAD_BYTES]) == library.loaded_bytes
    for offset, path in library.run_paths:
        assert data[offset : offset + len(path) + 1] == path + b"\0"


@pytest.mark.parametrize("length", [0, 5, 40, 70, 200])
def test_a_file_that_is_cut_short(data, length):
    assert read_library(data[:length]) is None
    assert loaded_bytes(data[:length]) == 0


@pytest.mark.parametrize("first", [b"#!/bin/sh\n", b"\x7fELF\1\1", b"\x7fELF\2\2"])
def test_another_kind_of_file(data, first):
    """A script; a library of 32 bits; a big-endian one."""
    changed = first + data[len(first) :]
    assert (read_library(changed), loaded_bytes(changed)) == (None, 0)
