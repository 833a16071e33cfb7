"""Encoders from timm. Tested with timm 1.0.31."""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regiontok._require import require
from regiontok.encoders.base import Encoder, LoadOptions, read_weights
from regiontok.errors import CheckpointError, ValueRangeError
from regiontok.geometry import Size


class TimmFeatures(nn.Module):
    """A timm model's features after one of its layers, ``(B, rows, cols, D)``; prefix tokens are removed by timm.

    Args:
        model: Any timm model with ``forward_intermediates``.
        layer: Which block or stage; negative counts from the end.
        final_norm: Apply the model's last norm.
    """

    def __init__(self, model: nn.Module, *, layer: int, final_norm: bool) -> None:
        super().__init__()
        self.model = model
        self.layer = layer
        self.final_norm = final_norm

    def forward(self, pixels: Tensor) -> Tensor:
        """Features of ``(B, 3, height, width)`` pixels."""
        try:
            layers = self.model.forward_intermediates(  # type: ignore[operator]
                pixels, indices=[self.layer], norm=self.final_norm, intermediates_only=True, output_fmt="NCHW"
            )
        except AssertionError as error:  # how timm says that a model cannot
            raise ValueRangeError(
                f"this timm model cannot give layer={self.layer}, final_norm={self.final_norm}: {error}. Try others."
            ) from error
        return layers[0].permute(0, 2, 3, 1)


def build(model_name: str, options: LoadOptions) -> Encoder:
    """Build a timm model as an `Encoder`."""
    timm = require("timm", extra="encoders")
    if not timm.is_model(model_name):
        similar = timm.list_models(f"*{model_name.partition('.')[0][:12]}*")[:3]
        raise ValueRangeError(
            f"timm {timm.__version__} has no model {model_name!r}."
            + (f" Similar: {', '.join(similar)}." if similar else " See timm.list_models().")
        )
    given: dict[str, Any] = {"num_classes": 0, "pretrained": options.pretrained and options.weights is None}
    with torch.device(options.device):
        try:
            model = _create(timm, model_name, options.size, given)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"the weights of encoder {options.name!r} (timm {model_name}, {_hub_name(timm, model_name)}) could not "
                f"be had: {_first_line(error)} Give them as weights='FILE.safetensors', or use the encoder 'pixels', "
                "which needs none."
            ) from error
    if not hasattr(model, "forward_intermediates"):
        raise ValueRangeError(
            f"timm model {model_name!r} has no forward_intermediates and so no patch features to take."
        )
    if options.weights is not None:
        load_weights(model, options.weights, name=options.name)
    config = timm.data.resolve_model_data_config(model)
    info: Any = model.feature_info
    stages = info if isinstance(info, list) else info.info
    layer = options.layer
    if not -len(stages) <= layer < len(stages):
        raise ValueRangeError(
            f"layer must be from {-len(stages)} to {len(stages) - 1} for {model_name!r}; got {layer}."
        )
    encoder = options.frame(
        TimmFeatures(model, layer=layer, final_norm=options.final_norm),
        size=options.size or config["input_size"][1:],
        patch_size=stages[layer]["reduction"],
        mean=config["mean"],
        std=config["std"],
    )
    if options.size and options.size[0] != options.size[1]:
        _try(encoder, model_name)
    return encoder


def _try(encoder: Encoder, model_name: str) -> None:
    """Refuse a rectangle that a model takes when it is made and not when it is run."""
    height, width = encoder.geometry.size
    try:
        encoder.encode(torch.zeros(1, 3, height, width, device=encoder.device))
    except (RuntimeError, AssertionError, ValueError) as error:  # how timm says that a size does not fit
        raise ValueRangeError(
            f"timm model {model_name!r} cannot take images of {height} x {width}: {_first_line(error)} Give one side."
        ) from error


def load_weights(model: nn.Module, file: str | Path, *, name: str) -> None:
    """Load a safetensors file into a timm model, with timm's own renaming and resizing of its position embedding.

    Raises:
        CheckpointError: No such file, not safetensors, or a parameter that it lacks or has in another shape.
    """
    state = read_weights(file, name=name)
    rename = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if rename is not None:
        state = rename(state, model)
    try:
        missing, _ = model.load_state_dict(state, strict=False)  # a classifier that the file has besides is not needed
    except RuntimeError as error:
        raise CheckpointError(f"weights for encoder {name!r}: {file} is of another model. {error}") from error
    if missing:
        raise CheckpointError(
            f"weights for encoder {name!r}: {file} lacks {len(missing)} of the model's {len(model.state_dict())} "
            f"tensors, the first {missing[0]!r}. Give the weights of this model."
        )


def _create(timm: Any, model_name: str, size: Size | None, given: dict[str, Any]) -> nn.Module:
    if size is None:
        return timm.create_model(model_name, **given)
    try:
        return timm.create_model(model_name, img_size=size, **given)
    except AssertionError as error:  # how some models say that a size does not fit
        raise ValueRangeError(
            f"timm model {model_name!r} cannot take images of {size[0]} x {size[1]}. Try another img_size."
        ) from error
    except TypeError as error:  # a convolutional network: takes any size and has no such argument
        if "img_size" not in str(error):
            raise
        return timm.create_model(model_name, **given)


def _hub_name(timm: Any, model_name: str) -> str:
    config = timm.get_pretrained_cfg(model_name)
    return f"{config.hf_hub_id} on the Hugging Face hub" if config and config.hf_hub_id else "on no hub"


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".") + "."
