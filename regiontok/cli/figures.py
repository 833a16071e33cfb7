"""``regiontok figures``: the paper's figures for any image, encoder and model."""

from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from regiontok._require import require
from regiontok.choices import MASK_SOURCES, Source
from regiontok.cli.console import progress
from regiontok.cli.inputs import list_images, open_listing
from regiontok.cli.loading import group_by_source, load_assistant, load_encoder, load_image_encoder, make_regionizer
from regiontok.cli.mask_sources import masks_of_file
from regiontok.cli.output import check_outputs
from regiontok.cli.regions import default_norm, region_configs
from regiontok.cli.values import (
    STOPS,
    EncoderChoice,
    FrameChoice,
    ListingChoice,
    MaskChoice,
    ModelChoice,
    given_options,
    mask_choice,
)
from regiontok.config import RegionizerConfig
from regiontok.encoders import EncodedImage
from regiontok.errors import RegiontokError
from regiontok.evaluation.assistant import Assistant, Question
from regiontok.evaluation.focus import RegionAttention, check_attention
from regiontok.geometry import Size
from regiontok.images import read_image
from regiontok.regionizer import Regionizer
from regiontok.sampling import FrameSampling
from regiontok.tile_masks import by_layout
from regiontok.videos import read_video
from regiontok.viewing import (
    Attention,
    check_figure,
    draw_attention,
    draw_clip,
    draw_encoders,
    draw_features,
    draw_norms,
    draw_sources,
    save_clip,
    save_figure,
)
from regiontok.viewing.clip import ANIMATIONS, check_picture


def run_norms(options: Namespace) -> int:
    """Run ``figures norms``, and return the exit code."""
    check_figure(options.out)
    check_outputs([options.out], [options.image])
    images = [read_image(options.image, bits=options.bits)]
    encoded = _encode(images, options.encoders, EncoderChoice.of(options), pretrained=not options.random)
    return _save(draw_norms({name: images[0] for name, images in encoded.items()}), options.out)


def run_features(options: Namespace) -> int:
    """Run ``figures features``, and return the exit code."""
    images = _read_images(ListingChoice.of(options), options.out)
    encoded = _encode(images, options.encoders, EncoderChoice.of(options), pretrained=not options.random)
    return _save(draw_features(encoded), options.out)


def run_encoders(options: Namespace) -> int:
    """Run ``figures encoders``, and return the exit code."""
    images = _read_images(ListingChoice.of(options), options.out)
    encoded = _encode(images, options.encoders, EncoderChoice.of(options), pretrained=not options.random)
    settings = given_options(options, [*STOPS, "linkage", "norm"])
    return _save(draw_encoders(encoded, **settings), options.out)


def run_regions(options: Namespace) -> int:
    """Run ``figures regions``, and return the exit code."""
    configs = region_configs(options, **default_norm(options))
    encoder_choice, choice = EncoderChoice.of(options), mask_choice(options)
    frames = FrameChoice.of(options)
    if frames is not None:
        return _draw_video(options, frames, configs, encoder_choice)
    check_figure(options.out)
    check_outputs([options.out], [options.image], encoder_choice, choice)
    image = read_image(options.image, bits=options.bits)
    encoder = load_image_encoder(encoder_choice)
    masks = masks_of_file(choice, options.image, image, encoder=encoder)
    encoded = encoder.encode_image(image)
    return _save(draw_sources(image, group_by_source(configs, encoded, masks), encoded.placement), options.out)


def _draw_video(
    options: Namespace, frames: FrameSampling, configs: Mapping[Source, RegionizerConfig], choice: EncoderChoice
) -> int:
    """Draw the regions of a video, as a strip of its frames or as an animation."""
    sources = [source for source in configs if source != "patch"]
    if sources != ["clustering"]:
        raise RegiontokError("the regions of a video are from clustering. Leave masks and --sources out.")
    is_animation = options.out.suffix.lower() in ANIMATIONS
    if not is_animation:
        check_picture(options.out)
    check_outputs([options.out], [options.image], choice)
    encoder = load_encoder(choice)
    sampling: dict[str, Any] = frames.describe()
    video = read_video(options.image, **sampling)
    features, valid = encoder(video.frames)
    regions = make_regionizer(configs["clustering"], encoder.geometry).group(features[None], valid=valid[None])
    placement = encoder.geometry.place((video.frames[0].height, video.frames[0].width))
    if is_animation:
        seconds = max(video.times[-1], 1e-3) if video.fps else len(video.frames) / 4
        save_clip(options.out, video.frames, regions, placement, fps=max(1.0, len(video.frames) / seconds))
    else:
        draw_clip(video.frames, regions, placement).save(options.out)
    print(f"{len(video.frames)} frames, {valid.sum()} patches -> {len(regions)} regions. Figure: {options.out}")
    return 0


def run_attention(options: Namespace) -> int:
    """Run ``figures attention``, and return the exit code."""
    model_choice, choice = ModelChoice.of(options), mask_choice(options)
    if options.sources and len(options.model) > 1:
        raise RegiontokError(
            "--sources requires a single stock model, but several models are named. Leave one of them out."
        )
    if options.mask_weight is not None and not options.sources:
        raise RegiontokError("--mask-weight requires --sources. Leave it out.")
    check_figure(options.out)
    check_outputs([options.out], [options.image], choice)
    image = read_image(options.image)
    if options.sources:
        configs = region_configs(options, norm="none")
        assistants = _assistants_by_source(options.model[0], model_choice, configs)
    else:
        assistants = _assistants_by_model(options.model, model_choice, choice)
    panels: dict[str, Attention] = {}
    answers, masks = {}, None
    for name, assistant in assistants:
        check_attention(assistant.model.config, options.layers, None)
        if assistant.needs_masks and masks is None:
            masks = masks_of_file(choice, options.image, image, device=options.device)
        question = Question(options.question, [image], [masks] if assistant.needs_masks and masks is not None else None)
        if options.answer is None:
            answer = assistant.answer([question], max_new_tokens=options.max_new_tokens)[0]
            tokens, answers[name] = answer.tokens, answer.text
        else:
            tokens, answers[name] = assistant.tokenize(options.answer), options.answer
        attention = assistant.attend([question], [tokens], query=options.query)
        weights = attention.weights[0] if options.layers is None else attention.weights[0][options.layers]
        panels |= _panels(name, assistant, attention, weights.mean((0, 1)), (image.height, image.width))
    save_figure(draw_attention(image, panels, question=options.question, spread=options.spread), options.out)
    for name, text in answers.items():
        print(f"{name}: {text}")
    print(f"Figure: {options.out}")
    return 0


def _panels(
    name: str, assistant: Assistant, attention: RegionAttention, weights: Tensor, size: Size
) -> dict[str, Attention]:
    """Return the attention of an answer to each region: one panel, or one per resolution of a model with tiles."""
    if not assistant.knows_tile_layout:
        return {name: Attention(attention.regions, weights, assistant.geometry.place(size))}
    grids = by_layout(attention.regions, attention.tiles or [])
    if not grids:
        raise RegiontokError(f"{name}: the places of its tiles in the image are unknown, so they cannot be drawn.")
    largest = max(range(len(grids)), key=lambda number: (grids[number][0].geometry.size, number))
    panels = {}
    for number, (layout, regions, index) in enumerate(grids):
        kind = "tiles" if number == largest else "thumbnail"
        title = name if len(grids) == 1 else f"{name}, {kind}"
        panels[title] = Attention(regions, weights[index], layout.geometry.place(size))
    return panels


def _assistants_by_model(
    models: Sequence[str], choice: ModelChoice, masks: MaskChoice | None
) -> Iterator[tuple[str, Assistant]]:
    """Yield each model with a title."""
    for model in models:
        assistant = load_assistant(model, choice, masks)
        source = assistant.model.regionizer.config.source
        yield f"{Path(model).name}, {source}" if len(models) > 1 else source, assistant


def _assistants_by_source(
    model: str, choice: ModelChoice, configs: Mapping[Source, RegionizerConfig]
) -> Iterator[tuple[str, Assistant]]:
    """Yield each source with a stock model whose regions are from it. All of them share the weights."""
    patches = Regionizer(source="patch", pool="mean", norm="none", padding="keep")
    stock = Assistant.load(model, regionizer=patches, device=choice.device, dtype=choice.dtype)
    with_regions = require("regiontok.adapters.huggingface", extra="hf").with_regions
    for source, config in configs.items():
        if source == "patch":
            config = replace(config, padding="keep")
        geometry = None if source not in MASK_SOURCES or stock.knows_tile_layout else stock.geometry
        yield source, Assistant(with_regions(stock.model, make_regionizer(config, geometry)), stock.processor)


def _read_images(choice: ListingChoice, figure: Path) -> list[Image.Image]:
    """Check the output, and read all images."""
    check_figure(figure)
    listing = open_listing(choice)
    images = list_images(listing, choice.images, figure)
    check_outputs([figure], [image.address for image in images])
    return [listing.read(image) for image in images]


def _encode(
    images: list[Image.Image], names: Sequence[str], choice: EncoderChoice, *, pretrained: bool
) -> dict[str, list[EncodedImage]]:
    """Return the features of the images by each encoder. One encoder is in memory at a time."""
    if len(set(names)) != len(names):
        raise RegiontokError(f"--encoders must differ; got {' '.join(names)}.")
    encoded = {}
    for name in names:
        encoder = load_encoder(replace(choice, encoder=name), pretrained=pretrained)
        encoded[name] = [encoder.encode_image(image) for image in progress(images)]
    return encoded


def _save(figure: Any, path: Path) -> int:
    save_figure(figure, path)
    print(f"Figure: {path}")
    return 0
