"""The HTML page in a real browser: no error, no network, nothing of the program's taken for markup."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from asyncsafe.reports import html
from asyncsafe.reports.formats import MissingExtra

from ..conftest import missing
from .making import HOSTILE, allowed, hostile, large, refused, report, sharing, site


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        missing("chromium", "apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


Open = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser, tmp_path: Path) -> Iterator[Open]:
    """Opens the page of a report; at the end it must have made no error and no request."""
    told: list[str] = []
    pages: list[Page] = []

    def open_page(content: dict[str, Any], quiet: bool = True, **options: Any) -> Page:
        path = tmp_path / "report.html"
        path.write_text(html.render(content, "/app"), encoding="utf-8")
        page = browser.new_page(**options)
        pages.append(page)
        if quiet:
            page.on("console", lambda message: told.append(message.text))
            page.on("pageerror", lambda error: told.append(str(error)))
            page.on("request", lambda request: told.append(request.url))
        page.goto(path.as_uri())
        return page

    yield open_page
    for page in pages:
        page.close()
    assert [line for line in told if not line.endswith("/report.html")] == []


def texts(page: Page, selector: str) -> list[str]:
    return page.locator(selector).all_inner_texts()


def sites(page: Page) -> list[str]:
    """The call sites that are shown, in their order: the numbers of their functions."""
    found = texts(page, "tr.site .where")
    return [re.findall(r"find_(\d+)", text)[0] for text in found]


def test_it_opens_with_the_worst_first(open_page: Open) -> None:
    page = open_page(report(site(1, [0.001]), site(2, [2.5, 0.5]), site(3, [0.02])))

    assert page.title() == "What blocked the event loop: app.py --port 1"
    assert sites(page) == ["2", "3", "1"]
    summary = dict(zip(texts(page, ".summary dt"), texts(page, ".summary dd"), strict=True))
    assert summary["blocked in total"] == "3.02 s"
    assert summary["longest call"] == "2.50 s"
    assert summary["most tasks waiting"] == "5"
    # The loop, the coroutine, and two functions with their calls: the third is narrower than a pixel.
    expect(page.locator("#flame g.frame")).to_have_count(6)
    expect(page.locator("#stalls canvas")).to_have_count(2)
    assert texts(page, "#longest tbody td:nth-child(2)") == ["2.50 s", "20.0 ms", "1.0 ms"]


@pytest.mark.parametrize(
    ("column", "descending"),
    [
        ("total", "213"), ("calls", "321"), ("p95", "213"), ("worst", "213"), ("waiting", "312"),
    ],
)  # fmt: skip
def test_it_is_sorted_by_script(open_page: Open, column: str, descending: str) -> None:
    nobody, many = ({"calls": n, "total": 9 * n, "most": 9 * n} for n in (0, 1))
    page = open_page(
        report(
            site(1, [0.01], waiting={"calls": 1, "total": 1, "most": 1}),
            site(2, [0.2, 0.2], waiting=nobody),
            site(3, [0.001] * 3, waiting=many),
        )
    )
    heading = page.locator("#table th", has_text=column)
    button = heading.get_by_role("button")

    button.click()
    if column == "total":  # it was sorted by that, so this was the second click
        expect(heading).to_have_attribute("aria-sort", "ascending")
        button.click()

    expect(heading).to_have_attribute("aria-sort", "descending")
    assert "".join(sites(page)) == descending
    button.click()
    expect(heading).to_have_attribute("aria-sort", "ascending")
    # What was not measured is last, whichever way.
    assert "".join(sites(page)) == ("132" if column == "waiting" else descending[::-1])


def test_the_table_the_flame_graph_and_the_timeline_follow_the_search(open_page: Open) -> None:
    page = open_page(report(*(site(number, [number / 1000]) for number in range(1, 31))))
    assert page.locator("tr.site").count() == 25

    page.fill("#search", "FIND_17 orders")

    assert sites(page) == ["17"]
    assert page.inner_text("#found") == "1 of 30 call sites"
    expect(page.locator("#flame g.frame")).to_have_count(4)
    expect(page.locator("#longest tbody td:last-child")).to_have_text(
        ["orders/queries_17.py:17 find_17()"]
    )
    page.fill("#search", "no such word")
    assert "No call site has all of these words." in page.inner_text("#table")
    page.fill("#search", "")
    assert page.locator("tr.site").count() == 25


def test_a_site_opens_its_details_by_the_keyboard(open_page: Open) -> None:
    page = open_page(report(site(1), allowed(2, "it is fast"), refused(3), sharing(4)))
    for number in (1, 2, 3, 4):
        button = page.locator("tr.site button", has_text=f"find_{number}()")
        button.focus()
        page.keyboard.press("Enter")
        assert button.get_attribute("aria-expanded") == "true"
    told = page.inner_text("#table")
    assert "SELECT total FROM orders_1" in told
    assert "await asyncsafe.database_sync_to_async(find_1)(...)" in told
    assert "it is fast" in told
    assert "task 'Task-9', begun at orders/views.py:7 async begin()" in told
    assert page.locator("svg.large").count() == 2
    assert "1 call site uses a connection" in page.inner_text("main")
    page.locator("tr.site button").first.press("Enter")
    assert page.locator("svg.large").count() == 1


def test_the_flame_graph_goes_by_click_and_keys(open_page: Open) -> None:
    page = open_page(report(site(1, [0.3]), site(2, [0.1])))
    frames = page.locator("#flame g.frame")
    expect(frames).to_have_count(6)
    assert page.locator("#flame g[tabindex='0']").count() == 1

    page.locator("#flame g[tabindex='0']").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    assert page.inner_text("#flame-details").startswith(
        "orders/queries_2.py:2 find_2(): 100.0 ms, 25.0 %"
    )
    page.keyboard.press("Enter")
    expect(page.locator("#flame g.frame:not(.fade)")).to_have_count(2)
    page.get_by_role("button", name="Show all").click()
    expect(page.locator("#flame g.frame")).to_have_count(6)


def test_a_stall_leads_to_its_site(open_page: Open) -> None:
    page = open_page(report(*(site(number, [number / 1000]) for number in range(1, 61))))
    page.fill("#search", "find_60")
    expect(page.locator("#longest tbody tr")).to_have_count(1)
    page.locator("#longest tbody button").first.click()
    assert page.locator("tr.more").count() == 1
    assert "find_60()" in page.locator("tr.site:has(+ tr.more)").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_is_the_systems_until_it_is_switched(open_page: Open, scheme: Any) -> None:
    page = open_page(report(site(1)), color_scheme=scheme)
    root = page.locator("html")
    expect(root).to_have_attribute("data-theme", scheme)
    other: Any = "dark" if scheme == "light" else "light"
    page.emulate_media(color_scheme=other)
    expect(root).to_have_attribute("data-theme", other)
    button = page.get_by_role("button", name=re.compile("Theme"))
    for expected in ("light", "dark"):
        button.click()
        expect(root).to_have_attribute("data-theme", expected)


CONTRAST = """
() => {
  const light = (color) => {
    const [r, g, b] = color.match(/[\\d.]+/g).map((part) => part / 255).map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if (!/, 0\\)$/.test(color) && color !== "transparent") return color;
    }
    return "rgb(255, 255, 255)";
  };
  const found = {};
  for (const element of document.querySelectorAll("body *:not(script)")) {
    const text = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!text || element.closest("svg, .skip, button:disabled, noscript, canvas") || !element.checkVisibility()) continue;
    const [one, other] = [light(getComputedStyle(element).color), light(ground(element))].sort((a, b) => b - a);
    const ratio = (one + 0.05) / (other + 0.05);
    if (ratio < 4.5) found[`${element.tagName}.${element.className}: ${element.textContent.trim().slice(0, 30)}`] = ratio;
  }
  return found;
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_that_accessibility_asks_for(open_page: Open, scheme: Any) -> None:
    """4.5 to 1 (WCAG 2, 1.4.3)."""
    content = report(site(1), allowed(2, "fast"), refused(3), sharing(4), dropped=3)
    page = open_page(content, color_scheme=scheme, reduced_motion="reduce")
    for button in page.locator("tr.site button").all():
        button.click()
    page.mouse.move(0, 0)
    assert page.evaluate(CONTRAST) == {}


def test_everything_that_can_be_used_has_a_name(open_page: Open) -> None:
    page = open_page(report(site(1), refused(2)))
    tree = page.locator("body").aria_snapshot()
    assert not re.search(r"- (button|textbox|searchbox|img|link)\s*(\[|$)", tree, re.MULTILINE), (
        tree
    )
    assert '- searchbox "Search"' in tree


def test_hostile_names_and_statements_stay_text(open_page: Open) -> None:
    content = report(hostile(1), site(2), command=["run", HOSTILE])
    page = open_page(content)
    page.locator("tr.site button").first.click()
    page.fill("#search", "onerror")
    expect(page.locator("#flame g.frame")).to_have_count(4)

    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 4
    shown = page.inner_text("#table")
    assert "<img src=x onerror=" in shown
    assert HOSTILE.split("\n")[0] in page.inner_text(".more pre")
    assert "</script><img" in page.inner_text("header")
    page.locator("#flame g.frame").last.hover()
    assert "<img src=x" in page.inner_text("#flame-details")


def test_the_policy_lets_nothing_else_run(open_page: Open) -> None:
    """Were something of the program's to become markup, it still could do nothing."""
    page = open_page(report(site(1)), quiet=False)
    refused_by_policy: list[str] = page.evaluate(
        """() => new Promise((resolve) => {
          const found = [];
          document.addEventListener("securitypolicyviolation", (event) => found.push(event.effectiveDirective));
          const script = document.createElement("script");
          script.textContent = "window.hacked = 1";
          document.body.append(script);
          fetch("http://127.0.0.1:9/").catch(() => {});
          const image = new Image();
          image.src = "http://127.0.0.1:9/x.png";
          document.body.append(image);
          setTimeout(() => resolve(found), 200);
        })"""
    )
    assert page.evaluate("window.hacked") is None
    assert {"script-src-elem", "connect-src", "img-src"} <= set(refused_by_policy)


def test_it_prints_in_light_with_more_rows(open_page: Open) -> None:
    page = open_page(report(*(site(n, [n / 1000]) for n in range(1, 61))), color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("tr.site").count() == 60
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    assert page.pdf().startswith(b"%PDF")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("tr.site").count() == 25


@pytest.mark.parametrize("width", [340, 600, 1000, 1600])
def test_it_fits_windows_of_any_width(open_page: Open, width: int) -> None:
    page = open_page(large(60), viewport={"width": width, "height": 700})
    page.locator("tr.site button").first.click()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_nothing_recorded_is_told(open_page: Open) -> None:
    page = open_page(report())
    assert "Nothing blocked the event loop." in page.inner_text("#table")
    expect(page.locator("#stall-details")).to_have_text("No stall was measured.")


def test_ten_thousand_sites_are_searched_sorted_and_paged(open_page: Open) -> None:
    """How smooth that is, benchmarks/page.py tells."""
    page = open_page(large(10_000))
    assert page.locator("tr.site").count() == 25
    page.locator("#table th", has_text="calls").get_by_role("button").click()
    page.get_by_role("button", name="Next").click()
    assert page.inner_text("#page") == "26–50 of 10,000"
    page.fill("#search", "find_77")
    assert page.inner_text("#found") == "111 of 10,000 call sites"


def test_without_jinja2_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtra, match=r"pip install 'asyncsafe\[cli\]'"):
        html.render(report(), "/app")


def test_the_data_ends_no_element() -> None:
    page = html.render(report(hostile(1)), "/app")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    assert json.loads(found[1])["sites"][0]["statement"] == HOSTILE
    assert set("<>&") & set(found[1]) == set()
