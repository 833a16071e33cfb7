"""Groups of options that several commands share."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from regiontok.choices import GENERATORS
from regiontok.cli.values import (
    STOPS,
    AnnotationChoice,
    EncoderChoice,
    GeneratorChoice,
    ListingChoice,
    ModelChoice,
    add_choice,
    as_path,
    as_text,
    flag,
)
from regiontok.config import RegionizerConfig
from regiontok.options import OPTIONS

_DEFAULTS = {field.name: field.default for field in fields(RegionizerConfig)}
_METAVARS = {"threshold": "T", "num_regions": "K", "keep": "F", "explained_variance": "V", "mask_weight": "W"}

_SETTINGS = [field.name for field in fields(GeneratorChoice) if field.metadata and field.name != "mosaic"]


def add_region_options(parser: Any, names: Iterable[str], **defaults: str) -> None:
    """Add options of a `Regionizer`, as `OPTIONS` and `RegionizerConfig` describe them.

    An option without a value is None, and `RegionizerConfig` inserts its default.

    Args:
        parser: The parser of a command, or a group of it.
        names: The options.
        defaults: Descriptions of defaults that differ from those of `RegionizerConfig`.
    """
    stops: Any = None
    for name in names:
        description, default = OPTIONS[name], _DEFAULTS[name]
        shown = defaults.get(name, description.get("default") if default is None else default)
        if name in STOPS:
            stops = stops or parser.add_mutually_exclusive_group()
        choices = description.get("choices")
        is_integer = description.get("integer") or isinstance(default, int)
        (stops if name in STOPS else parser).add_argument(
            flag(name),
            type=int if is_integer else float if "limits" in description else str,
            choices=choices,
            metavar=None if choices else _METAVARS.get(name, "N"),
            help=(description["help"] + ("" if shown is None else f"; default: {shown}")).replace("`", ""),
        )


def add_mask_options(
    parser: Any, *, stores: bool = True, root: bool = True, settings: bool = True, default: str = "no masks"
) -> None:
    """Add the options that choose masks: a generator with its settings, or a store.

    Args:
        parser: The parser of a command.
        stores: Whether masks may be read from a store.
        root: Add the folder that keys of a store are relative to.
        settings: Add the settings of SAM.
        default: A description of the default.
    """
    group = parser.add_argument_group("masks")
    text = f"{', '.join(GENERATORS)}, or a store of regiontok masks" if stores else "generator"
    text += f"; felzenszwalb needs no weights; default: {default}"
    kinds: dict[str, Any] = {"metavar": "GENERATOR|STORE"} if stores else {"choices": GENERATORS}
    group.add_argument("--masks", type=as_text, help=text, **kinds)
    if root:
        add_choice(group, ListingChoice, "root")
    group.add_argument("--missing", choices=GENERATORS, help="generator for images without stored or annotated masks")
    add_choice(group, GeneratorChoice, *(_SETTINGS if settings else ["sam_model"]))


def add_annotation_options(parser: Any) -> None:
    """Add the options of annotated masks."""
    group = parser.add_argument_group("annotated masks, instead of --masks")
    for name, metavar, description in (
        ("--coco", "FILE.json", "COCO annotations, such as instances_val2017"),
        ("--mask-files", "DIR", "a file per image: JSON of SA-1B, COCO or SAM, .npz, .npy, or label maps"),
        ("--label-maps", "DIR", "a PNG file per image, as in VOC"),
    ):
        group.add_argument(name, type=as_path, metavar=metavar, help=description)
    add_choice(group, AnnotationChoice)


def add_features_and_masks(parser: Any) -> None:
    """Add the options of images, an encoder or a model, and masks."""
    add_choice(parser, EncoderChoice)
    text = "use the patch features of a multimodal model instead of an encoder, without norm by default"
    parser.add_argument("--model", type=as_text, metavar="DIR", help=text)
    add_choice(parser, ListingChoice, "bits")
    add_mask_options(parser)
    add_annotation_options(parser)


def add_model_options(parser: Any, *, root: bool = True, settings: bool = True) -> None:
    """Add the options of a multimodal model, of the regions of a stock model, and of masks."""
    add_choice(parser, ModelChoice)
    stock = parser.add_argument_group("regions of a stock model, where by default every patch is a token")
    add_region_options(stock, [*STOPS, "linkage", "norm"], threshold="no merging", norm="none")
    add_mask_options(parser, root=root, settings=settings)


def add_details_options(parser: Any) -> None:
    """Add the options of tables with a row per image."""
    parser.add_argument("--csv", type=as_path, metavar="FILE", help="write a CSV table with a row per image")
    parser.add_argument("--json", type=as_path, metavar="FILE", help="write the same table as JSON")
