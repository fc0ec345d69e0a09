"""A code base that nobody here wrote, from the first run to a baseline: JupyterHub.

    pip install jupyterhub "asyncsafe[cli]"
    python -m examples.jupyterhub [--keep DIR]

Its handlers are coroutines on Tornado, and ask SQLAlchemy synchronously, as it was written before there
was an AsyncSession. The same requests are sent to it four times:

1. `asyncsafe run`: what blocks its event loop, and for how long.
2. `--update-baseline`: the places that are known are written down.
3. `--baseline`: the same again, in mode "raise". Nothing is refused.
4. `--baseline`, and a new handler that queries on the loop: that one is refused.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

CONFIG = Path(__file__).with_name("jupyterhub_config.py")
TOKEN = "a-token-for-the-example"


class Hub:
    """A JupyterHub under `asyncsafe run`, in a directory of its own."""

    def __init__(self, directory: Path, *options: str, news: bool = False) -> None:
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            self._port = listening.getsockname()[1]
        environment = {**os.environ, "HUB_PORT": str(self._port), "HUB_TOKEN": TOKEN}
        environment["HUB_NEWS"] = "1" if news else ""
        hub = str(Path(sys.executable).with_name("jupyterhub"))
        command = [sys.executable, "-m", "asyncsafe", "run", *options, hub, "-f", str(CONFIG)]
        (directory / "jupyterhub.sqlite").unlink(missing_ok=True)
        self._output = (directory / "output.txt").open("w+")
        self._process = subprocess.Popen(
            command,
            cwd=directory,
            env=environment,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        while self.ask("GET", "/hub/api/") != 200:
            if self._process.poll() is not None:
                sys.exit(self.text())
            time.sleep(0.1)

    def ask(self, method: str, path: str, body: object = None) -> int:
        """The status of the answer; 0 where nobody answers."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"token {TOKEN}"},
        )
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def work(self) -> list[int]:
        """What an administrator does in a morning."""
        statuses = []
        for number in range(10):
            user = f"/hub/api/users/student{number}"
            statuses += [
                self.ask("POST", user),
                self.ask("GET", user),
                self.ask("PATCH", user, {"admin": False}),
                self.ask("POST", f"/hub/api/groups/class{number}"),
                self.ask(
                    "POST", f"/hub/api/groups/class{number}/users", {"users": [f"student{number}"]}
                ),
                self.ask("GET", "/hub/api/users"),
                self.ask("POST", f"{user}/tokens", {}),
                self.ask("DELETE", user),
            ]
        return statuses

    def end(self) -> int:
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(60)

    def text(self) -> str:
        self._output.seek(0)
        return self._output.read()


def main() -> None:
    parser = argparse.ArgumentParser("python -m examples.jupyterhub", description=__doc__)
    parser.add_argument("--keep", metavar="DIR", type=Path, help="leave the reports there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = (options.keep or Path(temporary)).resolve()
        directory.mkdir(parents=True, exist_ok=True)
        adopt(directory)


def adopt(directory: Path) -> None:
    baseline = directory / "asyncsafe-baseline.txt"
    baseline.unlink(missing_ok=True)

    print("1. asyncsafe run: what blocks it")
    hub = Hub(directory, "--report", "first.json")
    first = hub.work()
    hub.end()
    told(hub.text())
    for name in ("first.html", "first.sarif"):
        run(directory, "report", "first.json", "--output", name)
    print(f"   {directory / 'first.html'}, and first.sarif for code scanning")

    print("2. --update-baseline: what is known is written down")
    hub = Hub(directory, "--baseline", baseline.name, "--update-baseline")
    assert hub.work() == first
    hub.end()
    print(f"   {len(baseline.read_text().splitlines())} lines in {baseline.name}")

    print("3. --baseline: the same again, and nothing is refused")
    hub = Hub(directory, "--baseline", baseline.name, "--fail")
    assert hub.work() == first, "a known call was refused"
    status = hub.end()
    told(hub.text())
    print(f"   exit status {status}")
    assert status == 0

    print("4. a new handler that queries on the loop: it is refused, and the rest goes on")
    hub = Hub(directory, "--baseline", baseline.name, "--fail", news=True)
    assert hub.work() == first
    answer = hub.ask("GET", "/hub/news")
    status = hub.end()
    told(hub.text())
    print(f"   GET /hub/news: {answer}; exit status {status}")
    assert (answer, status) == (500, 3)


def run(directory: Path, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "asyncsafe", *arguments], cwd=directory, check=True)


def told(text: str) -> None:
    """asyncsafe's own words at the end of the output: the top of the table, and of the baseline."""
    width = shutil.get_terminal_size().columns - 4
    lines = text[text.rfind("\nasyncsafe: ") :].strip().splitlines()
    after = next((n for n, line in enumerate(lines) if line.startswith("Baseline ")), len(lines))
    for line in [*lines[:8], *lines[after:]]:
        print(f"   {line[:width]}".rstrip())


if __name__ == "__main__":
    main()
