"""Source distributions: a project's tests, of the version that is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path


def fetch(
    project: str,
    version: str,
    directory: Path,
    environment: Mapping[str, str] | None = None,
    *,
    without: str | None = None,
) -> Path:
    """Have pip download it; unpack it. Returns the folder.

    without: the package in it, where tests would find that in place of what is installed.
    """
    unpacked = directory / f"sources-{version}"
    if not unpacked.exists():  # of an earlier run that was kept
        downloaded = directory / f"downloaded-{version}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--no-binary", project, "--dest", str(downloaded), f"{project}=={version}"]
        subprocess.run(command, env=environment, check=True)
        (file,) = downloaded.glob("*.tar.gz")
        with tarfile.open(file) as archive:
            archive.extractall(unpacked, filter="data")
        shutil.rmtree(downloaded)
    (folder,) = unpacked.iterdir()
    if without:
        shutil.rmtree(folder / without, ignore_errors=True)
    return folder
