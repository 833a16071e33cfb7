"""Encoders from transformers, such as DINOv2, DINOv3, CLIP, SigLIP, AIMv2 and ViT."""

import inspect
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from regiontok._require import require
from regiontok.encoders.base import Encoder, LoadOptions, first_line
from regiontok.errors import CheckpointError, ValueRangeError

_FINAL_NORMS = ("layernorm", "post_layernorm", "norm", "rms_norm")
"""Names of the final norm in vision transformers."""


class HuggingfaceFeatures(nn.Module):
    """Tokens of one block of a vision transformer, ``(B, prefix tokens + patches, D)``.

    Args:
        model: A vision model of transformers that returns ``hidden_states``.
        layer: Index of the block; negative indices count from the end.
        final_norm: Apply the final norm of the model.

    Raises:
        ValueRangeError: The model has no such layer, or no final norm.
    """

    def __init__(self, model: nn.Module, *, layer: int, final_norm: bool) -> None:
        super().__init__()
        blocks = int(model.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]
        if not -blocks <= layer < blocks:
            raise ValueRangeError(f"layer must be from {-blocks} to {blocks - 1} for this model; got {layer}.")
        norm = next((name for name in _FINAL_NORMS if hasattr(model, name)), None)
        if final_norm and norm is None:
            raise ValueRangeError(f"{type(model).__name__} has no known final norm. Pass final_norm=False.")
        self.model = model
        self.layer = layer
        self._norm = norm if final_norm else None
        parameters = inspect.signature(model.forward).parameters
        self._options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in parameters else {}

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the tokens of pixels ``(B, 3, height, width)``."""
        states = self.model(pixels, output_hidden_states=True, **self._options).hidden_states
        tokens = states[self.layer % (len(states) - 1) + 1]  # the first state is the input of the first block
        return tokens if self._norm is None else getattr(self.model, self._norm)(tokens)


def build(source: str, options: LoadOptions) -> Encoder:
    """Build a vision model from the Hugging Face hub or from a folder as an `Encoder`."""
    name = options.name
    transformers = require("transformers", extra="hf")
    try:
        config = transformers.AutoConfig.from_pretrained(source)
        processor = transformers.AutoImageProcessor.from_pretrained(source)
        if options.pretrained:
            model, report = transformers.AutoModel.from_pretrained(
                source, dtype=torch.float32, output_loading_info=True
            )
            _check_loaded(name, source, report)
        else:
            model = transformers.AutoModel.from_config(config)
    except (OSError, ValueError, SafetensorError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"encoder {name!r}: cannot load a vision model and image processor from {source}: {first_line(error)} "
            "Pass a folder that save_pretrained wrote, with preprocessor_config.json, or a name on the hub."
        ) from error
    model = getattr(model, "vision_model", model)  # CLIP and SigLIP have a text model, too
    patch, side = (getattr(model.config, option, None) for option in ("patch_size", "image_size"))
    if not isinstance(patch, int) or not side or not hasattr(model.config, "num_hidden_layers"):
        raise ValueRangeError(
            f"encoder {name!r}: expected a vision transformer with square patches and a fixed input size; got "
            f"{type(model).__name__}. Wrap it in regiontok.encoders.Encoder."
        )
    is_normalized = getattr(processor, "do_normalize", True) and processor.image_mean and processor.image_std
    size = options.size or ((side, side) if isinstance(side, int) else tuple(side))
    encoder = options.make_encoder(
        HuggingfaceFeatures(model, layer=options.layer, final_norm=options.final_norm),
        size=size,
        patch_size=patch,
        mean=processor.image_mean if is_normalized else (0.0, 0.0, 0.0),
        std=processor.image_std if is_normalized else (1.0, 1.0, 1.0),
    )
    try:
        encoder.encode(torch.zeros(1, 3, *size, device=options.device))
    except (RuntimeError, ValueError, TypeError) as error:  # raised for unsupported sizes
        advice = "Leave img_size out." if options.size else "Wrap the model in regiontok.encoders.Encoder."
        raise ValueRangeError(
            f"encoder {name!r} does not support images of {size[0]} x {size[1]}: {first_line(error)} {advice}"
        ) from error
    return encoder


def _check_loaded(name: str, source: str, report: dict[str, Any]) -> None:
    """Check that no weights are missing or mismatched, except those that features do not need.

    Raises:
        CheckpointError: Some are.
    """
    missing = sorted(
        key for key in report["missing_keys"] if key.split(".")[-1] != "mask_token" and "pooler" not in key
    )
    invalid = missing + [str(mismatch[0]) for mismatch in report.get("mismatched_keys", ())]
    if invalid:
        raise CheckpointError(
            f"encoder {name!r}: {len(invalid)} weights of the model are missing in {source} or have another shape, "
            f"such as {invalid[0]!r}. Pass the weights of this model."
        )
