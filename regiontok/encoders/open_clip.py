"""Encoders from open_clip: the image towers of CLIP and SigLIP models."""

import torch
from torch import Tensor, nn

from regiontok._require import require
from regiontok.encoders.base import Encoder, LoadOptions, read_weights
from regiontok.errors import CheckpointError, ValueRangeError


class OpenClipFeatures(nn.Module):
    """Features of one layer of an open_clip image tower, ``(B, rows, cols, D)``; the class token is removed.

    Args:
        visual: The ``visual`` attribute of an open_clip model.
        layer: Index of the block; negative indices count from the end.
        final_norm: Apply the final norm of the tower.
    """

    def __init__(self, visual: nn.Module, *, layer: int, final_norm: bool) -> None:
        super().__init__()
        self.visual = visual
        self.layer = layer
        self.final_norm = final_norm

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the features of pixels ``(B, 3, height, width)``."""
        output = self.visual.forward_intermediates(  # type: ignore[operator]
            pixels,
            indices=[self.layer],
            normalize_intermediates=self.final_norm,
            intermediates_only=True,
            output_fmt="NCHW",
        )
        return output["image_intermediates"][0].permute(0, 2, 3, 1)


def build(spec: str, options: LoadOptions) -> Encoder:
    """Build an image tower from ``model/tag`` as an `Encoder`."""
    open_clip = require("open_clip", extra="encoders", distribution="open_clip_torch")
    model_name, _, tag = spec.partition("/")
    if model_name not in open_clip.list_models():
        raise ValueRangeError(
            f"open_clip {open_clip.__version__} has no model {model_name!r}. See open_clip.list_models()."
        )
    if options.weights is not None:
        read_weights(options.weights, name=options.name)  # raises a clear error if the file is invalid
        source: str | None = str(options.weights)
    else:
        tags = open_clip.list_pretrained_tags_by_model(model_name)
        if options.pretrained and tag not in tags:
            raise ValueRangeError(
                f"open_clip has no weights {tag!r} for {model_name}. Use open_clip:{model_name}/TAG with TAG one "
                f"of {', '.join(tags) or '(none)'}."
            )
        source = tag if options.pretrained else None
    try:
        model = open_clip.create_model(
            model_name, pretrained=source, device=options.device, force_image_size=options.size, weights_only=True
        )
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"cannot load the weights of encoder {options.name!r} (open_clip {model_name}): {error} "
            "Pass weights='FILE.safetensors', or use the encoder 'pixels', which needs no weights."
        ) from error
    visual = model.visual
    config = visual.preprocess_cfg
    tower = OpenClipFeatures(visual, layer=options.layer, final_norm=options.final_norm)
    size = visual.image_size if isinstance(visual.image_size, tuple) else (visual.image_size, visual.image_size)
    try:
        with torch.no_grad():
            rows = tower(torch.zeros(1, 3, *size, device=options.device)).shape[1]
    except AssertionError as error:  # raised by open_clip for unknown layers
        raise ValueRangeError(
            f"open_clip {model_name} does not support layer={options.layer}: {error}. Use another layer."
        ) from error
    return options.make_encoder(tower, size=size, patch_size=size[0] // rows, mean=config["mean"], std=config["std"])
