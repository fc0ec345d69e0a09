"""Source distributions: a project's tests, of the version that is installed."""

from __future__ import annotations

import getpass
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

from .suites import NotRun


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
        command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps"]
        command += ["--no-binary", project, "--dest", str(downloaded), f"{project}=={version}"]
        subprocess.run(command, env=environment, check=True)
        (file,) = downloaded.glob("*.tar.gz")
        with tarfile.open(file) as archive:
            archive.extractall(unpacked, filter="data")
        shutil.rmtree(downloaded)
    (sources,) = unpacked.iterdir()
    if without:
        shutil.rmtree(sources / without, ignore_errors=True)
    return sources


#: Of a release, whose versions stay: apt's own sources may have none, or another's.
DEBIAN = "deb-src [signed-by={keyring}] http://deb.debian.org/debian trixie main\n"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def fetch_from_debian(package: str, directory: Path) -> Path:
    """The same of a project whose distributions on the package index have no tests: the sources
    that Debian has, of a version near the installed one. Raises NotRun where there is no Debian.
    """
    unpacked = directory / f"debian-{package}"
    if not unpacked.exists():
        if shutil.which("apt-get") is None or not KEYRING.exists():
            raise NotRun(f"the sources of {package} with its tests are had by Debian's apt-get")
        apt = directory / "apt"
        for folder in "lists/partial", "cache/archives/partial", "downloaded":
            (apt / folder).mkdir(parents=True, exist_ok=True)
        (apt / "sources.list").write_text(DEBIAN.format(keyring=KEYRING))
        options = {
            "Dir::Etc::sourcelist": apt / "sources.list",
            "Dir::Etc::sourceparts": "-",
            "Dir::State::lists": apt / "lists",
            "Dir::Cache": apt / "cache",
            "APT::Sandbox::User": getpass.getuser(),
        }
        command = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
        subprocess.run([*command, "update"], check=True)
        source = [*command, "source", "--download-only", "--tar-only", package]
        subprocess.run(source, cwd=apt / "downloaded", check=True)
        (file,) = (apt / "downloaded").glob("*.orig.tar.*")
        with tarfile.open(file) as archive:
            archive.extractall(unpacked, filter="data")
        shutil.rmtree(apt)
    (sources,) = unpacked.iterdir()
    return sources
