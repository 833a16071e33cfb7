"""Automatic tracks of all objects of a video: masks of key frames, propagated by a video predictor."""

import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import nn

from regiontok._checks import check_device
from regiontok._require import require
from regiontok._values import check_choice, check_integer
from regiontok.choices import PREDICTORS
from regiontok.errors import CheckpointError, ShapeError, ValueRangeError
from regiontok.geometry import Size
from regiontok.images import as_images
from regiontok.masks.sam2 import NORMALIZATION
from regiontok.maskset import MaskSet
from regiontok.tracks import TrackSet

_COMPARED_SIDE = 128
"""Longest side in pixels at which masks are compared."""
_COVERED = 0.5
"""A mask is a new object if at most this fraction of it is in tracks."""

Propagate = Callable[[int, np.ndarray], Iterator[tuple[int, np.ndarray]]]
"""Function that propagates the masks ``(N, height, width)`` bool of a frame to all frames of a video. It yields the
number of each frame and the masks in it, ``(N, height, width)`` bool; a frame may be yielded twice."""


class Predictor(Protocol):
    """Video predictor that propagates masks from one frame to the others."""

    def start(self, frames: Sequence[Image.Image], stack: ExitStack, /) -> Propagate:
        """Return a function that propagates masks of these frames; ``stack`` closes opened files."""


class Sam2Predictor:
    """The video predictor of SAM 2 or of SAM 3's tracker in transformers.

    Args:
        model: A ``Sam2VideoModel`` or ``Sam3TrackerVideoModel``.
        processor: Its processor; by default one with the input size of the model.
        cached_frames: Number of frames whose features stay in memory for further key frames.
    """

    def __init__(self, model: nn.Module, processor: Any = None, *, cached_frames: int = 32) -> None:
        self.cached_frames = check_integer("cached_frames", cached_frames)
        self.model = model.eval()
        self.processor = _processor_of(model) if processor is None else processor

    def start(self, frames: Sequence[Image.Image], stack: ExitStack) -> Propagate:
        """Return a function that propagates masks of these frames."""
        model: Any = self.model
        session = self.processor.init_video_session(
            video=list(frames),
            inference_device=model.device,
            dtype=model.dtype,
            max_vision_features_cache_size=self.cached_frames,
        )
        size = [frames[0].height, frames[0].width]

        @torch.no_grad()
        def propagate(frame: int, masks: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
            session.reset_tracking_data()  # keeps the features of frames
            ids = list(range(len(masks)))
            self.processor.add_inputs_to_inference_session(
                inference_session=session, frame_idx=frame, obj_ids=ids, input_masks=list(masks)
            )
            for reverse in (False, True):
                outputs = model.propagate_in_video_iterator(session, start_frame_idx=frame, reverse=reverse)
                for output in outputs:
                    (logits,) = self.processor.post_process_masks([output.pred_masks], [size], binarize=False)
                    order = np.argsort(np.asarray(output.object_ids))
                    yield int(output.frame_idx), (logits[:, 0] > 0).cpu().numpy()[order]

        return propagate


class PackagePredictor:
    """The video predictor of the ``sam2`` package, which reads frames from a folder of JPEG files.

    Args:
        predictor: A predictor of the package, from ``sam2.build_sam.build_sam2_video_predictor``.
    """

    def __init__(self, predictor: Any) -> None:
        self.predictor = predictor
        if importlib.util.find_spec("sam2._C") is None:  # small holes can be filled only with its CUDA extension
            predictor.fill_hole_area = 0

    def start(self, frames: Sequence[Image.Image], stack: ExitStack) -> Propagate:
        """Return a function that propagates masks of these frames."""
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        for number, image in enumerate(frames):
            image.save(Path(folder) / f"{number:05d}.jpg", quality=95)
        state = self.predictor.init_state(folder)

        @torch.no_grad()
        def propagate(frame: int, masks: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
            self.predictor.reset_state(state)
            for number, mask in enumerate(masks):
                self.predictor.add_new_mask(state, frame, number, torch.from_numpy(mask))
            for reverse in (False, True):
                for place, ids, logits in self.predictor.propagate_in_video(state, frame, reverse=reverse):
                    yield int(place), (logits[:, 0] > 0).cpu().numpy()[np.argsort(ids)]

        return propagate


def load_predictor(
    name: str = "sam2", *, model: str | Path | None = None, device: torch.device | str | None = None
) -> Predictor:
    """Load a video predictor.

    Args:
        name: One of ``PREDICTORS``: ``sam2`` and ``sam3`` through transformers, ``sam2-package`` through sam2.
        model: Name on the Hugging Face hub, or a folder that ``save_pretrained`` wrote. For ``sam2-package``, a name on
            the hub. Defaults to SAM 2.1 large, or SAM 3.
        device: Device of the model; the CPU by default.

    Raises:
        ValueRangeError: The name is unknown.
        CheckpointError: The weights cannot be downloaded or read.
        MissingDependencyError: A package is not installed.
    """
    check_choice("predictor", name, PREDICTORS)
    check_device(device)
    weights = str(model or ("facebook/sam3" if name == "sam3" else "facebook/sam2.1-hiera-large"))
    try:
        if name == "sam2-package":
            build = require("sam2.build_sam", extra="sam2").build_sam2_video_predictor_hf
            return PackagePredictor(build(weights, device=str(device or "cpu")))
        transformers = require("transformers", extra="masks")
        kind = transformers.Sam3TrackerVideoModel if name == "sam3" else transformers.Sam2VideoModel
        return Sam2Predictor(kind.from_pretrained(weights).to(device or "cpu"))
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"cannot load the video predictor {weights!r}: {reason} Pass a folder that save_pretrained wrote."
        ) from error


@dataclass
class _State:
    """The tracks that were found so far.

    Attributes:
        small: Masks of each track at the size at which they are compared, ``(tracks, frames, height, width)`` bool.
        parts: Masks of each frame, in the order in which their tracks were found.
    """

    small: np.ndarray
    parts: dict[int, list[MaskSet]] = field(default_factory=dict)


class AutomaticTracks:
    """Find all objects of a video and their masks in every frame.

    The masks of a key frame become tracks, unless more than half of a mask is in tracks already, and are propagated to
    all frames. Key frames are the first one, every ``every``-th one, and frames of which more is in no track than of
    the last key frame, by ``new_area``. Tracks that are equal over time are removed.

    Args:
        predictor: A `Predictor`, such as `Sam2Predictor`.
        generator: Masks of images, such as `regiontok.masks.load` returns.
        every: Distance of regular key frames; by default only the first frame is one.
        new_area: Fraction of a frame.
        max_objects: Largest number of tracks, since the time of a predictor is per object.
        duplicate_iou: Tracks whose intersection over union, summed over all frames, is higher are duplicates.

    Raises:
        ValueRangeError, DTypeError: An option is out of range.

    Source:
        Not in the paper, which has no videos. The rule for new objects is that of AutoSeg-SAM2.
    """

    def __init__(
        self,
        predictor: Predictor,
        generator: Callable[[list[Image.Image]], Sequence[Any]],
        *,
        every: int | None = None,
        new_area: float = 0.1,
        max_objects: int = 64,
        duplicate_iou: float = 0.8,
    ) -> None:
        self.every = None if every is None else check_integer("every", every)
        self.max_objects = check_integer("max_objects", max_objects)
        for name, value in (("new_area", new_area), ("duplicate_iou", duplicate_iou)):
            if not 0 < value <= 1:
                raise ValueRangeError(f"{name} must be above 0 and at most 1; got {value}.")
        self.predictor = predictor
        self.generator = generator
        self.new_area = new_area
        self.duplicate_iou = duplicate_iou

    def describe(self) -> dict[str, Any]:
        """Return all settings, as values for JSON."""
        names = ("every", "new_area", "max_objects", "duplicate_iou")
        describe = getattr(self.generator, "describe", dict)
        settings = {name: getattr(self, name) for name in names}
        return settings | {"predictor": type(self.predictor).__name__, "generator": describe()}

    def __call__(self, frames: Sequence[Any]) -> TrackSet:
        """Return the tracks of a video.

        Args:
            frames: The frames, as ``Video.frames``.

        Raises:
            ShapeError: No frames, or frames of different sizes.
        """
        images = as_images(list(frames))
        sizes = sorted({(image.height, image.width) for image in images})
        if len(sizes) != 1:
            raise ShapeError(f"a video must have frames of one size; got {sizes}.")
        (size,) = sizes
        step = max(1, -(-max(size) // _COMPARED_SIDE))
        shape = len(images), -(-size[0] // step), -(-size[1] // step)
        state = _State(np.zeros((0, *shape), np.bool_))
        key: int | None = 0
        with ExitStack() as stack:
            propagate = self.predictor.start(images, stack)
            while key is not None and len(state.small) < self.max_objects:
                masks = self._new_masks(images[key], state.small[:, key], step)
                if len(masks):
                    self._add(state, propagate(key, masks), len(masks), step)
                key = self._next_key(key, np.asarray(state.small.any(0)))
        tracks = {number: _join(parts, size) for number, parts in state.parts.items()}
        return TrackSet.from_frames(tracks, num_frames=len(images), size=size)

    def _new_masks(self, image: Image.Image, tracks: np.ndarray, step: int) -> np.ndarray:
        """Return the masks of a key frame that are new objects, ``(N, height, width)`` bool, by descending score."""
        masks = MaskSet.of(self.generator([image])[0], size=(image.height, image.width))
        dense = masks.masks().numpy()[np.argsort(-np.nan_to_num(masks.scores), kind="stable")]
        small = dense[:, ::step, ::step]
        area = small.sum((1, 2))
        covered = (small & tracks.any(0)).sum((1, 2)) if len(tracks) else np.zeros(len(small))
        is_new = (area > 0) & (covered <= _COVERED * area)
        return np.ascontiguousarray(dense[is_new][: self.max_objects - len(tracks)])

    def _add(self, state: _State, propagated: Iterator[tuple[int, np.ndarray]], count: int, step: int) -> None:
        """Add the propagated masks of a key frame, without duplicates."""
        old = len(state.small)
        small = np.zeros((count, *state.small.shape[1:]), np.bool_)
        encoded: dict[int, MaskSet] = {}
        for frame, masks in propagated:
            small[:, frame] = masks[:, ::step, ::step]
            encoded[frame] = MaskSet.from_masks(np.ascontiguousarray(masks))
        candidates = np.concatenate([state.small, small])
        chosen_tracks = _without_duplicates(candidates, old, self.duplicate_iou)
        chosen = np.array(chosen_tracks[old:], np.int64) - old
        ids = np.arange(old, old + len(chosen))
        state.small = candidates[chosen_tracks]
        for frame, mask_set in encoded.items():
            present = mask_set.areas()[chosen] > 0
            part = replace(mask_set.select(chosen[present]), ids=ids[present])
            state.parts.setdefault(frame, []).append(part)

    def _next_key(self, key: int, covered: np.ndarray) -> int | None:
        """Return the next key frame; ``covered`` are the pixels in tracks, ``(frames, height, width)`` bool."""
        free = 1 - covered.mean((1, 2))
        for frame in range(key + 1, len(free)):
            if (self.every is not None and frame % self.every == 0) or free[frame] > free[key] + self.new_area:
                return frame
        return None


def _without_duplicates(tracks: np.ndarray, old: int, limit: float) -> list[int]:
    """Return the tracks without those of which an earlier one is a duplicate; the first ``old`` remain."""
    both = np.zeros((len(tracks), len(tracks)))
    for frame in range(tracks.shape[1]):
        flat = tracks[:, frame].reshape(len(tracks), -1).astype(np.float32)
        both += flat @ flat.T
    area = both.diagonal()
    iou = both / np.maximum(area[:, None] + area - both, 1)
    chosen_tracks = list(range(old))
    for track in range(old, len(tracks)):
        if area[track] and not (iou[track, chosen_tracks] > limit).any():
            chosen_tracks.append(track)
    return chosen_tracks


def _join(parts: Sequence[MaskSet], size: Size) -> MaskSet:
    """Return the masks of several sets of one frame as one set."""
    joined = MaskSet.from_coco([rle for part in parts for rle in part.to_coco()], size=size)
    ids = [part.ids for part in parts if part.ids is not None]
    return replace(joined, ids=np.concatenate(ids) if ids else np.empty(0, np.int64))


def _processor_of(model: nn.Module) -> Any:
    """Return a processor with the input size of a model."""
    transformers = require("transformers", extra="masks")
    config: Any = model.config
    side = int(config.prompt_encoder_config.image_size)
    is_sam3 = config.model_type.startswith("sam3")
    mean, std = NORMALIZATION["sam3_tracker" if is_sam3 else "sam2"]
    options = {"size": {"height": side, "width": side}, "image_mean": list(mean), "image_std": list(std)}
    processor = transformers.Sam3TrackerVideoProcessor if is_sam3 else transformers.Sam2VideoProcessor
    images, videos = transformers.Sam2ImageProcessor(**options), transformers.Sam2VideoVideoProcessor(**options)
    return processor(images, videos, target_size=side)
