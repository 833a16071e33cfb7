"""Settings of SAM's automatic mask generation, named as in the paper, and the paper's granularity schedule."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from regiontok._values import check_integer, check_number
from regiontok.choices import BOX_NMS_THRESH, POINTS_PER_SIDE, PRED_IOU_THRESH, STABILITY_SCORE_THRESH
from regiontok.errors import DTypeError, ValueRangeError
from regiontok.maskset import MaskSet


@dataclass(frozen=True)
class MaskSettings:
    """Settings of automatic mask generation.

    All settings are passed to every generator, because the defaults of the packages differ.

    Attributes:
        points_per_side: Number of point prompts along each side of the image.
        stability_score_thresh: Minimum stability of a mask. Stability is the IoU of the masks at the thresholds
            ``stability_score_offset`` and ``-stability_score_offset``.
        pred_iou_thresh: Masks with a predicted IoU at or below this value are dropped.
        box_nms_thresh: IoU of bounding boxes above which non-maximum suppression drops the mask of lower score.
        stability_score_offset: Distance of the two stability thresholds from zero, in logits.

    Raises:
        DTypeError: A setting has the wrong type.
        ValueRangeError: A setting is out of range.

    Source:
        The first three defaults are the cheap setting of supplement A.1 (about 162 ms per image on an H100). The last
        two defaults come from SAM 2.
    """

    points_per_side: int = POINTS_PER_SIDE
    stability_score_thresh: float = STABILITY_SCORE_THRESH
    pred_iou_thresh: float = PRED_IOU_THRESH
    box_nms_thresh: float = BOX_NMS_THRESH
    stability_score_offset: float = 1.0

    def __post_init__(self) -> None:
        check_integer("points_per_side", self.points_per_side)
        for name in ("stability_score_thresh", "pred_iou_thresh", "box_nms_thresh"):
            check_number(name, getattr(self, name), low=0, high=1)
        check_number("stability_score_offset", self.stability_score_offset, low=0, high=100)


DEFAULT_SETTINGS = MaskSettings()
"""The paper's cheap setting, used by default (A.1)."""
GRANULARITY_SCHEDULE = (
    MaskSettings(points_per_side=48, stability_score_thresh=0.92, pred_iou_thresh=0.6),
    MaskSettings(points_per_side=64, stability_score_thresh=0.90, pred_iou_thresh=0.5),
    MaskSettings(points_per_side=96, stability_score_thresh=0.85, pred_iou_thresh=0.4),
)
"""The paper's settings from coarse to fine (A.1)."""
TARGET_MASK_COUNT = (80, 160)
"""The paper's soft bound on the number of masks per image: lowest and highest (A.1)."""


def as_steps(settings: MaskSettings | Sequence[MaskSettings]) -> tuple[MaskSettings, ...]:
    """Return one setting, or the settings of a granularity schedule, as a tuple.

    Raises:
        DTypeError: ``settings`` is neither `MaskSettings` nor a sequence of them.
    """
    steps = tuple(settings) if isinstance(settings, Sequence) else (settings,)
    if not steps or not all(isinstance(step, MaskSettings) for step in steps):
        raise DTypeError(
            f"settings must be MaskSettings, or a list of them as in GRANULARITY_SCHEDULE; got {settings!r}."
        )
    return steps


def check_bound(bound: tuple[int, int]) -> None:
    """Check that a bound is the pair of the lowest and the highest number of masks.

    Raises:
        ValueRangeError: ``bound`` is not such a pair.
    """
    if not isinstance(bound, Sequence) or len(bound) != 2 or bound[0] > bound[1]:
        raise ValueRangeError(f"bound must be (lowest, highest) number of masks; got {bound}.")


def distance_to_bound(count: int, bound: tuple[int, int]) -> int:
    """Return the distance of a number of masks to the nearest end of the bound, 0 within the bound."""
    return max(bound[0] - count, count - bound[1], 0)


def select_granularity(
    run: Callable[[MaskSettings], MaskSet], steps: Sequence[MaskSettings], bound: tuple[int, int]
) -> MaskSet:
    """Run settings in order until the mask count is within the bound; otherwise return the closest result."""
    closest = run(steps[0])
    for step in steps[1:]:
        if distance_to_bound(len(closest), bound) == 0:
            break
        masks = run(step)
        if distance_to_bound(len(masks), bound) < distance_to_bound(len(closest), bound):
            closest = masks
    return closest


def describe(steps: Sequence[MaskSettings], bound: tuple[int, int], **options: Any) -> dict[str, Any]:
    """Return the settings and further options of a generator as JSON-serializable values, for store metadata."""
    schedule = {"bound": list(bound)} if len(steps) > 1 else {}
    return {"settings": [asdict(step) for step in steps], **schedule, **options}
