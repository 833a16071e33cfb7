"""The parser of ``regiontok COMMAND``.

Nothing here imports torch, so that help and rejected options take a fraction of a second. A command is described by its
arguments, the function that runs it, and the checks that `regiontok.cli.main` calls first.
"""

import argparse
import importlib.metadata
from functools import partial
from pathlib import Path
from typing import Any

from regiontok.choices import ANSWERS, BUDGETS, GENERATORS, QUERIES, SOURCES, TOKEN_DTYPES
from regiontok.cli import regions, values
from regiontok.cli.arguments import (
    add_annotation_options,
    add_details_options,
    add_features_and_masks,
    add_mask_options,
    add_model_options,
    add_region_options,
)
from regiontok.cli.values import (
    EncoderChoice,
    FrameChoice,
    GeneratorChoice,
    ListingChoice,
    ModelChoice,
    RunChoice,
    TrackChoice,
    add_choice,
    as_path,
    as_text,
    positive,
)
from regiontok.evaluation.benchmarks import BENCHMARKS
from regiontok.presets import TABLE_1

_IMAGES: dict[str, Any] = {"nargs": "+", "type": as_text, "metavar": "IMAGE|FOLDER|PATTERN|LIST"}
_IMAGE: dict[str, Any] = {"type": as_path, "metavar": "IMAGE"}
_MODEL = "region model or stock model: a folder, or a name on the hub"
_MODEL_CHECKS = (ModelChoice.of, values.mask_choice)


class _Version(argparse.Action):
    """Print the version, which is read from the package's metadata only if it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"regiontok {importlib.metadata.version('regiontok')}")
        parser.exit()


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands.

    Its namespace has ``run``, a module of ``regiontok.cli`` and a function in it, and ``checks``, functions that reject
    invalid options.
    """
    parser = argparse.ArgumentParser(prog="regiontok", description="Region tokenizers for multimodal language models.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.set_defaults(checks=())
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="tokenize scikit-learn's sample image, offline, in seconds")
    demo.add_argument("--out", type=as_path, default=Path("regiontok-demo"), metavar="DIR", help="default: %(default)s")
    demo.set_defaults(run=("tokenize", "run_demo"))
    for add in (_add_tokenize, _add_view, _add_count, _add_compare, _add_figures, _add_masks, _add_tracks, _add_store):
        add(commands)
    for add in (_add_chat, _add_serve, _add_evaluate, _add_focus):
        add(commands)
    env = commands.add_parser("env", help="print versions, missing packages and devices")
    env.set_defaults(run=("env", "run_env"))
    return parser


def _add_tokenize(commands: Any) -> None:
    tokenize = commands.add_parser(
        "tokenize",
        help="turn images or videos into region tokens",
        usage="%(prog)s IMAGE|FOLDER|PATTERN|LIST ... [--out DIR | --store DIR] [options]",
        description="Write for each image NAME.regions.png, a drawing of its regions, and NAME.regions.safetensors: "
        "tokens (K, dim), the mean of each region; the options as JSON; and labels (rows, cols), -1 for patches in no "
        "region. For masks, whose regions may overlap, masks (K, rows, cols), mask_index and scores (K) replace the "
        "labels. regiontok.load_tokens reads the file.",
    )
    tokenize.add_argument("images", **_IMAGES)
    out = tokenize.add_mutually_exclusive_group()
    text = "folder of the files, with the subfolders of the images; default: regiontok-out"
    out.add_argument("--out", type=as_path, metavar="DIR", help=text)
    text = "write a store of Parquet files instead, for many images: a folder, or an address such as s3://bucket/tokens"
    out.add_argument("--store", type=as_text, metavar="DIR", help=text)
    text = "draw the regions; default: yes for files, no for a store"
    tokenize.add_argument("--pictures", action=argparse.BooleanOptionalAction, help=text)
    add_details_options(tokenize)
    tokenize.add_argument("--dtype", choices=TOKEN_DTYPES, help="data type of tokens in a store; default: float16")
    add_choice(tokenize.add_argument_group("images"), ListingChoice)
    videos = tokenize.add_argument_group("videos, instead of images")
    add_choice(videos, FrameChoice)
    videos.add_argument("--tracks", type=as_path, metavar="DIR", help="tracks of regiontok tracks, for their sources")
    add_choice(tokenize.add_argument_group("encoder"), EncoderChoice)
    group = tokenize.add_argument_group("regions")
    add_region_options(group, ["source", *values.STOPS, "linkage", "connectivity", "motion", "max_frames"])
    add_region_options(group, ["norm", "order", "padding"])
    tokenize.set_defaults(source="clustering")
    group = tokenize.add_argument_group("regions of masks")
    add_region_options(group, ["min_coverage", "downsampling", "unassigned", "overlap", "mask_weight"])
    add_region_options(group, ["eps", "min_samples", "split_min_patches", "noise"])
    add_mask_options(tokenize, root=False, default="sam2, if the source needs masks")
    add_annotation_options(tokenize)
    add_choice(tokenize.add_argument_group("writing a store"), RunChoice)
    checks = (regions.region_configs, regions.token_masks, EncoderChoice.of, FrameChoice.of, values.check_destination)
    tokenize.set_defaults(run=("tokenize", "run_tokenize"), checks=checks)


def _add_view(commands: Any) -> None:
    view = commands.add_parser(
        "view",
        help="explore the regions of an image or video in a browser",
        usage="%(prog)s IMAGE|VIDEO [--out FILE.html] [options]",
        description="Write an HTML file that works offline: the image with its regions, sliders for the threshold and "
        "the number of tokens, a choice of linkage and source, and similarities of regions. With masks it also has "
        "their sources and a slider for the weight of masks; for a video a slider of its frames.",
    )
    view.add_argument("image", **_IMAGE)
    view.add_argument("--out", type=as_path, metavar="FILE.html", help="default: named after the image")
    group = view.add_argument_group("regions when the page opens")
    add_region_options(group, ["threshold", "num_regions", "keep", "norm", "connectivity", "motion", "max_frames"])
    add_choice(view.add_argument_group("a video, instead of an image"), FrameChoice)
    add_features_and_masks(view)
    checks = (EncoderChoice.of, FrameChoice.of, regions.region_configs, values.mask_choice)
    view.set_defaults(run=("view", "run_view"), checks=checks)


def _add_count(commands: Any) -> None:
    count = commands.add_parser(
        "count",
        help="count the tokens of images by source",
        usage="%(prog)s IMAGE|FOLDER|PATTERN|LIST ... [--out FILE] [options]",
        description="Print the distribution of the number of tokens per image for each source, next to the mean in "
        "Table 1 of the paper, and draw a histogram. Sources that need masks are counted if --masks is given.",
    )
    count.add_argument("images", **_IMAGES)
    _add_out(count, "regiontok-counts.png", "the histogram")
    add_details_options(count)
    _add_sources(count)
    add_features_and_masks(count)
    checks = (EncoderChoice.of, regions.region_configs, values.mask_choice)
    count.set_defaults(run=("count", "run_count"), checks=checks)


def _add_compare(commands: Any) -> None:
    compare = commands.add_parser(
        "compare",
        help="compare kinds of regions with the same number of tokens",
        usage="%(prog)s IMAGE|FOLDER|PATTERN|LIST ... [--num-regions K ... | --keep F ...] [options]",
        description="Print how well regions represent the patches of images: a grid, clustering with each linkage, and "
        "with masks their two sources, all with the same number of tokens. Sources of masks are also measured without "
        "a budget. With annotated masks (--coco, --label-maps, --mask-files) the table also shows how well regions "
        "follow objects. Scores are means over images.",
    )
    compare.add_argument("images", **_IMAGES)
    _add_out(compare, "regiontok-compare.png", "the figure; FILE.json has the scores of every image")
    budgets = compare.add_mutually_exclusive_group()
    text = f"numbers of tokens; default: {' '.join(map(str, BUDGETS))}"
    budgets.add_argument("--num-regions", nargs="+", type=int, metavar="K", help=text)
    text = "numbers of tokens as fractions of the patches"
    budgets.add_argument("--keep", nargs="+", type=float, metavar="F", help=text)
    add_region_options(compare, ["norm", "connectivity", "mask_weight"])
    add_choice(compare.add_argument_group("videos, instead of images: of frames and of whole clips"), FrameChoice)
    add_features_and_masks(compare)
    checks = (EncoderChoice.of, FrameChoice.of, regions.check_budgets, values.mask_choice)
    compare.set_defaults(run=("compare", "run_compare"), checks=checks)


def _add_figures(commands: Any) -> None:
    figures = commands.add_parser("figures", help="draw the paper's figures for any image, encoder and model")
    kinds = figures.add_subparsers(required=True, metavar="FIGURE")
    for name, summary in (
        ("norms", "norms of patch features before and after rms (Figure 1)"),
        ("features", "patch features by PCA, with colours that images share (Figure 2)"),
        ("encoders", "features, regions from clustering and norms, by encoder (Figure 2)"),
    ):
        figure = _add_figure(kinds, name, summary, several=name != "norms")
        text = f"side by side: {values.ENCODER_NAMES}; default: pixels"
        figure.add_argument("--encoders", nargs="+", default=["pixels"], metavar="NAME", help=text)
        figure.add_argument("--random", action="store_true", help="use random weights, without a download")
        add_choice(figure, EncoderChoice, "layer", "final_norm", "geometry", "device")
        add_choice(figure, ListingChoice, "bits")
        if name == "encoders":
            add_region_options(figure, [*values.STOPS, "linkage", "norm"])
            figure.set_defaults(checks=(regions.region_configs,))

    sources = _add_figure(kinds, "regions", "the regions of each source (Figure 2)")
    _add_sources(sources)
    add_choice(sources.add_argument_group("a video, instead of an image: a strip, or an animation"), FrameChoice)
    add_features_and_masks(sources)
    sources.set_defaults(checks=(EncoderChoice.of, FrameChoice.of, regions.region_configs, values.mask_choice))

    attention = _add_figure(kinds, "attention", "where a model looks as it answers, by patches or regions (Figure 3)")
    attention.add_argument("question", type=as_text, metavar="QUESTION")
    text = "region models or stock models, a panel each"
    attention.add_argument("--model", nargs="+", required=True, type=as_text, metavar="DIR", help=text)
    text = "sources of regions of one stock model, without training, a panel each; default: patch"
    attention.add_argument("--sources", nargs="+", choices=SOURCES, help=text)
    add_region_options(attention, ["mask_weight"])
    attention.add_argument("--answer", metavar="TEXT", help="a given answer; default: the model's answer")
    attention.add_argument("--max-new-tokens", type=positive, default=16, metavar="N", help="default: %(default)s")
    attention.add_argument("--query", default="answer", choices=QUERIES, help="default: %(default)s")
    attention.add_argument("--layers", type=int, nargs="+", metavar="N", help="default: the mean of all")
    attention.add_argument("--spread", action="store_true", help="divide a region's attention among its patches")
    add_model_options(attention)
    attention.set_defaults(checks=_MODEL_CHECKS)


def _add_figure(kinds: Any, name: str, summary: str, *, several: bool = False) -> argparse.ArgumentParser:
    figure: argparse.ArgumentParser = kinds.add_parser(name, help=summary, description=f"Draw {summary}.")
    figure.add_argument("images" if several else "image", **(_IMAGES if several else _IMAGE))
    figure.add_argument("--out", type=as_path, required=True, metavar="FILE", help="the figure: PNG, SVG, PDF, ...")
    figure.set_defaults(run=("figures", f"run_{name}"))
    return figure


def _add_masks(commands: Any) -> None:
    masks = commands.add_parser(
        "masks",
        help="generate masks of images, or import annotated ones, and store them",
        usage="%(prog)s IMAGE|FOLDER|PATTERN|LIST ... --out DIR [options]",
        description="Write masks to a store, a folder of Parquet files with a row per image: key (path relative to the "
        "named folder), height, width, COCO RLE, scores, stability, ids, categories. Finished images are skipped, so "
        "the same command resumes an interrupted run. Other commands read the store with --masks DIR. Images and the "
        "store may be folders or addresses such as s3://bucket/masks.",
    )
    masks.add_argument("images", **_IMAGES)
    masks.add_argument("--out", type=as_text, required=True, metavar="DIR", help="the store")
    add_choice(masks, ModelChoice, "device")
    add_choice(masks.add_argument_group("images"), ListingChoice)
    add_mask_options(masks, stores=False, root=False, default="sam2")
    add_choice(masks, GeneratorChoice, "mosaic")
    add_annotation_options(masks)
    add_choice(masks.add_argument_group("writing the store"), RunChoice)
    masks.set_defaults(run=("masks", "run_masks"), checks=(partial(values.mask_choice, default="sam2"), RunChoice.of))


def _add_tracks(commands: Any) -> None:
    tracks = commands.add_parser(
        "tracks",
        help="find the objects of videos and their masks in every frame",
        usage="%(prog)s VIDEO|FOLDER|PATTERN|LIST ... --out DIR [options]",
        description="Generate masks of key frames, propagate them through the video, and write NAME.tracks.json in the "
        "format of YouTube-VIS for each video. Videos with a file are skipped, so the same command resumes.",
    )
    tracks.add_argument("images", nargs="+", type=as_text, metavar="VIDEO|FOLDER|PATTERN|LIST")
    tracks.add_argument("--out", type=as_path, required=True, metavar="DIR", help="the folder of the files")
    tracks.add_argument("--overwrite", action="store_true", help="track all videos again")
    add_choice(tracks, ModelChoice, "device")
    add_choice(tracks, ListingChoice, "root")
    add_choice(tracks.add_argument_group("frames; all by default"), FrameChoice)
    add_choice(tracks.add_argument_group("tracking"), TrackChoice)
    group = tracks.add_argument_group("masks of key frames")
    group.add_argument("--masks", choices=GENERATORS, help="generator; default: sam2")
    add_choice(group, GeneratorChoice, "sam_model")
    tracks.set_defaults(run=("tracks", "run_tracks"), checks=(FrameChoice.of, TrackChoice.of))


def _add_store(commands: Any) -> None:
    store = commands.add_parser(
        "store",
        help="describe, verify, repair or export a store",
        description="Describe a store that regiontok masks or regiontok tokenize --store wrote: its contents, and how "
        "they were made.",
    )
    store.add_argument("store", type=as_text, metavar="DIR", help="a folder, or an address such as s3://bucket/masks")
    action = store.add_mutually_exclusive_group()
    action.add_argument("--verify", action="store_true", help="read every row; list damaged ones and exit with 1")
    action.add_argument(
        "--repair", action="store_true", help="rename files with damaged rows, so that a run redoes them"
    )
    action.add_argument("--stats", action="store_true", help="print counts, sizes, shards and failures as JSON")
    text = "write rows to --out: a file per image, or for jsonl (masks only) one file of COCO annotations"
    action.add_argument("--export", choices=("npz", "safetensors", "jsonl"), help=text)
    store.add_argument("--out", type=as_text, metavar="DIR", help="folder of --export")
    text = "with --verify, list images that have changed since their row was written"
    store.add_argument("--images", type=as_text, metavar="FOLDER", help=text)
    store.set_defaults(run=("store", "run_store"), checks=(values.check_store,))


def _add_chat(commands: Any) -> None:
    chat = commands.add_parser(
        "chat",
        help="ask a multimodal model about images",
        usage="%(prog)s IMAGE ... --model DIR [--ask QUESTION ...] [options]",
        description="Print the answers of a model to questions about images, decoded greedily. Without --ask, the "
        "questions are read from the terminal, one per line. All questions belong to one conversation, and images are "
        "encoded once.",
    )
    chat.add_argument("images", nargs="+", **_IMAGE)
    chat.add_argument("--ask", type=as_text, metavar="QUESTION", nargs="+", help="questions of the conversation")
    chat.add_argument("--model", required=True, type=as_text, metavar="DIR", help=_MODEL)
    form = chat.add_mutually_exclusive_group()
    form.add_argument("--short", action="store_true", help="ask for a word or phrase, with the paper's prompt")
    form.add_argument("--options", nargs="+", metavar="OPTION", help="ask for one of these, with the paper's prompt")
    chat.add_argument("--max-new-tokens", type=positive, default=256, metavar="N", help="default: %(default)s")
    add_model_options(chat)
    chat.set_defaults(run=("chat", "run_chat"), checks=_MODEL_CHECKS)


def _add_serve(commands: Any) -> None:
    serve = commands.add_parser(
        "serve",
        allow_abbrev=False,
        help="serve region tokens with vLLM",
        usage="%(prog)s MODEL [--tokens K | --keep F] [arguments of vllm serve]",
        description="Print the command of vLLM that serves a model with region tokens, and the cost of an image, and "
        "run the command. The budget is that of the model, or --tokens or --keep. Other arguments are passed to vLLM.",
    )
    serve.add_argument("model", type=as_text, metavar="MODEL", help=_MODEL)
    budget = serve.add_mutually_exclusive_group()
    budget.add_argument(
        "--tokens", "--num-regions", type=positive, dest="num_regions", metavar="K", help="tokens per image"
    )
    budget.add_argument("--keep", type=float, metavar="F", help="tokens as a fraction of the patches of an image")
    videos = serve.add_mutually_exclusive_group()
    text = "tokens per video, for Qwen-VL; default: those of an image"
    videos.add_argument(
        "--video-tokens", "--video-num-regions", type=positive, dest="video_num_regions", metavar="K", help=text
    )
    videos.add_argument("--video-keep", type=float, metavar="F", help="tokens as a fraction of the patches of a video")
    serve.add_argument("--print-only", action="store_true", help="print the command, and do not run it")
    serve.set_defaults(run=("serve", "run_serve"), vllm_arguments=[])


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="run the paper's seven benchmarks, or your own questions, on a model",
        usage="%(prog)s DIR --out DIR [--questions FILE] [options]",
        description="Run POPE, OCRBench, CV-Bench, MMStar, MME, MMBench and MM-Vet with lmms-eval, and print a row of "
        "scores next to the paper's Table 1. Benchmarks with scores in --out are skipped. MM-Vet needs a judge: set "
        "OPENAI_API_KEY, or what lmms-eval accepts instead. With --questions, answer the questions of a file instead, "
        "without lmms-eval, and write the answers to questions.json in --out.",
    )
    _add_model_and_out(evaluate)
    evaluate.add_argument("--benchmarks", nargs="+", choices=list(BENCHMARKS), help="default: all")
    text = "processes that divide the questions, one GPU each with --device cuda; default: %(default)s"
    evaluate.add_argument("--processes", type=positive, default=1, metavar="N", help=text)
    evaluate.add_argument("--limit", type=positive, metavar="N", help="only N questions of each benchmark, for a trial")
    text = "JSON list of objects with question, image or images, and optionally answer, options and id"
    evaluate.add_argument("--questions", type=as_path, metavar="FILE", help=text)
    text = "folder that images of --questions are relative to; default: the folder of the file"
    evaluate.add_argument("--images", type=as_path, metavar="DIR", help=text)
    add_model_options(evaluate, root=False, settings=False)
    checks = (*_MODEL_CHECKS, values.check_questions)
    evaluate.set_defaults(run=("evaluate", "run_evaluate"), checks=checks)


def _add_focus(commands: Any) -> None:
    focus = commands.add_parser(
        "focus",
        help="measure how much attention answers pay to the right object, on PixCV-Bench",
        usage="%(prog)s DIR --annotations DIR|FILE --questions FILE --out DIR [options]",
        description="Ask the questions of CV-Bench, and print which fraction of the attention of the answers is on the "
        "region tokens of the object, next to the paper's Focus. Questions without a measurable object are skipped and "
        "listed in --out.",
    )
    _add_model_and_out(focus)
    for name, metavar, description in (
        ("--annotations", "DIR|FILE", "folder of PixCV-Bench, or COCO JSON"),
        ("--questions", "FILE", "CV-Bench's test_2d.parquet or test_2d.jsonl"),
    ):
        focus.add_argument(name, type=as_path, required=True, metavar=metavar, help=description)
    focus.add_argument("--images", type=as_path, metavar="DIR", help="folder of the images of a jsonl file")
    focus.add_argument("--answers", default="generated", choices=ANSWERS, help="default: %(default)s")
    focus.add_argument("--query", default="answer", choices=QUERIES, help="tokens that attend; default: %(default)s")
    text = "a region is on the object if at least this fraction of it is; default: %(default)s"
    focus.add_argument("--target-share", type=float, default=0.5, metavar="S", help=text)
    focus.add_argument("--layers", type=int, nargs="+", metavar="N", help="default: all")
    focus.add_argument("--heads", type=int, nargs="+", metavar="N", help="default: all")
    add_model_options(focus)
    focus.set_defaults(run=("focus", "run_focus"), checks=_MODEL_CHECKS)


def _add_model_and_out(parser: Any) -> None:
    parser.add_argument("model", type=as_text, metavar="DIR", help=_MODEL)
    parser.add_argument("--out", type=as_path, required=True, metavar="DIR", help="folder of the results")
    parser.add_argument("--row", choices=list(TABLE_1), metavar="NAME", help="row of Table 1; default: the model's row")
    parser.add_argument("--batch-size", type=positive, default=1, metavar="N", help="default: %(default)s")


def _add_out(parser: argparse.ArgumentParser, name: str, description: str) -> None:
    text = f"{description}; default: {name}"
    parser.add_argument("--out", type=as_path, default=Path(name), metavar="FILE", help=text)


def _add_sources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sources", nargs="+", choices=SOURCES, help="default: all; those of masks only with --masks")
    add_region_options(parser, [*values.STOPS, "linkage", "mask_weight", "norm"])
