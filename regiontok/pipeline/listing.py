"""List images or videos with their keys, and read them."""

import copy
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Self

from PIL import Image

from regiontok.errors import DataError, ImageError, ValueRangeError
from regiontok.geometry import Size
from regiontok.images import is_image_name, read_image, read_size
from regiontok.pipeline.containers import Container, ImageSource, TarImages
from regiontok.pipeline.files import read_remote
from regiontok.pipeline.roots import Roots
from regiontok.pipeline.sources import ImageFiles, ImageFolder, open_sources
from regiontok.sampling import FrameSampling, is_video_name
from regiontok.store.stamps import Stamp, stamp_of_file
from regiontok.store.storage import is_remote
from regiontok.videos import Video, read_video


class ListedImage(NamedTuple):
    """An image to process.

    Attributes:
        key: The key in a store.
        address: The path or address to read it from.
        stamp: Size and modification time of its file; empty if the listing does not provide them.
        inside: The path of an image in a tar, Parquet file or dataset, as if that were a folder; otherwise empty.
    """

    key: str
    address: str
    stamp: Stamp = Stamp()
    inside: str = ""

    @property
    def path(self) -> str:
        """Path by which annotations and mask stores are searched."""
        return self.inside or self.address


class Reader:
    """Read images from local and remote files, tars, Parquet files and datasets.

    Args:
        containers: The files that contain many images.
        bits: Bits that 16-bit greyscale images use; see `regiontok.read_image`.
        frames: Sampling of frames, if the files are videos.
    """

    def __init__(
        self,
        containers: Iterable[Container] = (),
        *,
        bits: int | None = None,
        frames: FrameSampling | None = None,
    ) -> None:
        self.bits = bits
        self.frames = frames
        self._containers = {container.address: container for container in containers}
        self._admit: Callable[[int], None] | None = None

    def gated(self, admit: Callable[[int], None]) -> Self:
        """Return a copy that calls ``admit`` with the number of pixels of an image before it decodes them."""
        reader = copy.copy(self)
        reader._admit = admit
        return reader

    def _container(self, image: ListedImage) -> Container | None:
        return self._containers.get(image.address.rpartition("#")[0]) if self._containers else None

    def read(self, image: ListedImage) -> Image.Image:
        """Return an image, upright and in RGB.

        Raises:
            ImageError: The image cannot be read; see `regiontok.read_image`.
        """
        container = self._container(image)
        if container is not None:
            return container.image(image.address, bits=self.bits, admit=self._admit)
        return read_image(image.address, _remote_data(image), bits=self.bits, admit=self._admit)

    def read_video(self, video: ListedImage) -> Video:
        """Return sampled frames of a video, upright and in RGB. A file in a tar or elsewhere is copied first.

        A gated reader waits after the frames are decoded, since their number and size are not known before.

        Raises:
            DataError: The video cannot be read; see ``regiontok.read_video``.
            ValueRangeError: The reader is for images.
        """
        if self.frames is None:
            raise ValueRangeError("this listing is of images. Pass frames=FrameSampling(...) to list videos.")
        options: dict[str, Any] = self.frames.describe()
        container = self._container(video)
        if container is not None or is_remote(video.address):
            data = read_remote(video.address) if container is None else container.data(video.address)
            with tempfile.NamedTemporaryFile(suffix=PurePosixPath(video.path).suffix) as file:
                file.write(data)
                file.flush()
                try:
                    frames = read_video(file.name, **options)
                except DataError as error:
                    raise DataError(str(error).replace(file.name, video.path)) from error
        else:
            frames = read_video(video.address, **options)
        if self._admit is not None:
            self._admit(sum(frame.width * frame.height for frame in frames.frames))
        return frames

    def size(self, image: ListedImage) -> tuple[Size, int]:
        """Return the height and width of an image, upright, and its EXIF orientation, without decoding the pixels.

        Raises:
            ImageError: The image cannot be read.
        """
        container = self._container(image)
        if container is not None:
            return container.size(image.address)
        return read_size(image.address, _remote_data(image))

    def stamp(self, image: ListedImage) -> Stamp:
        """Return the size and modification time of an image's file, if they are known without a remote request."""
        if image.stamp != Stamp() or is_remote(image.address) or self._container(image) is not None:
            return image.stamp
        return stamp_of_file(image.address)


class Listing(Reader):
    """Images with their keys; iterate over it, also repeatedly, to get each `ListedImage`.

    Args:
        paths: Paths, or addresses of fsspec such as ``s3://bucket/images``, of images, folders, patterns such as
            ``images/*.jpg``, lists of images, datasets that ``datasets`` saved, Parquet files with a column of images,
            and WebDataset tars. A list is a text file with a path per line, or JSON or JSON lines of paths or objects
            with ``image``, as in LLaVA's data. Keys of images in a Parquet file or tar start with the file's name.
        root: The folder that keys and the paths in lists are relative to; by default the named folder, or the folder
            that contains the image or list.
        column: The image column of datasets and Parquet files.
        key_column: The key column of datasets and Parquet files; by default, row numbers are keys.
        bits: Bits that 16-bit greyscale images use; see `regiontok.read_image`.
        frames: How frames are sampled, to list videos instead of images: files, animated images, and local folders of
            frames (several images, and neither videos nor subfolders), in folders, patterns and lists.

    Raises:
        ImageError: There is no image, or a list cannot be read.
        ValueRangeError: Videos in a Parquet file or dataset; an image is not in ``root``, a path contains ``..``,
            or two folders have the same name.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> Image.new("RGB", (8, 8)).save(folder + "/b.png")
        >>> Image.new("RGB", (8, 8)).save(folder + "/a.png")
        >>> [image.key for image in Listing([folder])]
        ['a.png', 'b.png']
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        *,
        root: str | Path | None = None,
        column: str | None = None,
        key_column: str | None = None,
        bits: int | None = None,
        frames: FrameSampling | None = None,
    ) -> None:
        folder = None if root is None else os.fspath(root)
        addresses = [os.fspath(path) for path in paths]
        is_listed = is_image_name if frames is None else is_video_name
        self._sources = open_sources(addresses, root=folder, column=column, key_column=key_column, is_listed=is_listed)
        containers = [source for source in self._sources if isinstance(source, Container)]
        other = next((source for source in containers if not isinstance(source, TarImages)), None)
        if other is not None and frames is not None:
            raise ValueRangeError(f"{other.address}: videos are read from files and tars only. Extract them first.")
        super().__init__(containers, bits=bits, frames=frames)
        self.roots = Roots([source.root for source in self._sources] if root is None else [root])
        for source in self._sources:
            if next(iter(source), None) is None:
                kind = "image" if frames is None else "video"
                hint = " Videos need a sampling of frames, such as num_frames." * (
                    frames is None and _has_videos(source)
                )
                raise ImageError(f"{source.address}: there is no {kind} in it.{hint}")
            for address in source.paths if isinstance(source, ImageFiles) else [f"{source.root.rstrip('/')}/any"]:
                self.roots.key(address)  # raises an error if it is not in the root

    def __iter__(self) -> Iterator[ListedImage]:
        """Iterate over the images without duplicates. Keys that a store would reject are included."""
        can_repeat = len(self._sources) != 1 or isinstance(self._sources[0], ImageFiles)
        keys: set[str] = set()
        for source in self._sources:
            key_of = self.roots.below(source.root)
            for address, name, stamp in source:
                inside = "" if name is None else f"{source.root}/{name}"
                key = key_of(inside or address)
                if can_repeat:
                    if key in keys:
                        continue
                    keys.add(key)
                yield ListedImage(key, address, stamp, inside)

    def reader(self) -> Reader:
        """Return a reader of the images without their paths, which is small when pickled."""
        return Reader(self._containers.values(), bits=self.bits, frames=self.frames)


def _has_videos(source: ImageSource) -> bool:
    """Return whether a folder without images has videos."""
    return isinstance(source, ImageFolder) and next(iter(ImageFolder(source.root, is_video_name)), None) is not None


def in_slice(key: str, rank: int, world_size: int) -> bool:
    """Return whether an image belongs to a rank, from a hash of its key; other images do not affect the result.

    Example:
        >>> [in_slice("a.jpg", rank, 3) for rank in range(3)]
        [False, False, True]
    """
    return zlib.crc32(key.encode(errors="surrogatepass")) % world_size == rank


def _remote_data(image: ListedImage) -> bytes | None:
    return read_remote(image.address) if is_remote(image.address) else None
