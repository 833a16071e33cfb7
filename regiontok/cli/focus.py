"""``regiontok focus``: the focus metric of a model on PixCV-Bench."""

from argparse import Namespace

from regiontok._files import make_folder, write_json
from regiontok.cli.loading import load_assistant, run_id
from regiontok.cli.mask_sources import load_masks
from regiontok.cli.values import ModelChoice, mask_choice
from regiontok.errors import RegiontokError
from regiontok.evaluation.pixcv import measure_focus, read_objects, read_questions
from regiontok.evaluation.table import compare_with_paper, read_scores, row_name, write_scores


def run_focus(options: Namespace) -> int:
    """Run ``focus``, and return the exit code."""
    model_choice, choice = ModelChoice.of(options), mask_choice(options)
    objects = read_objects(options.annotations)
    if not options.questions.is_file():
        raise RegiontokError(f"--questions: there is no file {options.questions}.")
    make_folder(options.out)
    scores = read_scores(options.out, run_id(options.model, model_choice))
    assistant = load_assistant(options.model, model_choice, choice)
    result = measure_focus(
        assistant,
        read_questions(options.questions, options.images),
        objects,
        masks=None if choice is None else load_masks(choice, device=options.device),
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
    print(compare_with_paper(options.model, scores["figures"], row))
    by_source = ", ".join(f"{source or 'all'} {100 * value:.2f}" for source, value in result.by_source.items())
    print(f"Focus of {result.focus.questions} questions; by source: {by_source}.")
    print(
        f"{100 * result.focus.share:.1f} % of the attention to the image is on the object; uniform attention would "
        f"have {100 * result.focus.chance:.1f} %. Correct answers: {100 * result.accuracy:.1f} %."
    )
    if result.skipped:
        print(f"Skipped questions, listed in {options.out / 'focus.json'}:")
        for reason, count in result.reasons().most_common():
            print(f"{count:>6}  {reason}")
    return 0
