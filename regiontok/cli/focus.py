"""``regiontok focus``: the focus metric on PixCV-Bench for a model."""

import argparse

from regiontok._files import make_folder, write_json
from regiontok.cli.common import load_assistant, told_apart
from regiontok.cli.mask_sources import load_masks
from regiontok.errors import RegiontokError
from regiontok.evaluation.pixcv import measure_focus, read_objects, read_questions
from regiontok.evaluation.table import beside_the_paper, read_scores, row_name, write_scores


def run_focus(options: argparse.Namespace) -> int:
    """Run ``focus``; return the exit code."""
    objects = read_objects(options.annotations)
    if not options.questions.is_file():
        raise RegiontokError(f"--questions: there is no file {options.questions}.")
    make_folder(options.out)
    scores = read_scores(options.out, told_apart(options))
    assistant = load_assistant(options.model, options)
    masks_of = load_masks(options) if assistant.by_masks else None
    result = measure_focus(
        assistant,
        read_questions(options.questions, options.images),
        objects,
        masks=None if masks_of is None else lambda file, image: masks_of(file, image),
        answers=options.answers,
        query=options.query,
        threshold=options.target_share,
        layers=options.layers,
        heads=options.heads,
        batch_size=options.batch_size,
    )
    row = options.row or row_name(assistant.model.config)
    scores["figures"] = {"tokens": result.tokens} | scores["figures"] | {"focus": 100 * result.focus.focus}
    scores["row"] = row
    write_scores(options.out, scores)
    write_json(options.out / "focus.json", result.to_dict())
    print(beside_the_paper(options.model, scores["figures"], row))
    by_source = ", ".join(f"{source or 'all'} {100 * value:.2f}" for source, value in result.by_source.items())
    print(f"Focus of {result.focus.questions} questions; by source: {by_source}.")
    print(
        f"Of all attention to the image {100 * result.focus.share:.1f} % goes to the object, where even "
        f"attention would give it {100 * result.focus.chance:.1f} %. Answers right: {100 * result.accuracy:.1f} %."
    )
    if result.skipped:
        print(f"Skipped, and named in {options.out / 'focus.json'}:")
        for reason, count in result.reasons().most_common():
            print(f"{count:>6}  {reason}")
    return 0
