"""Encoders from transformers: DINOv2, DINOv3, CLIP, SigLIP, AIMv2, ViT and the like. Tested with transformers 5.24."""

import inspect
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from regiontok._require import require
from regiontok.encoders.base import Encoder, LoadOptions
from regiontok.errors import CheckpointError, ValueRangeError

_FINAL_NORMS = ("layernorm", "post_layernorm", "norm", "rms_norm")
"""What vision transformers call their last norm."""


class HuggingfaceFeatures(nn.Module):
    """A vision transformer's tokens after one of its blocks, ``(B, prefix + patches, D)``.

    Args:
        model: A vision model of transformers that returns ``hidden_states``.
        layer: Which block; negative counts from the end.
        final_norm: Apply the model's last norm.

    Raises:
        ValueRangeError: A layer or a norm that the model has not.
    """

    def __init__(self, model: nn.Module, *, layer: int, final_norm: bool) -> None:
        super().__init__()
        blocks = int(model.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]
        if not -blocks <= layer < blocks:
            raise ValueRangeError(f"layer must be from {-blocks} to {blocks - 1} for this model; got {layer}.")
        found = next((name for name in _FINAL_NORMS if hasattr(model, name)), None)
        if final_norm and found is None:
            raise ValueRangeError(f"{type(model).__name__} has no last norm that is known. Pass final_norm=False.")
        self.model = model
        self.layer = layer
        self._norm = found if final_norm else None
        takes = inspect.signature(model.forward).parameters
        self._options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}

    def forward(self, pixels: Tensor) -> Tensor:
        """Tokens of ``(B, 3, height, width)`` pixels."""
        states = self.model(pixels, output_hidden_states=True, **self._options).hidden_states
        tokens = states[self.layer % (len(states) - 1) + 1]  # the first are those before all blocks
        return tokens if self._norm is None else getattr(self.model, self._norm)(tokens)


def build(source: str, options: LoadOptions) -> Encoder:
    """Build the vision model of a hub's repository or a folder as an `Encoder`."""
    name = options.name
    transformers = require("transformers", extra="hf")
    try:
        config = transformers.AutoConfig.from_pretrained(source)
        images = transformers.AutoImageProcessor.from_pretrained(source)
        if options.pretrained:
            model, told = transformers.AutoModel.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
            _check_loaded(name, source, told)
        else:
            model = transformers.AutoModel.from_config(config)
    except (OSError, ValueError, SafetensorError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"encoder {name!r}: {source} could not be had as a vision model with its image processor: {_brief(error)} "
            "Give a folder that save_pretrained wrote, with preprocessor_config.json, or a name on the hub."
        ) from error
    model = getattr(model, "vision_model", model)  # of CLIP and the like
    patch, side = (getattr(model.config, option, None) for option in ("patch_size", "image_size"))
    if not isinstance(patch, int) or not side or not hasattr(model.config, "num_hidden_layers"):
        raise ValueRangeError(
            f"encoder {name!r}: {type(model).__name__} is no vision transformer of square patches on one "
            "input size. Wrap it in regiontok.encoders.Encoder."
        )
    normalized = getattr(images, "do_normalize", True) and images.image_mean and images.image_std
    size = options.size or ((side, side) if isinstance(side, int) else tuple(side))
    encoder = options.frame(
        HuggingfaceFeatures(model, layer=options.layer, final_norm=options.final_norm),
        size=size,
        patch_size=patch,
        mean=images.image_mean if normalized else (0.0, 0.0, 0.0),
        std=images.image_std if normalized else (1.0, 1.0, 1.0),
    )
    try:
        encoder.encode(torch.zeros(1, 3, *size, device=options.device))
    except (RuntimeError, ValueError, TypeError) as error:  # how transformers says that positions do not fit
        advice = "Leave img_size out." if options.size else "Wrap the model in regiontok.encoders.Encoder."
        raise ValueRangeError(
            f"encoder {name!r} cannot take images of {size[0]} x {size[1]}: {_brief(error)} {advice}"
        ) from error
    return encoder


def _check_loaded(name: str, source: str, told: dict[str, Any]) -> None:
    """Refuse weights that leave some of the model's at random, but for those that features do not need."""
    missing = sorted(one for one in told["missing_keys"] if one.split(".")[-1] != "mask_token" and "pooler" not in one)
    wrong = missing + [str(one[0]) for one in told.get("mismatched_keys", ())]
    if wrong:
        raise CheckpointError(
            f"encoder {name!r}: the weights in {source} lack {len(wrong)} of the model's, or have them in another "
            f"shape, the first {wrong[0]!r}. Give the weights of this model."
        )


def _brief(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") + "."
