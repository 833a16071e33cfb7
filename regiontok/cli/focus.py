"""``regiontok focus``: the focus metric on PixCV-Bench for a model."""

import argparse
from typing import Any

from regiontok._files import make_folder, write_json
from regiontok.cli.common import add_model_options, load_assistant, load_masks, told_apart
from regiontok.cli.output import as_path, as_text
from regiontok.errors import RegiontokError
from regiontok.evaluation.focus import QUERIES
from regiontok.evaluation.pixcv import ANSWERS, measure_focus, read_objects, read_questions
from regiontok.evaluation.table import beside_the_paper, read_scores, row_name, write_scores
from regiontok.presets import TABLE_1


def add_commands(commands: Any) -> None:
    """Add ``focus`` to the parser."""
    focus = commands.add_parser(
        "focus",
        help="how much attention a model's answers pay to the object asked for, on PixCV-Bench",
        description="Ask CV-Bench's questions, and print how much of the answers' attention goes to region tokens of "
        "the object, beside the paper's Focus. What cannot be counted is skipped, counted and named in --out.",
    )
    focus.add_argument("model", type=as_text, metavar="DIR", help="a region model, or a stock one: folder or name")
    focus.add_argument(
        "--annotations", type=as_path, required=True, metavar="DIR|FILE", help="PixCV-Bench's folder, or COCO's JSON"
    )
    focus.add_argument(
        "--questions", type=as_path, required=True, metavar="FILE", help="CV-Bench's test_2d.parquet or test_2d.jsonl"
    )
    focus.add_argument("--images", type=as_path, metavar="DIR", help="where the photos of a jsonl file are")
    focus.add_argument("--out", type=as_path, required=True, metavar="DIR", help="for the scores and what was skipped")
    focus.add_argument("--row", choices=list(TABLE_1), metavar="NAME", help="of Table 1; default: the model's own")
    focus.add_argument("--answers", default="generated", choices=ANSWERS, help="default: %(default)s")
    focus.add_argument("--query", default="answer", choices=QUERIES, help="whose rows of attention; default: answer")
    focus.add_argument(
        "--target-share", type=float, default=0.5, metavar="S", help="of a region in the object; default: %(default)s"
    )
    focus.add_argument("--layers", type=int, nargs="+", metavar="N", help="default: all")
    focus.add_argument("--heads", type=int, nargs="+", metavar="N", help="default: all")
    focus.add_argument("--batch-size", type=int, default=1, metavar="N", help="default: %(default)s")
    add_model_options(focus)
    focus.set_defaults(run=_focus)


def _focus(options: argparse.Namespace) -> int:
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
        masks=None if masks_of is None else lambda file, photo: masks_of(file, photo),
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
        f"Of all attention to the photo {100 * result.focus.share:.1f} % goes to the object, where even "
        f"attention would give it {100 * result.focus.chance:.1f} %. Answers right: {100 * result.accuracy:.1f} %."
    )
    if result.skipped:
        print(f"Skipped, and named in {options.out / 'focus.json'}:")
        for reason, count in result.reasons().most_common():
            print(f"{count:>6}  {reason}")
    return 0
