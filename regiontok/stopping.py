"""Criteria that stop the merging of regions: a threshold, a number of regions, or a fraction."""

from typing import Any, NamedTuple

from regiontok.choices import Linkage
from regiontok.errors import ValueRangeError
from regiontok.options import check_option

DEFAULT_THRESHOLD = 0.7
"""Least cosine at which regions merge without a budget, as in the paper."""


class Stop(NamedTuple):
    """The criterion that stops the merging of regions; at most one of these values is set."""

    threshold: float | None = None
    num_regions: int | None = None
    keep: float | None = None
    explained_variance: float | None = None

    @property
    def default_linkage(self) -> Linkage:
        """``ward`` with a budget or an explained variance, otherwise ``centroid`` as in the paper."""
        return "centroid" if self[1:] == (None, None, None) else "ward"


def check_stop(
    threshold: Any = None, num_regions: Any = None, keep: Any = None, explained_variance: Any = None
) -> Stop:
    """Return the criterion that stops the merging.

    Raises:
        DTypeError, ValueRangeError: A value is invalid, or several values are set.
    """
    stop = Stop(threshold, num_regions, keep, explained_variance)
    names = [name for name, value in stop._asdict().items() if value is not None]
    if len(names) > 1:
        listed = " and ".join(f"{name}={getattr(stop, name)}" for name in names)
        raise ValueRangeError(f"{listed} are several ways to say when to stop. Leave all but one out.")
    return Stop(*(check_option(name, value) for name, value in stop._asdict().items()))


def check_linkage(linkage: str, stop: Stop) -> None:
    """Check that a linkage supports a stopping criterion.

    Raises:
        ValueRangeError: The linkage does not support the criterion.
    """
    if linkage == "ward" and stop.threshold is not None:
        raise ValueRangeError(
            f"threshold={stop.threshold} is a cosine, which linkage='ward' does not use. Pass num_regions, keep or "
            "explained_variance, or take linkage='centroid' or 'average'."
        )
    if linkage != "ward" and stop.explained_variance is not None:
        raise ValueRangeError(
            "explained_variance requires linkage='ward', whose scores add up to the variance; got "
            f"linkage={linkage!r}. Leave one of them out."
        )
