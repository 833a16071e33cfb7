"""The images that a command names, with their features and masks."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from regiontok._files import is_same
from regiontok.cli.console import progress
from regiontok.cli.loading import load_image_encoder
from regiontok.cli.mask_sources import load_masks
from regiontok.cli.output import check_outputs, report
from regiontok.cli.values import EncoderChoice, ListingChoice, MaskChoice
from regiontok.encoders import EncodedImage
from regiontok.errors import ImageError, ValueRangeError
from regiontok.maskset import MaskSet
from regiontok.pipeline import ListedImage, Listing
from regiontok.pipeline.run import IMAGE_ERRORS
from regiontok.sampling import FrameSampling
from regiontok.viewing import check_figure, is_figure

_T = TypeVar("_T")


def open_listing(choice: ListingChoice, *, frames: FrameSampling | None = None, for_store: bool = False) -> Listing:
    """Return the images or videos that are named. Only stores reject different folders with the same name."""
    settings = vars(choice) | {"frames": frames}
    paths = settings.pop("images")
    try:
        return Listing(paths, **settings)
    except ValueRangeError:
        if for_store or choice.root is not None or any("://" in path for path in paths):
            raise
    common = os.path.commonpath([os.path.abspath(path) for path in paths])  # noqa: PTH100  as in keys
    return Listing(paths, **settings | {"root": common})


def list_images(listing: Listing, paths: Sequence[str], figure: Path) -> list[ListedImage]:
    """Return the images of a listing, without the figure of an earlier run, unless it is one of the named paths."""
    is_output = is_figure(figure) if figure.is_file() else False
    images = [
        image for image in listing if image.address in paths or not (is_output and is_same(image.address, figure))
    ]
    if not images:
        raise ImageError(f"there is no image in {', '.join(paths)}.")
    return images


class EncodedImages:
    """Images with their features by an encoder and their masks.

    Args:
        images: The images.
        encoder: The encoder.
        masks: The masks.
        figure: The figure that the command will write.
        outputs: Further outputs. All outputs are checked before the encoder is loaded.
    """

    def __init__(
        self,
        images: ListingChoice,
        encoder: EncoderChoice,
        masks: MaskChoice | None,
        figure: Path,
        *outputs: Path | None,
    ) -> None:
        check_figure(figure)
        self._listing = open_listing(images)
        self._images = list_images(self._listing, images.images, figure)
        check_outputs([figure, *outputs], [image.address for image in self._images], encoder, masks)
        self.encoder = load_image_encoder(encoder)
        self._masks = None if masks is None else load_masks(masks, encoder=self.encoder, roots=self._listing.roots)
        self.errors: dict[str, str] = {}

    def map(self, function: Callable[[EncodedImage, MaskSet | None], _T]) -> dict[str, _T]:
        """Return the results of a function of the features and masks of each image, by path.

        Images that fail have an entry in ``errors`` instead.
        """
        results = {}
        for listed in progress(self._images):
            try:
                image = self._listing.read(listed)
                masks = None if self._masks is None else self._masks(listed.path, image)
                results[listed.path] = function(self.encoder.encode_image(image), masks)
            except IMAGE_ERRORS as error:
                self.errors[listed.path] = str(error) or "not enough memory"
        return results

    def table(self, rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
        """Return rows of a table in the order of the images, with the errors of those that failed."""
        paths = [image.path for image in self._images]
        return [{"image": path} | (rows[path] if path in rows else {"error": self.errors[path]}) for path in paths]

    def report(self) -> int:
        """Print the errors, and return the exit code."""
        return report(self.errors, len(self._images))
