"""``regiontok chat``: ask a model about an image."""

import argparse

from regiontok.cli.common import load_assistant, roots_of
from regiontok.cli.console import note
from regiontok.cli.mask_sources import load_masks
from regiontok.evaluation.conversation import Conversation
from regiontok.evaluation.prompts import short_answer, with_options
from regiontok.images import read_image


def run_chat(options: argparse.Namespace) -> int:
    """Run ``chat``; return the exit code."""
    image = read_image(options.image)
    assistant = load_assistant(options.model, options)
    masks = (
        [load_masks(options, roots=roots_of(options, [options.image]))(options.image, image)]
        if assistant.by_masks
        else None
    )
    conversation = Conversation(assistant, [image], masks=masks)
    for number, text in enumerate(options.question):
        if options.short:
            text = short_answer(text)
        elif options.options:
            text = with_options(text, options.options)
        answer = conversation.ask(text, max_new_tokens=options.max_new_tokens)
        if number == 0:
            note(f"{options.image}: {answer.counts[0]} token{'s' * (answer.counts[0] != 1)}")
        print(answer.text)
    return 0
