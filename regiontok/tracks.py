"""`TrackSet`: the masks of the objects of a video, with numbers that continue over the frames."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regiontok._values import check_integer
from regiontok.errors import DTypeError, ShapeError, ValueRangeError
from regiontok.geometry import Size
from regiontok.maskset import MaskSet

__all__ = ["TrackSet"]


@dataclass(frozen=True, eq=False)
class TrackSet:
    """The masks of the objects of a video. Masks may overlap, and frames may be without annotation.

    A track is all masks with the same id. Create a set with `from_frames`, `from_labels` or `from_masks`, or read one
    with `regiontok.track_files.read_tracks`; the constructor does not check its arguments.

    Attributes:
        ids: ``(N,)`` int64: the id of each track, ascending; indexed by ``Regions.mask_index``.
        frames: The masks of each annotated frame by its number, with the ids of their tracks.
        num_frames: Number of frames of the video.
        size: Height and width of the frames in pixels.

    Example:
        >>> labels = np.zeros((3, 4, 6), np.uint8)  # three frames
        >>> labels[0, 1:3, 0:2] = 7
        >>> labels[2, 1:3, 2:4] = 7
        >>> tracks = TrackSet.from_labels(labels)
        >>> tracks
        TrackSet(1 track in 3 frames of 4 x 6 pixels)
        >>> tracks.at([0, 2]).frames[1].ids
        array([7])
    """

    ids: np.ndarray
    frames: Mapping[int, MaskSet]
    num_frames: int
    size: Size

    @classmethod
    def from_frames(
        cls, frames: Mapping[int, MaskSet], *, num_frames: int | None = None, size: Size | None = None
    ) -> "TrackSet":
        """Create a set from the masks of each annotated frame.

        Args:
            frames: Masks in pixels by the number of the frame; ``MaskSet.ids`` are the ids of the tracks.
            num_frames: Number of frames of the video; by default up to the last annotated one.
            size: Height and width; required without any frame.

        Raises:
            DTypeError: An entry is not a `MaskSet` with ids.
            ShapeError: Frames of different sizes, masks on the grid, or no frame and no size.
            ValueRangeError: A frame outside the video, or two masks of one track in a frame.
        """
        count = check_integer(
            "num_frames", max([1, *(number + 1 for number in frames)]) if num_frames is None else num_frames
        )
        for number, masks in frames.items():
            if not isinstance(masks, MaskSet) or (masks.ids is None and len(masks)):
                raise DTypeError(f"frame {number} must be a MaskSet with the ids of its tracks; got {masks!r}.")
            if masks.coverage is not None:
                raise ShapeError(f"frame {number} must have masks in pixels; got masks on the grid.")
            size = masks.size if size is None else size
            if masks.size != size:
                raise ShapeError(f"all frames must have the size {size}; got {masks.size} for frame {number}.")
            if not 0 <= number < count:
                raise ValueRangeError(f"frame {number} is not among the {count} frames of the video, from 0.")
            ids = _ids(masks)
            if len(np.unique(ids)) < len(ids):
                twice = int(next(track for track in ids if (ids == track).sum() > 1))
                raise ValueRangeError(f"frame {number} has several masks of track {twice}. Unite them.")
        if size is None:
            raise ShapeError("tracks without any frame need a size. Pass size=(height, width).")
        all_ids = [_ids(masks) for masks in frames.values()]
        ids = np.unique(np.concatenate(all_ids)) if all_ids else np.empty(0, np.int64)
        return cls(ids, {number: frames[number] for number in sorted(frames)}, count, size)

    @classmethod
    def from_labels(
        cls, labels: np.ndarray | Tensor | Sequence[Any], *, ignore: Iterable[int] = (0, 255)
    ) -> "TrackSet":
        """Create a set from one label map per frame; a label is the id of a track.

        Args:
            labels: ``(frames, height, width)`` of integers, or a list of maps; None for frames without annotation.
            ignore: Labels of no track; by default the background and the void label of DAVIS. -1 is never a track.

        Raises:
            ShapeError, DTypeError: No frames, frames of different sizes, or no label maps.
        """
        ignored = tuple(ignore)
        frames = {
            number: MaskSet.from_labels(label_map, ignore=ignored)
            for number, label_map in enumerate(labels)
            if label_map is not None
        }
        return cls.from_frames(frames, num_frames=len(labels))

    @classmethod
    def from_masks(cls, masks: np.ndarray | Tensor, *, ids: Sequence[int] | None = None) -> "TrackSet":
        """Create a set from masks ``(tracks, frames, height, width)`` of bool, as video predictors return them.

        Args:
            masks: The mask of each track in each frame; a mask without a pixel is no mask.
            ids: The id of each track; by default its number.

        Raises:
            ShapeError, DTypeError: Masks of a wrong shape or type, or not one id per track.
            ValueRangeError: An id that occurs twice.
        """
        array = masks.detach().cpu().numpy() if isinstance(masks, Tensor) else np.asarray(masks)
        if array.ndim != 4 or array.shape[1] == 0:
            raise ShapeError(f"masks must be (tracks, frames, height, width); got {array.shape}.")
        if array.dtype != np.bool_:
            raise DTypeError(f"masks must be bool; got {array.dtype}. Compare scores with a threshold.")
        numbers = np.arange(len(array)) if ids is None else np.asarray(ids, np.int64)
        if numbers.shape != (len(array),):
            raise ShapeError(f"ids must have one entry for each of the {len(array)} tracks; got {numbers.shape}.")
        frames = {}
        for number in range(array.shape[1]):
            shown = array[:, number].any((1, 2))
            frames[number] = replace(
                MaskSet.from_masks(np.ascontiguousarray(array[shown, number])), ids=numbers[shown].astype(np.int64)
            )
        return cls.from_frames(frames, size=(int(array.shape[2]), int(array.shape[3])))

    def at(self, indices: Sequence[int]) -> "TrackSet":
        """Return the tracks of sampled frames, such as ``Video.indices``. All ids are kept.

        Raises:
            ValueRangeError: A frame outside the video: the tracks are those of another one.
        """
        for index in indices:
            if not 0 <= index < self.num_frames:
                raise ValueRangeError(
                    f"indices must be frames of the video, from 0 to {self.num_frames - 1}; got {index}. Are these "
                    "tracks of another video?"
                )
        frames = {place: self.frames[index] for place, index in enumerate(indices) if index in self.frames}
        return replace(self, frames=frames, num_frames=len(indices))

    @property
    def scores(self) -> np.ndarray:
        """Mean score of the masks of each track, ``(N,)`` float32; NaN without a score."""
        total, count = np.zeros(len(self), np.float64), np.zeros(len(self))
        for masks in self.frames.values():
            track = self.rows(masks)
            has_score = ~np.isnan(masks.scores)
            total[track[has_score]] += masks.scores[has_score]
            count[track[has_score]] += 1
        with np.errstate(invalid="ignore"):
            return (total / count).astype(np.float32)

    def rows(self, masks: MaskSet) -> np.ndarray:
        """Return the number of the track of each mask of a frame."""
        return np.searchsorted(self.ids, _ids(masks))

    def has_mask(self, track: int) -> bool:
        """Return whether the track number ``track`` has a mask in any frame."""
        return any(self.ids[track] in _ids(masks) for masks in self.frames.values())

    def masks(self) -> Tensor:
        """Return all masks, ``(tracks, frames, height, width)`` bool."""
        dense = torch.zeros(len(self), self.num_frames, *self.size, dtype=torch.bool)
        for number, masks in self.frames.items():
            dense[self.rows(masks), number] = masks.masks()
        return dense

    def __len__(self) -> int:
        """Return the number of tracks."""
        return len(self.ids)

    def __repr__(self) -> str:
        tracks = f"{len(self)} track{'' if len(self) == 1 else 's'}"
        frames = f"{self.num_frames} frame{'' if self.num_frames == 1 else 's'}"
        return f"TrackSet({tracks} in {frames} of {self.size[0]} x {self.size[1]} pixels)"


def _ids(masks: MaskSet) -> np.ndarray:
    return np.empty(0, np.int64) if masks.ids is None else masks.ids


def grid_of(masks: object, grid: Size) -> tuple[int, int, int]:
    """Return frames, rows and columns of tracks on a grid; an image among clips has one frame."""
    return (masks.num_frames if isinstance(masks, TrackSet) else 1, *grid)


def check_frames(masks: object, grid: tuple[int, ...]) -> None:
    """Check that the masks of a clip are tracks of its frames, and those of an image are not.

    Args:
        masks: The masks of an image or clip.
        grid: Rows and columns of the features; of clips after the number of frames.

    Raises:
        DTypeError: Masks of a clip that are no tracks, or tracks of an image.
        ShapeError: Tracks with another number of frames.
    """
    if not isinstance(masks, TrackSet):
        if len(grid) == 3 and grid[0] > 1:
            raise DTypeError(f"the masks of a clip must be a TrackSet; got {type(masks).__name__}.")
        return
    if len(grid) == 2:
        raise DTypeError("a TrackSet needs the features of a clip, (frames, rows, cols, dim); got an image.")
    if masks.num_frames != grid[0]:
        raise ShapeError(
            f"the tracks have {masks.num_frames} frames, and the features {grid[0]}. Select the frames of the "
            "features: tracks.at(video.indices)."
        )
