"""The first code of the agents' program, the file that boot writes into the job directory (boot/agent_program.py).

    python -I -S -B agent.pyc JOB_DIRECTORY      runs the agent
    python -I -S -B agent.pyc --stage            runs its child that stages the environment

The program runs this module as `__main__`, and holds all other modules in PROGRAM. No other module imports this one. It
imports only what Python has in memory when it starts, because every node would read any other file from the shared file
system.
"""

import _frozen_importlib as bootstrap
import _frozen_importlib_external as external
import _imp
import marshal
import posix
import sys

TYPE_CHECKING = False  # importing typing would read a file
if TYPE_CHECKING:
    from types import ModuleType

    # Path of the source or library; "module", "package", "extension" or "absent"; the code in marshal's format, or the
    # content of the library, which may be empty.
    Entry = tuple[str, str, bytes]

AGENT = "mpiboot.agent.agent"
CHILDREN = {"--stage": "mpiboot.agent.stage_child"}
PROGRAM = b"boot puts the modules here"


class ProgramImporter:
    """Imports the modules that the program holds. Python searches for all others as usual.

    Parameters
    ----------
    modules : dict of str to tuple
        The modules (`Entry`), by name. An extension module without content is loaded from its path. For an absent module,
        Python does not search.
    """

    def __init__(self, modules: "dict[str, Entry]") -> None:
        self.modules = modules

    def find_spec(
        self, name: str, _path: object = None, _target: object = None
    ) -> bootstrap.ModuleSpec | None:
        """Return how to load a module; None if it is not in the program. Part of importlib.abc.MetaPathFinder.

        Raises
        ------
        ModuleNotFoundError
            Boot's Python has no such module.
        """
        if name not in self.modules:
            return None
        origin, kind, content = self.modules[name]
        if kind == "absent":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        loader = ExtensionLoader(name, origin, content) if kind == "extension" else self
        spec = bootstrap.ModuleSpec(name, loader, origin=origin, is_package=kind == "package")  # type: ignore[arg-type]
        spec.has_location = True  # the module gets `__file__`
        if kind == "package":
            spec.submodule_search_locations = [origin.rpartition("/")[0]]
        return spec

    def create_module(self, _spec: bootstrap.ModuleSpec) -> "ModuleType | None":
        """Let Python make the module. Part of importlib.abc.Loader."""
        return None

    def exec_module(self, module: "ModuleType") -> None:
        """Run the module's code, and free the code's memory. Part of importlib.abc.Loader."""
        _, _, code = self.modules.pop(module.__name__)
        exec(marshal.loads(code), module.__dict__)


class ExtensionLoader(external.ExtensionFileLoader):
    """Loads an extension module from memory, or from its file if that fails.

    Parameters
    ----------
    name, path : str
        The module's name, and the path of its file.
    content : bytes
        The part of the file that is loaded into memory; empty if the module must be loaded from its file.
    """

    _count = 0

    def __init__(self, name: str, path: str, content: bytes) -> None:
        super().__init__(name, path)
        self._content = content

    def create_module(self, spec: bootstrap.ModuleSpec) -> "ModuleType":
        """Load the library, and make its module. Part of importlib.abc.Loader."""
        if self._content:
            try:
                return self._load_from_memory()
            except (AttributeError, ImportError, OSError):  # an old C library has no memfd_create(2)
                pass
        return super().create_module(spec)

    def _load_from_memory(self) -> "ModuleType":
        descriptor = posix.memfd_create(self.name)
        try:
            if posix.write(descriptor, self._content) < len(self._content):
                raise OSError("the memory file is incomplete")
            # dlopen(3) identifies libraries by path, so each needs a different one; the descriptor's number repeats.
            ExtensionLoader._count += 1
            path = f"/proc/self/{'./' * ExtensionLoader._count}fd/{descriptor}"
            module = _imp.create_dynamic(bootstrap.ModuleSpec(self.name, self, origin=path))
        finally:
            posix.close(descriptor)
        module.__file__ = self.path
        return module


def install() -> None:
    """Let Python look in the program for modules that are neither built into the interpreter nor frozen."""
    first, packed = marshal.loads(PROGRAM)
    importer = ProgramImporter(first)
    sys.meta_path.insert(sys.meta_path.index(external.PathFinder), importer)
    import zlib

    importer.modules.update(marshal.loads(zlib.decompress(packed)))


def main() -> None:
    try:
        install()
        entry = CHILDREN.get(sys.argv[1], AGENT)
        __import__(entry)
    except Exception as error:
        host = posix.uname().nodename
        sys.exit(f"mpiboot: the agent on {host} cannot start: {type(error).__name__}: {error}")
    sys.exit(sys.modules[entry].main())


if __name__ == "__main__":
    main()
