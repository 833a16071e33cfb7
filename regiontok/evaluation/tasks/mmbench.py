"""MMBench with the paper's prompt, scored by lmms-eval without a judge."""

from typing import Any

from regiontok._require import require
from regiontok.evaluation.prompts import with_options

_utils = require("lmms_eval.tasks.mmbench.en_utils", extra="eval", distribution="lmms-eval")

image = _utils.mmbench_doc_to_visual
results = _utils.mmbench_process_results
score = _utils.mmbench_aggregate_dev_results_static


def question(doc: dict[str, Any]) -> str:
    """Return the hint, the question and its two to four options, then the paper's instruction."""
    parts = [str(doc[part]) for part in ("hint", "question") if _is_set(doc[part])]
    return with_options("\n".join(parts), [str(doc[letter]) for letter in "ABCD" if _is_set(doc[letter])])


def _is_set(value: Any) -> bool:
    """Return whether a cell is not empty; empty cells of the data set are None, NaN or the text ``nan``."""
    return value is not None and str(value) != "nan"
