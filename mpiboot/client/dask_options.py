"""Reads the options in Dask's configuration, below the key `mpiboot`: those of its files, and of `dask.config.set`.

Dask merges files, environment variables and `dask.config.set` into one mapping, without their sources. This module finds
the sources again: they differ in precedence, an error has to name its file, and YAML may have made another value of what
the user wrote (`12:00:00` becomes 43200). `client.settings` imports this module.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from envpack.errors import MalformedValueError
from mpiboot import config as configuration
from mpiboot.common.faults import one_line
from mpiboot.errors import UsageError
from mpiboot.kinds import FLAG, PATH
from mpiboot.option import ENVIRONMENT, FILE, Option
from mpiboot.protocol.variables import DASK_OPTIONS_PREFIX

SECTION = "mpiboot"


class Entry(NamedTuple):
    """One key of a configuration file.

    Attributes
    ----------
    file : Path
        The file.
    key : str
        The key as it is written, such as `idle-timeout`.
    value : object
        What YAML makes of its value.
    text : object
        The value as it is written: all its scalars are texts.
    """

    file: Path
    key: str
    value: Any
    text: Any

    @property
    def label(self) -> str:
        """The key and its file, for errors."""
        return f"{self.file}: {self.key}"


def layers(environ: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the parsed options of Dask's files, and those of `dask.config.set`.

    Parameters
    ----------
    environ : mapping
        Environment variables. What Dask has made of them is in neither layer: `config.environment_layer` has their text.

    Raises
    ------
    UsageError
        A name is unknown, or a value does not fit its option; the message names the file, the variable or `dask.config`.
    """
    dask = import_dask()
    try:
        entries = {name: entry for file in _sections(dask) for name, entry in _entries(*file).items()}
    except ValueError as error:
        raise _malformed(error) from error
    files = configuration.drop_none({name: _parse_entry(name, entry) for name, entry in entries.items()})

    variables = _variables(environ)
    section = dask.config.get(SECTION, None) or {}
    if not isinstance(section, Mapping):
        raise _not_a_mapping("dask.config")
    program = {}
    for key, value in section.items():
        name = str(key).replace("-", "_")
        of_variable = name in variables and value == dask.config.interpret_value(environ[variables[name]])
        of_file = name in entries and value == entries[name].value
        if value is not None and not of_variable and not of_file:
            _check_name(name, FILE, "dask.config")
            program[name] = configuration.OPTIONS[name].parse(value, FILE, label=f"dask.config: {key}")
    return files, program


def import_dask() -> Any:
    """Import Dask, which reads its configuration files then; return it.

    Raises
    ------
    UsageError
        A file is malformed.
    """
    try:
        import dask
    except ValueError as error:
        raise _malformed(error) from error
    except TypeError as error:  # for Dask, all keys are texts; YAML reads `yes` as a boolean
        raise UsageError(
            f"Dask cannot read its configuration files: {error}",
            "Look there for a key that is no text: ~/.config/dask, or DASK_CONFIG",
        ) from error
    return dask


def import_distributed() -> None:
    """Import `distributed`, which reads Dask's configuration then.

    Raises
    ------
    UsageError
        A file is malformed or has a value that fits nothing, or PYTHONPATH has another `distributed`.
    """
    import_dask()
    try:
        import distributed  # noqa: F401
    except Exception as error:
        typed = shlex.join([sys.executable, "-c", "import distributed"])
        raise UsageError(
            f"distributed cannot be imported: {one_line(error)}",
            f"See Dask's configuration (~/.config/dask, DASK_CONFIG, DASK_…) and PYTHONPATH, then try: {typed}",
        ) from error


def _malformed(error: ValueError) -> UsageError:
    return UsageError(" ".join(str(error).split()), "Correct that file")


def _variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the names of Dask's environment variables that set options, by the name of the option.

    Raises
    ------
    UsageError
        There is no such option.
    """
    variables = configuration.dask_variables(environ)
    for name, variable in variables.items():
        _check_name(name, ENVIRONMENT, variable)
    one_underscore = DASK_OPTIONS_PREFIX.removesuffix("_")
    for variable in environ:
        if variable.startswith(one_underscore) and not variable.startswith(DASK_OPTIONS_PREFIX):
            name = variable.removeprefix(one_underscore)
            raise UsageError(
                f"{variable} has one underscore between MPIBOOT and {name}, so Dask does not find it",
                f"Write {DASK_OPTIONS_PREFIX}{name}",
            )
    return variables


def _check_name(name: str, place: str, label: str) -> None:
    try:
        configuration.check_names([name], place)
    except UsageError as error:
        raise UsageError(f"{label}: {error.problem}", error.remedy) from error


def _not_a_mapping(source: str | Path) -> UsageError:
    return UsageError(
        f"{source}: what `{SECTION}:` holds is not a mapping of keys to values",
        "Write one option a line below it, such as `nodes: 2`",
    )


def _sections(dask: Any) -> Iterator[tuple[Path, Mapping[Any, Any], Mapping[Any, Any]]]:
    """Yield path, values and texts of the section in each of Dask's files; later ones have precedence."""
    import yaml

    # Of all plain scalars, only the merge key `<<` is no text.
    resolvers = {"<": yaml.SafeLoader.yaml_implicit_resolvers["<"]}
    text_loader = type("TextLoader", (yaml.SafeLoader,), {"yaml_implicit_resolvers": resolvers})
    for path, content in dask.config.collect_yaml(dask.config.paths, return_paths=True):
        for key in content:
            if str(key) != SECTION and str(key).lower().replace("-", "").replace("_", "") == SECTION:
                raise UsageError(f"{path}: the key {key} is unknown", f"Write {SECTION}")
        section = content.get(SECTION)
        if section is None:
            continue
        if not isinstance(section, Mapping):
            raise _not_a_mapping(path)
        text = path.read_text()
        nodes = [node for key, node in yaml.compose(text, text_loader).value if key.value == SECTION]
        keys = [key.value for node in nodes if isinstance(node, yaml.MappingNode) for key, _ in node.value]
        twice = [SECTION] if len(nodes) > 1 else [key for key in keys if keys.count(key) > 1]
        if twice:
            raise UsageError(
                f"{path}: {twice[0]} stands twice, and YAML reads the last one alone", "Remove one"
            )
        yield path, section, yaml.load(text, text_loader)[SECTION]


def _entries(path: Path, section: Mapping[Any, Any], texts: Mapping[Any, Any]) -> dict[str, Entry]:
    """Return the keys of a file's section, by the name of the option.

    Raises
    ------
    UsageError
        A name is unknown, or stands there twice.
    """
    entries: dict[str, Entry] = {}
    for key, value in section.items():
        name = str(key).replace("-", "_")
        _check_name(name, FILE, str(path))
        if name in entries:
            raise UsageError(f"{path}: {entries[name].key} and {key} are the same option", "Remove one")
        entries[name] = Entry(path, str(key), value, texts.get(str(key)))
    return entries


def _parse_entry(name: str, entry: Entry) -> Any:
    """Return the value of an option in a file; None if it is not given.

    Raises
    ------
    UsageError
        The value does not fit its option, or YAML has made another value of what is written.
    """
    option = configuration.OPTIONS[name]
    if entry.value is None:
        if entry.text == "~" and option.kind is PATH:
            raise UsageError(
                f"{entry.label}: YAML reads ~ as no value", f'Write it in quotes: {entry.key}: "~"'
            )
        return None
    value = entry.value
    if isinstance(value, list) and isinstance(entry.text, list):
        items = zip(value, entry.text, strict=True)
        value = [_as_written(option, item, text, entry.label, f'"{text}"') for item, text in items]
    else:
        value = _as_written(option, value, entry.text, entry.label, f'{entry.key}: "{entry.text}"')
    return option.parse(value, FILE, label=entry.label)


def _as_written(option: Option, value: Any, text: Any, label: str, quoted: str) -> Any:
    """Return the text of a scalar, or any other value as it is.

    Raises
    ------
    UsageError
        The text is no value of the option, or YAML has made another value of it: `012` is 10, and `no` is false.
    """
    is_text = isinstance(value, str) or not isinstance(text, str)
    if is_text or (option.kind is FLAG and isinstance(value, bool)):
        return value
    try:
        meant = option.kind.parse(text)
    except MalformedValueError as error:
        raise UsageError(f"{label}: {error.problem}", error.remedy) from error
    is_plain_number = type(value) is int and str(value) == text
    try:
        unchanged = is_plain_number or option.kind.parse(value) == meant
    except MalformedValueError:
        unchanged = False
    if not unchanged:
        raise UsageError(f"{label}: YAML reads {text} as {value}", f"Write it in quotes: {quoted}")
    return text
