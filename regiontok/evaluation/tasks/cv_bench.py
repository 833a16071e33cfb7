"""CV-Bench with the paper's prompt, and the benchmark's own mean beside plain accuracy."""

from typing import Any

from regiontok._require import require

_theirs = require("lmms_eval.tasks.cv_bench.utils", extra="eval", distribution="lmms-eval")

image = _theirs.cv_bench_doc_to_visual
accuracy = _theirs.cv_bench_aggregate_results
score = _theirs.cv_bench_default_aggregate_results


def question(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any]) -> str:
    """The question with its choices as the benchmark writes them, and what the paper puts after it."""
    return f"{doc['prompt'].strip()}{lmms_eval_specific_kwargs['post_prompt']}"


def results(doc: dict[str, Any], answers: list[str]) -> dict[str, Any]:
    """One answer, for both figures."""
    judged = _theirs.cv_bench_process_results(doc, answers)["cv_bench_acc"]
    return {"cv_bench_acc": judged, "cv_bench": judged}
