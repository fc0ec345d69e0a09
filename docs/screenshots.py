"""python docs/screenshots.py: the pictures of the report in docs/images, from a run of examples/orders."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).parent.parent
IMAGES = Path(__file__).parent / "images"
#: Runs of the example, which are merged.
RUNS = 3

OPEN_FIRST = "document.querySelector('#table tbody button').click()"
TO_FLAME = "document.getElementById('flame-title').scrollIntoView(); scrollBy(0, -80)"
TO_STALLS = "document.getElementById('stalls-title').scrollIntoView(); scrollBy(0, -80)"


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        page = _write_report(Path(directory))
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        _take(browser, page, "report-light", "light")
        _take(browser, page, "report-dark", "dark", OPEN_FIRST)
        _take(browser, page, "report-flame", "light", TO_FLAME, height=420)
        _take(browser, page, "report-stalls", "light", TO_STALLS, height=640)
        _take(browser, page, "report-narrow", "dark", width=420, height=760)
        browser.close()


def _write_report(directory: Path) -> Path:
    asyncsafe = [sys.executable, "-m", "asyncsafe"]
    files = [str(directory / f"{number}.json") for number in range(RUNS)]
    for file in files:
        command = [*asyncsafe, "run", "--report", file, "examples/orders"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    page = directory / "report.html"
    subprocess.run([*asyncsafe, "report", *files, "--output", str(page)], cwd=ROOT, check=True)
    return page


def _take(
    browser: Browser,
    report: Path,
    name: str,
    scheme: str,
    script: str = "",
    width: int = 1200,
    height: int = 860,
) -> None:
    page: Page = browser.new_page(
        viewport={"width": width, "height": height},
        color_scheme="dark" if scheme == "dark" else "light",
        reduced_motion="reduce",
        locale="en-GB",
    )
    page.goto(report.as_uri())
    page.locator("#stalls canvas").first.wait_for()
    page.evaluate(script)
    page.wait_for_timeout(500)  # what is drawn takes its time
    page.screenshot(path=IMAGES / f"{name}.png")
    page.close()


if __name__ == "__main__":
    main()
