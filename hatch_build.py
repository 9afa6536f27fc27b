"""Compiles the parts of the package that are written in C, where there is a compiler.

Without one (or without Python's headers) the package is installed all the same: the recording path
then runs in Python, which is slower, and `qigstore version` says so.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = (
    "qigstore/recording/_short_way.c",
    "qigstore/recording/spool/_frames.c",
    "qigstore/safety/_check.c",
    "qigstore/safety/_statistic.c",
)
# No fused operations: the same bits as in Python.
FLAGS = ["-O2", "-std=c11", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-unused-parameter"]


class CompileParts(BuildHookInterface[Any]):
    """Beside its source, where an editable install finds it, and into a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Before a wheel (or what stands for it in an editable install) is put together."""
        if made := self._compiled():
            build_data["artifacts"] += made
            build_data["pure_python"] = False
            build_data["infer_tag"] = True

    def _compiled(self) -> list[str]:
        from setuptools import Distribution, Extension
        from setuptools.command.build_ext import build_ext
        from setuptools.errors import CompileError, LinkError, PlatformError

        extensions = [
            Extension(
                source.removesuffix(".c").replace("/", "."),
                [str(Path(self.root, source))],
                extra_compile_args=FLAGS,
            )
            for source in SOURCES
        ]
        command = build_ext(Distribution({"name": "qigstore", "ext_modules": extensions}))
        command.build_lib, command.build_temp = self.root, str(Path(self.root, "build", "temp"))
        command.ensure_finalized()
        try:
            command.run()
        except (CompileError, LinkError, PlatformError) as error:
            sys.stderr.write(f"qigstore: the recording path stays in Python: {error}\n")
            return []
        made = [Path(command.get_ext_fullpath(extension.name)) for extension in extensions]
        return [path.relative_to(self.root).as_posix() for path in made]
