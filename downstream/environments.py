"""A Python of its own for a suite: what its tests need, and not the plugins that ours bring."""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .suites import NotRun

#: What a run needs beside what a recipe asks for: asyncsafe itself is taken from this checkout.
ALWAYS = ("asgiref",)


def installed(*distributions: str) -> str:
    """The version that this Python has of one of them."""
    for distribution in distributions:
        with suppress(PackageNotFoundError):
            return version(distribution)
    raise NotRun(f"{distributions[0]} is not installed")


def environment(requirements: Sequence[str], directory: Path) -> Path:
    """Make it; returns its interpreter.

    requirements: what pip takes. One that is a name alone is of the version that this Python has.
    """
    folder = directory / "venv"
    python = folder / "bin" / "python"
    noted = folder / "requirements.txt"
    wanted = "\n".join(_pinned(requirement) for requirement in (*ALWAYS, *requirements))
    if noted.exists() and noted.read_text() == wanted:  # of an earlier run that was kept
        return python
    venv.create(folder, clear=True, symlinks=True)
    noted.with_suffix(".in").write_text(wanted)
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "-qq"]
    subprocess.run([*command, "-r", str(noted.with_suffix(".in"))], check=True)
    noted.with_suffix(".in").rename(noted)
    return python


def _pinned(requirement: str) -> str:
    try:
        return f"{requirement}=={version(requirement)}"
    except PackageNotFoundError:
        return requirement


def packages(python: Path) -> Path:
    """Where that interpreter, made by `environment()`, has what is installed."""
    (folder,) = (python.parent.parent / "lib").glob("python*/site-packages")
    return folder
