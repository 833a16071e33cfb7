"""``regiontok chat``: ask a model about images."""

import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import suppress

from regiontok.cli.console import note, warn
from regiontok.cli.loading import load_assistant
from regiontok.cli.mask_sources import masks_of_file
from regiontok.cli.values import ModelChoice, mask_choice
from regiontok.errors import RegiontokError
from regiontok.evaluation.conversation import Conversation
from regiontok.evaluation.prompts import short_answer, with_options
from regiontok.images import read_image


def run_chat(options: Namespace) -> int:
    """Run ``chat``, and return the exit code."""
    images = [read_image(path) for path in options.images]
    choice = mask_choice(options)
    assistant = load_assistant(options.model, ModelChoice.of(options), choice)
    masks = [
        masks_of_file(choice, path, image, device=options.device)
        for path, image in zip(options.images, images, strict=True)
    ]
    conversation = Conversation(assistant, images, masks=[mask for mask in masks if mask is not None] or None)
    is_first = True
    for question in options.ask or _read_questions():
        prompt = question
        if options.short:
            prompt = short_answer(question)
        elif options.options:
            prompt = with_options(question, options.options)
        try:
            answer = conversation.ask(prompt, max_new_tokens=options.max_new_tokens)
        except RegiontokError as error:
            if options.ask:
                raise
            warn(error)
            continue
        if is_first:
            for path, count in zip(options.images, answer.counts, strict=True):
                note(f"{path}: {count} token{'s' * (count != 1)}")
            is_first = False
        print(answer.text, flush=True)
    return 0


def _read_questions() -> Iterator[str]:
    """Yield the questions that are typed, or the lines of a file or pipe, until the input ends."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        note("Type a question and press Enter. Ctrl-D ends the conversation.")
        with suppress(ImportError):  # not on Windows
            import readline  # noqa: F401, PLC0415  makes the line editable
    while True:
        try:
            line = input("> " if is_terminal else "").strip()
        except EOFError:
            return
        if line:
            yield line
