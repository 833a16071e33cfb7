"""Placeholders of videos in the prompts of region processors."""

import re
from collections.abc import Sequence
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from regiontok._require import require
from regiontok.adapters.huggingface._transformers import VideoFormat
from regiontok.budgets import is_per_image
from regiontok.choices import PROMPT
from regiontok.errors import ShapeError, ValueRangeError
from regiontok.tiles import MAX_FRAMES, Tile, share_budget

transformers = require("transformers", extra="hf")

SIDES: ContextVar[Any] = ContextVar("SIDES", default=MappingProxyType({}))
"""Side inputs of the current call, for methods that the stock processor calls without them."""
TEXTS: ContextVar[dict[str, list[str]] | None] = ContextVar("TEXTS", default=None)
"""The texts of images and videos of the current call, in order, if it needs them."""


class VideoTokens(NamedTuple):
    """Number of tokens of a video in a prompt.

    Attributes:
        regions: Number of placeholders: the region tokens, and newlines or class tokens of some families.
        text: Number of tokens of the text between them, such as timestamps and tags.
    """

    regions: int
    text: int


class VideoPromptsMixin:
    """Mixin for a processor that writes one placeholder per region token of a video; see `RegionProcessorMixin`.

    If the stock processor writes a block of placeholders and a timestamp per frame, the tokens of a chunk of frames
    follow the timestamp of its first frame. The text of the other frames is dropped, or kept with
    ``empty_frames="keep"``.
    """

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Return an attribute of the stock processor."""

    regiontok_videos: dict[str, Any] | None = None
    video_format: VideoFormat = VideoFormat()

    def count_video_tokens(self, videos: Any, **kwargs: Any) -> list[VideoTokens]:
        """Return the number of tokens of each video in a prompt, without running the model.

        Args:
            videos: Videos, as the call takes them.
            kwargs: Arguments of the call for videos: ``video_num_regions``, ``video_keep``, ``video_metadata`` and
                options of the video processor.
        """
        sides = {name: kwargs.pop(name) for name in ("video_num_regions", "video_keep") if name in kwargs}
        options = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)["videos_kwargs"]
        token = SIDES.set(sides)
        try:
            _, texts = self._process_videos(videos, **options | {"return_tensors": "pt"})
        finally:
            SIDES.reset(token)
        counts = []
        for text in texts:
            placeholder = self._placeholder_of_video(text)
            num_regions = text.count(placeholder)
            ids = self.tokenizer(text.replace(placeholder, ""), add_special_tokens=False).input_ids
            counts.append(VideoTokens(num_regions, len(ids)))
        return counts

    def _process_videos(self, videos: Any, **kwargs: Any) -> tuple[Any, list[str]]:
        processed, texts = super()._process_videos(videos, **kwargs)
        for name in ("video_num_regions", "video_keep"):
            value = SIDES.get().get(name)
            if is_per_image(value) and len(value) != len(texts):
                raise ShapeError(f"{name} must have one entry per video, {len(texts)}; got {len(value)}.")
        recorded = TEXTS.get()
        if recorded is not None:
            recorded["video"] += texts
        if self.video_format.as_images and "pixel_values" in processed:  # of SmolVLM, as for images
            processed["pixel_values_videos"] = processed.pop("pixel_values")
            processed.pop("pixel_attention_mask", None)
        return processed, texts

    def replace_video_token(self, video_inputs: dict[str, Any], video_idx: int, **kwargs: Any) -> str:
        """Return the text for a video, with one placeholder per region token."""
        text: str = super().replace_video_token(video_inputs, video_idx, **kwargs)
        frames = None
        if self.video_format.has_frame_tokens:
            frames = int(video_inputs["pixel_values_videos"][video_idx].shape[0])
        placeholder = self._placeholder_of_video(text)
        parts = re.split(f"((?:{re.escape(placeholder)})+)", text)
        lengths = [len(block) // len(placeholder) for block in parts[1::2]]
        counts = self._counts_of_video(lengths, video_idx, frames)
        if counts == lengths:
            return text
        if not self.video_format.per_frame or (self.regiontok_videos or {}).get("empty_frames") == "keep":
            blocks = iter(counts)
            return "".join(placeholder * next(blocks) if index % 2 else part for index, part in enumerate(parts))
        return self._without_empty_frames(parts, counts, placeholder)

    def _without_empty_frames(self, parts: Sequence[str], counts: Sequence[int], placeholder: str) -> str:
        """Return the text of the frames with placeholders.

        Args:
            parts: Text before the first block, the block, text before the next block, and so on.
            counts: Number of placeholders of each block.
            placeholder: The placeholder.
        """
        pieces = [parts[0]]
        for number, count in enumerate(counts):
            after, is_last = parts[2 * number + 2], number + 1 == len(counts)
            end = self.video_format.end_of_frame(self, after, is_last=is_last)
            if count:
                pieces += [placeholder * count, after[:end]]
            if is_last or counts[number + 1]:
                pieces.append(after[end:])
        return "".join(pieces)

    def _counts_of_video(self, lengths: list[int], video: int, frames: int | None) -> list[int]:
        """Return the number of placeholders of each block of a video.

        Args:
            lengths: Number of placeholders that the stock processor writes.
            video: Number of the video in the batch.
            frames: Number of frames of a video whose frames have a further token each.
        """
        options, video_format = self.options, self.video_format
        if options.source == "patch":
            return lengths
        if options.source in ("segmentation", "combined"):
            raise ValueRangeError(
                f"a Regionizer with source={options.source!r} needs masks, and region models take masks of images "
                "only. Use source='clustering' for videos."
            )
        num_regions, keep = self._budget_of_video(video)
        if num_regions in (None, PROMPT) and keep is None:
            raise ValueRangeError(
                "this processor has no budget, so the number of regions is known only after encoding. Pass "
                "video_num_regions or video_keep, or rewrite batches with model.expand(**inputs)."
            )
        if not video_format.per_frame:
            patches = lengths[0] - video_format.newlines - (frames or 0)
            (count,) = share_budget([Tile(0, 0, (1, patches), frames=1)], num_regions, keep=keep)
            return lengths if count == patches else [count + video_format.newlines]
        size = options.max_frames or MAX_FRAMES
        chunks = [lengths[start : start + size] for start in range(0, len(lengths), size)]
        tiles = [Tile(0, 0, (1, sum(chunk)), frames=1) for chunk in chunks]
        counts = share_budget(tiles, num_regions, keep=keep)
        if sum(counts) == sum(lengths):
            return lengths
        return [
            count * (frame == 0) for chunk, count in zip(chunks, counts, strict=True) for frame in range(len(chunk))
        ]

    def _budget_of_video(self, video: int) -> tuple[Any, Any]:
        """Return the budget of a video, chosen as by `VideoEncoderMixin.video_budget`."""
        sides, saved = SIDES.get(), self.regiontok_videos or {}
        if sides.get("video_num_regions") is not None or sides.get("video_keep") is not None:
            return budget_of(sides.get("video_num_regions"), video), budget_of(sides.get("video_keep"), video)
        if saved.get("num_regions") is not None or saved.get("keep") is not None:
            return saved.get("num_regions"), saved.get("keep")
        num_regions, keep = (
            None if is_per_image(sides.get(name)) else sides.get(name) for name in ("num_regions", "keep")
        )
        if num_regions is None and keep is None:
            return self.options.num_regions, self.options.keep
        return num_regions, keep

    def _placeholder_of_video(self, text: str) -> str:
        """Return the placeholder in the text of a video: some families use that of images."""
        token = str(self.video_token)
        return token if token in text else str(self.tokenizer.convert_ids_to_tokens(self.image_token_id))

    def _call_with_frames(self, images: Any, text: Any, videos: Any, **kwargs: Any) -> Any:
        """Process images, text and videos, with separate pixels of frames, and marks of their placeholders.

        This is for families whose stock class treats frames as images.
        """
        texts: dict[str, list[str]] = {"image": [], "video": []}
        token = TEXTS.set(texts)
        try:
            inputs = transformers.ProcessorMixin.__call__(self, images, text, videos=videos, **kwargs)
        finally:
            TEXTS.reset(token)
        inputs.pop("num_patches", None)
        if text is None:
            return inputs
        samples = [text] if isinstance(text, str) else list(text)
        media = f"(?P<image>{re.escape(self.image_token)})|(?P<video>{re.escape(self.video_token)})"
        placeholder = str(self.tokenizer.convert_ids_to_tokens(self.image_token_id))
        iterators = {medium: iter(replaced) for medium, replaced in texts.items()}
        ids = inputs["input_ids"]
        rows = ids.tolist() if hasattr(ids, "tolist") else ids
        marked = []
        for sample, row in zip(samples, rows, strict=True):
            kinds: list[int] = []
            for match in re.finditer(media, sample):
                count = next(iterators[str(match.lastgroup)]).count(placeholder)
                kinds += [1 if match.lastgroup == "image" else 2] * count
            remaining = iter(kinds)
            marked.append([next(remaining, 0) if token == self.image_token_id else 0 for token in row])
        inputs["mm_token_type_ids"] = torch.tensor(marked) if isinstance(ids, torch.Tensor) else marked
        return inputs


def budget_of(budget: Any, index: int) -> Any:
    """Return the budget of one image or video from the budget of a batch."""
    if not is_per_image(budget):
        return budget
    if index >= len(budget):
        raise ShapeError(f"budgets must be one number, or one per image; got {len(budget)}, and there are more images.")
    return budget[index]
