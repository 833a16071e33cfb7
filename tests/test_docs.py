"""The documentation builds without a network, and nothing in it points to nowhere."""

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from regiontok.cli import main

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("api/*.md"), *ROOT.glob("examples/**/*.md"), ROOT / "benchmarks" / "README.md"]
)  # fmt: skip


class Links(HTMLParser):
    """What a page points to, and what can be pointed to in it."""

    def __init__(self, file):
        super().__init__()
        self.targets, self.anchors = [], set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("href", "src") and value:
                self.targets.append(value)
            if name in ("id", "name"):
                self.anchors.add(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-n", "-W", "--keep-going", "-q", str(ROOT / "docs"), str(out)]
    offline = os.environ | {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(command, capture_output=True, text=True, env=offline, check=False)
    assert done.returncode == 0, done.stderr
    return out


def test_no_link_of_the_site_is_broken(site):
    pages = {file: Links(file) for file in site.rglob("*.html")}
    assert len(pages) > 15
    broken = []
    for file, page in pages.items():
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme in ("http", "https", "data", "mailto"):
                continue
            other = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            if not other.is_file():
                broken.append(f"{file.name}: {target}")
            elif parts.fragment and other in pages and unquote(parts.fragment) not in pages[other].anchors | {"top"}:
                broken.append(f"{file.name}: {target} (no such place)")
    assert broken == []


def test_what_the_site_needs_it_has(site):
    """No font, script or picture comes from elsewhere."""
    for file in site.rglob("*.html"):
        for tag in re.findall(r"<(?:script|img|link)\b[^>]*>", file.read_text(encoding="utf-8")):
            assert not re.search(r"(?:src|href)=\"(?:https?:)?//", tag), f"{file.name}: {tag}"


@pytest.mark.parametrize(
    "module",
    ["regiontok", "regiontok.encoders", "regiontok.masks", "regiontok.adapters.huggingface", "regiontok.viewing"],
)
def test_every_public_name_is_in_the_reference(site, module):
    anchors = set().union(*(Links(file).anchors for file in (site / "api").glob("*.html")))
    last = {anchor.rpartition(".")[2] for anchor in anchors if anchor.startswith("regiontok")}
    names = {name for name in importlib.import_module(module).__all__ if not name.isupper()}
    assert names - last - {"encoders", "masks"} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_files_are_there(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        parts = urlsplit(target)
        if not parts.scheme and parts.path:
            assert (page.parent / unquote(parts.path)).exists(), target


def test_commands_in_the_pages_are_commands(capsys):
    """Every ``regiontok`` command line in a page names a command and options that it has."""
    lines = [
        (page.name, line.partition("#")[0].split())
        for page in PAGES
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        for line in block.replace("\\\n", " ").splitlines()
    ]
    seen = set()
    for page, words in lines:
        if not words or Path(words[0]).name != "regiontok":
            continue
        command = words[1 : 3 if words[1] == "figures" else 2]
        with pytest.raises(SystemExit) as ended:
            main([*command, "--help"])
        told = capsys.readouterr().out
        assert ended.value.code == 0, f"{page}: {words}"
        for option in re.findall(r"--[a-z-]+", " ".join(words)):
            assert option in told, f"{page}: {words}"
        seen.add(tuple(command))
    assert len(seen) > 8


def test_the_table_of_families_is_that_of_the_code():
    spec = importlib.util.spec_from_file_location("families", ROOT / "docs" / "families.py")
    families = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(families)
    assert families.PAGE.read_text(encoding="utf-8") == families.page(), "run python docs/families.py"
