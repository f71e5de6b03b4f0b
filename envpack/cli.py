"""The `envpack` command: parse the command line, print, map errors to exit statuses. No other module does these.

It uses argparse, not click, as nodes import it from a slow file system; only `envpack pack` may import more.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from envpack.common.paths import typed_path
from envpack.common.prefix import active_environment
from envpack.common.units import parse_duration_s, parse_size_bytes
from envpack.errors import ExplainedError, NotAnEnvironmentError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments (default: those of this process).

    Returns
    -------
    int
        The exit status: 0 done, 1 a named failure, 2 bad usage (argparse exits with it).
    """
    arguments = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a path may be no UTF-8
    # As on Ctrl-C, remove unfinished files before the end. SIGHUP: the terminal is gone; nohup ignores that.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _terminate)
    try:
        return int(arguments.run(arguments))
    except ExplainedError as exc:
        _say(str(exc))
        return exc.exit_status
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141


def _terminate(number: int, _frame: Any) -> NoReturn:
    raise SystemExit(128 + number)


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        # To find the terminal's width, argparse would import shutil and three compressors, for every command.
        columns = os.environ.get("COLUMNS", "")
        width = int(columns) if columns.isdecimal() else 100
        super().__init__(
            **options,
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, width=width),
        )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="envpack", description="One environment, one archive, a verified copy on every node."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    pack = commands.add_parser("pack", help="pack an environment; prints the archive's path")
    pack.add_argument(
        "--prefix",
        metavar="DIR",
        type=_argument(typed_path),
        help="the environment (default: the active one)",
    )
    pack.add_argument(
        "--output",
        metavar="FILE",
        type=_argument(typed_path),
        help="the archive (default: below $MPIBOOT_HOME/packs)",
    )
    pack.add_argument(
        "--level", metavar="N", type=_number(1, 19), help="zstd's compression level, 1 to 19 (default: 5)"
    )
    pack.add_argument(
        "--jobs", metavar="N", type=_number(1, 1024), help="number of threads (default: the available CPUs)"
    )
    pack.add_argument(
        "--exclude",
        metavar="GLOB",
        action="append",
        default=[],
        help="leave out what matches, relative to the environment; may be repeated",
    )
    pack.add_argument(
        "--force", action="store_true", help="pack everything anew, even if the environment has not changed"
    )
    pack.add_argument("--json", action="store_true", help="print the whole result, as JSON")
    pack.set_defaults(run=_pack)

    stage = commands.add_parser("stage", help="stage an archive on this node; prints the prefix")
    stage.add_argument("archive", metavar="ARCHIVE", type=_argument(typed_path))
    stage.add_argument(
        "--root",
        metavar="DIR",
        type=_argument(typed_path),
        help="staging root (default: $MPIBOOT_STAGE_ROOT, then /tmp)",
    )
    stage.add_argument(
        "--jobs", metavar="N", type=_number(1, 1024), help="number of processes (default: the available CPUs)"
    )
    stage.add_argument("--expect", metavar="PACK_ID", help="refuse an archive with another pack id")
    stage.add_argument(
        "--force",
        action="store_true",
        help="read every file of a stage that the node has, and put back what differs",
    )
    stage.add_argument("--transport", metavar="NAME", default="direct", help=argparse.SUPPRESS)
    stage.add_argument("--json", action="store_true", help="print the whole result, as JSON")
    stage.set_defaults(run=_stage)

    verify = commands.add_parser("verify", help="check an archive, or a staged prefix")
    verify.add_argument("path", metavar="ARCHIVE_OR_STAGED_PREFIX", type=_argument(typed_path))
    verify.set_defaults(run=_verify)

    gc = commands.add_parser("gc", help="remove staged prefixes that no process uses, or old archives")
    gc.add_argument(
        "--packs",
        action="store_true",
        help="remove the archives below $MPIBOOT_HOME instead, but the newest of each environment and those of live jobs",
    )
    gc.add_argument(
        "--root",
        metavar="DIR",
        type=_argument(typed_path),
        help="staging root (default: $MPIBOOT_STAGE_ROOT, then /tmp)",
    )
    gc.add_argument(
        "--older-than",
        metavar="TIME",
        type=_argument(parse_duration_s),
        help="remove those unused for longer than this: 90s, 30m, 12h, 7d",
    )
    gc.add_argument(
        "--max-size",
        metavar="SIZE",
        type=_argument(partial(parse_size_bytes, allow_zero=True)),
        help="remove the longest unused until the rest is no larger: 500M, 20G (powers of 1024; a bare number is MiB)",
    )
    gc.set_defaults(run=_gc, parser=gc)
    return parser


def _pack(arguments: argparse.Namespace) -> int:
    from envpack.pack.packing import pack

    prefix = arguments.prefix
    if prefix is None:
        prefix = active_environment(os.environ, sys.prefix, sys.base_prefix)
    if prefix is None:
        raise NotAnEnvironmentError(
            f"no environment is active: {sys.prefix} is the system's Python",
            "Activate one, or name its root folder with --prefix",
        )
    with _Bar("packing") as bar:
        result = pack(
            prefix, arguments.output, level=arguments.level, jobs=arguments.jobs, progress=bar.progress,
            exclude=arguments.exclude, force=arguments.force, say=_say,
        )  # fmt: skip
    for warning in result.warnings:
        _say(f"warning: {warning}")
    if result.excluded:
        shown = ", ".join(result.excluded[:10]) + (", …" if len(result.excluded) > 10 else "")
        _say(f"left out: {len(result.excluded)} paths, {result.excluded_bytes / 1e6:.1f} MB: {shown}")
    print(result.to_json() if arguments.json else result.path)
    return 0


def _say(line: str) -> None:
    print(f"envpack: {line}", file=sys.stderr)


def _stage(arguments: argparse.Namespace) -> int:
    from envpack.stage.staging import stage

    # With umask 0, files get their modes when they are made, and no chmod is needed for each.
    umask = os.umask(0)
    try:
        with _Bar("staging") as bar:
            result = stage(
                arguments.archive, arguments.root, jobs=arguments.jobs, expected_pack_id=arguments.expect,
                force=arguments.force, progress=bar.progress, transport=arguments.transport,
            )  # fmt: skip
    finally:
        os.umask(umask)
    print(result.to_json() if arguments.json else result.prefix)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from envpack.stage.verify import verify

    result = verify(arguments.path)
    print(f"{arguments.path}: {result.files} files, {result.size_bytes} bytes, pack id {result.pack_id}")
    return 0


def _gc(arguments: argparse.Namespace) -> int:
    if arguments.packs:
        if (arguments.root, arguments.older_than, arguments.max_size) != (None, None, None):
            arguments.parser.error("--packs takes no other option")
        from envpack.pack.store import gc as gc_packs

        for path in gc_packs():
            print(path)
        return 0
    from envpack.stage.gc import gc

    for path in gc(arguments.root, older_than_s=arguments.older_than, max_size_bytes=arguments.max_size):
        print(path)
    return 0


class _Bar:
    """A progress bar on a terminal. Elsewhere it does nothing, and imports nothing."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: Any = None
        self._drawn_at = 0.0
        self.progress: Callable[[int, int], None] | None = None

    def __enter__(self) -> _Bar:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

            # No thread draws it (auto_refresh), as a stager with another thread may not fork.
            self._bar = Progress(
                TextColumn(self._what), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
                console=Console(stderr=True), transient=True, auto_refresh=False,
            )  # fmt: skip
            self._bar.start()
            task = self._bar.add_task(self._what, total=None)

            def progress(done: int, total: int) -> None:
                now = time.monotonic()
                if done == total or now - self._drawn_at > 0.1:
                    self._drawn_at = now
                    self._bar.update(task, completed=done, total=total, refresh=True)

            self.progress = progress
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def _number(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} is not between {least} and {most}")
        return value

    return number


def _argument(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Let argparse show a parser's own message."""

    def parse_argument(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as exc:
            raise argparse.ArgumentTypeError(str(exc)) from exc

    return parse_argument
