"""The parser of ``regiontok COMMAND``.

Nothing here imports torch, so that help and rejected options take a fraction of a second. A command names the function
that runs it, which `regiontok.cli.main` imports after the options are checked.
"""

import argparse
import importlib.metadata
from pathlib import Path
from typing import Any

from regiontok.choices import (
    BUDGETS,
    GENERATORS,
    METHODS,
    NOISES,
    NORMS,
    ORDERS,
    OVERLAPS,
    PADDINGS,
    SOURCES,
    TOKEN_DTYPES,
    UNCOVERED,
)
from regiontok.cli import checks
from regiontok.cli.arguments import (
    DEFAULT_BATCH,
    DEFAULT_OUT,
    ENCODER_NAMES,
    IMAGES,
    add_amount_options,
    add_annotation_options,
    add_bits_option,
    add_details_options,
    add_encoder_options,
    add_filling_options,
    add_layer_options,
    add_listing_options,
    add_mask_options,
    add_mask_weight,
    add_model_options,
    add_placing_options,
    as_path,
    as_text,
)
from regiontok.cli.parser_models import add_chat, add_evaluate, add_focus


class _Version(argparse.Action):
    """Print the version, which is read from the package's metadata only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"regiontok {importlib.metadata.version('regiontok')}")
        parser.exit()


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands.

    The namespace that it returns has ``run``, the name of a module of ``regiontok.cli`` and of a function in it, and
    ``check``, a function that rejects options that do not go together.
    """
    parser = argparse.ArgumentParser(prog="regiontok", description="Region tokenizers for multimodal language models.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.set_defaults(check=None)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        _add_tokenize,
        _add_demo,
        _add_masks,
        _add_store,
        _add_count,
        _add_compare,
        _add_view,
        _add_figures,
        add_chat,
        add_evaluate,
        add_focus,
        _add_env,
    ):
        add(commands)
    return parser


def _add_tokenize(commands: Any) -> None:
    tokenize = commands.add_parser(
        "tokenize",
        help="cut images into region tokens",
        description="Write, per image, NAME.regions.png (its regions, outlined and filled) and "
        "NAME.regions.safetensors: tokens (K, dim), the options as JSON, and labels (rows, cols; -1 in no region), or "
        "for sources of masks, whose regions may overlap, masks (K, rows, cols), mask_index and scores (K). A token is "
        "its region's mean. regiontok.load_tokens reads it back.",
    )
    tokenize.add_argument(
        "images", nargs="+", type=as_text, metavar="IMAGE|FOLDER", help="with --store also a pattern or a list"
    )
    add_encoder_options(tokenize)
    tokenize.add_argument("--source", default="clustering", choices=SOURCES, help="of regions; default: %(default)s")
    add_amount_options(tokenize)
    tokenize.add_argument("--connectivity", type=int, default=4, choices=(4, 8), help="neighbours; default: 4")
    tokenize.add_argument("--norm", default="rms", choices=NORMS, help="of patch features; default: %(default)s")
    tokenize.add_argument("--order", default="raster", choices=ORDERS, help="of the tokens; default: %(default)s")
    tokenize.add_argument("--padding", default="drop", choices=PADDINGS, help="letterbox padding; default: %(default)s")
    out = tokenize.add_mutually_exclusive_group()
    out.add_argument(
        "--out",
        type=as_path,
        metavar="DIR",
        help=f"for the files, each where its image lies below the folder that was named; default: {DEFAULT_OUT}",
    )
    out.add_argument(
        "--store",
        type=as_text,
        metavar="DIR",
        help="write a store of tokens instead, for many images: a folder of Parquet files, which goes on where it "
        "stopped; on a disk, or where fsspec reaches, such as s3://bucket/tokens",
    )
    tokenize.add_argument(
        "--pictures",
        action=argparse.BooleanOptionalAction,
        help="draw the regions; default: yes, but with --store, where they come into its folder pictures, no",
    )
    tokenize.add_argument("--dtype", choices=TOKEN_DTYPES, help="of the tokens in a store; default: float16")
    add_details_options(tokenize)
    add_mask_options(tokenize, files=True, shown="sam2")
    add_annotation_options(tokenize)
    regions = tokenize.add_argument_group("regions of masks")
    regions.add_argument("--coverage", type=float, metavar="C", help="of a patch that puts it in a mask; default: 0.07")
    regions.add_argument("--downsampling", choices=METHODS, help="how that is measured; default: exact")
    regions.add_argument("--uncovered", choices=UNCOVERED, help="patches in no mask; default: drop")
    regions.add_argument("--overlap", choices=OVERLAPS, help="patches in several masks; default: keep")
    add_mask_weight(regions)
    regions.add_argument("--eps", type=float, help="of --source combined; default: 0.7")
    regions.add_argument("--min-samples", type=int, help="of --source combined; default: 3")
    regions.add_argument("--split-min-patches", type=int, help="of --source combined; default: 10")
    regions.add_argument("--noise", choices=NOISES, help="of --source combined; default: own_region")
    add_listing_options(tokenize, root=False, title="images of a store")
    add_filling_options(tokenize, batch=DEFAULT_BATCH, of="the encoder")
    tokenize.set_defaults(run=("tokenize", "run_tokenize"), check=checks.check_tokenize)


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser("demo", help="cut scikit-learn's sample image into region tokens, offline, in seconds")
    demo.add_argument("--out", type=as_path, default=Path("regiontok-demo"), metavar="DIR", help="default: %(default)s")
    demo.set_defaults(run=("tokenize", "run_demo"))


def _add_masks(commands: Any) -> None:
    masks = commands.add_parser(
        "masks",
        help="make masks of images, or take annotated ones, and keep them in a store",
        description="Write masks to a store, a folder of Parquet files with a row per image: key (its path below the "
        "folder that was named), height, width, COCO RLE, scores, stability, ids, categories. What the store has is "
        "not made again, so that the same command goes on after any interruption. Other commands read it with --masks "
        "DIR. It may lie on a disk, or where fsspec reaches, such as s3://bucket/masks; so may images.",
    )
    masks.add_argument("images", nargs="+", type=as_text, metavar=IMAGES)
    add_listing_options(masks)
    masks.add_argument("--out", type=as_text, required=True, metavar="DIR", help="the store")
    add_mask_options(masks, files=False, shown="sam2")
    masks.add_argument(
        "--mosaic", type=int, metavar="N", help="N x N images in one input of SAM: faster, with worse masks"
    )
    add_bits_option(masks)
    masks.add_argument("--device", default="cpu", help="such as cuda; default: cpu")
    masks.add_argument(
        "--missing", choices=GENERATORS, help="makes the masks of images without annotations; default: none are made"
    )
    add_annotation_options(masks)
    add_filling_options(masks, batch=DEFAULT_BATCH, of="the generator")
    masks.set_defaults(run=("masks", "run_masks"), check=checks.check_masks)


def _add_store(commands: Any) -> None:
    store = commands.add_parser(
        "store",
        help="what a store has, whether it is whole, and its rows as other files",
        description="Tell of a store that regiontok masks or regiontok tokenize --store wrote; without an option, what "
        "it has and how it was made.",
    )
    store.add_argument(
        "store", type=as_text, metavar="DIR", help="the store; also an address such as s3://bucket/masks"
    )
    what = store.add_mutually_exclusive_group()
    what.add_argument("--verify", action="store_true", help="read every row; name what is damaged, and exit with 1")
    what.add_argument("--repair", action="store_true", help="set aside shards with damaged rows, to be made again")
    what.add_argument("--stats", action="store_true", help="items per image, sizes, shards and failures, as JSON")
    what.add_argument(
        "--export",
        choices=("npz", "safetensors", "jsonl"),
        help="write rows as files in --out: one per image, or for jsonl (of masks) one of COCO's annotations",
    )
    store.add_argument("--out", type=as_text, metavar="DIR", help="of --export")
    store.add_argument(
        "--images", type=as_text, metavar="FOLDER", help="with --verify, name images that changed since they were made"
    )
    store.set_defaults(run=("store", "run_store"), check=checks.check_store)


def _add_count(commands: Any) -> None:
    count = commands.add_parser(
        "count",
        help="count the tokens of images by source",
        description="Print the distribution of tokens per image for each source, beside the mean in the paper's Table "
        "1, and draw a histogram. Sources of masks are counted where --masks is given.",
    )
    count.add_argument("images", nargs="+", type=as_path, metavar="IMAGE|FOLDER")
    count.add_argument("--sources", nargs="+", choices=SOURCES, help="default: all, those of masks only with --masks")
    count.add_argument("--norm", default="rms", choices=NORMS, help="of patch features; default: %(default)s")
    add_amount_options(count)
    add_mask_weight(count)
    count.add_argument(
        "--out",
        type=as_path,
        default=Path("regiontok-counts.png"),
        metavar="FILE",
        help="the histogram; default: %(default)s",
    )
    add_encoder_options(count)
    add_mask_options(count, files=True)
    add_annotation_options(count)
    add_details_options(count)
    count.set_defaults(run=("count", "run_count"), check=checks.check_count)


def _add_compare(commands: Any) -> None:
    compare = commands.add_parser(
        "compare",
        help="compare regions at equal counts on an encoder's features",
        description="Print how well regions represent the patches of images, at equal counts: a grid, clustering by "
        "its three linkages, and with masks their two sources, which are also measured without a budget. With "
        "annotated masks, of --coco, --label-maps or --mask-files, also how well regions follow objects. Means over "
        "images; a figure, and JSON beside it.",
    )
    compare.add_argument("images", nargs="+", type=as_path, metavar="IMAGE|FOLDER")
    counts = compare.add_mutually_exclusive_group()
    counts.add_argument("--tokens", nargs="+", type=int, metavar="K", help=f"default: {' '.join(map(str, BUDGETS))}")
    counts.add_argument("--keep", nargs="+", type=float, metavar="F", help="fractions of each image's patches instead")
    compare.add_argument(
        "--norm", default="rms", choices=NORMS, help="of patch features before clustering; default: %(default)s"
    )
    compare.add_argument("--connectivity", type=int, default=4, choices=(4, 8), help="neighbours; default: 4")
    compare.add_argument(
        "--out",
        type=as_path,
        default=Path("regiontok-compare.png"),
        metavar="FILE",
        help="the figure, and with .json after its name the scores of every image; default: %(default)s",
    )
    add_mask_weight(compare)
    add_encoder_options(compare)
    add_mask_options(compare, files=True)
    add_annotation_options(compare)
    compare.set_defaults(run=("compare", "run_compare"), check=checks.check_compare)


def _add_view(commands: Any) -> None:
    view = commands.add_parser(
        "view",
        help="explore an image's regions in a browser",
        description="Write one HTML file, which needs no network: the image with its regions, sliders for threshold "
        "and number of tokens, choices of linkage and source, and similarities of regions. With masks also their "
        "sources, and a slider for how much masks count.",
    )
    view.add_argument("image", type=as_path, metavar="IMAGE")
    view.add_argument("--out", type=as_path, metavar="FILE.html", help="default: the image's name in this folder")
    start = view.add_mutually_exclusive_group()
    start.add_argument(
        "--threshold",
        type=float,
        default=0.7,
        metavar="T",
        help="where the page starts, by the paper's rule; default: 0.7",
    )
    start.add_argument("--tokens", type=int, metavar="K", help="start with K tokens by Ward's rule instead")
    start.add_argument("--keep", type=float, metavar="F", help="start with this fraction of the patches instead")
    view.add_argument("--norm", default="rms", choices=NORMS, help="of patch features; default: %(default)s")
    view.add_argument("--connectivity", type=int, default=4, choices=(4, 8), help="neighbours; default: 4")
    add_encoder_options(view)
    add_mask_options(view, files=True)
    add_annotation_options(view)
    view.set_defaults(run=("view", "run_view"), check=checks.check_view)


def _add_figures(commands: Any) -> None:
    figures = commands.add_parser("figures", help="draw the paper's figures for any image, encoder and model")
    which = figures.add_subparsers(required=True, metavar="FIGURE")
    for name, run, several, told in (
        ("norms", "run_norms", False, "norms of patch features before and after rms (the paper's Figure 1)"),
        ("features", "run_features", True, "patch features by PCA, in colours that images share (Figure 2)"),
        ("encoders", "run_encoders", True, "features, regions from clustering and norms, by encoder (Figure 2)"),
    ):
        figure = which.add_parser(name, help=told, description=f"Draw {told}.")
        _add_figure_images(figure, several=several)
        figure.add_argument(
            "--encoders",
            nargs="+",
            default=["pixels"],
            metavar="NAME",
            help=f"side by side; {ENCODER_NAMES}",
        )
        figure.add_argument("--random", action="store_true", help="random weights, for a look without a download")
        add_layer_options(figure)
        add_placing_options(figure)
        if name == "encoders":
            add_amount_options(figure)
            figure.add_argument("--norm", default="rms", choices=NORMS, help="default: %(default)s")
        figure.set_defaults(run=("figures", run))

    regions = which.add_parser(
        "regions", help="the regions of each source (Figure 2)", description="Draw the regions of each source."
    )
    _add_figure_images(regions, several=False)
    regions.add_argument("--sources", nargs="+", choices=SOURCES, help="default: all, those of masks with --masks")
    add_amount_options(regions)
    add_mask_weight(regions)
    regions.add_argument("--norm", default="rms", choices=NORMS, help="of patch features; default: %(default)s")
    add_encoder_options(regions)
    add_mask_options(regions, files=True)
    add_annotation_options(regions)
    regions.set_defaults(run=("figures", "run_regions"), check=checks.check_count)

    attention = which.add_parser(
        "attention",
        help="where an answer looks, over patches or regions (Figure 3)",
        description="Draw where the answer to a question looks: a panel per model, or per source of a stock model.",
    )
    _add_figure_images(attention, several=False)
    attention.add_argument("question", type=as_text, metavar="QUESTION")
    attention.add_argument(
        "--model", nargs="+", required=True, type=as_text, metavar="DIR", help="trained region models, or stock ones"
    )
    attention.add_argument(
        "--sources", nargs="+", choices=SOURCES, help="of one stock model, without training; default: patch"
    )
    add_mask_weight(attention)
    attention.add_argument("--answer", metavar="TEXT", help="whose attention; default: what the model says")
    attention.add_argument("--max-new-tokens", type=int, default=16, metavar="N", help="default: %(default)s")
    attention.add_argument("--query", default="answer", choices=("answer", "predicting"), help="default: %(default)s")
    attention.add_argument("--layers", type=int, nargs="+", metavar="N", help="default: the mean of all")
    attention.add_argument("--spread", action="store_true", help="share a region's attention among its patches")
    add_model_options(attention)
    attention.set_defaults(run=("figures", "run_attention"))


def _add_figure_images(parser: argparse.ArgumentParser, *, several: bool) -> None:
    if several:
        parser.add_argument("images", nargs="+", type=as_path, metavar="IMAGE|FOLDER")
    else:
        parser.add_argument("image", type=as_path, metavar="IMAGE")
    parser.add_argument("--out", type=as_path, required=True, metavar="FILE", help="a picture: PNG, SVG, PDF ...")


def _add_env(commands: Any) -> None:
    env = commands.add_parser("env", help="print versions and what runs where")
    env.set_defaults(run=("env", "run_env"))
