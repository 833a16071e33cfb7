"""MM-Vet scored by lmms-eval, except that a missing mark is an error and not a mark of 0."""

from typing import Any

from regiontok._require import require
from regiontok.errors import DataError

_utils = require("lmms_eval.tasks.mmvet.utils", extra="eval", distribution="lmms-eval")

image = _utils.mmvet_doc_to_visual
question = _utils.doc_to_text
score = _utils.mmvet_aggregate_results


def results(doc: dict[str, Any], answers: list[str]) -> dict[str, Any]:
    """Return the mark of one answer.

    Raises:
        DataError: The judge gave no mark.
    """
    marks: dict[str, Any] = _utils.mmvet_process_results(doc, answers)
    if not marks["gpt_eval_score"]["eval_model"]:  # lmms-eval returns a mark of 0 when the judge does not answer
        raise DataError(f"MM-Vet, question {doc['question_id']}: the judge gave no mark. Check that it can be reached.")
    return marks
