"""The site builds without a warning, every link within it leads somewhere, and it asks nothing from elsewhere."""

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[1]


class Page(HTMLParser):
    """What a page links to, what it loads, and the names within it."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loaded, self.names = [], [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.names.add(given.get("id"))
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag in ("script", "img", "iframe", "link"):
            self.loaded.append(given.get("src") or given.get("href") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", str(folder)]
    with FileLock(ROOT / "docs/.lock"):                    # the configuration writes there; two processes may test at a time
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in site.rglob("*.html")}


def test_links_lead_somewhere(site, pages):
    dead, followed = [], 0
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = pages[target].names if target in pages else set()
            followed += 1
            if not target.is_file() or (parts.fragment and target in pages and unquote(parts.fragment) not in known):
                dead.append(f"{path.relative_to(site)}: {link}")
    assert followed > 1000
    assert not dead, dead[:20]


def test_nothing_is_loaded_from_elsewhere(pages):
    outside = {one for page in pages.values() for one in page.loaded if urlsplit(one).netloc}
    assert not outside


def test_every_notebook_and_public_name_has_its_place(site):
    notebooks = {path.stem for path in (ROOT / "nbs").rglob("[0-9]*.ipynb")}
    assert notebooks == {path.stem for path in (site / "notebooks").rglob("[0-9]*.html")}
    listed = (site / "llms.txt").read_text(encoding="utf-8")
    assert all(f"{name}.html" in listed for name in notebooks)
    from coding_vessels import projection

    text = (site / "api" / "projection.html").read_text(encoding="utf-8")
    named = [name for name in projection.__all__ if callable(getattr(projection, name))]
    assert len(named) > 15 and all(f'id="coding_vessels.projection.{name}"' in text for name in named)


def test_what_serves_the_tests_is_not_shown(site):
    for path in (site / "notebooks").glob("*.html"):
        assert "#| " not in path.read_text(encoding="utf-8"), path.name
    assert "Not a medical device" in (site / "api" / "evaluation.html").read_text(encoding="utf-8")


def test_formulas_need_no_script(site):
    text = (site / "notebooks" / "05_attention.html").read_text(encoding="utf-8")
    assert "<math" in text and "$$" not in text
