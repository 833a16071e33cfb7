"""Options that several commands share, as groups of argparse arguments."""

import argparse
from pathlib import Path
from typing import Any

from regiontok.choices import (
    BOX_NMS_THRESH,
    DUPLICATES,
    GENERATORS,
    GEOMETRIES,
    LINKAGES,
    MASK_WEIGHT,
    MATCHES,
    NORMS,
    POINTS_PER_SIDE,
    PRED_IOU_THRESH,
    STABILITY_SCORE_THRESH,
)
from regiontok.presets import ENCODERS

DEFAULT_OUT = "regiontok-out"
DEFAULT_BATCH = 4
"""Images per call of an encoder or a mask generator."""


def as_path(text: str) -> Path:
    """A path of the command line; an empty one would be the folder that one is in."""
    return Path(as_text(text))


def as_text(text: str) -> str:
    """A text of the command line that is not empty, as a variable of a script may be that was never set."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return text


ENCODER_NAMES = (
    f"pixels (default, needs no weights), {', '.join(ENCODERS)}, timm:MODEL, open_clip:MODEL/TAG or hf:MODEL|FOLDER"
)


def add_encoder_options(parser: argparse.ArgumentParser) -> None:
    """Options that choose an encoder."""
    parser.add_argument(
        "--encoder",
        default="pixels",
        help=ENCODER_NAMES,
    )
    parser.add_argument("--weights", type=as_path, metavar="FILE", help="safetensors file with the encoder's weights")
    parser.add_argument(
        "--img-size",
        type=int,
        nargs="+",
        metavar="N",
        help="input side in pixels, or height and width; default: the encoder's own",
    )
    add_layer_options(parser)
    add_placing_options(parser)


def add_layer_options(parser: argparse.ArgumentParser) -> None:
    """Options of which features of an encoder are taken."""
    parser.add_argument(
        "--layer",
        type=int,
        metavar="N",
        help="block whose features to take, counted from 0 or negative from the end; default: the last, or for "
        "clip-336 the second to last",
    )
    parser.add_argument(
        "--final-norm",
        action=argparse.BooleanOptionalAction,
        help="apply the encoder's last norm to them; default: yes, but for clip-336",
    )


def add_placing_options(parser: argparse.ArgumentParser) -> None:
    """Options of how images come to an encoder, and where it is."""
    parser.add_argument(
        "--geometry",
        default="letterbox",
        choices=GEOMETRIES,
        help="how an image is brought to the encoder's input; default: %(default)s",
    )
    add_bits_option(parser)
    parser.add_argument("--device", default="cpu", help="such as cuda; default: cpu")


def add_bits_option(parser: Any) -> None:
    """Add the option of how greyscale images of 16 bits are scaled."""
    parser.add_argument(
        "--bits",
        type=int,
        choices=range(1, 17),
        metavar="N",
        help="that greyscale images of 16 bits use, such as 12; default: all 16",
    )


AMOUNTS = ("threshold", "tokens", "keep", "explained_variance", "linkage")
LIMITS = ("tokens", "keep", "explained_variance")
"""Those by which Ward's rule stops."""


def add_amount_options(parser: Any) -> None:
    """Options of how many regions clustering makes."""
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument(
        "--threshold",
        type=float,
        metavar="T",
        help="merge neighbours while their cosine is at least T; fewer regions for a lower T; default: 0.7",
    )
    amount.add_argument("--tokens", type=int, metavar="K", help="K tokens per image instead")
    amount.add_argument(
        "--keep", type=float, metavar="F", help="the fraction F of each image's patches instead, such as 0.25"
    )
    amount.add_argument(
        "--explained-variance",
        type=float,
        metavar="V",
        help="as few tokens as keep the share V of the patches' squared deviation",
    )
    parser.add_argument(
        "--linkage",
        choices=LINKAGES,
        help="which neighbours merge first; default: ward for --tokens, --keep and --explained-variance, else centroid",
    )


def add_mask_weight(parser: Any) -> None:
    """Add the option of how much masks count at a budget."""
    parser.add_argument(
        "--mask-weight",
        type=float,
        metavar="W",
        help="of masks at a budget: how much they count beside features, 0 for not at all, inf to keep regions within "
        f"masks; default: {MASK_WEIGHT}",
    )


def add_mask_options(
    parser: argparse.ArgumentParser, *, files: bool, root: bool = True, shown: str | None = None
) -> None:
    """Options that choose masks: a generator and, where ``files``, a store of masks in its place.

    Args:
        parser: Of the command.
        files: Whether there may be a store.
        root: And whether its images have names.
        shown: What is the default.
    """
    group = parser.add_argument_group("masks")
    told = f"{', '.join(GENERATORS)}" + (", or a store that regiontok masks wrote" if files else "")
    group.add_argument(
        "--masks",
        type=as_text,
        metavar="GENERATOR|STORE" if files else "GENERATOR",
        help=f"{told}; felzenszwalb needs no weights" + (f"; default: {shown}" if shown else ""),
    )
    if files and root:
        add_root_option(group)
    if files:
        group.add_argument(
            "--missing",
            choices=GENERATORS,
            help="makes the masks of images that the store, or the annotations, lack; default: none",
        )
    group.add_argument(
        "--sam-model", type=as_text, metavar="MODEL", help="of SAM: a name on the hub, a folder, or sam2's own FILE.pt"
    )
    for setting, default in (
        ("--points-per-side", POINTS_PER_SIDE),
        ("--stability-score-thresh", STABILITY_SCORE_THRESH),
        ("--pred-iou-thresh", PRED_IOU_THRESH),
        ("--box-nms-thresh", BOX_NMS_THRESH),
    ):
        group.add_argument(setting, type=type(default), metavar="N", help=f"of SAM; default: {default}")
    group.add_argument(
        "--ladder", action="store_true", help="48, 64, then 96 points per side, until there are 80 to 160 masks"
    )


def add_annotation_options(parser: argparse.ArgumentParser) -> None:
    """Options that name masks which people made."""
    group = parser.add_argument_group("annotated masks, in place of --masks")
    group.add_argument("--coco", type=as_path, metavar="FILE.json", help="COCO annotations, such as instances_val2017")
    group.add_argument("--no-crowds", action="store_true", help="leave annotations of crowds out")
    group.add_argument(
        "--duplicates", choices=DUPLICATES, help="of --coco: images under several ids; default: an error"
    )
    group.add_argument(
        "--match",
        choices=MATCHES,
        help="of --coco: match the ends of paths, or names alone; default: path",
    )
    group.add_argument(
        "--mask-files",
        type=as_path,
        metavar="DIR",
        help="a file per image, by name: SA-1B's JSON, JSON records of COCO or SAM, .npz, .npy, or label maps",
    )
    group.add_argument("--label-maps", type=as_path, metavar="DIR", help="PNG of the images' names, as VOC's")
    group.add_argument(
        "--replace", nargs=2, metavar=("OLD", "NEW"), help="in images' names, such as _leftImg8bit _gtFine_labelIds"
    )
    group.add_argument("--ignore", nargs="+", type=int, metavar="N", help="labels of no mask, such as 0 255")
    group.add_argument(
        "--stored-pixels",
        action="store_true",
        help="made on images as stored, before EXIF turns them",
    )


def add_root_option(parser: Any) -> None:
    """The option that says where keys begin."""
    parser.add_argument(
        "--root",
        type=as_text,
        metavar="DIR",
        help="the folder that keys of a store are below; default: the folder that is named",
    )


def add_model_options(parser: argparse.ArgumentParser, *, names: bool = True) -> None:
    """Options that choose a multimodal model, and how it sees images where the model does not say that itself."""
    parser.add_argument("--device", default="cpu", help="such as cuda; default: cpu")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    stock = parser.add_argument_group("regions of a stock model, whose patches are all tokens by default")
    add_amount_options(stock)
    stock.add_argument("--norm", choices=NORMS, help="of patch features before clustering; default: none")
    add_mask_options(parser, files=True, root=names)


IMAGES = "IMAGE|FOLDER|PATTERN|LIST"


def add_listing_options(parser: Any, *, root: bool = True, title: str = "images") -> None:
    """Options of which images are taken, and of their keys."""
    group = parser.add_argument_group(title)
    if root:
        add_root_option(group)
    group.add_argument("--column", metavar="NAME", help="of a folder of datasets: where its images are")
    group.add_argument("--key-column", metavar="NAME", help="and their keys; default: row numbers")
    group.add_argument("--limit", type=int, metavar="N", help="make no more than N images now")
    group.add_argument(
        "--slice",
        metavar="R/N",
        help="a part of the images, R of N counted from 0, beside other processes with the same store; or torchrun or "
        "slurm, whose numbers are taken",
    )


def add_filling_options(parser: Any, *, batch: int, of: str) -> None:
    """Options of how a store is filled."""
    group = parser.add_argument_group("filling a store")
    group.add_argument("--batch", type=int, metavar="N", help=f"images per call of {of}; default: {batch}")
    group.add_argument("--workers", type=int, metavar="N", help="threads that read images; default: one per core")
    group.add_argument("--shard-size", type=int, metavar="N", help="images per file; default: 1000")
    group.add_argument("--shard-minutes", type=float, metavar="M", help="write a file at least so often; default: 5")
    group.add_argument("--retry-failed", action="store_true", help="try images again that failed before")
    group.add_argument(
        "--remake-changed",
        action="store_true",
        help="make images again whose file has another size or modification time than when they were made",
    )
    again = group.add_mutually_exclusive_group()
    again.add_argument("--overwrite", action="store_true", help="remove what the store has, and make it anew")
    again.add_argument("--mixed", action="store_true", help="add to a store that was made by other options")
    group.add_argument("--engine", choices=("here", "ray"), help="ray: on a cluster; default: here")
    group.add_argument("--cpus", type=int, metavar="N", help="cores per actor of Ray; default: 1")
    group.add_argument("--address", metavar="ADDR", help="of a Ray cluster, such as auto; default: this machine")


def add_details_options(parser: Any) -> None:
    """Options of files with every image."""
    parser.add_argument("--csv", type=as_path, metavar="FILE", help="write a row per image")
    parser.add_argument("--json", type=as_path, metavar="FILE", help="the same as a list of objects")
