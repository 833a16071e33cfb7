r"""Image embeddings for a server of the stock model: vLLM or SGLang does the language, regiontok the images.

    embeddings = image_embeddings(model, processor, [image], num_regions=128)
    engine.generate(vllm_request("USER: <image>\nWhat is this? ASSISTANT:", embeddings))

The server loads the stock checkpoint and knows nothing of regions. What it is sent is checked here before, since wrong
shapes can end an engine, and wrong counts of placeholders are taken in silence. Tried with vLLM 0.32 and SGLang 0.5.23.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regiontok.adapters.huggingface.outer import RegionMixin
from regiontok.adapters.huggingface.processors import process
from regiontok.budgets import Budget, Keep
from regiontok.downsample import Masks
from regiontok.errors import DTypeError, ShapeError, ValueRangeError
from regiontok.geometry import Size
from regiontok.images import as_images

VLLM = (
    "InternVLForConditionalGeneration",
    "LlavaForConditionalGeneration",
    "LlavaNextForConditionalGeneration",
    "LlavaOnevisionForConditionalGeneration",
    "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",
    "Qwen3VLMoeForConditionalGeneration",
)
"""Families of whose images vLLM takes embeddings."""
ONE_COUNT = ("InternVLForConditionalGeneration", "LlavaForConditionalGeneration")
"""Families of which vLLM 0.32 stacks the images of a step, so that their counts must be equal within a prompt."""
SGLANG = (
    "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",
    "Qwen3VLMoeForConditionalGeneration",
)
"""Families of whose images SGLang was seen to take embeddings rightly."""


@dataclass(frozen=True, eq=False)
class ImageEmbedding:
    """One image as a server takes it.

    Attributes:
        values: ``(K, width)`` on the CPU, without gradients: its tokens in the language model's dimension, and beside
            them those of deepstack layers where the family has these.
        grid: Rows and columns that multiply to K, for families whose server reads positions off a grid; else None.
        stock: The class of transformers that the server loads.
        placeholder: The token that stands for an image, as text and as its number.
        around: Tokens that the server itself writes around it, as text and as numbers.
    """

    values: Tensor
    grid: Size | None
    stock: str
    placeholder: tuple[str, int]
    around: tuple[tuple[str, int], ...] = ()

    def __len__(self) -> int:
        return len(self.values)

    @property
    def image_grid_thw(self) -> Tensor | None:
        """The grid in patches before merging, ``(1, 3)``."""
        return None if self.grid is None else torch.tensor([[1, 2 * self.grid[0], 2 * self.grid[1]]])


@torch.no_grad()
def image_embeddings(
    model: Any,
    processor: Any,
    images: Sequence[Any],
    masks: Sequence[Masks] | None = None,
    *,
    num_regions: Budget | None = None,
    keep: Keep | None = None,
) -> list[ImageEmbedding]:
    """Encode images to region tokens, for a server of the stock model.

    A count can differ between images. vLLM 0.32 cannot schedule different counts of LLaVA's or InternVL's images in one
    step: give all the same ``num_regions``, or serve with ``max_num_seqs=1``. Families with positions in two dimensions
    get them from a grid that multiplies to the count, as near to the image's shape as there is, and not from centroids.

    Args:
        model: Of `regiontok.adapters.huggingface`.
        processor: The model's.
        images: As ``regiontok.images.as_images`` takes them.
        masks: One entry per image, for a model of masks.
        num_regions: Budget of an image, or one per image, as ``forward`` takes it.
        keep: The same as a fraction of the valid patches.

    Raises:
        DTypeError: A model without regions.
        ValueRangeError: Tokens that are not finite, which would corrupt what a server does next.
        ShapeError, ImageError: What ``expand`` and ``as_images`` raise.
    """
    if not isinstance(model, RegionMixin):
        raise DTypeError(f"model must have region tokens; got {type(model).__name__}. Make it with with_regions.")
    given = as_images(list(images))
    text = _image_text(processor)
    inputs = process(model, processor, [text] * len(given), [[image] for image in given])
    prepared = model.expand(**inputs, masks=masks, num_regions=num_regions, keep=keep)
    output = prepared.inputs["mm_encoder_outputs"]["image"]
    layers = [output.pooler_output, *(getattr(output, "deepstack_features", None) or ())]
    stock, identity = model._stock.__name__, (text, int(model.config.image_token_id))
    around = tuple(
        (str(getattr(processor, name)), int(getattr(processor, f"{name}_id")))
        for name in ("start_image_token", "end_image_token")
        if hasattr(processor, f"{name}_id")
    )
    embeddings = []
    for image, parts in enumerate(zip(*layers, strict=True)):
        values = torch.cat(list(parts), 1).detach().cpu().contiguous()
        if not values.isfinite().all():
            raise ValueRangeError(f"image {image}: its tokens are not finite. Load the model in a wider dtype.")
        shape = next(view.grid for view in prepared.views if view.image == image)
        grid = _grid(len(values), shape) if "image_grid_thw" in model.encoder_inputs else None
        embeddings.append(ImageEmbedding(values, grid, stock, identity, around))
    return embeddings


def vllm_request(prompt: str | Sequence[int], embeddings: Sequence[ImageEmbedding]) -> dict[str, Any]:
    """What ``vllm.LLM(..., enable_mm_embeds=True).generate`` takes.

    Args:
        prompt: As text, with one placeholder per image; or as tokens, where a run that a processor wrote counts as one.
        embeddings: Of its images, in their order.

    Raises:
        ValueRangeError: A family of whose images vLLM takes no embeddings.
        ShapeError: Another number of placeholders than of images, which vLLM would not find.
    """
    _check_family("vLLM", VLLM, embeddings)
    request: dict[str, Any] = {}
    if isinstance(prompt, str):
        text = embeddings[0].placeholder[0]
        if embeddings[0].around:
            (start, _), (end, _) = embeddings[0].around
            prompt = prompt.replace(f"{start}{text}{end}", text)
        if prompt.count(text) != len(embeddings):
            raise ShapeError(
                f"the prompt must hold {text} once for each of the {len(embeddings)} images; got it "
                f"{prompt.count(text)} times."
            )
        request["prompt"] = prompt
    else:
        request["prompt_token_ids"] = _one_each(prompt, embeddings)
    values = [one.values for one in embeddings]
    counts = sorted({len(one) for one in values})
    if len(counts) > 1 and embeddings[0].stock in ONE_COUNT:
        raise ShapeError(
            f"vLLM takes image embeddings of {embeddings[0].stock} of one count per prompt; got {counts}. Give all "
            "images of a prompt the same num_regions in image_embeddings."
        )
    grids = [grid for one in embeddings if (grid := one.image_grid_thw) is not None]
    if grids:
        request["multi_modal_data"] = {"image": {"image_embeds": torch.cat(values), "image_grid_thw": torch.cat(grids)}}
    else:
        request["multi_modal_data"] = {"image": values}
    return request


def sglang_request(prompt: Sequence[int], embeddings: Sequence[ImageEmbedding]) -> dict[str, Any]:
    """What ``sglang.Engine.generate`` takes: the prompt with a placeholder per token, and the embeddings.

    Args:
        prompt: Tokens, with one placeholder per image or the run that a processor wrote.
        embeddings: Of its image: SGLang takes one preprocessed image per request.

    Raises:
        ValueRangeError: A family that was not seen to work, or several images.
        ShapeError: Another number of placeholders than of images.
    """
    _check_family("SGLang", SGLANG, embeddings)
    if len(embeddings) != 1:
        raise ValueRangeError(f"SGLang takes embeddings of one image per request; got {len(embeddings)}.")
    one, identity = embeddings[0], embeddings[0].placeholder[1]
    ids = [
        again
        for token in _one_each(prompt, embeddings, keep=True)
        for again in ([identity] * len(one) if token == identity else [token])
    ]
    image: dict[str, Any] = {
        "format": "processor_output",
        "modality": "IMAGE",
        "precomputed_embeddings": one.values,
        "image_grid_thw": one.image_grid_thw,
    }
    return {"input_ids": ids, "image_data": [image]}


def _check_family(engine: str, families: tuple[str, ...], embeddings: Sequence[ImageEmbedding]) -> None:
    if not embeddings:
        raise ShapeError("embeddings must be of at least one image; got none. Send a prompt of text as it is.")
    if embeddings[0].stock not in families:
        raise ValueRangeError(
            f"{engine} takes no image embeddings of {embeddings[0].stock}. It does of {', '.join(families)}."
        )
    kinds = {(one.stock, one.placeholder, one.values.shape[1]) for one in embeddings}
    if len(kinds) > 1:
        raise ShapeError(f"embeddings of one prompt must be of one model; got those of {sorted(map(str, kinds))}.")
    for number, one in enumerate(embeddings):
        if one.values.ndim != 2 or (one.grid is not None and one.grid[0] * one.grid[1] != len(one)):
            raise ShapeError(f"image {number}: its grid must multiply to its {len(one)} tokens; got {one.grid}.")


def _one_each(prompt: Sequence[int], embeddings: Sequence[ImageEmbedding], *, keep: bool = False) -> list[int]:
    """Tokens with one placeholder per image; what the server writes around them goes, unless it is to be kept."""
    _, identity = embeddings[0].placeholder
    around = set() if keep else {number for _, number in embeddings[0].around}
    given = prompt.tolist() if isinstance(prompt, Tensor) else [int(one) for one in prompt]
    ids: list[int] = []
    for at, token in enumerate(given):
        if token == identity and ids and ids[-1] == identity and given[at - 1] == identity:
            continue
        if token not in around:
            ids.append(token)
    if ids.count(identity) != len(embeddings):
        raise ShapeError(
            f"the prompt must hold a placeholder (token {identity}) for each of the {len(embeddings)} images, or the "
            f"run that its processor writes; got {ids.count(identity)} of them."
        )
    return ids


def _grid(count: int, shape: Size) -> Size:
    """Rows and columns that multiply to ``count``, the nearest to a shape."""
    aspect = math.log(shape[0] / shape[1])
    rows = min(
        (one for one in range(1, count + 1) if count % one == 0),
        key=lambda one: abs(math.log(one * one / count) - aspect),
    )
    return rows, count // rows


def _image_text(processor: Any) -> str:
    """What a prompt holds for an image before its processor expands it."""
    return str(getattr(processor, "image_token", "<image>"))
