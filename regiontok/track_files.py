"""Read tracks of objects from the formats of video data sets.

tracks = read_tracks("Annotations/480p/bike")              # DAVIS, YouTube-VOS: a label map per frame
tracks = read_tracks("sav_000001_auto.json")
regions = MaskDownsampler(geometry=encoder.geometry)([tracks.at(video.indices)], features=[features])
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from regiontok._files import read_json, write_json
from regiontok.errors import DataError, RegiontokError, ValueRangeError
from regiontok.geometry import Size
from regiontok.images import explain_image
from regiontok.masks.coco_file import is_empty_segmentation
from regiontok.maskset import MaskSet
from regiontok.tracks import TrackSet

_LABEL_MAPS = (".png", ".tif", ".tiff", ".bmp")
_VOID = {"label maps": (0, 255), "MOTS": (10000,)}
"""Ids of no object, by format."""


def read_tracks(
    path: str | Path,
    *,
    video: int | str | None = None,
    num_frames: int | None = None,
    first_frame: int = 0,
    ignore: Iterable[int] | None = None,
) -> TrackSet:
    """Read the tracks of one video.

    ======================  ==========================================================================================
    path                    format
    ======================  ==========================================================================================
    folder of label maps    DAVIS, YouTube-VOS: a PNG per frame, named by its number, in which a label is an object
    folder of folders       SA-V, MOSE: a folder per object, named by its number, with a binary PNG per frame
    ``.json``               SA-V: ``masklet`` of COCO RLE; YouTube-VIS, OVIS: ``videos`` and ``annotations``
    ``.txt``                MOTS: a line ``frame id class height width rle`` per mask
    ======================  ==========================================================================================

    Args:
        path: A folder or file.
        video: Id or name of the video in a file of several videos. A name is the folder of its frames.
        num_frames: Number of frames of the video; by default that of the file, or up to the last annotated frame.
        first_frame: Number of the first frame in names of files and in MOTS: 0, or 1 for MOTSChallenge.
        ignore: Ids of no object: by default 0 and 255 in label maps, and 10000 in MOTS.

    Returns:
        The tracks, with the ids of the objects in the file. Folders of objects whose names are not numbers are numbered
        in the order of their names.

    Raises:
        DataError: A file or folder that does not exist, is damaged, or has an unknown format.
        ValueRangeError: No or an unknown ``video`` of several, or a frame outside the video.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _read_folder(path, num_frames, first_frame, ignore)
        if path.suffix.lower() == ".txt":
            return _read_mots(path, num_frames, first_frame, ignore)
        data = read_json(path)
        if isinstance(data, Mapping) and "masklet" in data:
            return _read_masklets(data, num_frames, ignore)
        if isinstance(data, Mapping) and {"videos", "annotations"} <= data.keys():
            return _read_video_instances(data, video, num_frames, ignore)
    except (DataError, ValueRangeError):
        raise
    except RegiontokError as error:
        raise DataError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise DataError(f"{path}: the tracks are damaged: {type(error).__name__}: {error}.") from error
    raise DataError(f"{path}: expected masklet of SA-V, or videos and annotations of YouTube-VIS.")


def write_tracks(path: str | Path, tracks: TrackSet, *, info: Mapping[str, Any] | None = None) -> Path:
    """Write tracks as a JSON file in the format of YouTube-VIS, which `read_tracks` reads.

    A frame without annotation becomes a frame without masks.

    Args:
        path: The file.
        tracks: The tracks.
        info: Values for JSON that are stored with the tracks, such as the settings of a predictor.

    Raises:
        OutputError: The file cannot be written.

    Example:
        >>> import tempfile
        >>> tracks = TrackSet.from_masks(np.ones((1, 2, 4, 6), np.bool_), ids=[7])
        >>> read_tracks(write_tracks(tempfile.mkdtemp() + "/tracks.json", tracks)).ids
        array([7])
    """
    height, width = tracks.size
    segmentations: dict[int, list[Any]] = {int(number): [None] * tracks.num_frames for number in tracks.ids}
    for frame, masks in tracks.frames.items():
        ids = [] if masks.ids is None else masks.ids.tolist()
        for number, rle in zip(ids, masks.to_coco(), strict=True):
            segmentations[number][frame] = rle | {"counts": rle["counts"].decode()}
    video = {"id": 1, "height": height, "width": width, "length": tracks.num_frames}
    annotations = [
        {"id": number, "video_id": 1, "category_id": 1, "segmentations": masks}
        for number, masks in segmentations.items()
    ]
    write_json(path, {"info": dict(info or {}), "videos": [video], "annotations": annotations})
    return Path(path)


def _read_folder(path: Path, num_frames: int | None, first_frame: int, ignore: Iterable[int] | None) -> TrackSet:
    """Read label maps, or a folder of binary masks per object."""
    ignored = _VOID["label maps"] if ignore is None else tuple(ignore)
    objects = sorted(entry for entry in path.iterdir() if entry.is_dir())
    if not objects:
        frames = {
            number: _from_image(file, lambda image: MaskSet.from_labels(image, ignore=ignored))
            for number, file in _frame_files(path, first_frame).items()
        }
        return TrackSet.from_frames(frames, num_frames=num_frames)
    parts: dict[int, list[MaskSet]] = {}
    has_numbers = all(folder.name.isdecimal() for folder in objects)
    for place, folder in enumerate(objects):
        track = int(folder.name) if has_numbers else place
        if ignore is not None and track in ignored:
            continue
        for number, file in _frame_files(folder, first_frame).items():
            mask = _from_image(file, lambda image: MaskSet.from_masks(np.asarray(image)[None] > 0))
            parts.setdefault(number, []).append(replace(mask, ids=np.array([track])))
    return TrackSet.from_frames({number: _join(masks) for number, masks in parts.items()}, num_frames=num_frames)


def _frame_files(folder: Path, first_frame: int) -> dict[int, Path]:
    """Return the label maps of a folder by the number of the frame, which is the last number in the name."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _LABEL_MAPS)
    if not files:
        raise DataError(f"{folder}: expected a PNG file per frame; got none.")
    numbers = [re.findall(r"\d+", file.stem) for file in files]
    if not all(numbers):
        raise DataError(f"{files[numbers.index([])]}: the name must have the number of the frame.")
    numbered = {int(parts[-1]) - first_frame: file for parts, file in zip(numbers, files, strict=True)}
    if len(numbered) < len(files):
        raise DataError(f"{folder}: two files have the same number of a frame.")
    return numbered


def _from_image(file: Path, convert: Callable[[Image.Image], MaskSet]) -> MaskSet:
    try:
        with Image.open(file) as image:
            return convert(image)
    except RegiontokError as error:
        raise DataError(f"{file}: {error}") from error
    except Exception as error:  # Pillow's decoders raise errors of any type for damaged files
        raise DataError(str(explain_image(str(file), error))) from error


def _join(masks: Sequence[MaskSet]) -> MaskSet:
    """Return the masks of several sets of one frame as one set; masks without a pixel are left out."""
    shown = [mask for mask in masks if mask.areas()[0] > 0]
    size = masks[0].size
    for mask in masks:
        if mask.size != size:
            raise DataError(f"all masks of a frame must have the size {size}; got {mask.size}.")
    encoded = MaskSet.from_coco([rle for mask in shown for rle in mask.to_coco()], size=size)
    return replace(encoded, ids=np.array([mask.ids[0] for mask in shown if mask.ids is not None], np.int64))


def _read_masklets(data: Mapping[str, Any], num_frames: int | None, ignore: Iterable[int] | None) -> TrackSet:
    """Read a file of SA-V, in which every n-th frame is annotated."""
    masklets = data["masklet"]
    size = int(data["video_height"]), int(data["video_width"])
    count = int(data["video_frame_count"])
    step = max(1, math.ceil(count / max(1, len(masklets))))
    ignored = set(ignore or ())
    ids = [int(number) for number in data["masklet_id"]]
    frames = {}
    for place, masks in enumerate(masklets):
        if len(masks) != len(ids):
            raise DataError(f"masklet {place} must have a mask for each of the {len(ids)} ids; got {len(masks)}.")
        frames[place * step] = _encode(masks, ids, size, ignored)
    return TrackSet.from_frames(frames, num_frames=count if num_frames is None else num_frames, size=size)


def _encode(masks: Sequence[Any], ids: Sequence[int], size: Size, ignored: set[int]) -> MaskSet:
    """Return the masks of a frame that have a pixel and an id that is not ignored, from COCO RLE or polygons."""
    shown = [
        (mask, number)
        for mask, number in zip(masks, ids, strict=True)
        if number not in ignored and not is_empty_segmentation(mask)
    ]
    encoded = MaskSet.from_coco([mask for mask, _ in shown], size=size)
    encoded = replace(encoded, ids=np.array([number for _, number in shown], np.int64))
    return encoded.select(encoded.areas() > 0)


def _read_video_instances(
    data: Mapping[str, Any], video: int | str | None, num_frames: int | None, ignore: Iterable[int] | None
) -> TrackSet:
    """Read a file of YouTube-VIS or OVIS."""
    names = {
        entry["id"]: str(next(iter(entry.get("file_names") or [""]))).rpartition("/")[0] for entry in data["videos"]
    }
    if video is None and len(names) == 1:
        video = next(iter(names))
    chosen = [number for number, name in names.items() if video is not None and video in (number, name)]
    if len(chosen) != 1:
        examples = ", ".join(f"{number} ({name})" if name else str(number) for number, name in list(names.items())[:5])
        raise ValueRangeError(f"video must be one of {len(names)}, such as {examples}; got {video!r}.")
    entry = next(entry for entry in data["videos"] if entry["id"] == chosen[0])
    size = int(entry["height"]), int(entry["width"])
    count = int(entry["length"] if "length" in entry else len(entry["file_names"]))
    annotations = [entry for entry in data["annotations"] if entry["video_id"] == chosen[0]]
    for annotation in annotations:
        masks = annotation["segmentations"]
        if len(masks) != count:
            raise DataError(f"annotation {annotation['id']} must have {count} masks; got {len(masks)}.")
    ids, ignored = [int(annotation["id"]) for annotation in annotations], set(ignore or ())
    frames = {
        number: _encode([annotation["segmentations"][number] for annotation in annotations], ids, size, ignored)
        for number in range(count)
    }
    return TrackSet.from_frames(frames, num_frames=count if num_frames is None else num_frames, size=size)


def _read_mots(path: Path, num_frames: int | None, first_frame: int, ignore: Iterable[int] | None) -> TrackSet:
    """Read a text file of MOTS, with a mask per line."""
    ignored = set(_VOID["MOTS"] if ignore is None else ignore)
    frames: dict[int, tuple[list[Any], list[int]]] = {}
    size: Size | None = None
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        fields = line.split()
        if len(fields) != 6 or not all(re.fullmatch(r"-?\d+", field) for field in fields[:5]):
            raise DataError(
                f"{path}, line {number}: expected frame, id, class, height, width and RLE; got {line[:80]!r}."
            )
        frame, track, _, height, width = map(int, fields[:5])
        size = (height, width) if size is None else size
        masks, ids = frames.setdefault(frame - first_frame, ([], []))
        masks.append({"size": [height, width], "counts": fields[5]})
        ids.append(track)
    if size is None:
        raise DataError(f"{path}: expected a mask per line; the file is empty.")
    encoded = {frame: _encode(masks, ids, size, ignored) for frame, (masks, ids) in frames.items()}
    return TrackSet.from_frames(encoded, num_frames=num_frames, size=size)
