"""The report in a real browser: nodes open, keys walk, hostile text stays text."""

from __future__ import annotations

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest

from speedkit.analysis.report import write_report
from tests.kit.browser import browser, missing
from tests.kit.hostile_texts import HOSTILE, MARK
from tests.kit.made_runs import Made, make_run

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
UP, DOWN, LEFT, RIGHT, ENTER = "\ue013", "\ue015", "\ue012", "\ue014", "\ue007"
SHOWN = (
    "return [...document.querySelectorAll('.details')]"
    ".filter(e => e.checkVisibility()).map(e => e.id)"
)


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    """Return a browser."""
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Return the address of a report on a run: 0 → 1, 2, 3; 1 → 4, 5; 4 → 6."""
    parents = (0, 0, 0, 1, 1, 4)
    nodes = [Made(p, time_ms=9000 - 300 * k, hypothesis=f"idea {k + 1}", code=f"x = {k}\n")
             for k, p in enumerate(parents)]  # fmt: skip
    nodes[4] = Made(1, "buggy", None, reason="ValueError: no", stderr="Traceback\n")
    return write_report(make_run(tmp_path_factory.mktemp("run") / "r", nodes)).as_uri()


@pytest.fixture
def report(window, page):
    """Return the browser with the report open, in a window of a desktop."""
    window.size(1280, 900)
    window.open(page)
    yield window
    assert window.console() == []
    assert window.requests() == [page]


def file_of(address):
    """Return the path of a page that was opened from a file."""
    return Path(url2pathname(urlsplit(address).path))


def shown(window):
    """Return the names of the nodes that can be seen."""
    return window.js(SHOWN)


def test_at_first_the_best_node_is_shown(report):
    assert shown(report) == ["r1-n6"]
    current = "return [...document.querySelectorAll('.tree [aria-current]')].map(a => a.hash || "
    current += "a.getAttribute('href'))"
    assert report.js(current) == ["#r1-n6"]


def test_a_click_on_each_node_shows_what_is_known_of_it(report):
    for k in range(7):
        report.click(f'a[href="#r1-n{k}"] .shape')
        assert shown(report) == [f"r1-n{k}"]
        assert report.js("return location.hash") == f"#r1-n{k}"
        text = report.js(f"return document.getElementById('r1-n{k}').innerText")
        assert f"Node {k}" in text
        assert k == 0 or k == 5 or f"idea {k}" in text
        top = report.js(f"return document.getElementById('r1-n{k}').getBoundingClientRect().top")
        assert top < 900
    assert "Node 6" in report.js("return document.getElementById('status').textContent")


def test_keys_walk_the_tree(report):
    report.click('a[href="#r1-n0"] .shape')
    report.js("document.querySelector('.tree a').focus()")
    for key, node in ((DOWN, 1), (RIGHT, 2), (RIGHT, 3), (RIGHT, 3), (LEFT, 2), (UP, 0), (UP, 0),
                      (DOWN, 1), (DOWN, 4), (DOWN, 6), (DOWN, 6), (UP, 4), (RIGHT, 5)):  # fmt: skip
        report.press(key)
        assert shown(report) == [f"r1-n{node}"], key
        assert report.js("return document.activeElement.getAttribute('href')") == f"#r1-n{node}"
    report.js("document.querySelector('.tree a[href=\"#r1-n3\"]').focus()")
    report.press(ENTER)
    assert shown(report) == ["r1-n3"]


def test_buttons_walk_and_open_all(report):
    for button, node in (("prev", 5), ("parent", 1), ("next", 2), ("best", 6)):
        report.click(f"button[data-go={button}]")
        assert shown(report) == [f"r1-n{node}"]
    assert report.js("return document.querySelector('[data-go=best]').disabled")
    assert report.js("return document.querySelector('[data-go=next]').disabled")
    report.click("button[data-go=all]")
    assert len(shown(report)) == 7
    report.click("button[data-go=all]")
    assert len(shown(report)) == 1


def test_links_in_tables_and_addresses_lead_to_nodes(report, page):
    report.click('.nodes a[href="#r1-n2"]')
    assert shown(report) == ["r1-n2"]
    assert report.js("return document.activeElement.id") == "r1-n2-title"
    report.js("location.hash = '#r1-n4'")
    report.js("return new Promise(done => setTimeout(done, 100))")
    assert shown(report) == ["r1-n4"]
    report.js("location.hash = '#r9-n4'")
    assert shown(report) == ["r1-n4"]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window(report, width, dark):
    report.size(width, 800, dark=dark)
    for node in (5, 6):
        report.js(f"location.hash = '#r1-n{node}'")
        wide = "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        assert report.js(wide)
    light = report.js("return getComputedStyle(document.body).backgroundColor")
    assert (light == "rgb(255, 255, 255)") is not dark


def test_every_node_can_be_reached_and_is_named(report):
    names = report.js("return [...document.querySelectorAll('.tree a')].map(a => a.ariaLabel)")
    assert len(names) == 7
    assert names[5] == "Node 5, improve of node 1: buggy, try something"
    assert names[6].startswith("Node 6, improve of node 4: valid, the best, FSR +0.")
    lost = report.js(
        "return [...document.querySelectorAll('[aria-labelledby]')]"
        ".filter(e => !document.getElementById(e.getAttribute('aria-labelledby'))).length"
    )
    assert lost == 0


def test_without_its_script_the_page_shows_every_node(window, page, tmp_path):
    html = file_of(page).read_text(encoding="utf-8")
    plain = tmp_path / "plain.html"
    plain.write_text(re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL), encoding="utf-8")
    window.open(plain.as_uri())
    assert len(shown(window)) == 7
    assert not window.js("return document.querySelector('.walk').checkVisibility()")


def hostile_page(folder):
    """Return the address of a report in which every text is hostile."""
    every = {"hypothesis": HOSTILE, "reason": HOSTILE, "summary": HOSTILE, "stdout": HOSTILE,
             "stderr": HOSTILE, "code": HOSTILE}  # fmt: skip
    finding = {"guard": HOSTILE, "level": "reject", "reason": HOSTILE}
    nodes = [Made(0, outcome, **every, findings=[finding])
             for outcome in ("valid", "buggy", "invalid")]  # fmt: skip
    run = make_run(folder / '<img src=x onerror="window.pwned=1">', nodes,
                   config={"model": HOSTILE})  # fmt: skip
    return write_report(run, folder / "hostile.html").as_uri()


def test_hostile_text_runs_nothing_and_loads_nothing(window, tmp_path):
    address = hostile_page(tmp_path)
    window.size(1280, 900)
    window.open(address)
    for k in range(4):
        window.click(f'a[href="#r1-n{k}"] .shape')
        assert shown(window) == [f"r1-n{k}"]
        window.js(
            "for (const e of document.querySelectorAll('summary, .details *')) {"
            "  e.dispatchEvent(new MouseEvent('mouseover', {bubbles: true}));"
            "  if (e.tagName === 'SUMMARY') e.click(); }"
        )
    assert window.dialog() is None
    assert window.js(f"return typeof window.{MARK}") == "undefined"
    assert window.js("return document.querySelectorAll('script').length") == 2
    assert f"<script>window.{MARK}=1</script>" in window.js("return document.body.innerText")
    assert window.console() == []
    assert window.requests() == [address]


@pytest.fixture
def served(page):
    """Return the address of the report on a server, and what the server was asked for."""
    asked = []
    content = file_of(page).read_bytes()

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/report", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_got_in_all_the_same_would_be_stopped_by_the_policy(window, served):
    address, asked = served
    window.open(address)
    assert window.console() == []
    window.js(
        "const put = html => document.body.insertAdjacentHTML('beforeend', html);"
        f'put(\'<img src="/pwned.png" onerror="window.{MARK}=1">\');'
        f"put('<iframe src=\"/pwned.html\"></iframe><link rel=stylesheet href=/pwned.css>');"
        f"const s = document.createElement('script'); s.textContent = 'window.{MARK}=1';"
        "document.body.append(s);"
        "return new Promise(done => setTimeout(done, 200))"
    )
    assert window.js(f"return typeof window.{MARK}") == "undefined"
    assert len([m for m in window.console() if "Content Security Policy" in m]) >= 3
    assert asked == ["/report"]


def test_a_report_on_several_runs_opens_the_one_that_is_asked_for(window, tmp_path):
    for k in range(3):
        make_run(tmp_path / f"run{k}", [Made(time_ms=7000 + k)], config={"seed": k})
    address = write_report(tmp_path).as_uri()
    window.size(390, 844)
    window.open(address)
    assert shown(window) == []
    window.click('.results a[href="#r2"]')
    assert window.js("return document.getElementById('r2').checkVisibility()")
    assert shown(window) == ["r2-n1"]
    window.open(f"{address}#r3-n0")
    window.js("return new Promise(done => setTimeout(done, 100))")
    assert shown(window) == ["r2-n1", "r3-n0"]
    assert window.console() == []
