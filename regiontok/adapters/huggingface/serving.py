r"""Region tokens as image embeddings for vLLM or SGLang, which run the language model of the stock checkpoint.

    embeddings = image_embeddings(model, processor, [image], num_regions=128)
    engine.generate(vllm_request("USER: <image>\nWhat is this? ASSISTANT:", embeddings))

Requests are checked here: embeddings of a wrong shape can stop an engine, and it accepts a wrong number of placeholders
without an error.
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
"""Families for which vLLM accepts image embeddings."""
ONE_COUNT = ("InternVLForConditionalGeneration", "LlavaForConditionalGeneration")
"""Families for which vLLM 0.32 stacks the images of a prompt, so that all must have the same number of tokens."""
SGLANG = (
    "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",
    "Qwen3VLMoeForConditionalGeneration",
)
"""Families for which we have tested image embeddings with SGLang."""


@dataclass(frozen=True, eq=False)
class ImageEmbedding:
    """Region tokens of one image for a server.

    Attributes:
        values: ``(K, width)`` on the CPU, without gradients: the tokens in the dimension of the language model, and in
            further columns those of deepstack layers, if the family has them.
        grid: Rows and columns with K cells, for families whose server computes positions from a grid; otherwise None.
        stock: Class of transformers that the server loads.
        placeholder: Placeholder of an image, as text and as token id.
        around: Tokens that the server writes before and after the placeholders, as text and as token ids.
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
        """Frames, rows and columns of the grid before patches are merged, ``(1, 3)``; None without a grid."""
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
    """Encode images as region tokens for a server of the stock model.

    The number of tokens can differ between images. For LLaVA and InternVL, vLLM 0.32 cannot schedule different numbers
    in one step: use the same ``num_regions`` for all images, or serve with ``max_num_seqs=1``. In families with rotary
    positions of rows and columns, the server does not use centroids of regions but the cells of a grid with as many
    cells as tokens, in the shape that is closest to that of the image.

    Args:
        model: Region model.
        processor: Processor of the model.
        images: Images in any format of ``regiontok.images.as_images``.
        masks: One entry per image, if the Regionizer uses masks.
        num_regions: Budget of tokens, one number or one per image.
        keep: The same budget as a fraction of the valid patches.

    Raises:
        DTypeError: The model has no region tokens.
        ValueRangeError: A token is not finite, which would corrupt later requests of a server.
        ShapeError, ImageError: Images, masks and budgets do not match, or an image cannot be read.
    """
    if not isinstance(model, RegionMixin):
        raise DTypeError(f"model must have region tokens; got {type(model).__name__}. Convert it with with_regions.")
    pil_images = as_images(list(images))
    text = str(getattr(processor, "image_token", "<image>"))
    inputs = process(model, processor, [text] * len(pil_images), [[image] for image in pil_images])
    expanded = model.expand(**inputs, masks=masks, num_regions=num_regions, keep=keep)
    output = expanded.inputs["mm_encoder_outputs"]["image"]
    layers = [output.pooler_output, *(getattr(output, "deepstack_features", None) or ())]
    stock, placeholder = model._stock.__name__, (text, int(model.config.image_token_id))
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
        shape = next(tile.grid for tile in expanded.tiles if tile.image == image)
        grid = _closest_grid(len(values), shape) if "image_grid_thw" in model.encoder_inputs else None
        embeddings.append(ImageEmbedding(values, grid, stock, placeholder, around))
    return embeddings


def vllm_request(prompt: str | Sequence[int], embeddings: Sequence[ImageEmbedding]) -> dict[str, Any]:
    """Return a request for ``vllm.LLM(..., enable_mm_embeds=True).generate``.

    Args:
        prompt: Text with one placeholder per image, or token ids with one placeholder or block per image.
        embeddings: Embeddings of its images, in the order of the placeholders.

    Raises:
        ValueRangeError: vLLM does not accept image embeddings for this family.
        ShapeError: The numbers of placeholders and images differ, which vLLM would not notice; or embeddings do not
            belong together.
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
        request["prompt_token_ids"] = _collapse_blocks(prompt, embeddings)
    values = [embedding.values for embedding in embeddings]
    counts = sorted({len(tokens) for tokens in values})
    if len(counts) > 1 and embeddings[0].stock in ONE_COUNT:
        raise ShapeError(
            f"vLLM needs the same number of tokens for all images of a prompt of {embeddings[0].stock}; got {counts}. "
            "Pass one num_regions for all of them to image_embeddings."
        )
    grids = [grid for embedding in embeddings if (grid := embedding.image_grid_thw) is not None]
    if grids:
        request["multi_modal_data"] = {"image": {"image_embeds": torch.cat(values), "image_grid_thw": torch.cat(grids)}}
    else:
        request["multi_modal_data"] = {"image": values}
    return request


def sglang_request(prompt: Sequence[int], embeddings: Sequence[ImageEmbedding]) -> dict[str, Any]:
    """Return a request for ``sglang.Engine.generate``: a prompt with one placeholder per token, and the embeddings.

    Args:
        prompt: Token ids with one placeholder or block for the image.
        embeddings: Embedding of the image. SGLang accepts one preprocessed image per request.

    Raises:
        ValueRangeError: The family was not tested with SGLang, or there are several images.
        ShapeError: The prompt does not have exactly one placeholder or block.
    """
    _check_family("SGLang", SGLANG, embeddings)
    if len(embeddings) != 1:
        raise ValueRangeError(f"SGLang takes embeddings of one image per request; got {len(embeddings)}.")
    embedding, image_id = embeddings[0], embeddings[0].placeholder[1]
    ids = [
        repeated
        for token in _collapse_blocks(prompt, embeddings, drop_tags=False)
        for repeated in [token] * (len(embedding) if token == image_id else 1)
    ]
    image: dict[str, Any] = {
        "format": "processor_output",
        "modality": "IMAGE",
        "precomputed_embeddings": embedding.values,
        "image_grid_thw": embedding.image_grid_thw,
    }
    return {"input_ids": ids, "image_data": [image]}


def _check_family(engine: str, families: tuple[str, ...], embeddings: Sequence[ImageEmbedding]) -> None:
    """Raise an error for embeddings that an engine does not support, or that are not of one model."""
    if not embeddings:
        raise ShapeError("embeddings must be of at least one image; got none. Send prompts without images unchanged.")
    if embeddings[0].stock not in families:
        raise ValueRangeError(
            f"{engine} accepts no image embeddings for {embeddings[0].stock}. It accepts them for "
            f"{', '.join(families)}."
        )
    models = {(embedding.stock, embedding.placeholder, embedding.values.shape[1]) for embedding in embeddings}
    if len(models) > 1:
        raise ShapeError(f"embeddings of one prompt must be of one model; got those of {sorted(map(str, models))}.")
    for image, embedding in enumerate(embeddings):
        count, grid = len(embedding), embedding.grid
        if embedding.values.ndim != 2 or (grid is not None and grid[0] * grid[1] != count):
            raise ShapeError(f"image {image}: its grid must have as many cells as tokens, {count}; got {grid}.")


def _collapse_blocks(
    prompt: Sequence[int], embeddings: Sequence[ImageEmbedding], *, drop_tags: bool = True
) -> list[int]:
    """Return token ids with one placeholder per image; drop the tags around it, which the server writes."""
    _, image_id = embeddings[0].placeholder
    tags = {tag for _, tag in embeddings[0].around} if drop_tags else set()
    tokens = prompt.tolist() if isinstance(prompt, Tensor) else [int(token) for token in prompt]
    ids: list[int] = []
    for index, token in enumerate(tokens):
        if token == image_id and ids and ids[-1] == image_id and tokens[index - 1] == image_id:
            continue
        if token not in tags:
            ids.append(token)
    if ids.count(image_id) != len(embeddings):
        raise ShapeError(
            f"the prompt must hold a placeholder (token {image_id}) for each of the {len(embeddings)} images, or the "
            f"block that its processor writes; got {ids.count(image_id)} of them."
        )
    return ids


def _closest_grid(count: int, shape: Size) -> Size:
    """Return rows and columns with ``count`` cells, in the proportions closest to those of ``shape``."""
    aspect = math.log(shape[0] / shape[1])
    divisors = (rows for rows in range(1, count + 1) if count % rows == 0)
    rows = min(divisors, key=lambda rows: abs(math.log(rows * rows / count) - aspect))
    return rows, count // rows
