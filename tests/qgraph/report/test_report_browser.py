"""The report in headless Chromium: phone and desktop, light and dark; skipped where there is no Chromium."""

from __future__ import annotations

import dataclasses
import functools
import html
import json
import re
import shutil
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from report_cases import allocation

import qgraph
from qgraph.report import render, report_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--virtual-time-budget=5000", "--dump-dom"),
)
AUDIT = Path(__file__).parent / "report_audit.html"
NAME = "<script>window.pwned=1</script><img src=x onerror='window.pwned=1'>/" + "very_long_name" * 12

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def site(digits, digits_calibration, tmp_path_factory):
    """A page with every section, served on this machine."""
    folder = tmp_path_factory.mktemp("site")
    result = qgraph.quantize(digits, digits_calibration, weights=4, limit=32, keep=("reduce/*",))
    noise = np.random.default_rng(0).standard_normal((32, 3, 32, 32))
    report = dataclasses.replace(report_of(result, name=NAME), distilled=noise, allocation=allocation(result))
    (folder / "page.html").write_text(render(report), encoding="utf-8")
    (folder / "audit.html").write_bytes(AUDIT.read_bytes())
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_as_a_browser_sees_it(site, tmp_path, width, scheme):
    command = [
        *(CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path}", f"--window-size={width + 40},1000"),
        *(f"--blink-settings=preferredColorScheme={int(scheme == 'light')}", f"{site}/audit.html?width={width}"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    seen = json.loads(html.unescape(re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.DOTALL)[1]))
    assert seen["overflow"] <= 0, "the page scrolls sideways"
    assert (seen["paper"] > 0.5) == (scheme == "light")
    assert seen["contrast"] >= 4.5, seen["worst"]
    assert seen["marks"] >= 3.0
    assert seen["smallest"] >= 9.5
    assert (seen["scripted"], seen["scripts"]) == (False, 0)
    assert seen["landmarks"] == [1, 1, 1, 1]
    assert seen["headings"][0] == 1
    assert set(seen["headings"][1:]) == {2}
    assert seen["images"] == [[True, True]]
    assert len(seen["charts"]) >= 5
    for kind in ("charts", "tables", "focusable", "targets", "wide"):
        assert all(seen[kind]), kind
    assert (seen["unseen"], seen["lang"]) == (0, "en")
