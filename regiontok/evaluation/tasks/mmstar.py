"""MMStar with the paper's prompt, scored by lmms-eval."""

from typing import Any

from regiontok._require import require
from regiontok.evaluation.prompts import OPTIONS

_utils = require("lmms_eval.tasks.mmstar.utils", extra="eval", distribution="lmms-eval")

image = _utils.mmstar_doc_to_visual
results = _utils.mmstar_process_results
score = _utils.mmstar_aggregate_results


def question(doc: dict[str, Any]) -> str:
    """Return the question, which lists its options, then the paper's instruction."""
    text: str = _utils.mmstar_doc_to_text(doc, {"post_prompt": f"\n{OPTIONS}"})
    return text
