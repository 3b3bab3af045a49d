"""The report as a browser shows it."""

from __future__ import annotations

from pathlib import Path

import pytest

import report_data
from browser import CHROMIUM, Browser
from sasr.report import write_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path (Debian: apt-get install chromium)")
COUNT = "document.querySelector('.found').textContent"


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    return write_report(report_data.run(tmp_path_factory.mktemp("run")))


@pytest.fixture
def browser(tmp_path):
    with Browser(tmp_path / "profile") as found:
        yield found


def choose(browser: Browser, name: str, value: str) -> str:
    """Set a filter as a user does. Returns the count of completions that is shown."""
    control = f"document.querySelector('[name={name}]')"
    browser.run(f"{control}.value = '{value}'; {control}.dispatchEvent(new Event('input', {{bubbles: true}}))")
    return browser.run(COUNT)


def test_the_page_draws_itself_and_loads_nothing(browser, page):
    browser.open(page)
    assert browser.run("document.querySelector('h1').textContent") == "sasr on stories"
    assert browser.run("document.querySelectorAll('svg[role=img][aria-label]').length") >= 12
    assert browser.run("[...document.querySelectorAll('path')].some((p) => /NaN|Infinity/.test(p.outerHTML))") is False
    assert browser.complaints() == [] and browser.requests() == []
    # Were there anything to load, the page would not be let to, and we would know.
    browser.run("document.body.append(Object.assign(new Image(), {src: 'https://example.invalid/x.png'}))")
    browser.run("new Promise((done) => setTimeout(done, 100))")
    assert any("Content Security Policy" in text for text in browser.complaints())


def test_the_theme_can_be_changed(browser, page):
    browser.open(page)
    ground = "getComputedStyle(document.body).backgroundColor"
    before = browser.run(ground)
    browser.run("document.getElementById('theme').click()")
    assert browser.run(ground) != before
    browser.run("document.getElementById('theme').click()")
    assert browser.run(ground) == before


def test_completions_can_be_filtered(browser, page):
    browser.open(page)
    assert browser.run(COUNT) == "54 completions of 6 questions"
    assert choose(browser, "verdict", "wrong") == "18 completions of 6 questions"
    assert choose(browser, "exam", "2") == "6 completions of 6 questions"
    assert choose(browser, "search", "Question 4") == "1 completion of 1 question"
    assert browser.run("document.querySelector('.question .verdict').textContent") == "wrong answer: got 8, expected 7"
    assert choose(browser, "search", "nowhere") == "0 completions of 0 questions"


def test_values_can_be_read_by_pointer_and_keys(browser, page):
    browser.open(page)
    tip = "document.querySelector('.tip:not([hidden])')?.innerText"
    chart = "document.querySelector('svg')"
    browser.run(
        f"(({{left, top}}) => {chart}.dispatchEvent(new PointerEvent('pointermove',"
        f" {{clientX: left + 50, clientY: top + 80}})))({chart}.getBoundingClientRect())"
    )
    assert browser.run(tip).split("\n")[:2] == ["step 1", "SFT step"]
    browser.run(f"{chart}.dispatchEvent(new KeyboardEvent('keydown', {{key: 'ArrowRight'}}))")
    assert browser.run(tip).startswith("step 2")
    assert browser.run("document.querySelector('[aria-live]').textContent").startswith("step 2")
    browser.run(f"{chart}.dispatchEvent(new KeyboardEvent('keydown', {{key: 'Escape'}}))")
    assert browser.run(tip) is None


def test_hostile_completions_are_shown_as_they_are(tmp_path):
    directory = report_data.run(tmp_path / "run")
    bad = [report_data.record(0, report_data.HOSTILE), report_data.record(1, "x" * 1_000_000)]
    report_data.write_records(directory / "exams" / "final.jsonl", bad)
    with Browser(tmp_path / "profile", width=360, height=800) as browser:
        browser.open(write_report(directory))
        assert browser.complaints() == [] and browser.requests() == []
        assert browser.run("document.title") == "sasr on stories – run"
        assert choose(browser, "search", "taken") == "1 completion of 1 question"
        shown = browser.run("document.querySelector('pre.text').textContent")
        assert shown.startswith("</script><script>") and r"\u202egpj.exe \u0007\u001b[2J \ud800 &lt;" in shown
        assert choose(browser, "search", "xxxx") == "1 completion of 1 question"
        assert "more characters]" in browser.run("document.querySelector('pre.text').textContent")
        assert browser.run("document.documentElement.scrollWidth") == 360


def test_a_long_run_opens(tmp_path, browser):
    directory = report_data.run(tmp_path / "run", steps=5000, exams=21, rows=100)
    page = write_report(directory)
    seconds = browser.open(page)
    print(f"\n5000 steps, 21 exams: {page.stat().st_size / 1e6:.2f} MB, open and drawn in {seconds:.2f} s")
    assert browser.complaints() == []
    longest = "Math.max(...[...document.querySelectorAll('path')].map((p) => p.getAttribute('d').split('L').length))"
    assert browser.run(longest) <= 2002
