"""MM-Vet with lmms-eval's own functions, but that an answer without a mark is no answer of mark 0."""

from typing import Any

from regiontok._require import require
from regiontok.errors import DataError

_theirs = require("lmms_eval.tasks.mmvet.utils", extra="eval", distribution="lmms-eval")

image = _theirs.mmvet_doc_to_visual
question = _theirs.doc_to_text
score = _theirs.mmvet_aggregate_results


def results(doc: dict[str, Any], answers: list[str]) -> dict[str, Any]:
    """One answer's mark; refuses what the judge could not be asked about."""
    judged: dict[str, Any] = _theirs.mmvet_process_results(doc, answers)
    if not judged["gpt_eval_score"]["eval_model"]:  # as it tells that no judge answered, beside a mark of 0
        raise DataError(f"MM-Vet, question {doc['question_id']}: the judge gave no mark. Is it there?")
    return judged
