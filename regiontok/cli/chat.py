"""``regiontok chat``: ask a model about a photo."""

import argparse
import sys
from typing import Any

from regiontok.cli.common import add_model_options, load_assistant, load_masks, roots_of
from regiontok.cli.output import as_path, as_text, shown
from regiontok.evaluation.assistant import Question
from regiontok.evaluation.prompts import short_answer, with_options
from regiontok.photos import read_photo


def add_commands(commands: Any) -> None:
    """Add ``chat`` to the parser."""
    chat = commands.add_parser(
        "chat",
        help="ask a multimodal model about a photo",
        description="Print a model's answer to a question about a photo, decoded greedily.",
    )
    chat.add_argument("photo", type=as_path, metavar="IMAGE")
    chat.add_argument("question", type=as_text, metavar="QUESTION")
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
    chat.set_defaults(run=_chat)


def _chat(options: argparse.Namespace) -> int:
    photo = read_photo(options.photo)
    text = options.question
    if options.short:
        text = short_answer(text)
    elif options.options:
        text = with_options(text, options.options)
    assistant = load_assistant(options.model, options)
    masks = (
        [load_masks(options, roots=roots_of(options, [options.photo]))(options.photo, photo)]
        if assistant.by_masks
        else None
    )
    answer = assistant.answer([Question(text, [photo], masks)], max_new_tokens=options.max_new_tokens)[0]
    print(f"{shown(options.photo)}: {answer.counts[0]} token{'s' * (answer.counts[0] != 1)}", file=sys.stderr)
    print(answer.text)
    return 0
