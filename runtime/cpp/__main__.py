"""`python -m ezaudio.runtime.cpp`: prints where the C++ library lies, for CMake and other build systems."""

from __future__ import annotations

from pathlib import Path

import click

from ezaudio import __version__
from ezaudio.runtime.command import Command
from ezaudio.runtime.errors import InputError

HELP = """Print where the C++ library of this package lies.

\b
A CMake project that calls find_package(ezaudio CONFIG REQUIRED):
  cmake -B build -Dezaudio_DIR="$(python -m ezaudio.runtime.cpp --cmake-dir)" -DONNXRUNTIME_ROOT=FOLDER
The example programs and the C library libezaudio:
  cmake -S "$(python -m ezaudio.runtime.cpp --source-dir)" -B build -DONNXRUNTIME_ROOT=FOLDER
Any other build system:
  c++ -std=c++17 -ffp-contract=off -I "$(python -m ezaudio.runtime.cpp --include-dir)" …

docs/cpp.md of the project tells the rest.
"""

FOLDERS = {"include_dir": "include", "cmake_dir": "cmake", "source_dir": "."}


@click.command(cls=Command, help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--include-dir", is_flag=True, help="Folder of the headers: the one that has ezaudio/ezaudio.hpp.")
@click.option("--cmake-dir", is_flag=True, help="Folder of ezaudio-config.cmake, for ezaudio_DIR.")
@click.option("--source-dir", is_flag=True, help="Folder of CMakeLists.txt, which builds the examples and libezaudio.")
@click.version_option(__version__, message="ezaudio %(version)s")
def main(**asked: bool) -> None:
    names = [name for name, is_asked in asked.items() if is_asked]
    if len(names) != 1:
        raise InputError("one of --include-dir, --cmake-dir, --source-dir is expected; --help has examples")
    click.echo(Path(__file__).parent.resolve() / FOLDERS[names[0]])


if __name__ == "__main__":
    main(prog_name="python -m ezaudio.runtime.cpp")
