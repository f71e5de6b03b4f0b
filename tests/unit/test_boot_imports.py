"""Before staging, boot and the agents run from a slow shared file system: what they import is counted."""

import subprocess
import sys

import pytest

ALLOWED = {"mpiboot", "envpack", "zstandard", "cryptography", "_cffi_backend", "_openssl"}
SHOW = """
import sys
import {module}
{more}
print(*sorted({{name.partition(".")[0] for name in sys.modules}} - set(sys.stdlib_module_names) - {{"__main__"}}))
"""


@pytest.mark.parametrize(
    ("module", "more"),
    [
        (
            "mpiboot.boot.sequence",
            "from mpiboot.boot import certificates; certificates.make_pems(60.0, (), ())",
        ),
        ("mpiboot.boot.sequence", "import envpack.archive.encoding"),
        ("mpiboot.agent.agent", "import envpack.stage.staging"),
    ],
)
def test_only_the_standard_library_zstandard_and_cryptography(module, more):
    # -S: the .pth files of whatever environment the tests run in are not boot's.
    code = f"import sys; sys.path[:0] = {sys.path!r}\n" + SHOW.format(module=module, more=more)
    shown = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    assert set(shown.stdout.split()) <= ALLOWED | {"_distutils_hack", "sitecustomize"}
