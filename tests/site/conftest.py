"""The rendered book, a server for it, and a headless browser for each process of tests."""

import functools
import http.server
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

ROOT = Path(__file__).resolve().parents[2]
HTML = Path(os.environ.get("BOOK_HTML", ROOT / "_build" / "html"))
MISSING = "(the book has not been rendered)"
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def page_names() -> list[str]:
    """List the pages that a reader can open, without the redirect of the front page."""
    found = sorted(
        path.relative_to(HTML).as_posix()
        for path in HTML.rglob("*.html")
        if "_static" not in path.parts and path.name != "index.html"
    )
    # A name that no page has: the tests are then collected, and fail with what to do.
    return found or [MISSING]


PAGES = page_names()


@pytest.fixture(scope="session")
def site() -> Path:
    """The folder of rendered pages; without it there is nothing to test, and that is a failure."""
    if [MISSING] == PAGES or not (HTML / "index.html").is_file():
        pytest.fail(f"no rendered book in {HTML.name}: run `make book` first", pytrace=False)
    return HTML


@pytest.fixture(scope="session")
def ledger(site: Path) -> dict[str, Any]:
    """The machine-readable ledger beside the pages."""
    path = site.parent / "ledger.json"
    if not path.is_file():
        pytest.fail("no ledger.json beside the pages: run `make book` first", pytrace=False)
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def soups(site: Path) -> dict[str, BeautifulSoup]:
    """Every page, parsed once."""
    return {
        name: BeautifulSoup((site / name).read_text(encoding="utf-8"), "html.parser")
        for name in PAGES
    }


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serve files without writing a line for each."""

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="session")
def server(site: Path) -> Iterator[str]:
    """The address at which the pages are served."""
    handler = functools.partial(QuietHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()
        thread.join()


def program(*names: str) -> str:
    """Find a program, or fail with its name."""
    for name in names:
        if path := shutil.which(name):
            return path
    return pytest.fail(f"the site tests need {' or '.join(names)} on the PATH", pytrace=False)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """One headless Chromium with a fresh profile, which logs its console and its requests."""
    options = Options()
    options.binary_location = program("chromium", "chromium-browser", "google-chrome", "chrome")
    for flag in FLAGS:
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(program("chromedriver")))
    # A page takes a second on an idle machine; the longest, all of the library, takes ten.
    driver.set_script_timeout(120)
    driver.set_page_load_timeout(120)
    yield driver
    driver.quit()
