"""Scores of a model as a row of the paper's Table 1."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regiontok._files import is_same, make_folder, read_json, write_json
from regiontok.errors import DataError
from regiontok.presets import FIGURES, TABLE_1

SCORES_FILE = "scores.json"

Scores = Mapping[str, float | None]
"""Scores by their names in `regiontok.presets.FIGURES`; None or absent if not measured."""

_COLUMNS = {
    "tokens": ("#Tok", ".0f"), "focus": ("Focus", ".2f"), "pope": ("POPE", ".2f"), "ocrbench": ("OCRBench", ".0f"),
    "cv_bench": ("CV-Bench", ".2f"), "mmstar": ("MMStar", ".2f"), "mme_perception": ("MME-P", ".0f"),
    "mme_cognition": ("MME-C", ".0f"), "mmbench": ("MMBench", ".2f"), "mm_vet": ("MM-Vet", ".1f"),
}  # fmt: skip


def format_rows(rows: Mapping[str, Scores]) -> str:
    """Return rows of scores under the headings of Table 1; a missing score is ``-``.

    Example:
        >>> print(format_rows({"mine": {"tokens": 101, "pope": 84.2}}))
              #Tok  Focus   POPE  OCRBench  CV-Bench  MMStar  MME-P  MME-C  MMBench  MM-Vet
        mine   101      -  84.20         -         -       -      -      -        -       -
    """
    width = max(map(len, rows), default=0)
    lines = [" " * width + "".join(f"  {heading:>{_width(heading)}}" for heading, _ in _COLUMNS.values())]
    for name, scores in rows.items():
        cells = []
        for figure, (heading, number_format) in _COLUMNS.items():
            value = scores.get(figure)
            cells.append(f"  {'-' if value is None else format(value, number_format):>{_width(heading)}}")
        lines.append(f"{name:<{width}}" + "".join(cells))
    return "\n".join(lines)


def _width(heading: str) -> int:
    return max(5, len(heading)) if heading != "#Tok" else 4


def row_name(config: Any, regions: Mapping[str, Any] | None = None) -> str | None:
    """Return the name of the row of Table 1 with the same encoder and options, or None if there is no such row.

    Args:
        config: Config of the model, as loaded by ``AutoConfig``.
        regions: Options of its `Regionizer`, if the config does not contain them.
    """
    regions = getattr(config, "regiontok", None) or regions
    vision: Any = getattr(config, "vision_config", None)
    encoder = getattr(vision, "encoder", None)
    if getattr(vision, "model_type", None) == "clip_vision_model":
        large = (vision.hidden_size, vision.image_size, vision.patch_size) == (1024, 336, 14)
        encoder = "clip-336" if large else None
    if regions is None or encoder is None:
        return None
    has_budget = any(regions.get(option) is not None for option in ("num_regions", "keep", "explained_variance"))
    if has_budget or regions.get("linkage") not in (None, "centroid"):
        return None  # the paper only uses centroid linkage with a threshold
    name = "/".join([encoder, *(str(regions[option]) for option in ("source", "norm", "pool", "order"))])
    return name if name in TABLE_1 else None


def read_scores(folder: str | Path, run_id: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scores that `write_scores` wrote into a folder, or empty scores if there are none.

    Args:
        folder: The folder of ``scores.json``.
        run_id: The model and the settings that the scores must have.

    Returns:
        A dictionary with the keys ``run_id``, ``figures`` and ``details``.

    Raises:
        DataError: The file has scores of another model or setting, or is damaged.
    """
    file = Path(folder) / SCORES_FILE
    if not file.is_file():
        return {"run_id": dict(run_id), "figures": {}, "details": {}}
    try:
        scores: dict[str, Any] = dict(read_json(file))
        stored = dict(scores["run_id"])
        scores["figures"], scores["details"] = dict(scores["figures"]), dict(scores["details"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is damaged ({error!r}). Move it or use another folder.") from error
    for name, value in run_id.items():
        same_folder = name == "model" and is_same(str(stored.get(name)), value)  # different paths of one folder
        if stored.get(name) != value and not same_folder:
            raise DataError(
                f"{file} has scores with {name} {stored.get(name)}; this run has {value}. Use another folder."
            )
    return scores


def write_scores(folder: str | Path, scores: Mapping[str, Any]) -> None:
    """Write the scores of a model to ``scores.json`` in a folder."""
    write_json(make_folder(folder) / SCORES_FILE, scores)


def compare_with_paper(name: str, scores: Scores, row: str | None) -> str:
    """Return a table of two rows: the scores of a model, and a row of the paper's Table 1."""
    rows: dict[str, Scores] = {name: {figure: scores.get(figure) for figure in FIGURES}}
    if row is None:
        return f"{format_rows(rows)}\nTable 1 of the paper has no row with this encoder, source, norm, pool and order."
    rows[f"paper, {row}"] = TABLE_1[row].figures
    return format_rows(rows)
