"""The functions of MMStar: lmms-eval's own."""

from regiontok._require import require

_theirs = require("lmms_eval.tasks.mmstar.utils", extra="eval", distribution="lmms-eval")

image = _theirs.mmstar_doc_to_visual
question = _theirs.mmstar_doc_to_text
results = _theirs.mmstar_process_results
score = _theirs.mmstar_aggregate_results
