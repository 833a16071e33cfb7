"""Any of regiontok's encoders as the vision tower of a model of transformers."""

from typing import Any

import torch
from torch import Tensor

from regiontok import encoders
from regiontok._require import require
from regiontok.encoders import Encoder

transformers = require("transformers", extra="hf")


class EncoderConfig(transformers.PreTrainedConfig):
    """Which encoder stands in the place of a vision tower, and its sizes; make it with `of`.

    Attributes:
        encoder: Its name, as of `regiontok.encoders.load`.
        options: Further options of ``load``.
        hidden_size: Dimension of its features.
        image_size: Height and width of its input.
        patch_size: Side of a patch.
    """

    model_type = "regiontok_encoder"

    encoder: str = "pixels"
    options: dict[str, Any] | None = None
    hidden_size: int = 48
    image_size: list[int] | int = 384
    patch_size: int = 16

    @classmethod
    def of(cls, encoder: str, **options: Any) -> "EncoderConfig":
        """The config of an encoder by name.

        Args:
            encoder: As of `regiontok.encoders.load`.
            options: Further options of ``load``, such as ``img_size``; weights and device are not among them.

        Example:
            >>> EncoderConfig.of("pixels", img_size=192).hidden_size
            48
        """
        return cls._of(encoders.load(encoder, pretrained=False, **options), encoder, options)

    @classmethod
    def _of(cls, built: Encoder, name: str, options: dict[str, Any]) -> "EncoderConfig":
        height, width = built.geometry.size
        features = built.encode(torch.zeros(1, 3, height, width))
        return cls(
            encoder=name,
            options=options,
            hidden_size=features.shape[-1],
            image_size=[height, width],
            patch_size=built.patch_size,
        )


class EncoderTower(transformers.PreTrainedModel):
    """An encoder as a frozen vision tower: pixels ``(B, 3, height, width)`` to one hidden state ``(B, patches, dim)``.

    A LLaVA's config takes it with ``vision_feature_layer=-1`` and ``vision_feature_select_strategy="full"``.

    Args:
        config: An `EncoderConfig`; weights are random, for a checkpoint to bring them.
        encoder: One that is loaded already.

    Example:
        >>> tower = EncoderTower.load("pixels", img_size=64)
        >>> pixels, _ = tower.encoder.preprocess(Image.new("RGB", (64, 64)))
        >>> tower(pixels).last_hidden_state.shape
        torch.Size([1, 16, 48])
    """

    config_class = EncoderConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    encoder: Encoder

    def __init__(self, config: EncoderConfig, *, encoder: Encoder | None = None) -> None:
        super().__init__(config)
        with torch.device("cpu"):  # transformers loads on no device at first, and buffers of an encoder are not saved
            self.encoder = encoder or encoders.load(config.encoder, pretrained=False, **(config.options or {}))
        self.post_init()

    @classmethod
    def load(cls, encoder: str, *, pretrained: bool = True, **options: Any) -> "EncoderTower":
        """A tower of an encoder with its own weights.

        Args:
            encoder: As of `regiontok.encoders.load`.
            pretrained: Fetch the weights; with False they are random.
            options: Further options of ``load`` that a config can hold, such as ``img_size``.
        """
        built = encoders.load(encoder, pretrained=pretrained, **options)
        return cls(EncoderConfig._of(built, encoder, options), encoder=built)

    @property
    def dtype(self) -> torch.dtype:
        """Of the encoder."""
        return self.encoder.dtype

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.encoder.device

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        """One hidden state, in row-major order of the patches."""
        features = self.encoder.encode(pixel_values).flatten(1, 2)
        return transformers.modeling_outputs.BaseModelOutput(last_hidden_state=features, hidden_states=(features,))

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Leave the encoder as it was built or loaded."""


transformers.AutoConfig.register(EncoderConfig.model_type, EncoderConfig, exist_ok=True)
transformers.AutoModel.register(EncoderConfig, EncoderTower, exist_ok=True)
