"""The pages of the documentation, and the site that is built from them."""

import importlib
import importlib.util
import inspect
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from regiontok.adapters.huggingface import FAMILIES
from regiontok.adapters.huggingface.classes import class_names
from regiontok.cli import main
from tests.conftest import for_each
from tests.contracts.test_api import MODULES, public

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
def site():
    """The built site, with its gallery."""
    folder = os.environ.get("REGIONTOK_SITE")
    if folder is None:
        pytest.skip("REGIONTOK_SITE does not name a built site; .ci/extras.py builds one and runs these tests")
    return Path(folder)


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


def test_every_public_name_is_in_the_reference(site):
    """Sphinx builds it with errors for warnings, so the docstrings of these names also render."""
    anchors = set().union(*(Links(file).anchors for file in (site / "api").rglob("*.html")))
    last = {anchor.rpartition(".")[2] for anchor in anchors if anchor.startswith("regiontok")}
    names = {(module, name) for module in MODULES for name in public(importlib.import_module(module))}
    submodules = {module.rpartition(".")[2] for module in MODULES}
    made = set(class_names())  # described together in docs/models.md
    missing = [
        f"{module}.{name}"
        for module, name in sorted(names)
        if name not in last | submodules | made and not name.isupper()
    ]
    assert missing == []
    pages = {file.stem.rpartition(".")[2] for file in (site / "api" / "generated").glob("*.html")}
    classes = {name for module, name in names if inspect.isclass(getattr(importlib.import_module(module), name))}
    assert classes - made - pages == set()
    models = (site / "models.html").read_text(encoding="utf-8")
    assert all(f"Region{family.stock}" in models for family in FAMILIES)


def test_the_gallery_has_every_example(site):
    examples = sorted(file.stem for file in (ROOT / "examples").glob("[0-9][0-9]_*.py"))
    assert len(examples) >= 12
    for name in examples:
        page = (site / "gallery" / f"{name}.html").read_text(encoding="utf-8")
        assert f"{name}.ipynb" in page


@for_each(page=PAGES)
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


def test_generated_tables_are_up_to_date():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    names = []
    for page in tables.PAGES:
        text = page.read_text(encoding="utf-8")
        assert text == tables.updated(page), "run python docs/tables.py"
        names += re.findall(r"<!-- table: (\w+) -->", text)
    assert set(names) == set(tables.TABLES)
