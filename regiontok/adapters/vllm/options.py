"""Options of a served Regionizer and its budget, without vLLM."""

from collections.abc import Mapping
from typing import Any

from regiontok.budgets import resolve_budget
from regiontok.choices import PROMPT
from regiontok.errors import ValueRangeError

OPTIONS = ("num_regions", "keep")
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


def find_budget(kwargs: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the budget of a server, ``num_regions`` or ``keep``.

    Args:
        kwargs: The server's ``mm_processor_kwargs``, which come first.
        options: Options of the Regionizer.

    Raises:
        DTypeError, ValueRangeError: There is none, or it is invalid.
    """
    for source in (kwargs, options):
        budget = {name: source[name] for name in OPTIONS if source.get(name) is not None}
        if budget and budget.get("num_regions") != PROMPT:
            resolve_budget([1], **budget)
            return budget
    reason = next((name for name in ("threshold", "explained_variance") if options.get(name) is not None), None)
    because = f" Its {reason} gives a number that is known only after encoding." if reason else ""
    raise ValueRangeError(f"vLLM needs the number of tokens of an image before it is encoded.{because} {_HINT}")
