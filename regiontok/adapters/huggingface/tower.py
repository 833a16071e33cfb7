"""Encoders of regiontok as vision towers of transformers' models."""

from typing import Any

import torch
from torch import Tensor

from regiontok import encoders
from regiontok._require import require
from regiontok.encoders import Encoder

transformers = require("transformers", extra="hf")


class EncoderConfig(transformers.PreTrainedConfig):
    """Config of an `EncoderTower`: the encoder and its sizes. Create it with `of`.

    Attributes:
        encoder: Name of the encoder in `regiontok.encoders.load`.
        options: Further options of ``load``.
        hidden_size: Dimension of the features.
        image_size: Height and width of the input in pixels.
        patch_size: Side of a patch in pixels.
    """

    model_type = "regiontok_encoder"

    encoder: str = "pixels"
    options: dict[str, Any] | None = None
    hidden_size: int = 48
    image_size: list[int] | int = 384
    patch_size: int = 16

    @classmethod
    def of(cls, encoder: str, **options: Any) -> "EncoderConfig":
        """Return the config of an encoder.

        Args:
            encoder: Name of the encoder in `regiontok.encoders.load`.
            options: Further options of ``load``, such as ``img_size``, except ``pretrained`` and ``device``.

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
    """Frozen vision tower that maps pixels ``(B, 3, height, width)`` to one hidden state ``(B, patches, dim)``.

    Set ``vision_feature_layer=-1`` and ``vision_feature_select_strategy="full"`` in the config of a LLaVA that uses it.

    Args:
        config: An `EncoderConfig`. The weights are random until a checkpoint is loaded.
        encoder: Encoder to use instead of a new one.

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
        with torch.device("cpu"):  # not on transformers' meta device: checkpoints have no buffers of encoders
            self.encoder = encoder or encoders.load(config.encoder, pretrained=False, **(config.options or {}))
        self.post_init()

    @classmethod
    def load(cls, encoder: str, *, pretrained: bool = True, **options: Any) -> "EncoderTower":
        """Return the tower of an encoder with its pretrained weights.

        Args:
            encoder: Name of the encoder in `regiontok.encoders.load`.
            pretrained: Whether to load weights; with False they are random.
            options: Further options of ``load`` that can be saved in a config, such as ``img_size``.
        """
        built = encoders.load(encoder, pretrained=pretrained, **options)
        return cls(EncoderConfig._of(built, encoder, options), encoder=built)

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the encoder's weights."""
        return self.encoder.dtype

    @property
    def device(self) -> torch.device:
        """Device of the encoder's weights."""
        return self.encoder.device

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        """Return one hidden state, with patches in row-major order."""
        features = self.encoder.encode(pixel_values).flatten(1, 2)
        return transformers.modeling_outputs.BaseModelOutput(last_hidden_state=features, hidden_states=(features,))

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Do nothing: the encoder initializes or loads its own weights."""


transformers.AutoConfig.register(EncoderConfig.model_type, EncoderConfig, exist_ok=True)
transformers.AutoModel.register(EncoderConfig, EncoderTower, exist_ok=True)
