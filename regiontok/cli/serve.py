"""``regiontok serve``: serve region tokens with vLLM."""

import json
import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from regiontok._require import require
from regiontok.adapters.vllm import BACKEND, NATIVE, REJECTED, VIDEOS
from regiontok.adapters.vllm.options import (
    OPTIONS,
    VIDEO_OPTIONS,
    check_options,
    find_budget,
    find_video_budget,
    read_budget,
    region_options,
    reject_video_options,
)
from regiontok.cli.console import note
from regiontok.errors import CheckpointError, ValueRangeError

_OURS = ("--hf-overrides", "--mm-processor-kwargs")
"""Arguments of vLLM that this command writes."""
_SIZES = ((768, 1024), (336, 336))
"""Heights and widths of images whose cost is printed."""
_SUFFIX = "ForConditionalGeneration"


def run_serve(options: Namespace) -> int:
    """Run ``serve``: print the command of vLLM and the cost of images, and become that command."""
    budgets = {name: getattr(options, name) for name in (*OPTIONS, *VIDEO_OPTIONS)}
    budget = {name: value for name, value in budgets.items() if value is not None}
    command = ["vllm", "serve", options.model, *arguments_of(options.model, budget, options.vllm_arguments)]
    print(shlex.join(command), flush=True)
    try:
        for line in costs(options.model, budget):
            note(line)
    except (OSError, ValueError, AttributeError) as error:  # vLLM may still serve the model
        note(f"The number of tokens of an image is not known: {error}")
    if options.print_only:
        return 0
    require("vllm", extra="")
    os.execv(sys.executable, [sys.executable, "-m", "vllm.entrypoints.cli.main", *command[1:]])


def arguments_of(model: str, budget: Mapping[str, Any], others: list[str]) -> list[str]:
    """Return the arguments of ``vllm serve`` after the model.

    Args:
        model: Folder or name on the hub, of a region model or a stock model.
        budget: ``num_regions`` or ``keep`` of the command line, and the same of videos.
        others: Arguments that are passed on.

    Raises:
        CheckpointError: ``model`` has no config.
        ValueRangeError: The family or its Regionizer cannot be served, or ``others`` has arguments of this command.
    """
    for word in others:
        option = word.replace("_", "-").split("=")[0].split(".")[0]
        for name in _OURS:  # vLLM accepts abbreviations, and parts of a dictionary
            if option.startswith("--") and len(option) > 4 and name.startswith(option):
                raise ValueRangeError(f"regiontok serve writes {name} itself. Leave it out, or run vllm serve.")
    config = _read_config(model)
    if not config.get("architectures"):
        raise CheckpointError(f"{model} holds no model of transformers: its config.json names no architectures.")
    stock = str(config["architectures"][0]).removeprefix("Region")
    family = stock.removesuffix(_SUFFIX)
    if family in REJECTED:
        raise ValueRangeError(f"vLLM cannot serve {family} with regions: {REJECTED[family]}.")
    if f"Region{stock}" not in NATIVE and family not in BACKEND:
        served = [name.removeprefix("Region").removesuffix(_SUFFIX) for name in NATIVE]
        raise ValueRangeError(f"vLLM cannot serve {stock} with regions. It serves {', '.join([*served, *BACKEND])}.")
    regions = region_options(SimpleNamespace(**config))
    check_options(regions)
    if not any(read_budget(source) for source in (budget, regions)):
        raise ValueRangeError(f"{model} has no budget. Pass --tokens 128 or --keep 0.25.")
    find_budget(budget, regions)
    find_video_budget(budget, regions, config.get("regiontok_videos"))
    if family not in VIDEOS:
        reject_video_options(budget)
    positions = config.get("regiontok_positions") or "centroid"
    expected = "even" if family.startswith("Glm") else "centroid"
    if "regiontok" in config and family.startswith(("Glm", "Qwen")) and positions != expected:
        raise ValueRangeError(
            f"vLLM serves {family} with positions={expected!r}; {model} has {positions!r}. Convert the model again."
        )
    arguments: list[str] = []
    if "regiontok" not in config:
        arguments += ["--hf-overrides", json.dumps({"architectures": [f"Region{stock}"]})]
    if budget:
        arguments += ["--mm-processor-kwargs", json.dumps(dict(budget))]
    return [*arguments, *others]


def costs(model: str, budget: Mapping[str, Any]) -> list[str]:
    """Return the number of tokens of images of some sizes, with and without regions, as sentences."""
    huggingface = require("regiontok.adapters.huggingface", extra="hf")
    processor = require("transformers", extra="hf").AutoProcessor.from_pretrained(model)
    budget = read_budget(budget)
    if getattr(processor, "regiontok", None) is None:
        regions = read_budget(_read_config(model).get("regiontok") or {})
        processor = huggingface.region_processor(processor, **(budget or regions))
    lines = []
    for height, width in _SIZES:
        sizes: dict[str, Any] = {"image_sizes": [(height, width)]}
        (count,) = processor.count_multimodal_tokens(**sizes, **budget).num_image_tokens
        (stock,) = processor.stock._get_num_multimodal_tokens(**sizes).num_image_tokens
        lines.append(f"An image of {width} x {height} pixels takes {count} tokens instead of {stock}.")
    return lines


def _read_config(model: str) -> dict[str, Any]:
    """Return the config of a folder or a name on the hub, without its class."""
    try:
        config: dict[str, Any] = require("transformers", extra="hf").PreTrainedConfig.get_config_dict(model)[0]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{model} holds no model of transformers: {error}") from error
    return config
