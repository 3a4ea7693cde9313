"""The reports in headless Chromium, used as a person does: by mouse, by keys, in the dark, on a phone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.browser import Browser, find_chromium
from tests.test_report_segments import SMALL, trained  # noqa: F401

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="no Chromium is installed")

LOOKS = [{}, {"dark": True}, {"width": 390, "height": 844, "mobile": True}]
DETAIL = "document.querySelector('#map-detail').textContent"
STATUS = "document.querySelector('#map-status').textContent"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def run_page(trained):  # noqa: F811
    return trained / "runs/g/report.html"


@pytest.fixture(scope="module")
def ablation_page(trained):  # noqa: F811
    from click.testing import CliRunner

    from cli import cli

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained)
        result = CliRunner().invoke(cli, ["ablate", "--fusion", "late,gated", "--target", "mood", *SMALL])
        assert result.exit_code == 0 and "Report: ablations/default/report.html" in result.output, result.output
        written = Path("ablations/default/report.html").read_bytes()
        again = CliRunner().invoke(cli, ["report", "default"])
        assert again.exit_code == 0 and Path("ablations/default/report.html").read_bytes() == written, again.output
    return trained / "ablations/default/report.html"


def check(browser):
    assert browser.errors == []
    outside = [url for url in browser.requests if not url.startswith(("data:", "blob:"))]
    assert len(outside) == 1 and outside[0].startswith("file:")  # the page itself


@pytest.mark.parametrize("look", LOOKS, ids=["light", "dark", "phone"])
@pytest.mark.parametrize("name", ["run_page", "ablation_page"])
def test_it_opens_without_error_network_or_sideways_scrolling(browser, request, name, look):
    browser.open(request.getfixturevalue(name), **look)
    browser.run("document.querySelectorAll('details').forEach((box) => { box.open = true; })")
    wide = "[...document.querySelectorAll('body *')].filter((e) => !e.closest('.scroll, pre, figure, .map-side') &&"
    wide += " e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 90))"
    assert browser.run(wide) == []
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    background = browser.run("getComputedStyle(document.body).backgroundColor")
    browser.click("#theme")
    assert browser.run("getComputedStyle(document.body).backgroundColor") != background
    browser.click("#theme")
    assert browser.run("getComputedStyle(document.body).backgroundColor") == background
    unnamed = "[...document.querySelectorAll('button, select, input, canvas[tabindex], audio, a')].filter((e) =>"
    unnamed += " !e.textContent.trim() && !e.ariaLabel && !e.labels?.length).length"
    assert browser.run(unnamed) == 0
    check(browser)


def test_a_click_on_a_point_tells_of_its_segment(browser, run_page):
    browser.open(run_page)
    ids = browser.run("embedded('map-data').ids")
    browser.middle("#map-canvas")  # scrolls there
    left, top, width, height = browser.run(
        "(() => { const b = document.querySelector('#map-canvas').getBoundingClientRect();"
        " return [b.left, b.top, b.width, b.height]; })()"
    )
    told = set()
    for row in range(1, 24):
        for column in range(1, 24):
            if len(told) < 3:
                browser.click_at(left + width * column / 24, top + height * row / 24)
                told.add(browser.run("document.querySelector('#map-detail h3')?.textContent ?? null"))
    assert len(told - {None}) >= 2 and told - {None} <= set(ids)
    check(browser)


def test_keys_go_from_segment_to_segment(browser, run_page):
    browser.open(run_page)
    browser.run("document.querySelector('#map-canvas').focus()")
    assert "No segment selected" in browser.run(DETAIL)
    seen = []
    for key in ("ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp"):
        browser.key(key)
        seen.append(browser.run("document.querySelector('#map-detail h3').textContent"))
    assert len(set(seen)) > 1
    for key in ("+", "-", "0"):
        browser.key(key)
    browser.key("ArrowLeft", shift=True)
    assert browser.run("document.querySelector('#map-detail h3').textContent") == seen[-1]
    browser.key("Escape")
    assert "No segment selected" in browser.run(DETAIL)
    check(browser)


def test_controls_of_the_map(browser, run_page):
    browser.open(run_page)
    data = browser.run("embedded('map-data')")
    shown = lambda: int(browser.run(STATUS).split()[0])  # noqa: E731
    for number, feature in enumerate(data["features"], 1):
        browser.click(f"#map-features button:nth-child({number})")
        assert feature["name"] in browser.run(STATUS)
        assert feature["said"] in browser.run("document.querySelector('#map-said').textContent")
    everything = shown()
    for number, colour in enumerate(data["colours"]):
        browser.run(
            f"(() => {{ const box = document.querySelector('#map-colour'); box.value = {number};"
            " box.dispatchEvent(new Event('change')); })()"
        )
        counts = browser.run("[...document.querySelectorAll('#map-legend .quiet')].map((e) => Number(e.textContent))")
        assert sum(counts) == everything, colour["name"]
        browser.click("#map-legend button")
        assert shown() == counts[0]
        if len(counts) > 1:
            browser.click("#map-legend button:last-child")  # all again
        assert shown() == everything
    browser.click("#map-find")
    for letter in data["groups"][0]:
        browser.key(letter)
    assert 0 < shown() < everything
    browser.run("(() => { const box = document.querySelector('#map-find'); box.value = '';"
                " box.dispatchEvent(new Event('input')); })()")  # fmt: skip
    browser.click("#map-audible")
    assert 0 <= shown() <= browser.run("Object.keys(clips).length")
    for button in ("#map-in", "#map-out", "#map-whole"):
        browser.click(button)
    check(browser)


def test_sound_plays_from_a_mistake_and_from_the_map(browser, run_page):
    browser.open(run_page)
    playing = """(async (audio) => {{
      await audio.play();
      for (let tries = 0; tries < 200 && audio.currentTime === 0; tries++) await new Promise((d) => setTimeout(d, 20));
      const found = [audio.currentTime > 0, audio.error?.message ?? null, audio.duration];
      audio.pause();
      return found;
    }})({audio})"""
    advanced, error, seconds = browser.run(playing.format(audio="document.querySelector('audio[data-clip]')"))
    assert advanced and error is None and seconds > 1
    where = "document.querySelector('audio[data-clip]').closest('li').querySelector('[data-show]')"
    browser.run(f"{where}.click()")
    advanced, error, _ = browser.run(playing.format(audio="document.querySelector('#map-detail audio')"))
    assert advanced and error is None
    segment = browser.run("document.querySelector('#map-detail h3').textContent")
    assert segment == browser.run(f"{where}.dataset.show")
    browser.run("document.querySelector('#map-canvas').focus()")
    browser.key("Enter")
    assert browser.run("!document.querySelector('#map-detail audio').paused")
    check(browser)


def test_downloads_hold_their_tables(browser, run_page, ablation_page):
    for page in (run_page, ablation_page):
        browser.open(page)
        links = browser.run("[...document.querySelectorAll('a[download]')].map((a) => [a.download, a.href])")
        assert len(links) >= 4 and all(name.endswith(".csv") for name, _ in links)
        assert all(href.startswith("data:text/csv;charset=utf-8,") and "%0A" in href for _, href in links)


def test_hostile_text_stays_text(browser, tmp_path):
    """Whatever an id, a label or a lyric holds: as the page's data, and as the map shows it."""
    from fusion.report.embed import script_json

    evil = "</script><script>window.caught = 1</script><img src=x onerror='window.caught = 1'>\u2028<!--<script>"
    html = f'<script type="application/json" id="data">{script_json({"text": evil})}</script><p id="after">here</p>'
    (tmp_path / "page.html").write_text(f"<!doctype html><meta charset=utf-8>{html}", "utf-8")
    browser.open(tmp_path / "page.html")
    found = "JSON.parse(document.querySelector('#data').textContent).text"
    assert browser.run(f"[{found} === {json.dumps(evil)}, window.caught ?? null]") == [True, None]
    assert browser.run("document.querySelector('#after').textContent") == "here"
