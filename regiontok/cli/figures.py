"""``regiontok figures``: the paper's figures for images, encoders and models of one's own."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from regiontok import encoders
from regiontok._require import require
from regiontok.choices import MASK_SOURCES
from regiontok.cli.checks import amount_of, amount_of_source, check_amounts, choose_sources, has_masks
from regiontok.cli.common import find_images, load_assistant, load_encoder, roots_of
from regiontok.cli.console import progress
from regiontok.cli.mask_sources import load_masks
from regiontok.cli.output import check_outputs
from regiontok.errors import RegiontokError
from regiontok.evaluation.assistant import Assistant, Question
from regiontok.evaluation.focus import check_attention
from regiontok.images import read_image
from regiontok.regionizer import Regionizer
from regiontok.regions import Regions
from regiontok.viewing import (
    Attention,
    Seen,
    check_figure,
    draw_attention,
    draw_encoders,
    draw_features,
    draw_norms,
    draw_sources,
    save_figure,
    see,
)
from regiontok.views import by_canvas


def _check(options: argparse.Namespace, images: Sequence[Path]) -> None:
    """Refuse an output that could not be written or would replace an image."""
    check_figure(options.out)
    check_outputs(options, options.out, images=images)


def _images(options: argparse.Namespace) -> list[Image.Image]:
    """The images that are named, read."""
    paths = [found.path for found in find_images(options.images, options.out)]
    _check(options, paths)
    return [read_image(path, bits=options.bits) for path in paths]


def _view(options: argparse.Namespace, images: Sequence[Image.Image]) -> dict[str, list[Seen]]:
    """The images as each encoder sees them, one encoder in memory at a time."""
    if len(set(options.encoders)) != len(options.encoders):
        raise RegiontokError(f"--encoders must differ; got {' '.join(options.encoders)}.")
    views = {}
    for name in options.encoders:
        encoder = encoders.load(
            name,
            pretrained=not options.random,
            layer=options.layer,
            final_norm=options.final_norm,
            geometry=options.geometry,
            device=options.device,
        )
        views[name] = [see(image, encoder) for image in progress(images)]
    return views


def run_norms(options: argparse.Namespace) -> int:
    """Run ``figures norms``; return the exit code."""
    _check(options, [options.image])
    views = _view(options, [read_image(options.image, bits=options.bits)])
    return _save(draw_norms({name: seen[0] for name, seen in views.items()}), options)


def run_features(options: argparse.Namespace) -> int:
    """Run ``figures features``; return the exit code."""
    images = _images(options)
    return _save(draw_features(_view(options, images)), options)


def run_encoders(options: argparse.Namespace) -> int:
    """Run ``figures encoders``; return the exit code."""
    amount = amount_of(options)
    images = _images(options)
    figure = draw_encoders(_view(options, images), norm=options.norm, **amount)
    return _save(figure, options)


def run_regions(options: argparse.Namespace) -> int:
    """Run ``figures regions``; return the exit code."""
    _check(options, [options.image])
    sources = choose_sources(options)
    image = read_image(options.image, bits=options.bits)
    encoder = load_encoder(options)
    masks = (
        [load_masks(options, encoder, roots=roots_of(options, [options.image]))(options.image, image)]
        if has_masks(options)
        else None
    )
    features, valid = encoder(image)
    regions: dict[str, Regions] = {}
    for source in sources:
        regionizer = Regionizer(
            source=source,
            pool="mean",
            norm=options.norm,
            geometry=encoder.geometry,
            **amount_of_source(options, source),
        )
        given = masks if source in MASK_SOURCES else None
        regions[source] = regionizer.group(regionizer.normalize(features), masks=given, valid=valid)
    return _save(draw_sources(image, regions, encoder.geometry.place((image.height, image.width))), options)


def run_attention(options: argparse.Namespace) -> int:
    """Run ``figures attention``; return the exit code."""
    _check(options, [options.image])
    if options.sources and len(options.model) > 1:
        raise RegiontokError("--sources is for one stock model; several models are a panel each. Leave one out.")
    image = read_image(options.image)
    panels, said_by, found = {}, {}, None
    for name, assistant in _assistants(options):
        check_attention(assistant.model.config, options.layers, None)
        if assistant.by_masks and found is None:
            found = [load_masks(options, roots=roots_of(options, [options.image]))(options.image, image)]
        asked = [Question(options.question, [image], found if assistant.by_masks else None)]
        if options.answer is None:
            said = assistant.answer(asked, max_new_tokens=options.max_new_tokens)[0]
            tokens, told = said.tokens, said.text
        else:
            tokens, told = assistant.tokens(options.answer), options.answer
        said_by[name] = told
        attention = assistant.attend(asked, [tokens], query=options.query)
        weights = attention.weights[0] if options.layers is None else attention.weights[0][options.layers]
        mean, size = weights.mean((0, 1)), (image.height, image.width)
        if not assistant.places_images:
            panels[name] = Attention(attention.regions, mean, assistant.geometry.place(size))
            continue
        grids = by_canvas(attention.regions, attention.views or [])
        if not grids:
            raise RegiontokError(f"{name}: where its tiles lie on the image is not known, so they cannot be drawn.")
        tiles = max(range(len(grids)), key=lambda number: (grids[number][0].geometry.size, number))
        for number, (canvas, regions, index) in enumerate(grids):
            seen = f"{name}, {'tiles' if number == tiles else 'thumbnail'}"
            panels[name if len(grids) == 1 else seen] = Attention(regions, mean[index], canvas.geometry.place(size))
    save_figure(draw_attention(image, panels, question=options.question, spread=options.spread), options.out)
    for name, told in said_by.items():
        print(f"{name}: {told}")
    print(f"Figure: {options.out}")
    return 0


def _assistants(options: argparse.Namespace) -> Iterator[tuple[str, Assistant]]:
    """A name and a model for each panel."""
    if not options.sources:
        if options.mask_weight is not None:
            raise RegiontokError("--mask-weight is for --sources. Leave it out.")
        for folder in options.model:
            assistant = load_assistant(folder, options)
            source = assistant.model.regionizer.config.source
            several = len(options.model) > 1
            yield f"{Path(folder).name}, {source}" if several else source, assistant
        return
    sources = choose_sources(options)
    check_amounts(options, sources)
    patches = Regionizer(source="patch", norm=options.norm or "none", padding="keep")
    stock = Assistant.load(options.model[0], regionizer=patches, device=options.device, dtype=options.dtype)
    with_regions = require("regiontok.adapters.huggingface", extra="hf").with_regions
    for source in sources:
        given: dict[str, Any] = {"source": source, "pool": "mean", "norm": options.norm or "none"}
        given |= amount_of_source(options, source)
        if source == "patch":
            given["padding"] = "keep"
        if source in MASK_SOURCES and not stock.places_images:
            given["geometry"] = stock.geometry
        yield source, Assistant(with_regions(stock.model, Regionizer(**given)), stock.processor)  # weights are shared


def _save(figure: Any, options: argparse.Namespace) -> int:
    save_figure(figure, options.out)
    print(f"Figure: {options.out}")
    return 0
