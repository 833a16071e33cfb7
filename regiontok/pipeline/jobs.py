"""Jobs compute the rows of a store from images. One call reads an image, another computes the rows of a batch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from regiontok._values import check_choice
from regiontok.choices import TOKEN_DTYPES
from regiontok.encoders import Encoder
from regiontok.errors import DTypeError, ImageError, RegiontokError, ValueRangeError
from regiontok.geometry import Size
from regiontok.maskset import MaskSet
from regiontok.pipeline.listing import ListedImage, Reader
from regiontok.regionizer import Regionizer
from regiontok.regions import Regions
from regiontok.store.masks import masks_table
from regiontok.store.stamps import Stamp, with_stamps
from regiontok.store.tokens import tokens_table
from regiontok.tracks import TrackSet

MaskGenerator = Callable[[list[Image.Image]], Sequence[Any]]
"""Images to masks, a `MaskSet` or an array per image; it may have ``describe()``, which returns its settings."""


class Job(ABC):
    """The computation of the rows of a store from images.

    Attributes:
        kind: The kind of store, ``masks`` or ``tokens``.
        num_workers: Batches that are computed at the same time, each by a thread that uses one core. On a GPU, one.
    """

    kind: ClassVar[str]
    num_workers: int = 1

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return all settings that affect the rows, as values for JSON."""

    @abstractmethod
    def read(self, reader: Reader, image: ListedImage) -> Any:
        """Return the input that `make` needs of an image. Called by several threads at the same time.

        Raises:
            RegiontokError: The input cannot be read.
        """

    @abstractmethod
    def make(self, keys: Sequence[str], items: Sequence[Any]) -> Any:
        """Return the rows of a batch as a pyarrow table, in the order of the inputs from `read`."""

    def add_stamps(self, rows: Any, stamps: Sequence[Stamp]) -> Any:
        """Return rows with the stamps of the image files. Override it if the rows are not a table."""
        return with_stamps(rows, list(stamps))


@dataclass
class GenerateMasksJob(Job):
    """Generate masks.

    Args:
        generator: Returns a `MaskSet` or an array of masks per image.
        num_workers: Number of concurrent calls of the generator.
    """

    generator: MaskGenerator
    num_workers: int = 1
    kind = "masks"

    def describe(self) -> dict[str, Any]:
        """Return the settings of the generator."""
        return _describe_generator(self.generator)

    def read(self, reader: Reader, image: ListedImage) -> Image.Image:
        """Return the image in RGB."""
        return reader.read(image)

    def make(self, keys: Sequence[str], items: Sequence[Image.Image]) -> Any:
        """Return the masks of a batch of images."""
        return masks_table(keys, _generate(self.generator, items))


@dataclass
class ImportMasksJob(Job):
    """Import annotated masks.

    Args:
        find: Returns the masks of an image, from its size when upright and its EXIF orientation; None if there are no
            annotations. Called in the order of the listing.
        provenance: The source of the masks, as values for JSON.
        generator: Generates masks of images without annotations; by default these have no masks.
    """

    find: Callable[[ListedImage, Size, int], MaskSet | None]
    provenance: dict[str, Any] = field(default_factory=dict)
    generator: MaskGenerator | None = None
    kind = "masks"

    def describe(self) -> dict[str, Any]:
        """Return the source of the masks, and the settings of the generator."""
        missing = {} if self.generator is None else {"missing": _describe_generator(self.generator)}
        return self.provenance | missing

    def read(self, reader: Reader, image: ListedImage) -> tuple[Reader, ListedImage, Size, int]:
        """Return the size and EXIF orientation of an image without decoding its pixels."""
        return reader, image, *reader.size(image)

    def make(self, keys: Sequence[str], items: Sequence[tuple[Reader, ListedImage, Size, int]]) -> Any:
        """Return the masks of a batch of images."""
        return masks_table(keys, [self._masks_of(*item) for item in items])

    def _masks_of(self, reader: Reader, image: ListedImage, size: Size, orientation: int) -> MaskSet:
        masks = self.find(image, size, orientation)
        if masks is not None:
            return masks
        if self.generator is None:
            return MaskSet.from_coco([], size=size)
        return _generate(self.generator, [reader.read(image)])[0]


def _generate(generator: MaskGenerator, images: Sequence[Image.Image]) -> list[MaskSet]:
    mask_sets = list(generator(list(images)))
    if len(mask_sets) != len(images):
        raise DTypeError(f"a generator must return masks for each of {len(images)} images; got {len(mask_sets)}.")
    return [masks if isinstance(masks, MaskSet) else MaskSet.of(masks) for masks in mask_sets]


def _describe_generator(generator: MaskGenerator) -> dict[str, Any]:
    """Return the settings of a generator, or its name if it does not describe itself."""
    describe = getattr(generator, "describe", None)
    if describe is not None:
        return dict(describe())
    return {"generator": getattr(generator, "__name__", type(generator).__name__)}


class _EncoderInput(NamedTuple):
    """An image or the frames of a video, preprocessed for the encoder, with its masks."""

    size: Size
    pixels: Tensor
    valid: Tensor
    image: Image.Image | list[Image.Image] | None
    masks: MaskSet | TrackSet | None
    is_clip: bool = False


@dataclass
class TokenizeJob(Job):
    """Compute region tokens by an encoder and a Regionizer.

    Args:
        encoder: The image encoder.
        regionizer: Makes tokens of the features. If it needs masks, set ``masks`` or ``generator``.
        masks: Returns the masks of an image. Called by the threads that read.
        generator: Generates the masks of a batch instead. Called by the threads that compute.
        tracks: Returns the tracks of a video from its key, the numbers of the sampled frames and the number of all
            frames. Called by the threads that read.
        mask_provenance: The source of the masks or tracks, as values for JSON.
        dtype: Data type of the stored tokens, ``float16`` or ``float32``.
        draw: Called with the key, the pixels and the regions of each image, to draw them. The pixels of a video are its
            frames.
        num_workers: Number of batches that are computed at the same time.
    """

    encoder: Encoder
    regionizer: Regionizer
    masks: Callable[[ListedImage, Image.Image], MaskSet] | None = None
    generator: MaskGenerator | None = None
    tracks: Callable[[str, list[int], int], TrackSet] | None = None
    mask_provenance: dict[str, Any] | None = None
    dtype: str = "float16"
    draw: Callable[[str, Image.Image | list[Image.Image], Regions], None] | None = None
    num_workers: int = 1
    kind = "tokens"

    def __post_init__(self) -> None:
        check_choice("dtype", self.dtype, TOKEN_DTYPES)

    def describe(self) -> dict[str, Any]:
        """Return the settings of the encoder and the Regionizer, and the source of the masks."""
        settings = {**self.encoder.describe(), "regionizer": self.regionizer.config.to_dict(), "dtype": self.dtype}
        return settings if self.mask_provenance is None else settings | {"masks": self.mask_provenance}

    def read(self, reader: Reader, image: ListedImage) -> _EncoderInput:
        """Return an image as the encoder's input, with its masks unless they are generated later; or a video."""
        if reader.frames is not None:
            if self.masks is not None or self.generator is not None:
                raise ValueRangeError("masks are for images. Use tracks, or source='clustering', for videos.")
            video = reader.read_video(image)
            frames = video.frames
            tracks = None if self.tracks is None else self.tracks(image.key, video.indices, video.num_frames)
            clip, valid = self.encoder.preprocess(frames)
            size = (frames[0].height, frames[0].width)
            return _EncoderInput(size, clip, valid, frames if self.draw is not None else None, tracks, is_clip=True)
        pixels = reader.read(image)
        return self._prepare(pixels, None if self.masks is None else self.masks(image, pixels))

    def _prepare(self, image: Image.Image, masks: MaskSet | None) -> _EncoderInput:
        pixels, valid = self.encoder.preprocess(image)
        needs_image = self.draw is not None or self.generator is not None
        return _EncoderInput((image.height, image.width), pixels, valid, image if needs_image else None, masks)

    @torch.no_grad()
    def make(self, keys: Sequence[str], items: Sequence[_EncoderInput]) -> Any:
        """Return the tokens of a batch of images or videos."""
        if items[0].is_clip:
            features: Any = [self.encoder.encode(item.pixels) for item in items]
            masks: Any = None if self.tracks is None else [item.masks for item in items]
            tokens = self.regionizer(features, masks=masks, valid=[item.valid for item in items])
        else:
            features = self.encoder.encode(torch.cat([item.pixels for item in items]))
            masks = None
            if self.generator is not None:
                masks = self.generator([item.image for item in items if isinstance(item.image, Image.Image)])
            elif self.masks is not None:
                masks = [item.masks for item in items]
            tokens = self.regionizer(features, masks=masks, valid=torch.cat([item.valid for item in items]))
        if self.draw is not None:
            for key, item, regions in zip(keys, items, tokens.regions, strict=True):
                if item.image is not None:
                    self.draw(key, item.image, regions)
        return tokens_table(keys, tokens, sizes=[item.size for item in items], dtype=self.dtype)

    def columns(self, images: Sequence[Image.Image]) -> dict[str, list[Any]]:
        """Return the columns of a token store for a batch of images, for ``datasets.Dataset.map(..., batched=True)``.

        The column ``error`` has the reason if an image cannot be read; its other columns are then None.

        Raises:
            ImageError: No image of the batch can be read.

        Example:
            >>> job = TokenizeJob(encoder, Regionizer(pool="mean"))  # doctest: +SKIP
            >>> rows = rows.map(lambda batch: job.columns(batch["image"]), batched=True)  # doctest: +SKIP
        """
        items: list[_EncoderInput] = []
        errors: list[str | None] = []
        for image in images:
            try:
                items.append(self._prepare(image, None))
                errors.append(None)
            except RegiontokError as error:
                errors.append(str(error).removeprefix("image 0: "))
        if not items:
            raise ImageError(f"no image of the batch can be read; the first error: {errors[0]}")
        table = self.make([""] * len(items), items).drop_columns(["key"])
        columns: dict[str, list[Any]] = {}
        for name, values in table.to_pydict().items():
            value = iter(values)
            columns[name] = [next(value) if error is None else None for error in errors]
        return columns | {"error": errors}
