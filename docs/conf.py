"""How Sphinx builds the documentation: ``make docs``, without a network."""

import ast
import textwrap
from importlib import metadata
from itertools import groupby
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

project = "regiontok"
author = "The regiontok developers"
copyright = "2026, The regiontok developers"  # noqa: A001  Sphinx's name
release = metadata.version("regiontok")

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "myst_parser"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"regiontok {release}"
html_static_path: list[str] = []

nitpicky = True
default_role = "py:obj"  # a name in single backticks is a reference, and must resolve
nitpick_ignore_regex = [("py:class|py:data|py:exc|py:attr|py:meth|py:func", r".*")]  # types in signatures
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": False}
autodoc_typehints = "signature"
autodoc_type_aliases = {"Features": "Features", "Valid": "Valid", "Masks": "Masks", "Size": "Size"}
autoclass_content = "class"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Source", "returns_style"), ("Shape", "params_style")]
napoleon_use_rtype = False
napoleon_use_ivar = True  # or attributes of named tuples would stand there twice


def resolve_by_last_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element
) -> nodes.Element | None:
    """Find what a docstring calls by its last name, as `MaskSet` or `MaskSet.on_grid`, wherever it is documented."""
    if node.get("refdomain") != "py":
        return None
    wanted = node["reftarget"].removeprefix("~").removesuffix("()")
    objects: dict[str, Any] = env.domaindata["py"]["objects"]
    around = [node.get("py:module") or "", node.get("py:class") or ""]
    found = [name for name in objects if name == wanted or name.endswith(f".{wanted}")]
    if not found:
        return None
    found.sort(key=lambda name: (not any(part and part in name for part in around), name.count("."), name))
    entry = objects[found[0]]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, found[0])


def show_blocks_as_code(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Indented blocks of a module's docstring are programs or tables, and no quotations."""
    if what != "module":
        return
    found: list[str] = []
    for indented, group in groupby(lines, key=lambda line: line.startswith("    ") if line.strip() else None):
        block = list(group)
        if indented:
            try:
                ast.parse(textwrap.dedent("\n".join(block)))
                language = "python"
            except SyntaxError:
                language = "text"
            if found and found[-1] == "" and len(found) > 1 and found[-2].startswith("    "):
                found += block  # a blank line within the block before
                continue
            found += [f".. code-block:: {language}", ""]
        found += block
    lines[:] = found


def skip_fields(app: Sphinx, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """Fields of named tuples are told by their class."""
    return True if type(thing).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> None:
    """Let Sphinx know of the above."""
    app.connect("missing-reference", resolve_by_last_name)
    app.connect("autodoc-process-docstring", show_blocks_as_code)
    app.connect("autodoc-skip-member", skip_fields)
