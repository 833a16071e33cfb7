"""Descriptions of the options of a `Regionizer`.

The classes that take an option, the command line and the documentation all read this table.
The module imports no torch, so that the command line can check its options quickly.
"""

import math
from typing import Any, TypedDict

from regiontok._values import check_choice, check_integer, check_number
from regiontok.choices import (
    DOWNSAMPLINGS,
    LINKAGES,
    NOISES,
    NORMS,
    ORDERS,
    OVERLAPS,
    PADDINGS,
    POOLS,
    SOURCES,
    UNASSIGNED,
)
from regiontok.errors import ValueRangeError


class Option(TypedDict, total=False):
    """The description of an option.

    Attributes:
        help: A short description.
        paper: The description in the paper, in Markdown; *open* if there is none.
        choices: The possible values.
        integer: Whether the value must be a whole number of at least ``lowest``, by default 1.
        lowest: The least whole number.
        limits: The least and the greatest value of a number.
        above: A value that a number must exceed.
        optional: Whether the value can be None.
        default: The meaning of None.
    """

    help: str
    paper: str
    choices: tuple[Any, ...]
    integer: bool
    lowest: int
    limits: tuple[float, float]
    above: float
    optional: bool
    default: str


OPTIONS: dict[str, Option] = {
    "source": Option(help="source of the regions", paper="Table 1", choices=SOURCES),
    "dim": Option(
        help="feature dimension",
        paper="A.2",
        integer=True,
        optional=True,
        default="that of the features; required with cross_attention",
    ),
    "norm": Option(
        help="normalisation of the patch features",
        paper="Table 1. That it has no weight and comes before grouping is *open*",
        choices=NORMS,
    ),
    "pool": Option(
        help="pooling of the patches of a region",
        paper=(
            "A.2: the query is the mean patch feature of the region. *Open*: keys and values (ours: the patches of the "
            "region), residual (ours: the query is added), initialisation (ours: equal to the mean)"
        ),
        choices=POOLS,
        optional=True,
        default="`cross_attention`; `mean` for `patch`",
    ),
    "num_heads": Option(help="heads of cross-attention", paper="A.2", integer=True),
    "order": Option(
        help="order of the tokens of an image",
        paper="the default order is in the main text: *open*. `random` uses torch's generator, as dropout does",
        choices=ORDERS,
    ),
    "linkage": Option(
        help="criterion by which clustering chooses the next pair of regions",
        paper=(
            "A.1: the cosine of means, which is `centroid`. The others, and the default without a threshold, are ours: "
            "see [Which source, which budget?](which_source.md)"
        ),
        choices=LINKAGES,
        optional=True,
        default="`ward` with `num_regions`, `keep` or `explained_variance`, else `centroid`",
    ),
    "threshold": Option(
        help="merge while the cosine of two regions is at least this",
        paper="A.1",
        limits=(-1, 1),
        optional=True,
        default="0.7, if no other option stops the merging",
    ),
    "num_regions": Option(
        help="number of tokens per image",
        paper="our extension; also one per image of a call",
        integer=True,
        optional=True,
    ),
    "keep": Option(
        help="number of tokens as a fraction of the valid patches, rounded up",
        paper="our extension; also one per image of a call",
        limits=(0, 1),
        above=0,
        optional=True,
    ),
    "explained_variance": Option(
        help="as few tokens as preserve this fraction of the squared deviation",
        paper="our extension",
        limits=(0, 1),
        above=0,
        optional=True,
    ),
    "connectivity": Option(help="neighbours of a patch", paper="*open*", choices=(4, 8)),
    "mask_weight": Option(
        help="weight of masks relative to features, for masks with a budget",
        paper="our extension; 0 ignores masks, `inf` keeps regions within masks",
        limits=(0, math.inf),
    ),
    "motion": Option(
        help="for clips: a patch continues in the most similar patch within so many rows and columns of the next frame",
        paper="our extension",
        integer=True,
        lowest=0,
    ),
    "max_frames": Option(
        help="for clips: regions do not extend over multiples of this number of frames",
        paper="our extension",
        integer=True,
        optional=True,
    ),
    "padding": Option(
        help="padding patches", paper="*open*. The rows of patches in our Table 1 keep it", choices=PADDINGS
    ),
    "geometry": Option(
        help="how the encoder places images", paper="letterbox, as in LLaVA-1.5's second stage", optional=True
    ),
    "min_coverage": Option(
        help="a patch belongs to a mask that covers more than this fraction of it", paper="A.1", limits=(0, 1)
    ),
    "downsampling": Option(
        help="how the coverage of patches is computed",
        paper="A.1 resizes masks to the input and pools there (`two_step`); exact areas are ours",
        choices=DOWNSAMPLINGS,
    ),
    "unassigned": Option(help="patches in no mask", paper="*open*", choices=UNASSIGNED),
    "overlap": Option(help="patches in several masks", paper="*open*", choices=OVERLAPS),
    "eps": Option(
        help="greatest distance between neighbours in feature space",
        paper='A.1. We read "normalized" as unit length, so 0.7 is a cosine of 0.755',
        limits=(0, 2),
        above=0,
    ),
    "min_samples": Option(help="neighbours that make a patch the core of a group", paper="A.1", integer=True),
    "split_min_patches": Option(help="masks with fewer patches are not split", paper="A.1", integer=True),
    "noise": Option(help="patches in no group of DBSCAN", paper="*open*", choices=NOISES),
}


def check_option(name: str, value: Any) -> Any:
    """Return the value of an option in its final type.

    Raises:
        DTypeError, ValueRangeError: An invalid value.
    """
    option = OPTIONS[name]
    if value is None and option.get("optional"):
        return None
    if "choices" in option:
        check_choice(name, value, option["choices"])
        return value if isinstance(value, str) else int(value)
    if option.get("integer"):
        return check_integer(name, value, minimum=option.get("lowest", 1))
    if "limits" in option:
        low, high = option["limits"]
        number = check_number(name, value, low=low, high=high)
        if number == option.get("above"):
            hint = "" if name == "eps" else " For one region pass num_regions=1."
            raise ValueRangeError(f"{name} must be above {low:g}; got {number:g}.{hint}")
        return number
    return value
