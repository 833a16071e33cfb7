"""Options of the commands that ask a multimodal model; see `regiontok.cli.parser`."""

from typing import Any

from regiontok.choices import ANSWERS, QUERIES
from regiontok.cli.arguments import add_model_options, as_path, as_text
from regiontok.evaluation.benchmarks import BENCHMARKS
from regiontok.presets import TABLE_1


def add_chat(commands: Any) -> None:
    """Add ``chat`` to the parser."""
    chat = commands.add_parser(
        "chat",
        help="ask a multimodal model about an image",
        description="Print a model's answers to questions about an image, decoded greedily. The image is encoded once.",
    )
    chat.add_argument("image", type=as_path, metavar="IMAGE")
    chat.add_argument(
        "question", type=as_text, metavar="QUESTION", nargs="+", help="several are asked one after another"
    )
    chat.add_argument(
        "--model",
        required=True,
        type=as_text,
        metavar="DIR",
        help="a region model, or a stock one: folder or name",
    )
    form = chat.add_mutually_exclusive_group()
    form.add_argument("--short", action="store_true", help="ask for a word or phrase, as the paper does")
    form.add_argument("--options", nargs="+", metavar="OPTION", help="ask for the letter of one of these, likewise")
    chat.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="default: %(default)s")
    add_model_options(chat)
    chat.set_defaults(run=("chat", "run_chat"))


def add_evaluate(commands: Any) -> None:
    """Add ``evaluate`` to the parser."""
    evaluate = commands.add_parser(
        "evaluate",
        help="run the paper's seven benchmarks on a model",
        description="Run POPE, OCRBench, CV-Bench, MMStar, MME, MMBench and MM-Vet through lmms-eval, and print a row "
        "of the paper's Table 1 beside the paper's. Scores are kept in --out, where what is there already is not run "
        "again. MM-Vet needs a judge: OPENAI_API_KEY, or what lmms-eval takes in its place.",
    )
    evaluate.add_argument("model", type=as_text, metavar="DIR", help="a region model, or a stock one: folder or name")
    evaluate.add_argument("--out", type=as_path, required=True, metavar="DIR", help="for scores, answers, logs")
    evaluate.add_argument("--benchmarks", nargs="+", choices=list(BENCHMARKS), help="default: all")
    evaluate.add_argument("--row", choices=list(TABLE_1), metavar="NAME", help="of Table 1; default: the model's own")
    evaluate.add_argument("--batch-size", type=int, default=1, metavar="N", help="default: %(default)s")
    evaluate.add_argument(
        "--processes",
        type=int,
        default=1,
        metavar="N",
        help="that share the questions, with --device cuda a GPU each; default: %(default)s",
    )
    evaluate.add_argument("--limit", type=int, metavar="N", help="so many questions of each, to try it out")
    add_model_options(evaluate, names=False)
    evaluate.set_defaults(run=("evaluate", "run_evaluate"))


def add_focus(commands: Any) -> None:
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
    focus.add_argument("--images", type=as_path, metavar="DIR", help="where the images of a jsonl file are")
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
    focus.set_defaults(run=("focus", "run_focus"))
