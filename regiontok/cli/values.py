"""Typed values of options: the choice of an encoder, of masks, of a model, and of how a store is written.

A field with `option` is an option of the command line. Nothing here imports torch: the checks of a command read its
choices before its module is imported, so that a rejected command ends at once.
"""

import argparse
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from regiontok.choices import (
    BOX_NMS_THRESH,
    DUPLICATES,
    GENERATORS,
    GEOMETRIES,
    MATCHES,
    POINTS_PER_SIDE,
    PRED_IOU_THRESH,
    PREDICTORS,
    STABILITY_SCORE_THRESH,
)
from regiontok.cli.slices import read_slice
from regiontok.config import RegionizerConfig
from regiontok.errors import RegiontokError
from regiontok.presets import ENCODERS
from regiontok.sampling import FrameSampling

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    _Choice = TypeVar("_Choice", bound=DataclassInstance)

STOPS = ("threshold", "num_regions", "keep", "explained_variance")
"""Options that stop the merging of regions. They exclude each other."""
ENCODER_NAMES = f"pixels, {', '.join(ENCODERS)}, timm:MODEL, open_clip:MODEL/TAG or hf:MODEL|FOLDER"
ANNOTATIONS = ("coco", "label_maps", "mask_files")
"""Options that name annotated masks."""


def as_text(text: str) -> str:
    """Return an argument that must not be empty, as an unset variable of a script would be."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return text


def as_path(text: str) -> Path:
    """Return an argument as a path; an empty one would be the current folder."""
    return Path(as_text(text))


def positive(text: str) -> int:
    """Return an argument that must be a whole number of at least 1."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"it must be at least 1; got {text}")
    return int(text)


def flag(name: str) -> str:
    """Return the spelling of an option on the command line."""
    return f"--{name.replace('_', '-')}"


def option(description: str, default: Any = None, **arguments: Any) -> Any:
    """Return a field that is an option of the command line, with its arguments in argparse."""
    if default is False:
        arguments["action"] = "store_true"
    elif default is not None:
        description += f"; default: {default}"
    return field(default=default, metadata={"help": description, **arguments})


def add_choice(parser: Any, choice: type, *names: str) -> None:
    """Add the options of a choice to a parser or group: all of them, or those that are named."""
    for choice_field in fields(choice):
        if choice_field.metadata and (not names or choice_field.name in names):
            parser.add_argument(flag(choice_field.name), **choice_field.metadata)


def given_options(options: object, names: Iterable[str]) -> dict[str, Any]:
    """Return those of the named options, or fields of a choice, that have a value or are switched on."""
    values = {name: getattr(options, name, None) for name in names}
    return {name: value for name, value in values.items() if value is not None and value is not False}


def _read(choice: "type[_Choice]", options: Namespace, **values: Any) -> "_Choice":
    """Return a choice whose fields are the options of the same names; options without a value keep its defaults."""
    return choice(**given_options(options, [choice_field.name for choice_field in fields(choice)]) | values)


@dataclass(frozen=True)
class ListingChoice:
    """The images that a command names; see `regiontok.pipeline.Listing`."""

    images: Sequence[str]
    root: str | None = option(
        "folder that keys are relative to; default: the named folder", type=as_text, metavar="DIR"
    )
    column: str | None = option("column of images in datasets and Parquet files", metavar="NAME")
    key_column: str | None = option("column of their keys; default: row numbers", metavar="NAME")
    bits: int | None = option(
        "bits that 16-bit greyscale images use; default: 16", type=int, choices=range(1, 17), metavar="N"
    )

    @classmethod
    def of(cls, options: Namespace) -> "ListingChoice":
        """Return the images that the options name."""
        return _read(cls, options)


@dataclass(frozen=True)
class FrameChoice:
    """The frames of videos; see `regiontok.read_video`. Without an option the command reads images."""

    num_frames: int | None = option("read videos: N frames at equal distances", type=positive, metavar="N")
    fps: float | None = option("read videos: F frames per second", type=float, metavar="F")
    every: int | None = option("read videos: every N-th frame", type=positive, metavar="N")

    @classmethod
    def of(cls, options: Namespace) -> FrameSampling | None:
        """Return how the options sample frames; None if they choose images."""
        values = given_options(options, [choice_field.name for choice_field in fields(cls)])
        if len(values) > 1:
            raise RegiontokError(f"{' and '.join(map(flag, values))} exclude each other. Leave one of them out.")
        return FrameSampling(**values) if values else None


@dataclass(frozen=True)
class EncoderChoice:
    """An encoder and its settings, which are the arguments of `regiontok.encoders.load`; or a multimodal model."""

    encoder: str = option(f"{ENCODER_NAMES}; pixels needs no weights", "pixels", metavar="NAME")
    weights: Path | None = option("safetensors file with the encoder's weights", type=as_path, metavar="FILE")  # noqa: RUF009
    img_size: int | Sequence[int] | None = option(
        "input side in pixels, or height and width", type=positive, nargs="+", metavar="N"
    )
    layer: int | None = option(
        "block that returns the features, negative from the end; default: -1, or -2 for clip-336", type=int, metavar="N"
    )
    final_norm: bool | None = option(
        "apply the encoder's last norm; default: yes, except for clip-336", action=argparse.BooleanOptionalAction
    )
    geometry: str = option("how images are fitted to the encoder's input", "letterbox", choices=GEOMETRIES)
    device: str = option("device of models, such as cuda", "cpu")
    model: str | None = None

    @classmethod
    def of(cls, options: Namespace) -> "EncoderChoice":
        """Return the encoder that the options choose."""
        choice = _read(cls, options)
        if choice.model is not None:
            settings = [setting.name for setting in fields(cls) if setting.metadata and setting.name != "device"]
            for name in given_options(options, settings):
                raise RegiontokError(
                    f"{flag(name)} requires an encoder, and --model uses the model's own. Leave it out."
                )
        library, _, model = choice.encoder.partition(":")
        if choice.encoder not in (*ENCODERS, "pixels") and (library not in ("timm", "open_clip", "hf") or not model):
            raise RegiontokError(f"there is no encoder {choice.encoder!r}. Name one of {ENCODER_NAMES}.")
        sides = choice.img_size
        return replace(choice, img_size=sides[0]) if isinstance(sides, list) and len(sides) == 1 else choice


@dataclass(frozen=True)
class GeneratorChoice:
    """A mask generator and its settings; see `regiontok.masks.load`. None is the default of a setting."""

    name: str
    sam_model: str | None = option(
        "SAM's weights: name on the hub, folder, or FILE.pt of sam2", type=as_text, metavar="MODEL"
    )
    points_per_side: int | None = option(f"setting of SAM; default: {POINTS_PER_SIDE}", type=positive, metavar="N")
    stability_score_thresh: float | None = option(
        f"setting of SAM; default: {STABILITY_SCORE_THRESH}", type=float, metavar="S"
    )
    pred_iou_thresh: float | None = option(f"setting of SAM; default: {PRED_IOU_THRESH}", type=float, metavar="S")
    box_nms_thresh: float | None = option(f"setting of SAM; default: {BOX_NMS_THRESH}", type=float, metavar="S")
    ladder: bool = option("48, 64, then 96 points per side, until there are 80 to 160 masks", False)
    mosaic: int | None = option("put N x N images into one input of SAM: faster, worse", type=positive, metavar="N")


@dataclass(frozen=True)
class TrackChoice:
    """How objects of videos are tracked; see `regiontok.masks.tracking.AutomaticTracks`."""

    predictor: str = option("video predictor", "sam2", choices=PREDICTORS)
    video_model: str | None = option("its weights: name on the hub, or folder", type=as_text, metavar="MODEL")
    key_every: int | None = option("look for new objects in every N-th frame that is read", type=positive, metavar="N")
    new_area: float = option("and where so much more of a frame is in no track", 0.1, type=float, metavar="F")
    max_objects: int = option("largest number of tracks per video", 64, type=positive, metavar="N")

    @classmethod
    def of(cls, options: Namespace) -> "TrackChoice":
        """Return how the options track objects."""
        return _read(cls, options)


@dataclass(frozen=True)
class StoreChoice:
    """A store of masks, and a generator for images that it lacks."""

    path: str
    root: str | None = None
    missing: GeneratorChoice | None = None


@dataclass(frozen=True)
class AnnotationChoice:
    """Annotated masks, and a generator for images without them.

    Attributes:
        kind: ``coco``, ``label_maps`` or ``mask_files``.
        path: The file of ``coco``, or the folder of the other kinds.
    """

    kind: str
    path: Path
    missing: GeneratorChoice | None = None
    no_crowds: bool = option("leave out annotations of crowds", False)
    duplicates: str | None = option("images of --coco with several ids; default: an error", choices=DUPLICATES)
    match: str = option("match images of --coco by the end of the path, or by name", "path", choices=MATCHES)
    replace: Sequence[str] | None = option(
        "change image names to mask names, as in _leftImg8bit _gtFine_labelIds", nargs=2, metavar=("OLD", "NEW")
    )
    ignore: Sequence[int] | None = option("labels that are no masks, such as 0 255", type=int, nargs="+", metavar="N")
    stored_pixels: bool = option("the annotated images were not rotated by their EXIF orientation", False)


MaskChoice = GeneratorChoice | StoreChoice | AnnotationChoice

STEP_SETTINGS = ("points_per_side", "stability_score_thresh", "pred_iou_thresh")
"""Settings that every step of the ladder has."""
_SAM = ("sam2", "sam3", "sam2-pipeline", "sam2-package")
_FOLDERS = ("--label-maps", "--mask-files")
_MASKS_WITH = {
    **dict.fromkeys(("no_crowds", "duplicates", "match"), ("--coco",)),
    **dict.fromkeys(("ignore", "replace"), _FOLDERS),
    "stored_pixels": ("--coco", *_FOLDERS),
    "missing": ("a store", "--coco", *_FOLDERS),
    **dict.fromkeys(("sam_model", *STEP_SETTINGS, "box_nms_thresh"), _SAM),
    "ladder": ("sam2", "sam3", "sam2-package"),  # sam2-pipeline would encode the image again for every step
    "mosaic": ("sam2", "sam3"),
}
"""The kinds of masks that an option requires."""


def masks_flag(options: Namespace) -> str | None:
    """Return the option that names masks, or None."""
    flags = [flag(name) for name in given_options(options, (*ANNOTATIONS, "masks"))]
    if len(flags) > 1:
        raise RegiontokError(f"{flags[0]} and {flags[1]} both name masks. Leave one out.")
    return flags[0] if flags else None


def mask_choice(options: Namespace, *, default: str | None = None) -> MaskChoice | None:
    """Return the masks that the options choose, or else those of a default generator, if any."""
    masks = default if masks_flag(options) is None else options.masks
    kind = masks if masks in GENERATORS else "a store" if masks else masks_flag(options)
    missing = getattr(options, "missing", None)
    for name in given_options(options, _MASKS_WITH):
        kinds = _MASKS_WITH[name]
        if kind not in kinds and missing not in kinds:
            raise RegiontokError(
                f"{flag(name)} requires masks of {', '.join(kinds)}; got {kind or 'no masks'}. Leave it out."
            )
    steps = given_options(options, STEP_SETTINGS)
    if steps and options.ladder:
        raise RegiontokError(f"{flag(next(iter(steps)))} is set by every step of --ladder. Leave one of them out.")
    generator = None if missing is None else _read(GeneratorChoice, options, name=missing)
    for name, path in given_options(options, ANNOTATIONS).items():
        return _read(AnnotationChoice, options, kind=name, path=path, missing=generator)
    if masks in GENERATORS:
        return _read(GeneratorChoice, options, name=masks)
    return None if masks is None else StoreChoice(masks, getattr(options, "root", None), generator)


@dataclass(frozen=True)
class ModelChoice:
    """How a multimodal model is loaded, and the regions of a stock model; see `stock_regionizer`."""

    regions: Mapping[str, Any]
    device: str = option("device of models, such as cuda", "cpu")
    dtype: str = option("data type of the weights", "auto", choices=("auto", "float32", "bfloat16", "float16"))

    @classmethod
    def of(cls, options: Namespace) -> "ModelChoice":
        """Return the model and regions that the options choose."""
        regions = given_options(options, (*STOPS, "norm", "linkage"))
        if any(name in regions for name in STOPS):
            RegionizerConfig(**{"pool": "mean"} | regions)
        return _read(cls, options, regions=regions)


@dataclass(frozen=True)
class RunChoice:
    """How a store is written."""

    root: str | None = None
    device: str = "cpu"
    batch_size: int = option("images per batch", 4, type=positive, metavar="N")
    workers: int | None = option("threads that read images; default: one per core", type=positive, metavar="N")
    limit: int | None = option("process at most N images in this run", type=positive, metavar="N")
    slice: str | None = option("process part R of N, from 0; or torchrun or slurm", metavar="R/N")
    shard_size: int = option("images per file", 1000, type=positive, metavar="N")
    shard_minutes: float = option("write a file at least this often", 5, type=float, metavar="M")
    retry_failed: bool = option("retry images that failed before", False)
    remake_changed: bool = option("process images again if their file has changed", False)
    overwrite: bool = option("remove all rows of the store first", False)
    mixed: bool = option("add rows to a store that has other options", False)
    engine: str = option("this process, or a Ray cluster", "here", choices=("here", "ray"))
    cpus: int | None = option("cores per actor of Ray; default: 1", type=positive, metavar="N")
    address: str | None = option("Ray cluster, such as auto; default: start one here", metavar="ADDR")

    @classmethod
    def of(cls, options: Namespace) -> "RunChoice":
        """Return the settings of the options."""
        choice = _read(cls, options)
        if not choice.shard_minutes > 0:
            raise RegiontokError(f"--shard-minutes must be positive; got {choice.shard_minutes}.")
        for name in given_options(options, ("address", "cpus") if choice.engine != "ray" else ()):
            raise RegiontokError(f"{flag(name)} requires --engine ray. Leave it out, or add --engine ray.")
        if choice.slice is not None and choice.engine == "ray":
            raise RegiontokError(
                "--slice divides images among separate processes, and --engine ray divides them itself. Leave one out."
            )
        if choice.overwrite and (choice.slice is not None or choice.mixed):
            raise RegiontokError("--overwrite would remove the rows that --slice and --mixed keep. Leave it out.")
        _ = choice.rank_and_size
        return choice

    @property
    def rank_and_size(self) -> tuple[int, int]:
        """The number of this process, and the number of processes that share the images."""
        return (0, 1) if self.slice is None else read_slice(self.slice)


def check_destination(options: Namespace) -> None:
    """Check the options of ``tokenize`` that are only for files or only for a store."""
    if options.store is not None:
        RunChoice.of(options)
        for name in given_options(options, ("csv", "json")):
            raise RegiontokError(f"--{name} requires --out. For a store use regiontok store {options.store} --stats.")
        return
    names = [run_field.name for run_field in fields(RunChoice) if run_field.metadata]
    for name in given_options(options, [*names, "dtype"]):
        raise RegiontokError(f"{flag(name)} requires --store. Leave it out, or name a store.")


def check_questions(options: Namespace) -> None:
    """Check the options of ``evaluate`` that are only for benchmarks or only for a file of questions."""
    if options.questions is None:
        for name in given_options(options, ["images"]):
            raise RegiontokError(f"{flag(name)} requires --questions. Leave it out.")
        return
    for name in given_options(options, ["benchmarks", "row"]):
        raise RegiontokError(f"{flag(name)} cannot be used with --questions. Leave one of them out.")
    if options.processes > 1:
        raise RegiontokError("--processes cannot be used with --questions. Leave one of them out.")


def check_store(options: Namespace) -> None:
    """Check that options of ``store`` that belong together are given together."""
    if (options.out is None) != (options.export is None):
        raise RegiontokError("--export KIND and --out DIR belong together. Leave both out, or add the other.")
    if options.images is not None and not options.verify:
        raise RegiontokError("--images requires --verify. Leave it out.")
