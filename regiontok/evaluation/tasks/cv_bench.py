"""CV-Bench with the paper's prompt, scored by the mean of its authors and by plain accuracy."""

from typing import Any

from regiontok._require import require
from regiontok.evaluation.prompts import option_letter

_utils = require("lmms_eval.tasks.cv_bench.utils", extra="eval", distribution="lmms-eval")

image = _utils.cv_bench_doc_to_visual
accuracy = _utils.cv_bench_aggregate_results
score = _utils.cv_bench_default_aggregate_results


def question(doc: dict[str, Any]) -> str:
    """Return the question and its options as the benchmark formats them, then the paper's instruction."""
    return option_letter(doc["prompt"])


def results(doc: dict[str, Any], answers: list[str]) -> dict[str, Any]:
    """Return the result of one answer for both metrics."""
    result = _utils.cv_bench_process_results(doc, answers)["cv_bench_acc"]
    return {"cv_bench_acc": result, "cv_bench": result}
