"""Source distributions: a project's tests, of the version that is installed."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path


def fetch(
    project: str, version: str, directory: Path, environment: Mapping[str, str] | None = None
) -> Path:
    """Have pip download it; unpack it. Returns the folder."""
    folder = directory / f"{project}-{version}"
    if folder.exists():  # of an earlier run that was kept
        return folder
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--no-binary", project, "--dest", str(directory), f"{project}=={version}"]
    subprocess.run(command, env=environment, check=True)
    with tarfile.open(directory / f"{project}-{version}.tar.gz") as archive:
        archive.extractall(directory, filter="data")
    return folder
