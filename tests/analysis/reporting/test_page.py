from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from lightning_gnnopt.analysis.conclusions.advice import Advice
from lightning_gnnopt.analysis.conclusions.facts import Facts
from lightning_gnnopt.analysis.records import Records
from lightning_gnnopt.analysis.reporting.page import inline_svg, render_page
from lightning_gnnopt.analysis.reporting.plots import KINDS
from lightning_gnnopt.analysis.reporting.report import BottleneckReport

from .profile_records import VERDICT, make_facts, make_records, make_report

NASTY = "<script>alert('$x_1$ & \"é\"')</script>"


def page_of(report: BottleneckReport) -> str:
    return render_page(report, {kind: inline_svg(report, kind) for kind in report.available})


class Outline(HTMLParser):
    """Notes tags, ids, references and texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in ("src", "href", "xlink:href"):
                self.links.append(str(value))

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


@pytest.fixture(scope="module")
def page() -> str:
    return page_of(make_report())


def test_the_page_needs_nothing_but_itself(page: str) -> None:
    outline = Outline(page)
    assert "script" not in outline.tags
    assert "img" not in outline.tags
    assert all(link.startswith(("#", "data:")) for link in outline.links)
    urls = set(re.findall(r"https?://[^\"' ]+", page))
    assert urls <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names of the formats
    assert "@import" not in page


def test_ids_are_unique_and_references_are_met(page: str) -> None:
    outline = Outline(page)
    assert len(outline.ids) == len(set(outline.ids))
    used = {link[1:] for link in outline.links if link.startswith("#")} | set(re.findall(r"url\(#([^)]+)\)", page))
    assert used
    assert used <= set(outline.ids)
    assert [name for name in outline.ids if name.startswith("figure-")] == [
        "figure-phases", "figure-layers", "figure-edge_parts", "figure-expansion", "figure-peaks", "figure-memory",
        "figure-tensors", "figure-sampling_sweep", "figure-graph_sweep",
    ]  # fmt: skip


def test_the_order_is_that_of_interest(page: str) -> None:
    heads = re.findall(r"<h2>(.*?)</h2>", page)
    assert heads == ["Advice", "Time", "Memory", "Sampling", "How it was measured", "Environment"]
    assert page.index('class="verdict"') < page.index("<h2>Advice")
    assert page.count("<figcaption>") == len(KINDS)
    assert page.count("<caption>") == page.count("<table") > 10


def test_figures_take_the_pages_colours_and_tell_what_they_show(page: str) -> None:
    assert "#010203" not in page
    assert "#fdfcfb" not in page
    assert "currentColor" in page
    assert "forward 30.5 %, backward 60.5 %" in re.findall(r'role="img" aria-label="([^"]*)"', page)[0]
    assert all(len(told) > 30 for told in re.findall(r'role="img" aria-label="([^"]*)"', page))


def test_whatever_people_write_is_escaped() -> None:
    records = make_records(layers=[NASTY], dataset=NASTY, environment={NASTY: NASTY})
    advice = [Advice(rule="r", finding=NASTY, remedy=f"`{NASTY}`")]
    report = make_report(records, facts=make_facts(notes=(NASTY,)), advice=advice, verdict=NASTY, title=NASTY)
    written = page_of(report)
    outline = Outline(written)
    assert "script" not in outline.tags
    assert "alert('$x_1$" in "".join(outline.texts)
    # title, heading, verdict, finding, remedy, note, environment twice, dataset, and the layer in figures and tables
    assert sum(text.count(NASTY) for text in outline.texts) >= 12


def test_an_empty_report_says_what_is_missing() -> None:
    report = make_report(Records(), facts=Facts(), advice=(), verdict="Nothing was recorded.")
    written = page_of(report)
    assert "<svg" not in written
    assert "<table" not in written
    for text in ("Nothing was recorded.", "needs timed steps", "needs the times of layers", "needs the tensors"):
        assert text in written
    assert re.findall(r"<h2>(.*?)</h2>", written) == ["Advice", "Time", "Memory", "How it was measured"]


def test_the_cells_are_those_of_the_tables(page: str) -> None:
    assert (
        '<tr><th scope="row" class="short">conv1</th><td class="short">GATConv</td><td class="number">2.10</td>' in page
    )
    assert "6 timed, 4 with their peak memory, 4 with memory by layer. The profiler itself took 1.2 %" in page


# what follows needs a browser


def find(*names: str) -> str | None:
    return next((path for name in names if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = find("chromium", "google-chrome", "chromium-browser"), find("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no browser: chromium (or google-chrome) and chromedriver must be on the PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    names = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update"
    for name in [*names.split(), "disable-sync", "headless=new"]:
        options.add_argument(f"--{name}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('browser')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()


REPORTS = {
    "rich": lambda: BottleneckReport(make_records()),
    "deep": lambda: BottleneckReport(
        make_records(layers=[f"encoder.layers.{i}.self_attention.conv" for i in range(50)])
    ),
    "nasty": lambda: make_report(make_records(layers=[NASTY * 3]), title=NASTY, verdict="x" * 300),
    "empty": lambda: BottleneckReport(Records()),
}


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it(browser: Any, tmp_path: Path, name: str, width: int) -> None:
    report = REPORTS[name]()
    path = tmp_path / "report.html"
    path.write_text(page_of(report), encoding="utf-8")
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(path.as_uri())
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert browser.title == report.title
    verdict = browser.find_element("css selector", ".verdict")
    assert verdict.is_displayed()
    assert verdict.text == report.verdict.replace("`", "")
    figures = browser.find_elements("css selector", "figure svg")
    assert len(figures) == len(report.available)
    for figure in figures:
        assert figure.is_displayed()
        assert figure.rect["width"] > 100
        assert figure.rect["height"] > 50
    scrolled, shown = browser.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert scrolled == shown
    assert width - 20 <= shown <= width  # a scroll bar takes some of it
    # nothing stands out of the page to the right but within boxes that scroll
    outside = browser.execute_script(
        "return [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll')"
        " && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(e => e.outerHTML)"
    )
    assert outside == []


def test_a_browser_shows_it_in_the_dark(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(page_of(make_report()), encoding="utf-8")
    colors = {}
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get(path.as_uri())
        colors[scheme] = browser.execute_script(
            "return [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,"
            " getComputedStyle(document.querySelector('#figure-phases svg text')).fill]"
        )
    for paper, ink, text in colors.values():
        assert text == ink
        assert abs(_brightness(paper) - _brightness(ink)) > 150
    assert _brightness(colors["dark"][0]) < 60 < 200 < _brightness(colors["light"][0])
    assert VERDICT.replace("`", "") in browser.find_element("css selector", "body").text


def _brightness(color: str) -> float:
    red, green, blue = map(float, re.findall(r"\d+", color)[:3])
    return 0.299 * red + 0.587 * green + 0.114 * blue
