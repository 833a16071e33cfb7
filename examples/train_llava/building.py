"""A region LLaVA from its parts, what each stage trains of it, and how one stage's weights get into the next."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlavaConfig, LlavaProcessor

from regiontok import ImageGeometry, Regionizer
from regiontok.adapters.huggingface import (
    EncoderImageProcessor,
    EncoderTower,
    RegionLlavaForConditionalGeneration,
)
from regiontok.errors import CheckpointError

STAGE_FILE = "trained.safetensors"


def build(
    encoder: str,
    language_model: str | Path,
    regions: dict[str, Any],
    *,
    geometry: str | None = None,
    pretrained: bool = True,
    dtype: Any = None,
    tower: Any = None,
    **encoder_options: Any,
) -> tuple[RegionLlavaForConditionalGeneration, Any]:
    """A region LLaVA with a new projector, and its tokenizer.

    Args:
        encoder: Of `regiontok.encoders.load`.
        language_model: A causal language model of transformers, by name or folder.
        regions: Options of the `Regionizer`, but for ``dim``.
        geometry: How images are placed, and masks with them; None for what ``regions`` says.
        pretrained: Fetch the encoder's weights.
        dtype: Of all weights.
        tower: What stands in the place of the encoder, which is not loaded then: a `StoredTower`.
        encoder_options: Further options of ``load``, such as ``img_size``.
    """
    tokenizer = AutoTokenizer.from_pretrained(language_model)
    if "<image>" not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    language = AutoModelForCausalLM.from_pretrained(language_model, dtype=dtype)
    if len(tokenizer) > language.get_input_embeddings().num_embeddings:
        language.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
    if tower is None:
        tower = EncoderTower.load(encoder, pretrained=pretrained, **encoder_options)
    vision = tower.config
    if geometry is not None:
        regions = regions | {"geometry": ImageGeometry(geometry, tuple(vision.image_size))}
    regionizer = Regionizer(**regions, dim=vision.hidden_size)
    config = LlavaConfig(
        vision_config=vision,
        text_config=language.config,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    config.regiontok = regionizer.config.to_dict()
    with torch.device("meta"):
        model = RegionLlavaForConditionalGeneration(config)
    model.model.multi_modal_projector.to_empty(device="cpu")
    for layer in (model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2):
        layer.reset_parameters()
    model.model.vision_tower = tower
    model.model.language_model, model.lm_head = language.model, language.lm_head
    model.regionizer = regionizer
    model.generation_config = language.generation_config
    return model.to(dtype=dtype or torch.float32), tokenizer


def image_processor(tower: EncoderTower, geometry: str) -> EncoderImageProcessor:
    """What places images as the tower's encoder wants them."""
    return EncoderImageProcessor.of(tower.encoder, ImageGeometry(geometry, tower.encoder.geometry.size))


def processor_of(model: Any, tokenizer: Any, geometry: str, chat_template: str) -> LlavaProcessor:
    """A processor for the trained model, as transformers loads it with ``AutoProcessor``."""
    tower = model.model.vision_tower
    return LlavaProcessor(
        image_processor(tower, geometry),
        tokenizer,
        patch_size=tower.encoder.patch_size,
        vision_feature_select_strategy="full",
        chat_template=chat_template,
    )


def freeze_but(model: torch.nn.Module, trained: Sequence[str]) -> None:
    """Train only the weights whose names begin so."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(tuple(trained)))


def trained_names(model: torch.nn.Module) -> list[str]:
    """Names of the weights that are trained, and of the Regionizer's state."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return [name for name in model.state_dict() if name in trained or name.startswith("model.regionizer.")]


def widen_trained(model: torch.nn.Module) -> None:
    """Hold what is trained in float32, whose steps bfloat16 would round away; what is frozen stays as it is."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def load_stage(model: torch.nn.Module, folder: str | Path) -> None:
    """Load what ``RegionTrainer.save_stage`` wrote into a model of the same parts.

    Raises:
        CheckpointError: No such file, or one of another encoder, pool or language model.
    """
    file = Path(folder) / STAGE_FILE
    if not file.is_file():
        raise CheckpointError(f"there is no {file}. Give the folder in which stage 1 was saved.")
    state, own = load_file(file), model.state_dict()
    for name, tensor in state.items():
        if name not in own:
            raise CheckpointError(f"{file} holds {name}, which this model has not: its regions are pooled otherwise.")
        if tensor.shape != own[name].shape:
            raise CheckpointError(
                f"{file}: {name} must be {tuple(own[name].shape)} for this model; it is {tuple(tensor.shape)}, of "
                "another encoder's width or language model."
            )
    lacking = sorted(
        name for name in own if name.startswith(("model.regionizer.", "model.multi_modal_")) and name not in state
    )
    if lacking:
        raise CheckpointError(f"{file} lacks {lacking[0]}: its regions were pooled otherwise.")
    model.load_state_dict(state, strict=False)
