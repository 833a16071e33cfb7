"""Write the tokens of each image to files: a drawing and tensors; and print a table of counts and times."""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from PIL import Image

from regiontok import __version__
from regiontok._files import atomic_write, make_folder
from regiontok.choices import MASK_SOURCES, Source
from regiontok.cli.console import one_line
from regiontok.cli.mask_sources import MaskSource
from regiontok.clustering import UnionFindClusterer
from regiontok.encoders import Encoder
from regiontok.errors import DataError
from regiontok.geometry import ImageGeometry
from regiontok.maskset import MaskSet
from regiontok.pipeline import Job, ListedImage, Reader
from regiontok.pipeline.roots import identity
from regiontok.pipeline.run import IMAGE_ERRORS
from regiontok.regionizer import Regionizer
from regiontok.regions import Regions
from regiontok.store.keys import printable
from regiontok.store.token_files import read_config, save_tokens
from regiontok.tokens import RegionTokens
from regiontok.tracks import TrackSet
from regiontok.videos import Video
from regiontok.viewing import draw_clip, draw_regions

_T = TypeVar("_T")
_MAX_LINES = 10
"""The number of images up to which the table has a line for each image."""
_STAGES = ("read", "encode", "masks", "normalize", "group", "pool", "write")


class Stopwatch:
    """Seconds per stage. It waits for the device, whose work would otherwise be counted in a later stage."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    def measure(self, stage: str, function: Callable[[], _T]) -> _T:
        """Run a function and record its time."""
        start = time.perf_counter()
        result = function()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[stage] = time.perf_counter() - start
        return result


class TokenizedImage(NamedTuple):
    """The tokens of an image or video, the number of patches that it had, and the times of the stages."""

    listed: ListedImage
    image: Image.Image | Video
    tokens: RegionTokens
    num_patches: int
    watch: Stopwatch


class TimedJob(Job):
    """Tokenize images one by one, and measure the time of each stage.

    Args:
        encoder: The encoder.
        regionizer: The Regionizer.
        masks: Masks of the images, if the Regionizer needs them.
        tracks: Tracks of the videos; see `TokenizeJob`.
    """

    kind = "tokens"

    def __init__(
        self,
        encoder: Encoder,
        regionizer: Regionizer,
        masks: MaskSource | None = None,
        tracks: Callable[[str, list[int], int], TrackSet] | None = None,
    ) -> None:
        self.encoder = encoder
        self.regionizer = regionizer
        self.masks = masks
        self.tracks = tracks

    def describe(self) -> dict[str, Any]:
        """Return the encoder and the options of the Regionizer."""
        return {**self.encoder.describe(), "regionizer": self.regionizer.config.to_dict()}

    def read(self, reader: Reader, listed: ListedImage) -> tuple[ListedImage, Image.Image | Video, Stopwatch]:
        """Return an image or video, and a stopwatch with the time of reading."""
        watch = Stopwatch(self.encoder.device)
        read: Callable[[ListedImage], Image.Image | Video] = reader.read if reader.frames is None else reader.read_video
        return listed, watch.measure("read", lambda: read(listed)), watch

    def make(self, keys: Sequence[str], items: Sequence[Any]) -> list[TokenizedImage]:
        """Return the tokens of each image."""
        return [self.tokenize(*item) for item in items]

    def add_stamps(self, rows: Any, stamps: Any) -> Any:
        """Return the results unchanged, since files have no stamps."""
        return rows

    def tokenize(self, listed: ListedImage, image: Image.Image | Video, watch: Stopwatch) -> TokenizedImage:
        """Return the tokens of an image or video."""
        regionizer, find_tracks = self.regionizer, self.tracks
        masks: Any = None
        pixels = image if isinstance(image, Image.Image) else image.frames
        features, valid = watch.measure("encode", lambda: self.encoder(pixels))
        if not isinstance(image, Image.Image):
            features, valid, video = features[None], valid[None], image  # a batch of one clip
            if find_tracks is not None:
                key, total = listed.key, image.num_frames
                masks = [watch.measure("masks", lambda: find_tracks(key, video.indices, total))]
        elif self.masks is not None:
            find_masks = self.masks
            masks = [watch.measure("masks", lambda: find_masks(listed.path, image))]
        features = watch.measure("normalize", lambda: regionizer.normalize(features))
        regions = watch.measure("group", lambda: regionizer.order(regionizer.group(features, masks=masks, valid=valid)))
        tokens = watch.measure("pool", lambda: regionizer.pool(features, regions))
        num_patches = int(valid.sum()) if regionizer.config.padding == "drop" else valid.numel()
        return TokenizedImage(listed, image, tokens, num_patches, watch)


class TokenFiles:
    """Files of tokens in a folder, as an output of `run_job`. A failure to write files is a failure of the image.

    Args:
        folder: The folder.
        images: All images that will be written.
        job: The job that tokenizes them.
        pictures: Draw the regions.

    Attributes:
        images: The images with printable keys, since files may have names that no store accepts.
        rows: A row of a table for each image.
        notes: Paths of images, and remarks about their masks.
        errors: The reason why an image failed, by path.
    """

    shard_size = sys.maxsize

    def __init__(self, folder: Path, images: Sequence[ListedImage], job: TimedJob, *, pictures: bool = True) -> None:
        make_folder(folder)
        self.images = [image._replace(key=printable(image.key)) for image in images]
        self.rows: list[dict[str, Any]] = []
        self.notes: list[tuple[str, str]] = []
        self.errors: dict[str, str] = {}
        self._targets = _choose_targets(images, folder)
        self._paths = {image.key: image.path for image in self.images}
        self._job = job
        self._pictures = pictures

    def write(self, results: Sequence[TokenizedImage]) -> None:
        """Write the files of images."""
        for result in results:
            try:
                result.watch.measure("write", partial(self._write_files, result))
            except IMAGE_ERRORS as error:
                self.add_failure(result.listed.key, str(error) or "not enough memory")
                continue
            path, notes = result.listed.path, _describe_masks(result.tokens)
            counts = {"patches": result.num_patches, "tokens": len(result.tokens)}
            times = {f"{stage}_ms": round(1000 * value, 3) for stage, value in result.watch.seconds.items()}
            self.rows.append({"image": path, **counts, **times, "notes": "; ".join(notes)})
            self.notes += [(path, note) for note in notes]

    def add_failure(self, key: str, reason: str, kind: str = "internal") -> None:
        """Add an image that failed, with the reason."""
        path = self._paths[key]
        self.errors[path] = reason
        self.rows.append({"image": path, "error": reason})

    def flush(self) -> None:
        """Do nothing, since files are written at once."""

    def _write_files(self, result: TokenizedImage) -> None:
        image, path = result.image, result.listed.path
        target = self._targets[result.listed.key]
        make_folder(target.parent)
        pixels = image if isinstance(image, Image.Image) else image.frames
        if self._pictures:
            with atomic_write(_picture(target)) as file:
                draw_any(pixels, result.tokens.regions, self._job.encoder.geometry).save(file, "PNG")
        names = {"regiontok": __version__, "image": path, "image_id": identity(path)}
        frame = pixels if isinstance(pixels, Image.Image) else pixels[0]
        config = names | {"image_size": [frame.height, frame.width]} | self._job.describe()
        if not isinstance(image, Image.Image):
            config["frames"] = {"indices": image.indices, "times": [round(time, 6) for time in image.times]}
        save_tokens(_tensors(target), result.tokens, config=config)


def draw_any(pixels: Image.Image | list[Image.Image], regions: Regions, geometry: ImageGeometry) -> Image.Image:
    """Draw the regions of an image, or those of the frames of a video as a strip."""
    if isinstance(pixels, Image.Image):
        return draw_regions(pixels, regions, geometry.place((pixels.height, pixels.width)))
    return draw_clip(pixels, regions, geometry.place((pixels[0].height, pixels[0].width)))


def _describe_masks(tokens: RegionTokens) -> list[str]:
    """Describe the masks of an image that became no region."""
    reasons = Counter(dropped.reason for dropped in tokens.regions.dropped)
    notes = [f"{count} mask{'s' * (count != 1)} became no region: {reason}" for reason, count in reasons.items()]
    return notes + ["no mask is left; one region of the whole image"] * bool(tokens.regions.fallback.any())


def print_table(rows: Sequence[Mapping[str, Any]], notes: Sequence[tuple[str, str]]) -> None:
    """Print rows and notes of `TokenFiles`: a line per image if there are few, and the mean if there are several."""
    rows = [row for row in rows if "error" not in row]
    times = [f"{stage}_ms" for stage in _STAGES if f"{stage}_ms" in rows[0]]
    lines = list(rows) if len(rows) <= _MAX_LINES else []
    if len(rows) > 1:
        numbers = ("patches", "tokens", *times)
        lines.append({"image": "mean"} | {name: sum(row[name] for row in rows) / len(rows) for name in numbers})
    width = min(40, max(5, *(len(one_line(row["image"])) for row in rows)))
    headings = "  ".join(f"{name.removesuffix('_ms'):>9}" for name in times)
    print(f"{'image':<{width}}  patches  regions  {headings}  ms")
    for row in lines:
        name = one_line(row["image"])
        name = name if len(name) <= width else "..." + name[3 - width :]
        columns = "  ".join(f"{row[time]:>9.1f}" for time in times)
        print(f"{name:<{width}}  {round(row['patches']):>7}  {round(row['tokens']):>7}  {columns}")
    if len(rows) > 1:
        least, most = min(row["tokens"] for row in rows), max(row["tokens"] for row in rows)
        print(f"{len(rows)} images, {least if least == most else f'{least} to {most}'} regions each")
    if len(rows) <= _MAX_LINES:
        for image, note in notes:
            print(f"{one_line(image)}: {note}")
        return
    for note, count in Counter(note.partition(": ")[2] or note for _, note in notes).items():
        print(f"{count} images: {note}")
    print("Write a row for every image with --csv FILE or --json FILE.")


def warm_up(source: Source) -> float:
    """Load or compile the kernels, so that the times of the first image exclude it. Return the seconds it took."""
    start = time.perf_counter()
    UnionFindClusterer()(torch.ones(1, 1, 2, 1))
    if source in MASK_SOURCES:
        regionizer = Regionizer(source=source, pool="mean", geometry=ImageGeometry.squash(2), split_min_patches=1)
        regionizer.group(torch.ones(1, 1, 2, 1), masks=[MaskSet.from_labels(torch.tensor([[0, 1]]))])
    return time.perf_counter() - start


def _picture(target: Path) -> Path:
    return target.with_name(target.name + ".regions.png")


def _tensors(target: Path) -> Path:
    return target.with_name(target.name + ".regions.safetensors")


def _choose_targets(images: Sequence[ListedImage], folder: Path) -> dict[str, Path]:
    """Return where the files of each image are written, without their suffixes: in the folder, by key.

    A number is added if another image has the same files, now or in an earlier run, or if they would replace an image.
    """
    inputs = {os.path.realpath(image.address) for image in images}
    targets: dict[str, Path] = {}
    taken: set[str] = set()
    for image in images:
        key = Path(image.key)
        target, number = folder / key.with_suffix(""), 2
        while (
            str(target).lower() in taken
            or os.path.realpath(_picture(target)) in inputs
            or _image_id(_tensors(target)) not in (None, identity(image.path))
        ):
            target, number = folder / key.with_name(f"{key.stem}-{number}"), number + 1
        taken.add(str(target).lower())
        targets[printable(image.key)] = target
    return targets


def _image_id(file: Path) -> str | None:
    """Return the identity of the image of a token file: None if there is no file, empty if it does not contain one."""
    if not os.path.isfile(file):  # noqa: PTH113  pathlib raises an error for a name that is too long
        return None
    try:
        return str(read_config(file).get("image_id"))
    except DataError:
        return ""
