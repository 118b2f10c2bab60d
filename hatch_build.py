"""The build hook that compiles `gptailor/methods/native.c`, where there is a C compiler.

    python hatch_build.py

The command compiles the library of a checkout, as `pip install -e .` does. Without a compiler, or
with GPTAILOR_NATIVE=off, the wheel is pure: gptailor then computes with NumPy.
"""

import hashlib
import os
import platform
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

METHODS = Path("gptailor") / "methods"
LIBRARY = METHODS / "libnative.so"
FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-s", "-ffp-contract=off", "-fno-trapping-math")
"""Products are rounded before they are added, as NumPy rounds them. Nothing traps, so loops with
choices become vectors."""


class NativeLibrary(BuildHookInterface):  # type: ignore[type-arg]
    """The wheel's library, in the tree and so also in an editable install."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the library; a wheel that has it is one of this platform."""
        del version
        if (reason := compile_library(Path(self.root))) is not None:
            self.app.display_info(f"pure wheel: {reason}")
            return
        build_data["artifacts"].append(f"/{LIBRARY.as_posix()}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_platform_tag()}"


def compile_library(root: Path, output: Path | None = None, *options: str) -> str | None:
    """Compile the library of a checkout; without one, remove it and return the reason.

    `options` are added to the compiler's.
    """
    source, output = root / METHODS / "native.c", output or root / LIBRARY
    new = output.with_name(f"{output.name}.{os.getpid()}").resolve()
    if (reason := _compiled(source, new, options)) is None:
        new.replace(output)  # a process that has the old library keeps it
    else:
        new.unlink(missing_ok=True)
        output.unlink(missing_ok=True)
    return reason


def _compiled(source: Path, output: Path, options: Sequence[str]) -> str | None:
    if os.environ.get("GPTAILOR_NATIVE") == "off":
        return "GPTAILOR_NATIVE is off"
    compiler = shlex.split(os.environ.get("CC") or "cc")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    command = [*compiler, *FLAGS, *options, f'-DSOURCE_DIGEST="{digest}"', source.name]
    try:
        done = subprocess.run(
            [*command, "-o", str(output)],
            cwd=source.parent,
            check=False,
            capture_output=True,
            text=True,
        )
    except OSError as error:
        return f"no C compiler: {error}"
    return f"the C compiler failed: {done.stderr.strip()}" if done.returncode else None


def _platform_tag() -> str:
    tag = sysconfig.get_platform().replace("universal2", platform.machine())
    return tag.replace("-", "_").replace(".", "_")


if __name__ == "__main__":
    sys.exit(compile_library(Path(__file__).parent))
