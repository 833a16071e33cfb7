"""The functions of MM-Vet: lmms-eval's own."""

from regiontok._require import require

_theirs = require("lmms_eval.tasks.mmvet.utils", extra="eval", distribution="lmms-eval")

photo = _theirs.mmvet_doc_to_visual
question = _theirs.doc_to_text
results = _theirs.mmvet_process_results
score = _theirs.mmvet_aggregate_results
