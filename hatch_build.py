"""Compiles the one part of the package that is written in C, where there is a compiler.

Without one (or without Python's headers) the package is installed all the same: the recording path
then runs in Python, which takes three times as long, and `qigstore version` says so.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = "qigstore/recording/spool/_cursor.c"
FLAGS = ["-O2", "-std=c11", "-Wall", "-Wextra", "-Wno-unused-parameter"]


class CompileCursor(BuildHookInterface[Any]):
    """Beside its source, where an editable install finds it, and into a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Before a wheel (or what stands for it in an editable install) is put together."""
        made = self._compiled()
        if made is not None:
            build_data["artifacts"].append(made)
            build_data["pure_python"] = False
            build_data["infer_tag"] = True

    def _compiled(self) -> str | None:
        from setuptools import Distribution, Extension
        from setuptools.command.build_ext import build_ext
        from setuptools.errors import CompileError, LinkError, PlatformError

        name = SOURCE.removesuffix(".c").replace("/", ".")
        extension = Extension(name, [str(Path(self.root, SOURCE))], extra_compile_args=FLAGS)
        command = build_ext(Distribution({"name": "qigstore", "ext_modules": [extension]}))
        command.build_lib, command.build_temp = self.root, str(Path(self.root, "build", "temp"))
        command.ensure_finalized()
        try:
            command.run()
        except (CompileError, LinkError, PlatformError) as error:
            sys.stderr.write(f"qigstore: the recording path stays in Python: {error}\n")
            return None
        return Path(command.get_ext_fullpath(name)).relative_to(self.root).as_posix()
