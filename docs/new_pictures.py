"""Show the pictures that the examples of the gallery write; sphinx-gallery imports this module by its name."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sphinx_gallery.scrapers import figure_rst


def show_new_pictures(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Move the PNG files that a block of an example wrote into the gallery, and return the text that shows them."""
    shown = []
    folder = Path(block_vars["src_file"]).parent
    for file in sorted(folder.glob("*.png"), key=lambda file: file.stat().st_mtime_ns):
        path = next(block_vars["image_path_iterator"])
        shutil.copy(file, path)
        file.unlink()
        shown.append(path)
    return str(figure_rst(shown, gallery_conf["src_dir"]))


def _get_sg_image_scraper() -> Callable[..., str]:
    return show_new_pictures
