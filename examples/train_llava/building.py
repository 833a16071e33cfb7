"""Build a LLaVA with regions, select the weights that a stage trains, and load the weights of the previous stage."""

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
    """Return a region LLaVA with a new projector, and its tokenizer.

    Args:
        encoder: Name of an encoder for `regiontok.encoders.load`.
        language_model: Name or folder of a causal language model of transformers.
        regions: Options of the `Regionizer`, without ``dim``.
        geometry: Geometry mode for images and masks; None for the ``geometry`` of ``regions``.
        pretrained: Load the pretrained weights of the encoder.
        dtype: Data type of all weights.
        tower: Vision tower that replaces the encoder, such as a `StoredTower`. The encoder is not loaded.
        encoder_options: Further options of `regiontok.encoders.load`, such as ``img_size``.
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
    """Return an image processor for the encoder of the vision tower."""
    return EncoderImageProcessor.of(tower.encoder, ImageGeometry(geometry, tower.encoder.geometry.size))


def processor_of(model: Any, tokenizer: Any, geometry: str, chat_template: str) -> LlavaProcessor:
    """Return a processor for the trained model, which ``AutoProcessor`` can load after saving."""
    tower = model.model.vision_tower
    return LlavaProcessor(
        image_processor(tower, geometry),
        tokenizer,
        patch_size=tower.encoder.patch_size,
        vision_feature_select_strategy="full",
        chat_template=chat_template,
    )


def freeze_except(model: torch.nn.Module, trained: Sequence[str]) -> None:
    """Freeze all weights except those whose names start with one of the prefixes."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(tuple(trained)))


def trained_names(model: torch.nn.Module) -> list[str]:
    """Return the names of trained weights and of all weights and buffers of the Regionizer."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return [name for name in model.state_dict() if name in trained or name.startswith("model.regionizer.")]


def cast_trained(model: torch.nn.Module) -> None:
    """Cast trained weights to float32, because small updates are lost in bfloat16. Frozen weights keep their type."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def load_stage(model: torch.nn.Module, folder: str | Path) -> None:
    """Load the weights that ``RegionTrainer.save_stage`` wrote.

    Raises:
        CheckpointError: The file does not exist, or is for another encoder, pool or language model.
    """
    file = Path(folder) / STAGE_FILE
    if not file.is_file():
        raise CheckpointError(f"there is no {file}. Pass the folder in which stage 1 was saved.")
    saved, current = load_file(file), model.state_dict()
    for name, tensor in saved.items():
        if name not in current:
            raise CheckpointError(f"{file} holds {name}, which this model does not have: its pool is different.")
        if tensor.shape != current[name].shape:
            raise CheckpointError(
                f"{file}: {name} must be {tuple(current[name].shape)} for this model; got {tuple(tensor.shape)}. The "
                "encoder or language model is different."
            )
    required = ("model.regionizer.", "model.multi_modal_")
    missing = sorted(name for name in current if name.startswith(required) and name not in saved)
    if missing:
        raise CheckpointError(f"{file} has no {missing[0]}, which this model needs: its pool is different.")
    model.load_state_dict(saved, strict=False)
