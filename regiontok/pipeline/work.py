"""What is made of images: rows of a store. Each work reads an image in a reader's thread, and makes rows of a batch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from regiontok._checks import check_choice
from regiontok.choices import TOKEN_DTYPES
from regiontok.encoders import Encoder
from regiontok.errors import DTypeError, ImageError, RegiontokError
from regiontok.geometry import Size
from regiontok.maskset import MaskSet
from regiontok.pipeline.listing import ListedImage, Reader
from regiontok.regionizer import Regionizer
from regiontok.regions import Regions
from regiontok.store.masks import masks_table
from regiontok.store.tokens import tokens_table


class Work(ABC):
    """How images become rows of a store."""

    kind: ClassVar[str]
    lanes: int = 1
    """Batches that may be made at the same time, each by one thread of torch; on a CPU, as many as it has cores."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What the rows depend on, as plain values."""

    @abstractmethod
    def read(self, reader: Reader, image: ListedImage) -> Any:
        """What is needed of an image; called by many threads.

        Raises:
            RegiontokError: It cannot be had.
        """

    @abstractmethod
    def make(self, keys: Sequence[str], items: Sequence[Any]) -> Any:
        """Rows of what was read of some images, as a table of pyarrow, in their order."""


@dataclass
class GenerateMasks(Work):
    """Masks by a generator.

    Args:
        generator: Images in, a `MaskSet` or an array of masks per image out; with ``describe()`` if it can.
        lanes: Calls at the same time.
    """

    generator: Any
    lanes: int = 1
    kind = "masks"

    def describe(self) -> dict[str, Any]:
        """What the generator tells of itself."""
        return describe_generator(self.generator)

    def read(self, reader: Reader, image: ListedImage) -> Image.Image:
        """The image."""
        return reader.read(image)

    def make(self, keys: Sequence[str], items: Sequence[Image.Image]) -> Any:
        """The masks of some images."""
        found = list(self.generator(list(items)))
        if len(found) != len(items):
            raise DTypeError(f"a generator must give masks for each of {len(items)} images; got {len(found)}.")
        return masks_table(keys, [one if isinstance(one, MaskSet) else MaskSet.of(one) for one in found])


@dataclass
class TakeMasks(Work):
    """Masks that people made, which are looked up by image.

    Args:
        find: The masks of an image of a size, upright, and of an EXIF orientation; None if it has none. It is called in
            the order of the listing.
        made_by: Where the masks are from, as plain values.
        generator: Makes masks of the images that have none; by default they get an empty set.
    """

    find: Callable[[ListedImage, Size, int], MaskSet | None]
    made_by: dict[str, Any] = field(default_factory=dict)
    generator: Any = None
    kind = "masks"

    def describe(self) -> dict[str, Any]:
        """Return where the masks are from, and the generator of those that are missing."""
        return (
            self.made_by if self.generator is None else self.made_by | {"missing": describe_generator(self.generator)}
        )

    def read(self, reader: Reader, image: ListedImage) -> tuple[Reader, ListedImage, Size, int]:
        """Return an image's size and how EXIF turns it; its pixels are not read."""
        return reader, image, *reader.size(image)

    def make(self, keys: Sequence[str], items: Sequence[tuple[Reader, ListedImage, Size, int]]) -> Any:
        """Return the masks of some images."""
        return masks_table(keys, [self._masks_of(*item) for item in items])

    def _masks_of(self, reader: Reader, image: ListedImage, size: Size, orientation: int) -> MaskSet:
        found = self.find(image, size, orientation)
        if found is not None:
            return found
        if self.generator is None:
            return MaskSet.from_coco([], size=size)
        made = self.generator([reader.read(image)])[0]
        return made if isinstance(made, MaskSet) else MaskSet.of(made)


def describe_generator(generator: Any) -> dict[str, Any]:
    """Return what a generator reports of itself, or its name."""
    describe = getattr(generator, "describe", None)
    if describe is not None:
        return dict(describe())
    return {"generator": getattr(generator, "__name__", type(generator).__name__)}


class _Placed(NamedTuple):
    """An image on the encoder's input."""

    size: Size
    pixels: Tensor
    valid: Tensor
    image: Image.Image | None
    masks: MaskSet | None


@dataclass
class MakeTokens(Work):
    """Region tokens by an encoder and a Regionizer.

    Args:
        encoder: An `Encoder`.
        regionizer: Where it needs masks, ``masks`` gives them.
        masks: The masks of an image that was read, by key; called in a reader's thread.
        generator: In its place, images to masks, called beside the encoder.
        masks_told: What the masks are, as plain values.
        dtype: Of the stored tokens, ``float16`` or ``float32``.
        draw: Called with each image's key, its pixels and its regions, to keep a picture.
        lanes: Batches at the same time.
    """

    encoder: Encoder
    regionizer: Regionizer
    masks: Callable[[ListedImage, Image.Image], MaskSet] | None = None
    generator: Any = None
    masks_told: dict[str, Any] | None = None
    dtype: str = "float16"
    draw: Callable[[str, Image.Image, Regions], None] | None = None
    lanes: int = 1
    kind = "tokens"

    def __post_init__(self) -> None:
        check_choice("dtype", self.dtype, TOKEN_DTYPES)

    def describe(self) -> dict[str, Any]:
        """Of the encoder, the Regionizer and the masks."""
        told = {**self.encoder.describe(), "regionizer": self.regionizer.config.to_dict(), "dtype": self.dtype}
        return told if self.masks_told is None else told | {"masks": self.masks_told}

    def read(self, reader: Reader, listed: ListedImage) -> _Placed:
        """The image on the encoder's input, and its masks where they are known."""
        image = reader.read(listed)
        pixels, valid = self.encoder.preprocess(image)
        masks = None if self.masks is None else self.masks(listed, image)
        keep = self.draw is not None or self.generator is not None
        return _Placed((image.height, image.width), pixels, valid, image if keep else None, masks)

    @torch.no_grad()
    def make(self, keys: Sequence[str], items: Sequence[_Placed]) -> Any:
        """Tokens of some images."""
        pixels, valid = (torch.cat([getattr(one, name) for one in items]) for name in ("pixels", "valid"))
        features: Any = self.encoder.encode(pixels)
        masks: Any = None
        if self.generator is not None:
            masks = self.generator([one.image for one in items])
        elif self.masks is not None:
            masks = [one.masks for one in items]
        features = self.regionizer.normalize(features)
        regions = self.regionizer.order(self.regionizer.group(features, masks=masks, valid=valid))
        tokens = self.regionizer.pool(features, regions)
        if self.draw is not None:
            for number, (key, one) in enumerate(zip(keys, items, strict=True)):
                if one.image is not None:
                    self.draw(key, one.image, _of_image(regions, number))
        return tokens_table(keys, tokens, sizes=[one.size for one in items], dtype=self.dtype)

    def columns(self, images: Sequence[Image.Image]) -> dict[str, list[Any]]:
        """Columns of some images for ``datasets.Dataset.map(..., batched=True)``, as a store has them, and ``error``.

        An image that cannot be read has the reason as its error, and null elsewhere; one that can must be among them.

        Example:
            >>> make = MakeTokens(encoder, Regionizer(pool="mean"))  # doctest: +SKIP
            >>> rows = rows.map(lambda some: make.columns(some["image"]), batched=True, batch_size=16)  # doctest: +SKIP
        """
        items: list[_Placed] = []
        errors: list[str | None] = []
        for image in images:
            try:
                pixels, valid = self.encoder.preprocess(image)
                items.append(_Placed((image.height, image.width), pixels, valid, image, None))
                errors.append(None)
            except RegiontokError as error:
                errors.append(str(error))
        if not items:
            raise ImageError(f"no image of the batch can be read; the first: {errors[0]}")
        made: dict[str, list[Any]] = self.make([""] * len(items), items).drop_columns(["key"]).to_pydict()
        rows = iter(range(len(items)))
        place = [None if error else next(rows) for error in errors]
        columns = {name: [None if row is None else values[row] for row in place] for name, values in made.items()}
        return columns | {"error": errors}


def _of_image(regions: Regions, image: int) -> Regions:
    """The regions of one image of a batch."""
    own = (regions.image == image).nonzero().flatten()
    member = torch.isin(regions.region, own)
    first = int(own[0])
    return Regions(
        patch=regions.patch[member],
        region=regions.region[member] - first,
        image=torch.zeros_like(own),
        mask_index=regions.mask_index[own],
        score=regions.score[own],
        grids=regions.grids[image : image + 1],
        fallback=regions.fallback[image : image + 1],
        dropped=tuple(one._replace(image=0) for one in regions.dropped if one.image == image),
    )
