from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from envpack.pack.base_interpreter import BaseInterpreter

_DISPENSABLE = re.compile(
    rb"/(?:ensurepip|lib2to3|tkinter|turtledemo|distutils|unittest|idlelib|pydoc_data|asyncio|multiprocessing)$|/lib-dynload/(?!_ctypes|_struct)."
    rb"|\.opt-[12]\.pyc$|/encodings/(?:cp|iso|mac|koi|big|euc|shift|gb|johab|hp|ptcp)"
)


@pytest.fixture
def small_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack only what a base interpreter needs to start, so that tests of other things take less time."""
    keeps = BaseInterpreter.keeps

    def fewer(base: BaseInterpreter) -> Callable[[bytes], bool]:
        keep = keeps(base)
        return lambda path: keep(path) and not _DISPENSABLE.search(path)

    monkeypatch.setattr(BaseInterpreter, "keeps", fewer)
