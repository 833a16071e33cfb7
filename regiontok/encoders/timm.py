"""Encoders from timm."""

import functools
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regiontok._require import require
from regiontok.encoders.base import Encoder, LoadOptions, first_line, read_weights
from regiontok.errors import CheckpointError, ValueRangeError
from regiontok.geometry import Size


class TimmFeatures(nn.Module):
    """Features of one layer of a timm model, ``(B, rows, cols, D)``; timm removes the prefix tokens.

    Args:
        model: Any timm model with ``forward_intermediates``.
        layer: Index of the block or stage; negative indices count from the end.
        final_norm: Apply the final norm of the model.
    """

    def __init__(self, model: nn.Module, *, layer: int, final_norm: bool) -> None:
        super().__init__()
        self.model = model
        self.layer = layer
        self.final_norm = final_norm

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the features of pixels ``(B, 3, height, width)``."""
        try:
            layers = self.model.forward_intermediates(  # type: ignore[operator]
                pixels, indices=[self.layer], norm=self.final_norm, intermediates_only=True, output_fmt="NCHW"
            )
        except AssertionError as error:  # raised by timm for unsupported options
            raise ValueRangeError(
                f"timm model does not support layer={self.layer}, final_norm={self.final_norm}: {error}. Use others."
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
    pretrained = options.pretrained and options.weights is None
    with torch.device(options.device):
        try:
            model = _create(timm, model_name, options.size, pretrained=pretrained)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"cannot load the weights of encoder {options.name!r} (timm {model_name}, "
                f"{_hub_name(timm, model_name)}): {first_line(error)} Pass weights='FILE.safetensors', or use the "
                "encoder 'pixels', which needs no weights."
            ) from error
    if not hasattr(model, "forward_intermediates"):
        raise ValueRangeError(
            f"timm model {model_name!r} has no forward_intermediates, which returns patch features. Use another model."
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
    encoder = options.make_encoder(
        TimmFeatures(model, layer=layer, final_norm=options.final_norm),
        size=options.size or config["input_size"][1:],
        patch_size=stages[layer]["reduction"],
        mean=config["mean"],
        std=config["std"],
    )
    if options.size and options.size[0] != options.size[1]:
        _check_size(encoder, model_name)
    return encoder


def _check_size(encoder: Encoder, model_name: str) -> None:
    """Run the encoder once: some models can be created for a rectangular input but not run.

    Raises:
        ValueRangeError: The model does not support the size.
    """
    height, width = encoder.geometry.size
    try:
        encoder.encode(torch.zeros(1, 3, height, width, device=encoder.device))
    except (RuntimeError, AssertionError, ValueError) as error:  # raised by timm for unsupported sizes
        raise ValueRangeError(
            f"timm model {model_name!r} does not support images of {height} x {width}: {first_line(error)} Pass a "
            "square img_size."
        ) from error


def load_weights(model: nn.Module, file: str | Path, *, name: str) -> None:
    """Load a safetensors file into a timm model. timm renames parameters and resizes the position embedding.

    Raises:
        CheckpointError: The file does not exist or is invalid, or a parameter is missing or has another shape.
    """
    state = read_weights(file, name=name)
    rename = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if rename is not None:
        state = rename(state, model)
    try:
        missing, _ = model.load_state_dict(state, strict=False)  # a classifier in the file is ignored
    except RuntimeError as error:
        raise CheckpointError(f"weights for encoder {name!r}: {file} does not match the model. {error}") from error
    if missing:
        raise CheckpointError(
            f"weights for encoder {name!r}: {len(missing)} of the model's {len(model.state_dict())} tensors are "
            f"missing in {file}, such as {missing[0]!r}. Pass the weights of this model."
        )


def _create(timm: Any, model_name: str, size: Size | None, *, pretrained: bool) -> nn.Module:
    create = functools.partial(timm.create_model, model_name, num_classes=0, pretrained=pretrained)
    if size is None:
        return create()
    try:
        return create(img_size=size)
    except AssertionError as error:  # raised by some models for unsupported sizes
        raise ValueRangeError(
            f"timm model {model_name!r} does not support images of {size[0]} x {size[1]}. Use another img_size."
        ) from error
    except TypeError as error:  # convolutional networks support any size and have no such argument
        if "img_size" not in str(error):
            raise
        return create()


def _hub_name(timm: Any, model_name: str) -> str:
    config = timm.get_pretrained_cfg(model_name)
    return f"{config.hf_hub_id} on the Hugging Face hub" if config and config.hf_hub_id else "on no hub"
