"""``regiontok evaluate``: run the paper's seven benchmarks on a model."""

from argparse import Namespace

from regiontok._files import make_folder, write_json
from regiontok._require import require
from regiontok.cli.console import warn
from regiontok.cli.loading import load_assistant, run_id
from regiontok.cli.mask_sources import load_masks
from regiontok.cli.output import report
from regiontok.cli.values import ModelChoice, mask_choice
from regiontok.errors import RegiontokError
from regiontok.evaluation.assistant import stock_regionizer
from regiontok.evaluation.benchmarks import BENCHMARKS, has_judge, run
from regiontok.evaluation.questions import answer_questions, read_questions
from regiontok.evaluation.table import compare_with_paper, read_scores, row_name, write_scores


def run_evaluate(options: Namespace) -> int:
    """Run ``evaluate``, and return the exit code."""
    choice = ModelChoice.of(options)
    if options.questions is not None:
        return _run_questions(options, choice)
    names = options.benchmarks or list(BENCHMARKS)
    without_judge = [name for name in names if BENCHMARKS[name].needs_judge and not has_judge()]
    if without_judge and options.benchmarks:
        raise RegiontokError(
            f"{without_judge[0]} needs a judge, but OPENAI_API_KEY is not set. Set it, or leave the benchmark out."
        )
    row = options.row or _find_row(options.model, choice)
    settings = {"masks": options.masks, "missing": options.missing, "sam_model": options.sam_model}
    arguments = {"pretrained": options.model, **choice.regions, "dtype": choice.dtype, "device": choice.device}
    arguments |= {name: value for name, value in settings.items() if value is not None}
    for value in arguments.values():
        if "," in str(value) or "=" in str(value):
            raise RegiontokError(f"lmms-eval cannot parse a comma or an equals sign, as in {value}. Rename it.")
    make_folder(options.out)
    scores = read_scores(options.out, run_id(options.model, choice))
    setting = {"limit": options.limit, "masks": options.masks, "sam_model": options.sam_model}
    for name, value in scores.get("benchmarks", setting).items():  # scores of focus may use other masks
        if value != setting[name]:
            raise RegiontokError(
                f"{options.out} has benchmarks with {name} {value}; this run has {setting[name]}. Use another --out."
            )
    scores |= {"benchmarks": setting, "row": row}
    failed = []
    for name in names:
        if name in without_judge or all(figure in scores["figures"] for figure in BENCHMARKS[name].figures):
            continue
        try:
            measured = run(
                [name],
                arguments,
                options.out / name,
                batch_size=options.batch_size,
                limit=options.limit,
                processes=options.processes,
            )
        except RegiontokError as error:
            if isinstance(error, ImportError):
                raise
            failed.append(str(error))
            continue
        scores["figures"] |= measured.figures
        scores["details"] |= measured.details
        scores["tokens"] = scores.get("tokens", {}) | {name: measured.tokens}
        scores["figures"]["tokens"] = sum(scores["tokens"].values()) / len(scores["tokens"])
        write_scores(options.out, scores)
    print(compare_with_paper(options.model, scores["figures"], row))
    for name, value in scores["details"].items():
        print(f"{name}: {value:.2f}")
    if options.limit is not None:
        print(f"With only {options.limit} questions of each benchmark, the scores cannot be compared.")
    for name in without_judge:
        print(f"{name} was skipped: it needs a judge, but OPENAI_API_KEY is not set.")
    for message in failed:
        warn(message)
    return 1 if failed else 0


def _run_questions(options: Namespace, choice: ModelChoice) -> int:
    """Answer the questions of a file, and return the exit code."""
    questions = read_questions(options.questions, options.images)[: options.limit]
    masks = mask_choice(options)
    make_folder(options.out)
    assistant = load_assistant(options.model, choice, masks)
    result = answer_questions(
        assistant,
        questions,
        masks=None if masks is None else load_masks(masks, device=options.device),
        batch_size=options.batch_size,
    )
    file = options.out / "questions.json"
    write_json(file, {"run_id": run_id(options.model, choice)} | result.to_dict())
    graded = [answer for answer in result.answers if answer.is_correct is not None]
    if graded:
        correct = sum(bool(answer.is_correct) for answer in graded)
        print(f"{correct} of {len(graded)} answers are correct ({100 * correct / len(graded):.1f} %).")
    if result.tokens is not None:
        print(f"{result.tokens:.1f} tokens per image.")
    print(f"Answers: {file}")
    return report({answer.name: answer.error for answer in result.answers if answer.error}, len(questions), "questions")


def _find_row(model: str, choice: ModelChoice) -> str | None:
    """Return the row of Table 1 with the encoder and the regions of a model, or None."""
    transformers = require("transformers", extra="eval")
    regionizer = stock_regionizer(**choice.regions)
    try:
        config = transformers.AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise RegiontokError(f"{model} has no model of transformers: {error}") from error
    patches = {"source": "patch", "norm": "none", "pool": "mean", "order": "raster"}
    return row_name(config, patches if regionizer is None else regionizer.config.to_dict())
