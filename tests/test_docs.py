"""The documentation tells the truth: what stands in its blocks is run, page by page.

A block is what its language says: `python` blocks of a page are one script, `sh` blocks are
commands, `toml`, `json`, `yaml` and `ini` are read. A comment above it may say more:

    <!-- file: app.py -->          it is a file's content (which may stand in the comment itself,
                                   where the reader needn't see it)
    <!-- exit: 3 -->               the commands' exit status
    <!-- output -->                what the commands before it print, but for durations
    <!-- not run: reason -->       it is neither

A block without a language is what something prints or holds, and no command.

Files are written first, then commands are run, then the script, all in one directory.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from .conftest import missing

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(
    str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md") if "_build" not in page.parts
)

_BLOCK = re.compile(
    r"^(?:<!-- (?P<comment>[^\n]*?) -->\n+)?(?P<fence>```+)(?P<language>[^\n`]*)\n(?P<code>.*?)^(?P=fence)$",
    re.DOTALL | re.MULTILINE,
)


_HIDDEN_FILE = re.compile(
    r"^<!-- file: (?P<name>\S+)\n(?P<code>.*?)^-->$", re.DOTALL | re.MULTILINE
)


@dataclass
class Block:
    """A fenced block of a page, and what the comment above it says."""

    language: str
    code: str
    what: str
    argument: str


def blocks(page: str) -> Iterator[Block]:
    text = (DOCS / page).read_text()
    for hidden in _HIDDEN_FILE.finditer(text):
        yield Block("", hidden["code"], "file", hidden["name"])
    for found in _BLOCK.finditer(text):
        what, _, argument = (found["comment"] or "").partition(": ")
        if found["language"].startswith("{"):  # a directive of Sphinx's
            continue
        yield Block(found["language"], found["code"], what, argument)


def read_yaml(text: str) -> object:
    import yaml

    return yaml.safe_load(text)


_COMMAND = re.compile(r"^(asyncsafe (run|report|info)|pytest|pip|python) ", re.MULTILINE)

READERS = {
    "toml": tomllib.loads,
    "json": json.loads,
    "yaml": read_yaml,
    "ini": lambda text: configparser.ConfigParser().read_string(text),
}


def without_durations(text: str) -> list[str]:
    """The lines that are printed, without durations, which also order them and set their width."""
    text = re.sub(r"[\d.,]+ (s|ms|µs)\b|in [\d.]+s\b", "~", text)
    return sorted(" ".join(line.split()) for line in text.strip().splitlines())


@pytest.mark.parametrize("page", PAGES)
def test_what_stands_in_the_blocks_is_run(
    page: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(DOCS.parent), "COLUMNS": "120"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for variable in ("ASYNCSAFE_MODE", "PYTEST_ADDOPTS"):
        environment.pop(variable, None)
    found = list(blocks(page))
    if any("dsn" in block.code for block in found if block.language == "python"):
        environment["DSN"] = request.getfixturevalue("postgres")
    for block in found:
        if block.what == "file":
            path = tmp_path / block.argument
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.code)
    printed, script = "", ""
    for block in found:
        if block.what in {"file", "not run"}:
            assert block.argument, "say why" if block.what == "not run" else "say which file"
        elif block.what == "output":
            assert without_durations(block.code) == without_durations(printed)
        elif block.language == "sh":
            ran = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block.code],
                cwd=tmp_path,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=100,
                check=False,
            )
            printed = ran.stdout
            assert ran.returncode == int(block.argument or 0), printed
        elif block.language == "python":
            script += f"{block.code}\n"
        elif not block.language:
            assert not _COMMAND.search(block.code), "commands are `sh`"
        elif block.language in READERS:
            if block.language == "yaml" and not _has_yaml():
                missing("PyYAML", "pip install 'asyncsafe[docs]'")
            READERS[block.language](block.code)
        else:
            pytest.fail(f"{page}: what is {block.language!r}? See tests/test_docs.py\n{block.code}")
    if script:
        run_script(script, tmp_path, environment)


def run_script(script: str, directory: Path, environment: dict[str, str]) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", f"import os\ndsn = os.environ.get('DSN')\n{script}"],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


def _has_yaml() -> bool:
    from importlib.util import find_spec

    return find_spec("yaml") is not None


def test_sphinx_finds_nothing_to_complain_of(tmp_path: Path) -> None:
    try:
        import furo  # noqa: F401
        import myst_parser  # noqa: F401
    except ImportError:
        pytest.skip("pip install 'asyncsafe[docs]'; .ci/run builds them")
    ran = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(DOCS), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
