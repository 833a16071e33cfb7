"""Encoders from open_clip: the image towers of its CLIP and SigLIP models. Tested with open_clip 3.3.0."""

import torch
from torch import Tensor, nn

from regiontok._require import require
from regiontok.encoders.base import Encoder, LoadOptions, read_weights
from regiontok.errors import CheckpointError, ValueRangeError


class OpenClipFeatures(nn.Module):
    """An open_clip image tower's features after one of its layers, ``(B, rows, cols, D)``; the class token is removed.

    Args:
        visual: The ``visual`` part of an open_clip model.
        layer: Which block; negative counts from the end.
        final_norm: Apply the tower's last norm.
    """

    def __init__(self, visual: nn.Module, *, layer: int, final_norm: bool) -> None:
        super().__init__()
        self.visual = visual
        self.layer = layer
        self.final_norm = final_norm

    def forward(self, pixels: Tensor) -> Tensor:
        """Features of ``(B, 3, height, width)`` pixels."""
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
        read_weights(options.weights, name=options.name)  # open_clip reads it again, after this has seen it is whole
        source: str | None = str(options.weights)
    else:
        tags = open_clip.list_pretrained_tags_by_model(model_name)
        if options.pretrained and tag not in tags:
            raise ValueRangeError(
                f"open_clip has no weights {tag!r} for {model_name}. Name one as open_clip:{model_name}/TAG, TAG one "
                f"of {', '.join(tags) or '(none)'}."
            )
        source = tag if options.pretrained else None
    try:
        model = open_clip.create_model(
            model_name, pretrained=source, device=options.device, force_image_size=options.size, weights_only=True
        )
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"the weights of encoder {options.name!r} (open_clip {model_name}) could not be had: {error} "
            "Give them as weights='FILE.safetensors', or use the encoder 'pixels', which needs none."
        ) from error
    visual = model.visual
    config = visual.preprocess_cfg
    tower = OpenClipFeatures(visual, layer=options.layer, final_norm=options.final_norm)
    size = visual.image_size if isinstance(visual.image_size, tuple) else (visual.image_size, visual.image_size)
    try:
        with torch.no_grad():
            rows = tower(torch.zeros(1, 3, *size, device=options.device)).shape[1]
    except AssertionError as error:  # how open_clip says that a layer is not there
        raise ValueRangeError(
            f"open_clip {model_name} cannot give layer={options.layer}: {error}. Try another."
        ) from error
    return options.frame(tower, size=size, patch_size=size[0] // rows, mean=config["mean"], std=config["std"])
