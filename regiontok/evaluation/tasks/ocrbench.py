"""The functions of OCRBench: lmms-eval's own."""

from regiontok._require import require

_theirs = require("lmms_eval.tasks.ocrbench.utils", extra="eval", distribution="lmms-eval")

image = _theirs.ocrbench_doc_to_visual
question = _theirs.ocrbench_doc_to_text
results = _theirs.ocrbench_process_results
score = _theirs.ocrbench_aggregate_accuracy
