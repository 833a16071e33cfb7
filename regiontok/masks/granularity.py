"""How finely an image is segmented: the settings of SAM's automatic masks by the paper's names, and their ladder."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from regiontok._checks import check_integer, check_number
from regiontok.choices import BOX_NMS_THRESH, POINTS_PER_SIDE, PRED_IOU_THRESH, STABILITY_SCORE_THRESH
from regiontok.errors import DTypeError, ValueRangeError
from regiontok.maskset import MaskSet

_T = TypeVar("_T")


@dataclass(frozen=True)
class MaskSettings:
    """Settings of automatic mask generation; every generator is given all of them, since their own defaults differ.

    Attributes:
        points_per_side: Prompts per side of the image.
        stability_score_thresh: A mask is kept if its stability, the overlap of it cut ``stability_score_offset`` above
            and below, is at least this.
        pred_iou_thresh: And if the model's own estimate of its quality is above this.
        box_nms_thresh: Of two masks whose boxes overlap by more than this, the one of less quality goes.
        stability_score_offset: In logits.

    Raises:
        DTypeError, ValueRangeError: A setting that cannot be.

    Source:
        Supplement A.1: 24, 0.9, 0.5 is its cheap setting (about 162 ms per image on an H100). The overlap of boxes and
        the offset are SAM 2's own.
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


CHEAP = MaskSettings()
"""The paper's cheap setting, and the default."""
LADDER = (
    MaskSettings(points_per_side=48, stability_score_thresh=0.92, pred_iou_thresh=0.6),
    MaskSettings(points_per_side=64, stability_score_thresh=0.90, pred_iou_thresh=0.5),
    MaskSettings(points_per_side=96, stability_score_thresh=0.85, pred_iou_thresh=0.4),
)
"""The paper's steps from coarse to fine (A.1)."""
BOUND = (80, 160)
"""The paper's soft bound on the number of masks (A.1)."""


def as_steps(settings: MaskSettings | Sequence[MaskSettings]) -> tuple[MaskSettings, ...]:
    """One setting, or the steps of a ladder, as a tuple."""
    steps = tuple(settings) if isinstance(settings, Sequence) else (settings,)
    if not steps or not all(isinstance(step, MaskSettings) for step in steps):
        raise DTypeError(f"settings must be MaskSettings, or a list of them as in LADDER; got {settings!r}.")
    return steps


def check_bound(bound: tuple[int, int]) -> None:
    """Refuse what is not a lower and an upper number of masks."""
    if not isinstance(bound, Sequence) or len(bound) != 2 or bound[0] > bound[1]:
        raise ValueRangeError(f"bound must be (lowest, highest) number of masks; got {bound}.")


def beyond(count: int, bound: tuple[int, int]) -> int:
    """How far a number of masks lies outside the bound; 0 within."""
    return max(bound[0] - count, count - bound[1], 0)


def climb(run: Callable[[MaskSettings], MaskSet], steps: Sequence[MaskSettings], bound: tuple[int, int]) -> MaskSet:
    """The masks of the first step whose number lies within the bound; else of the step that comes nearest to it."""
    best = run(steps[0])
    for step in steps[1:]:
        if beyond(len(best), bound) == 0:
            break
        masks = run(step)
        if beyond(len(masks), bound) < beyond(len(best), bound):
            best = masks
    return best


def describe(steps: Sequence[MaskSettings], bound: tuple[int, int], **more: Any) -> dict[str, Any]:
    """What a generator was told, as plain values for a file's metadata."""
    ladder = {"bound": list(bound)} if len(steps) > 1 else {}
    return {"settings": [asdict(step) for step in steps], **ladder, **more}
