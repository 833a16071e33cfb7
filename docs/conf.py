"""Configuration of Sphinx, which builds the documentation: ``make docs``, without a network."""

import ast
import shutil
import sys
import textwrap
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode
from transformers.utils.logging import disable_progress_bar

project = "regiontok"
author = "The regiontok developers"
copyright = "2026, The regiontok developers"  # noqa: A001  Sphinx's name
release = metadata.version("regiontok")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_argparse_cli",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "_gallery", "**sg_execution_times.rst"]
templates_path = ["_templates"]
html_theme = "furo"
html_title = f"regiontok {release}"
html_static_path = ["_static"]
html_css_files = ["gallery.css"]

DOCS = Path(__file__).parent
EXAMPLES = DOCS.parent / "examples"
GALLERY = DOCS / "_gallery"
"""A copy of the examples, in which they run and write their files."""


def copy_examples() -> None:
    """Copy the examples to the folder in which the gallery runs them."""
    shutil.copytree(
        EXAMPLES, GALLERY, dirs_exist_ok=True, ignore=shutil.ignore_patterns("results", "__pycache__", "README.md")
    )
    title = "Gallery"
    (GALLERY / "GALLERY_HEADER.rst").write_text(
        f"{title}\n{'=' * len(title)}\n\nThe programs in ``examples``, with their output. Each can be downloaded as a "
        "program or as a notebook. Those with trained features use DINOv2-small.\n",
        encoding="utf-8",
    )


sys.path.insert(0, str(DOCS))  # for new_pictures
copy_examples()
disable_progress_bar()  # of weights, which would be part of the output
sphinx_gallery_conf = {
    "examples_dirs": "_gallery",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/\d\d_",
    "ignore_pattern": r"real_features|train_llava",
    "within_subsection_order": "FileNameSortKey",
    "image_scrapers": ("new_pictures",),
    "download_all_examples": False,
    "remove_config_comments": True,
    "abort_on_example_error": True,
    "show_signature": False,
    "nested_sections": False,
}
autosummary_generate = True
autosummary_imported_members = True

nitpicky = True
default_role = "py:obj"  # a name in single backticks is a reference, and must resolve
nitpick_ignore_regex = [("py:class|py:data|py:exc|py:attr|py:meth|py:func", r".*")]  # types in signatures
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]

autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": False}
autodoc_typehints = "signature"
autodoc_type_aliases = {"Features": "Features", "Valid": "Valid", "Masks": "Masks", "Size": "Size"}
autoclass_content = "class"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Source", "returns_style"), ("Shape", "params_style")]
napoleon_use_rtype = False
napoleon_use_ivar = True  # avoids duplicate attributes of named tuples


def resolve_by_last_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element
) -> nodes.Element | None:
    """Resolve references of docstrings by their last name, such as `MaskSet` or `MaskSet.on_grid`."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"].removeprefix("~").removesuffix("()")
    objects: dict[str, Any] = env.domaindata["py"]["objects"]
    parents = [node.get("py:module") or "", node.get("py:class") or ""]
    matches = [name for name in objects if name == target or name.endswith(f".{target}")]
    if not matches:
        return None
    matches.sort(key=lambda name: (not any(part and part in name for part in parents), name.count("."), name))
    entry = objects[matches[0]]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, matches[0])


def show_blocks_as_code(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Render the indented blocks of module docstrings as programs or tables instead of quotations."""
    if what != "module":
        return
    result: list[str] = []
    for is_indented, group in groupby(lines, key=lambda line: line.startswith("    ") if line.strip() else None):
        block = list(group)
        if is_indented:
            try:
                ast.parse(textwrap.dedent("\n".join(block)))
                language = "python"
            except SyntaxError:
                language = "text"
            if result and result[-1] == "" and len(result) > 1 and result[-2].startswith("    "):
                result += block  # continues the previous block after a blank line
                continue
            result += [f".. code-block:: {language}", ""]
        result += block
    lines[:] = result


def skip_fields(app: Sphinx, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """Skip the fields of named tuples, which the docstrings of their classes describe."""
    return True if type(thing).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> None:
    """Register the functions above with Sphinx."""
    app.connect("missing-reference", resolve_by_last_name)
    app.connect("autodoc-process-docstring", show_blocks_as_code)
    app.connect("autodoc-skip-member", skip_fields)
