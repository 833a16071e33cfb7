"""Load the encoders, Regionizers, stores and models that are chosen by typed values of options."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from regiontok import encoders
from regiontok._require import require
from regiontok.choices import MASK_SOURCES, Source
from regiontok.cli.console import warn
from regiontok.cli.values import EncoderChoice, MaskChoice, ModelChoice
from regiontok.config import RegionizerConfig
from regiontok.encoders import EncodedImage, Encoder, ImageEncoder
from regiontok.errors import RegiontokError
from regiontok.evaluation.assistant import Assistant, stock_regionizer
from regiontok.geometry import ImageGeometry
from regiontok.maskset import MaskSet
from regiontok.regionizer import Regionizer
from regiontok.regions import Regions
from regiontok.stopping import Stop
from regiontok.store.base import Store

_S = TypeVar("_S", bound=Store[Any])


def load_encoder(choice: EncoderChoice, *, pretrained: bool = True) -> Encoder:
    """Load an encoder with its settings."""
    settings = vars(choice) | {"pretrained": pretrained}
    del settings["model"]
    return encoders.load(settings.pop("encoder"), **settings)


def load_image_encoder(choice: EncoderChoice) -> ImageEncoder:
    """Load an encoder, or a multimodal model whose patch features are used, with ``--model``."""
    if choice.model is None:
        return load_encoder(choice)
    huggingface = require("regiontok.adapters.huggingface", extra="hf")
    encoder: ImageEncoder = huggingface.ModelEncoder.load(choice.model, device=choice.device, dtype="auto")
    return encoder


def make_regionizer(config: RegionizerConfig, geometry: ImageGeometry | None) -> Regionizer:
    """Return a `Regionizer` with these options; for sources of masks with the geometry of the encoder."""
    if config.source in MASK_SOURCES:
        config = replace(config, geometry=geometry)
    return Regionizer(**config.to_dict())


def open_store(kind: Callable[[str], _S], path: str) -> _S:
    """Open a store, and print a message for each damaged shard."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        store = kind(path)
    for reason in store.damaged.values():
        warn(f"a shard is damaged and ignored: {reason}")
    return store


def run_id(model: str, choice: ModelChoice) -> dict[str, Any]:
    """Return the model and the options of its regions, which identify its scores."""
    stop = Stop(*(choice.regions.get(name) for name in Stop._fields))
    defaults = stop._asdict() | {"norm": None, "linkage": stop.default_linkage}
    return {"model": model} | defaults | dict(choice.regions)


def load_assistant(model: str, choice: ModelChoice, masks: MaskChoice | None) -> Assistant:
    """Load a model that answers questions. Its masks are passed with each question.

    Raises:
        RegiontokError: The model needs masks and none are chosen, or the other way round.
    """
    regionizer = stock_regionizer(**choice.regions)
    assistant = Assistant.load(model, regionizer=regionizer, device=choice.device, dtype=choice.dtype)
    source = assistant.model.regionizer.config.source
    if assistant.needs_masks and masks is None:
        raise RegiontokError(f"{model} makes regions from masks ({source}). Add --masks, such as --masks sam2.")
    if not assistant.needs_masks and masks is not None:
        raise RegiontokError(f"{model} makes regions by {source}, without masks. Leave --masks out.")
    return assistant


def group_by_source(
    configs: Mapping[Source, RegionizerConfig], encoded: EncodedImage, masks: MaskSet | None
) -> dict[str, Regions]:
    """Return the regions of an image for each source. Masks are ignored by the sources that do not use them."""
    regions: dict[str, Regions] = {}
    for source, config in configs.items():
        regionizer = make_regionizer(config, encoded.geometry)
        mask_sets = [masks] if masks is not None and source in MASK_SOURCES else None
        features = regionizer.normalize(encoded.features[None])
        regions[source] = regionizer.group(features, masks=mask_sets, valid=encoded.valid[None])
    return regions
