"""MMBench with the paper's prompt; marks are lmms-eval's, without a judge."""

from typing import Any

from regiontok._require import require
from regiontok.evaluation.prompts import with_options

_theirs = require("lmms_eval.tasks.mmbench.en_utils", extra="eval", distribution="lmms-eval")

image = _theirs.mmbench_doc_to_visual
results = _theirs.mmbench_process_results
score = _theirs.mmbench_aggregate_dev_results_static


def question(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    """The hint, the question, its two to four options by letter, and the paper's words after them."""
    words = [str(doc[part]) for part in ("hint", "question") if _given(doc[part])]
    return with_options("\n".join(words), [str(doc[letter]) for letter in "ABCD" if _given(doc[letter])])


def _given(value: Any) -> bool:
    """Whether a cell holds something; the data set's empty ones are None, NaN or its name."""
    return value is not None and str(value) != "nan"
