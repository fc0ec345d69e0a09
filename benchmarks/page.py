"""The HTML page of a report with 10,000 call sites, beside one with 100: in a browser, to the next frame."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .timing import Table, Values, missing

SMALL, LARGE = 100, 10_000

#: What a person does, and what is waited for.
DEEDS = {
    "open": None,
    "sort": "document.querySelectorAll('#table th button')[1].click()",
    "next page": "document.getElementById('next').click()",
    "search, a key": "const box = document.getElementById('search'); box.value = WORDS[turn % WORDS.length]; box.dispatchEvent(new Event('input'))",
}

#: From the deed to the frame after it. The charts follow a search 150 ms later: their work is in the
#: longest task.
TIME = """
async (code) => {
  const WORDS = ["f", "fi", "find", "find_7", "view_3 service", ""];
  const turn = (window.turns = (window.turns || 0) + 1);
  const frame = () => new Promise(requestAnimationFrame);
  await frame();
  const begin = performance.now();
  new Function("WORDS", "turn", code)(WORDS, turn);
  await frame();
  const seconds = (performance.now() - begin) / 1000;
  await new Promise((resolve) => setTimeout(resolve, 300));
  return seconds;
}
"""
LONG_TASKS = """
window.longest = 0;
new PerformanceObserver((list) => {
  for (const task of list.getEntries()) window.longest = Math.max(window.longest, task.duration);
}).observe({ type: "longtask", buffered: true });
"""
SCROLL = """
async () => {
  const frames = [];
  let last = performance.now();
  for (let step = 0; step < 90; step++) {
    scrollBy(0, 40);
    await new Promise(requestAnimationFrame);
    const now = performance.now();
    frames.push((now - last) / 1000);
    last = now;
  }
  return frames;
}
"""


def measure(quick: bool) -> Iterator[Table]:
    browser = shutil.which("chromium")
    values: Values = {}
    longest: dict[str, tuple[str, bool]] = {}
    if browser is not None and not missing("playwright", "jsonschema", "jinja2"):
        values, longest = _time_pages(browser, 5 if quick else 20)
    names = [*DEEDS, "scroll, a frame"]
    yield Table(
        f"The HTML page, {SMALL:,} call sites and {LARGE:,}",
        "ms",
        values,
        {_case(name, sites): _case(name, SMALL) for name in names for sites in (SMALL, LARGE)},
        remarks=longest,
    )


def _case(name: str, sites: int) -> str:
    return f"{name}, {sites:,} sites"


def _time_pages(browser_path: str, rounds: int) -> tuple[Values, dict[str, tuple[str, bool]]]:
    from playwright.sync_api import sync_playwright

    values: Values = {}
    remarks = {}
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as directory:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        # new Function() is this script's, which the page's policy wouldn't let run.
        context = browser.new_context(bypass_csp=True)
        for sites in (SMALL, LARGE):
            path = _write(sites, Path(directory))
            opened = []
            for _ in range(max(3, rounds // 4)):
                page: Any = context.new_page()
                page.goto(path.as_uri())
                opened.append(
                    page.evaluate(
                        "performance.timing.loadEventEnd - performance.timing.responseEnd"
                    )
                    / 1000
                )
                if len(opened) < max(3, rounds // 4):
                    page.close()
            values[_case("open", sites)] = opened
            page.evaluate(LONG_TASKS)
            page.wait_for_timeout(500)
            page.evaluate("window.longest = 0")
            for name, code in DEEDS.items():
                if code is not None:
                    values[_case(name, sites)] = [page.evaluate(TIME, code) for _ in range(rounds)]
                    told = f"longest task {page.evaluate('window.longest'):.0f} ms"
                    remarks[_case(name, sites)] = (told, True)
                    page.evaluate("window.longest = 0")
            page.evaluate("scrollTo(0, 0)")
            values[_case("scroll, a frame", sites)] = page.evaluate(SCROLL)
        browser.close()
    return values, remarks


def _write(sites: int, directory: Path) -> Path:
    from asyncsafe.reports import html
    from tests.reports.making import large

    path = directory / f"{sites}.html"
    path.write_text(html.render(large(sites), "/app"), encoding="utf-8")
    return path
