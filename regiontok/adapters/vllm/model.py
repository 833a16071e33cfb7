"""The common part of the region models of vLLM: a `Regionizer` between vision encoder and language model."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from vllm.logger import init_logger

from regiontok.adapters.vllm.options import check_options, region_options
from regiontok.adapters.vllm.processing import BUDGETS, check_server, share_budgets
from regiontok.pooling import MeanPool
from regiontok.regionizer import Regionizer
from regiontok.regions import Regions
from regiontok.tiles import Tile, count_images, uncut_images

_LOG = init_logger(__name__)


class Features(NamedTuple):
    """Patch features of images or videos.

    Attributes:
        grids: ``(rows, cols, dim)`` each; ``(frames, rows, cols, dim)`` of chunks of videos.
        layers: Further layers of each grid, to average, with the dimension ``more``.
        tiles: The `Tile` of each grid; by default, each grid is an image.
        times: Rotary positions in time of the frames of each chunk, ``(frames,)``; empty for images.
    """

    grids: Sequence[Tensor]
    layers: Sequence[Tensor] = ()
    tiles: Sequence[Tile] = ()
    times: Sequence[Tensor] = ()


class PixelRows(NamedTuple):
    """How the pixels of images or videos are stored, to encode them in parts.

    Attributes:
        counts: Number of rows of each image or video.
        tokens_per_row: Number of tokens of a row in the stock model.
        name: Name of the tensor in which the rows of all images follow each other; None if there is none.
    """

    counts: Sequence[int]
    tokens_per_row: float
    name: str | None = None


class RegionModel:
    """Mixin before a model of vLLM. A family defines `patch_features`, and `project` if regions precede the projector.

    Raises:
        ValueError: The Regionizer or the configuration of the server cannot be served.
    """

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        options = region_options(vllm_config.model_config.hf_config)
        check_options(options)
        self.check_server(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        options |= {"threshold": None, "num_regions": None, "keep": None, "explained_variance": None}
        options.setdefault("linkage", "ward")  # that of budgets
        self.regionizer = Regionizer(**options)
        self.max_patches: int = vllm_config.scheduler_config.max_num_batched_tokens
        _LOG.info("%s is served by a class of regiontok, not through the Transformers backend.", type(self).__name__)

    def check_server(self, vllm_config: Any) -> None:
        """Raise ValueError for options of the server that region models do not support."""
        check_server(vllm_config)

    def patch_features(self, **kwargs: Any) -> Features:
        """Return the features that regions are made of."""
        raise TypeError(f"{type(self).__name__} does not define patch_features.")

    def pixel_rows(self, medium: str, **kwargs: Any) -> PixelRows:
        """Return how the pixels of a batch are stored."""
        raise TypeError(f"{type(self).__name__} does not define pixel_rows.")

    def project(self, values: Tensor) -> Tensor:
        """Return region tokens ``(R, text_dim)``."""
        return values

    def clip_features(self, **kwargs: Any) -> Features:
        """Return the features of the chunks of videos, if the family serves them."""
        raise TypeError(f"{type(self).__name__} does not define clip_features.")

    def finish(self, values: Tensor, regions: Regions, times: Sequence[Tensor]) -> Tensor:
        """Return the embeddings of the tokens, ``(R, columns)``; see `Features` for ``times``."""
        return values

    def pack(self, tiles: Sequence[Tile], parts: Sequence[Tensor]) -> Tensor:
        """Return the embeddings of an image from those of its tiles."""
        return torch.cat(list(parts))

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Return the embeddings of each image, or of each video, ``(tokens, columns)``.

        vLLM plans by the number of tokens, so a batch may have many more images than with the stock model. They are
        encoded in parts of at most ``max_num_batched_tokens`` patches, or one image, to bound the memory.
        """
        (medium,) = (medium for medium, name in BUDGETS.items() if name in kwargs)  # vLLM passes one at a time
        rows = self.pixel_rows(medium, **kwargs)
        sizes = [count * rows.tokens_per_row for count in rows.counts]
        embeddings = []
        for start, end in split_by_size(sizes, self.max_patches):
            embeddings += self._embed(medium, **select_items(kwargs, rows, start, end))
        return embeddings

    def _embed(self, medium: str, **kwargs: Any) -> list[Tensor]:
        """Return the embeddings of each image or video of a part of a batch."""
        budget = kwargs.pop(BUDGETS[medium])
        features = self.patch_features(**kwargs) if medium == "image" else self.clip_features(**kwargs)
        grids = [grid.nan_to_num() for grid in features.grids]
        tiles = features.tiles or uncut_images([(grid.shape[0], grid.shape[1]) for grid in grids])
        counts = share_budgets(budget, tiles)
        tokens = self.regionizer(grids, num_regions=counts)
        values = self.project(tokens.values)
        if features.layers:
            values = torch.cat([values, MeanPool()(list(features.layers), tokens.regions).values], 1)
        parts = self.finish(values, tokens.regions, features.times).split(counts)
        images: list[list[int]] = [[] for _ in range(count_images(tiles))]
        for number, tile in enumerate(tiles):
            images[tile.image].append(number)
        return [
            self.pack([tiles[number] for number in numbers], [parts[number] for number in numbers])
            for numbers in images
        ]

    def is_unmerged(self, tiles: Sequence[Tile], parts: Sequence[Tensor]) -> bool:
        """Return whether each patch of an image is a region, in the order of patches."""
        counts = [tile.patches for tile in tiles]
        return counts == [len(part) for part in parts] and self.regionizer.config.order == "raster"


def split_by_size(sizes: Sequence[float], limit: float) -> list[tuple[int, int]]:
    """Return first and last (exclusive) of parts of a list whose sizes add up to at most ``limit``, or of one item.

    Example:
        >>> split_by_size([3, 3, 3, 9, 1], 6)
        [(0, 2), (2, 3), (3, 4), (4, 5)]
    """
    parts: list[tuple[int, int]] = []
    start, total = 0, 0.0
    for index, size in enumerate(sizes):
        if index > start and total + size > limit:
            parts.append((start, index))
            start, total = index, 0.0
        total += size
    return [*parts, (start, len(sizes))]


def select_items(kwargs: Mapping[str, Any], rows: PixelRows, start: int, end: int) -> dict[str, Any]:
    """Return the inputs of the images or videos from ``start`` to ``end`` of a batch."""
    count = len(rows.counts)
    if (start, end) == (0, count):
        return dict(kwargs)
    first, last = sum(rows.counts[:start]), sum(rows.counts[:end])
    selected: dict[str, Any] = {}
    for name, value in kwargs.items():
        if name == rows.name:
            selected[name] = value[first:last]
        elif hasattr(value, "__len__") and getattr(value, "ndim", 1) != 0 and len(value) == count:
            selected[name] = value[start:end]
        else:
            selected[name] = value
    return selected
