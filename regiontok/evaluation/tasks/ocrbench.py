"""OCRBench with the paper's prompt, scored by lmms-eval."""

from typing import Any

from regiontok._require import require
from regiontok.evaluation.prompts import short_answer

_utils = require("lmms_eval.tasks.ocrbench.utils", extra="eval", distribution="lmms-eval")

image = _utils.ocrbench_doc_to_visual
results = _utils.ocrbench_process_results
score = _utils.ocrbench_aggregate_accuracy


def question(doc: dict[str, Any]) -> str:
    """Return the question, then the paper's instruction."""
    return short_answer(doc["question"])
