"""Options of a served Regionizer and its budget, without vLLM."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from regiontok.budgets import is_per_image, resolve_budget
from regiontok.choices import PROMPT
from regiontok.errors import ValueRangeError

OPTIONS = ("num_regions", "keep")
VIDEO_OPTIONS = ("video_num_regions", "video_keep")
_OF_THE_MODEL = ("masks", "source", "order", "linkage", "threshold", "explained_variance")
_HINT = "Set --mm-processor-kwargs '{\"num_regions\": 128}', or num_regions or keep of regiontok in the config."


def region_options(hf_config: Any) -> dict[str, Any]:
    """Return the options of the Regionizer: those of the config's ``regiontok`` over untrained defaults."""
    return {"pool": "mean", "norm": "none"} | dict(getattr(hf_config, "regiontok", None) or {})


def check_options(options: Mapping[str, Any]) -> None:
    """Reject a Regionizer whose tokens vLLM cannot serve.

    Args:
        options: Options of the Regionizer.

    Raises:
        ValueRangeError: It uses masks, has a random order, or padding that changes the number of tokens.
    """
    if options.get("source", "clustering") != "clustering":
        raise ValueRangeError(
            f"vLLM serves regions of clustering; got source={options['source']!r}. Serve another model."
        )
    if options.get("order") == "random":
        raise ValueRangeError(
            "vLLM cannot serve order='random': cached tokens would have another order. Use order='raster'."
        )
    is_padded = (options.get("geometry") or {}).get("mode") == "letterbox"
    if is_padded and options.get("padding") != "keep":
        raise ValueRangeError("vLLM cannot serve images with padding, which changes the counts. Use padding='keep'.")


def reject_video_options(kwargs: Mapping[str, Any]) -> None:
    """Reject budgets of videos, for families whose videos are not served.

    Args:
        kwargs: ``mm_processor_kwargs``.

    Raises:
        ValueRangeError: There is such a budget.
    """
    for name in VIDEO_OPTIONS:
        if kwargs.get(name) is not None:
            raise ValueRangeError(f"videos of this family are not served by vLLM; got {name}={kwargs[name]}.")


def check_request(kwargs: Mapping[str, Any]) -> None:
    """Reject options of a request that would be ignored, and budgets that are not one number.

    Args:
        kwargs: ``mm_processor_kwargs`` of the request.

    Raises:
        ValueRangeError: There is such an option.
    """
    ours = (*OPTIONS, *VIDEO_OPTIONS)
    for name, value in kwargs.items():
        if name in _OF_THE_MODEL:
            raise ValueRangeError(f"requests cannot choose {name}, which is an option of the served model.")
        similar = difflib.get_close_matches(name, ours, 1, 0.8)
        if similar and name not in ours:
            raise ValueRangeError(f"a request has no option {name!r}. Did you mean {similar[0]!r}?")
        if name in ours and is_per_image(value):
            raise ValueRangeError(f"{name} must be one number for all images of a request; got {value}.")


def find_budget(kwargs: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the budget of a server for images, ``num_regions`` or ``keep``.

    Args:
        kwargs: The server's ``mm_processor_kwargs``, which come first.
        options: Options of the Regionizer.

    Raises:
        DTypeError, ValueRangeError: There is none, or it is invalid.
    """
    for source in (kwargs, options):
        budget = read_budget(source)
        if budget and budget.get("num_regions") != PROMPT:
            resolve_budget([1], **budget)
            return budget
    reason = next((name for name in ("threshold", "explained_variance") if options.get(name) is not None), None)
    because = f" Its {reason} gives a number that is known only after encoding." if reason else ""
    raise ValueRangeError(f"vLLM needs the number of tokens of an image before it is encoded.{because} {_HINT}")


def find_video_budget(
    kwargs: Mapping[str, Any], options: Mapping[str, Any], videos: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the budget of a server for videos, ``num_regions`` or ``keep``: by default that for images.

    Args:
        kwargs: The server's ``mm_processor_kwargs``, which come first.
        options: Options of the Regionizer.
        videos: Options of videos of the config, ``regiontok_videos``.

    Raises:
        DTypeError, ValueRangeError: There is none, or it is invalid.
    """
    budget = read_budget(kwargs, VIDEO_OPTIONS) or read_budget(videos or {})
    if not budget:
        return find_budget(kwargs, options)
    resolve_budget([1], **budget)
    return budget


def read_budget(source: Mapping[str, Any], names: Sequence[str] = OPTIONS) -> dict[str, Any]:
    """Return ``num_regions`` or ``keep`` of options, which may have other ``names`` there."""
    return {option: source[name] for option, name in zip(OPTIONS, names, strict=True) if source.get(name) is not None}
