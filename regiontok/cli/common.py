"""What the commands share: photos, encoders, masks, and how long things take."""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from tqdm import tqdm

from regiontok import encoders, masks
from regiontok.clustering import LINKAGES, default_linkage
from regiontok.encoders import Encoder
from regiontok.errors import CheckpointError, RegiontokError
from regiontok.evaluation.assistant import Assistant, stock_regions
from regiontok.maskset import MaskSet
from regiontok.options import MASK_SOURCES, NORMS, SOURCES

_T = TypeVar("_T")
FAILURES = (RegiontokError, OSError, MemoryError, RuntimeError)  # a GPU out of memory is the last of these
"""What one photo can fail with, so that the others go on."""

TABLE_ORDER = ("patch", "segmentation", "clustering", "combined")
"""Sources as the paper's Table 1 lists them."""

MaskSource = Callable[[Path, Image.Image], MaskSet]
"""Masks of a photo that was read from a path."""


class Stopwatch:
    """Seconds per stage; waits for the device, whose work would else be counted in a later stage."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    def time(self, stage: str, work: Callable[[], _T]) -> _T:
        """Run ``work`` and note how long it took."""
        start = time.perf_counter()
        result = work()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[stage] = time.perf_counter() - start
        return result


def explain(path: Path, error: BaseException) -> str:
    """Why a photo failed, with its name in front."""
    told = str(error) or "not enough memory"
    return told if told.startswith(f"{path}:") else f"{path}: {told}"


def progress(items: Sequence[_T]) -> Any:
    """The same items, with a bar where there are several."""
    return tqdm(items, unit="photo", disable=len(items) == 1)


def find_photos(paths: Sequence[Path]) -> list[Path]:
    """Photos as they are named, and all of those in folders, by name, but for pictures of regions that we drew."""
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(
            one
            for one in path.rglob("*")
            if one.suffix.lower() in known and not one.name.endswith(".regions.png") and one.is_file()
        )
        if not inside:
            raise RegiontokError(f"{path}: there is no photo in this folder.")
        found += inside
    return found


ENCODER_NAMES = (
    f"pixels (default, needs no weights), {', '.join(encoders.ENCODERS)}, timm:MODEL, open_clip:MODEL/TAG or "
    "hf:MODEL|FOLDER"
)


def add_encoder_options(parser: argparse.ArgumentParser) -> None:
    """Options that choose an encoder."""
    parser.add_argument(
        "--encoder",
        default="pixels",
        help=ENCODER_NAMES,
    )
    parser.add_argument("--weights", type=Path, metavar="FILE", help="safetensors file with the encoder's weights")
    parser.add_argument("--img-size", type=int, metavar="N", help="input side in pixels; default: the encoder's own")
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
    """Options of how photos come to an encoder, and where it is."""
    parser.add_argument(
        "--geometry",
        default="letterbox",
        choices=("letterbox", "squash", "center_crop"),
        help="how a photo is brought to the encoder's input; default: %(default)s",
    )
    parser.add_argument("--device", default="cpu", help="such as cuda; default: cpu")


def load_encoder(options: argparse.Namespace) -> Encoder:
    """The encoder that the options choose."""
    return encoders.load(
        options.encoder,
        weights=options.weights,
        layer=options.layer,
        final_norm=options.final_norm,
        img_size=options.img_size,
        geometry=options.geometry,
        device=options.device,
    )


AMOUNTS = ("threshold", "tokens", "explained_variance", "linkage")


def add_amount_options(parser: Any) -> None:
    """Options of how many regions clustering makes."""
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument(
        "--threshold",
        type=float,
        metavar="T",
        help="merge neighbours while their cosine is at least T; fewer regions for a lower T; default: 0.7",
    )
    amount.add_argument("--tokens", type=int, metavar="K", help="K tokens per photo instead")
    amount.add_argument(
        "--explained-variance",
        type=float,
        metavar="V",
        help="as few tokens as keep the share V of the patches' squared deviation",
    )
    parser.add_argument(
        "--linkage",
        choices=LINKAGES,
        help="which neighbours merge first; default: ward for --tokens and --explained-variance, else centroid",
    )


def amount_of(options: argparse.Namespace) -> dict[str, Any]:
    """Options of a `Regionizer` that say how many regions clustering makes; those that were given."""
    given = {"num_regions" if name == "tokens" else name: getattr(options, name) for name in AMOUNTS}
    budgeted = options.tokens is not None or options.explained_variance is not None
    if options.linkage == "ward" and not budgeted:
        raise RegiontokError("--linkage ward has no threshold. Say how many by --tokens or --explained-variance.")
    if options.explained_variance is not None and options.linkage not in (None, "ward"):
        raise RegiontokError(f"--explained-variance is for --linkage ward; got {options.linkage}. Leave one out.")
    return {name: value for name, value in given.items() if value is not None}


def named_amounts(options: argparse.Namespace) -> list[str]:
    """Which of these options were given, as they are written."""
    return [f"--{name.replace('_', '-')}" for name in AMOUNTS if getattr(options, name) is not None]


def add_mask_options(
    parser: argparse.ArgumentParser, *, name: str, files: bool, default: str | None = None, shown: str | None = None
) -> None:
    """Options that choose a mask generator; where ``files``, a file of masks may be named in its place."""
    group = parser.add_argument_group("masks")
    told = f"{', '.join(masks.GENERATORS)}" + (", or a file that regiontok masks wrote" if files else "")
    group.add_argument(
        name,
        dest="masks",
        default=default,
        metavar="GENERATOR|FILE" if files else "GENERATOR",
        help=f"{told}; felzenszwalb needs no weights" + (f"; default: {shown}" if shown else ""),
    )
    group.add_argument(
        "--sam-model", metavar="MODEL", help="of SAM: a name on the hub, a folder, or sam2's own FILE.pt"
    )
    cheap = masks.CHEAP
    for setting, kind in (
        ("points_per_side", int),
        ("stability_score_thresh", float),
        ("pred_iou_thresh", float),
        ("box_nms_thresh", float),
    ):
        group.add_argument(
            f"--{setting.replace('_', '-')}", type=kind, metavar="N", help=f"of SAM; default: {getattr(cheap, setting)}"
        )
    group.add_argument(
        "--ladder", action="store_true", help="48, 64, then 96 points per side, until there are 80 to 160 masks"
    )


def uses_masks(options: argparse.Namespace) -> list[str]:
    """The mask options that were given."""
    names = ("sam_model", "points_per_side", "stability_score_thresh", "pred_iou_thresh", "box_nms_thresh")
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) is not None]
    return given + ["--ladder"] * options.ladder


def choose_sources(options: argparse.Namespace) -> list[str]:
    """The sources that ``--sources`` names, or all that can be had, as Table 1 lists them; refuses masks that miss."""
    wanted = options.sources or [source for source in SOURCES if source not in MASK_SOURCES or options.masks]
    sources = [source for source in TABLE_ORDER if source in wanted]
    with_masks = [source for source in sources if source in MASK_SOURCES]
    if with_masks and not options.masks:
        raise RegiontokError(f"--sources {with_masks[0]} needs --masks, such as --masks felzenszwalb.")
    if not with_masks and (options.masks or uses_masks(options)):
        raise RegiontokError("--masks and its options are for the sources segmentation and combined. Leave them out.")
    return sources


def load_generator(options: argparse.Namespace, **more: Any) -> Any:
    """The mask generator that the options choose."""
    given = uses_masks(options)
    if options.masks == "felzenszwalb":
        if given or more:
            raise RegiontokError(
                f"{(given or ['--mosaic'])[0]} is for SAM's masks, not for felzenszwalb. Leave it out."
            )
        return masks.load(options.masks)
    if more and options.masks in ("sam2-pipeline", "sam2-package"):
        raise RegiontokError(f"--mosaic is for sam2 and sam3; got {options.masks}. Leave it out.")
    if options.ladder and options.masks == "sam2-pipeline":
        raise RegiontokError("--ladder is for sam2, sam3 and sam2-package: the pipeline would encode a photo again.")
    settings: Any = masks.CHEAP
    if options.ladder:
        clash = [name for name in given if name not in ("--ladder", "--sam-model", "--box-nms-thresh")]
        if clash:
            raise RegiontokError(f"{clash[0]} is set by every step of the ladder. Leave one of the two out.")
        settings = [_set(step, options) for step in masks.LADDER]
    else:
        settings = _set(masks.CHEAP, options)
    return masks.load(options.masks, model=options.sam_model, device=options.device, settings=settings, **more)


def _set(settings: masks.MaskSettings, options: argparse.Namespace) -> masks.MaskSettings:
    names = ("points_per_side", "stability_score_thresh", "pred_iou_thresh", "box_nms_thresh")
    return replace(settings, **{name: getattr(options, name) for name in names if getattr(options, name) is not None})


def load_masks(options: argparse.Namespace, encoder: Encoder | None = None) -> MaskSource:
    """Masks of photos, made by a generator or read from a file; on an encoder's grid where that is quicker."""
    if options.masks in masks.GENERATORS:
        generator = load_generator(options)
        if encoder is not None and hasattr(generator, "on_grid"):
            return lambda _, photo: generator.on_grid(photo, geometry=encoder.geometry, grid=encoder.grid)[0]
        return lambda _, photo: generator(photo)[0]
    if uses_masks(options):
        raise RegiontokError(f"{uses_masks(options)[0]} is for making masks, not for a file of them. Leave it out.")
    if not Path(options.masks).is_file():
        raise CheckpointError(
            f"--masks must be one of {', '.join(masks.GENERATORS)}, or a file that regiontok masks wrote; there is no "
            f"file {options.masks}."
        )
    store = masks.MaskStore(options.masks)

    def read(path: Path, photo: Image.Image) -> MaskSet:
        found = store[path]
        if found.size != (photo.height, photo.width):
            raise CheckpointError(
                f"masks in {store.path} are of a photo of {found.size[0]} x {found.size[1]}; this one is of "
                f"{photo.height} x {photo.width}. Make them again."
            )
        return found

    return read


def add_model_options(parser: argparse.ArgumentParser, *, files: bool = True) -> None:
    """Options that choose a multimodal model, and how it sees photos where the model does not say that itself."""
    parser.add_argument("--device", default="cpu", help="such as cuda; default: cpu")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    stock = parser.add_argument_group("regions of a stock model, whose patches are all tokens by default")
    add_amount_options(stock)
    stock.add_argument("--norm", choices=NORMS, help="of patch features before clustering; default: none")
    add_mask_options(parser, name="--masks", files=files)


def told_apart(options: argparse.Namespace) -> dict[str, Any]:
    """What the scores of a model are of: its folder or name, and how a stock one's tokens are cut."""
    of = {name: getattr(options, name) for name in ("model", "tokens", "threshold", "explained_variance", "norm")}
    budget = options.tokens is not None or options.explained_variance is not None
    linkage = options.linkage or default_linkage(budget)
    return of | {"linkage": None if linkage == "centroid" else linkage}  # as scores have it that knew one rule alone


def load_assistant(model: str, options: argparse.Namespace) -> Assistant:
    """The model in a folder, to be asked; its masks come with the questions."""
    regionizer = stock_regions(norm=options.norm, **amount_of(options))
    assistant = Assistant.load(model, regionizer=regionizer, device=options.device, dtype=options.dtype)
    source = assistant.model.regionizer.config["source"]
    if assistant.by_masks and options.masks is None:
        raise RegiontokError(f"{model} makes regions of masks ({source}). Give --masks, such as --masks sam2.")
    if not assistant.by_masks and (options.masks or uses_masks(options)):
        raise RegiontokError(f"{model} makes regions by {source}, without masks. Leave --masks and its options out.")
    return assistant
