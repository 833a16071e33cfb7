"""A model's figures as a row of the paper's Table 1, beside the paper's own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regiontok._files import is_same, make_folder, read_json, write_json
from regiontok.errors import DataError
from regiontok.presets import FIGURES, TABLE_1

SCORES_FILE = "scores.json"

Scores = Mapping[str, float | None]
"""Figures by name, of `regiontok.presets.FIGURES`; None or absent where there is none."""

_COLUMNS = {
    "tokens": ("#Tok", ".0f"), "focus": ("Focus", ".2f"), "pope": ("POPE", ".2f"), "ocrbench": ("OCRBench", ".0f"),
    "cv_bench": ("CV-Bench", ".2f"), "mmstar": ("MMStar", ".2f"), "mme_perception": ("MME-P", ".0f"),
    "mme_cognition": ("MME-C", ".0f"), "mmbench": ("MMBench", ".2f"), "mm_vet": ("MM-Vet", ".1f"),
}  # fmt: skip


def format_rows(rows: Mapping[str, Scores]) -> str:
    """Rows by name under the headings of Table 1; ``-`` where there is no figure.

    Example:
        >>> print(format_rows({"mine": {"tokens": 101, "pope": 84.2}}))
              #Tok  Focus   POPE  OCRBench  CV-Bench  MMStar  MME-P  MME-C  MMBench  MM-Vet
        mine   101      -  84.20         -         -       -      -      -        -       -
    """
    width = max(map(len, rows), default=0)
    lines = [" " * width + "".join(f"  {head:>{_wide(head)}}" for head, _ in _COLUMNS.values())]
    for name, scores in rows.items():
        cells = []
        for figure, (head, form) in _COLUMNS.items():
            value = scores.get(figure)
            cells.append(f"  {'-' if value is None else format(value, form):>{_wide(head)}}")
        lines.append(f"{name:<{width}}" + "".join(cells))
    return "\n".join(lines)


def _wide(head: str) -> int:
    return max(5, len(head)) if head != "#Tok" else 4


def row_name(config: Any, regions: Mapping[str, Any] | None = None) -> str | None:
    """The row of Table 1 that a model stands in; None where the paper has no such row.

    Args:
        config: Of the model, as ``AutoConfig`` loads it.
        regions: Options of its `Regionizer`, where they are not in the config.
    """
    regions = getattr(config, "regiontok", None) or regions
    vision: Any = getattr(config, "vision_config", None)
    encoder = getattr(vision, "encoder", None)
    if getattr(vision, "model_type", None) == "clip_vision_model":
        large = (vision.hidden_size, vision.image_size, vision.patch_size) == (1024, 336, 14)
        encoder = "clip-336" if large else None
    if regions is None or encoder is None:
        return None
    budget = any(regions.get(option) is not None for option in ("num_regions", "keep", "explained_variance"))
    if budget or regions.get("linkage") not in (None, "centroid"):
        return None  # the paper has its own rule alone, down to a threshold
    name = "/".join([encoder, *(str(regions[option]) for option in ("source", "norm", "pool", "order"))])
    return name if name in TABLE_1 else None


def read_scores(folder: str | Path, of: Mapping[str, Any]) -> dict[str, Any]:
    """What `write_scores` wrote of a model; empty figures where there is nothing yet.

    Args:
        folder: Where they are kept.
        of: What the scores must be of: the model, and whatever tells one of its settings from another.

    Returns:
        ``of``, ``figures`` and ``details``.

    Raises:
        DataError: Scores of another model or setting, or a damaged file.
    """
    file = Path(folder) / SCORES_FILE
    if not file.is_file():
        return {"of": dict(of), "figures": {}, "details": {}}
    try:
        scores: dict[str, Any] = dict(read_json(file))
        known = dict(scores["of"])
        scores["figures"], scores["details"] = dict(scores["figures"]), dict(scores["details"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is damaged ({error!r}). Move it away, or give another folder.") from error
    for name in of:
        same = name == "model" and is_same(str(known.get(name)), of[name])  # a folder, however it is spelt
        if known.get(name) != of[name] and not same:
            raise DataError(
                f"{file} has scores of {name} {known.get(name)}, and this is {of[name]}. Give another folder."
            )
    return scores


def write_scores(folder: str | Path, scores: Mapping[str, Any]) -> None:
    """Write a model's scores into a folder, as ``scores.json``."""
    write_json(make_folder(folder) / SCORES_FILE, scores)


def beside_the_paper(name: str, scores: Scores, row: str | None) -> str:
    """A model's row, and that of the paper under it."""
    rows: dict[str, Scores] = {name: {figure: scores.get(figure) for figure in FIGURES}}
    if row is None:
        return f"{format_rows(rows)}\nTable 1 of the paper has no row of this encoder, source, norm, pool and order."
    rows[f"paper, {row}"] = TABLE_1[row].figures
    return format_rows(rows)
