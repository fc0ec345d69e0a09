"""Types survive decoration: tests/typing/*.py under mypy and pyright."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((Path(__file__).parent / "typing").glob("*.py"))


def run(*command: str, cwd: Path) -> str:
    result = subprocess.run(
        [sys.executable, "-m", *command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert result.returncode in {0, 1}, result.stdout + result.stderr
    return result.stdout


def mypy(file: Path, tmp_path: Path) -> dict[int, str]:
    pytest.importorskip("mypy")
    options = ("--strict", "--config-file=", f"--cache-dir={tmp_path}", "--no-error-summary")
    output = run("mypy", *options, str(file), cwd=ROOT)
    # What isn't an error of this file is one of asyncsafe's own types, which a user sees too.
    found = re.findall(r"^(.+?):(\d+): error: (.+)$", output, re.MULTILINE)
    assert {Path(ROOT, name).resolve() for name, _, _ in found} <= {file.resolve()}, output
    return {int(line): message for _, line, message in found}


def pyright(file: Path, tmp_path: Path) -> dict[int, str]:
    pytest.importorskip("pyright")
    settings = {
        "typeCheckingMode": "strict",
        "extraPaths": [str(ROOT)],
        # Expressions stand alone here, to be errors or not.
        "reportUnusedExpression": False,
        "reportUnusedCoroutine": False,
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    shutil.copy(file, tmp_path)
    options = ("--outputjson", "--pythonpath", sys.executable, "--project", str(tmp_path))
    report = json.loads(run("pyright", *options, cwd=ROOT))
    assert report["summary"]["filesAnalyzed"] == 1, report
    return {
        found["range"]["start"]["line"] + 1: found["message"]
        for found in report["generalDiagnostics"]
        if found["severity"] == "error"
    }


@pytest.mark.parametrize("check", [mypy, pyright], ids=lambda check: check.__name__)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_marked_lines_are_errors_and_no_others(
    file: Path, check: Callable[[Path, Path], dict[int, str]], tmp_path: Path
) -> None:
    lines = file.read_text().splitlines()
    expected = {number for number, line in enumerate(lines, 1) if line.endswith("# error")}
    assert expected
    found = check(file, tmp_path)
    unexpected = {line: found[line] for line in found.keys() - expected}
    missing = {line: lines[line - 1] for line in expected - found.keys()}
    assert (unexpected, missing) == ({}, {})
