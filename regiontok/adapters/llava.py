"""Region tokens in the original LLaVA code base. It is a source checkout, not a package, so nothing of it is imported.

    from regiontok.adapters.llava import add_regions

    add_regions(model, Regionizer(source="clustering", dim=1024))    # a LlavaLlamaForCausalLM with its vision tower
    model.generate(input_ids, images=images)                         # as before, with fewer tokens per image

LLaVA's ``encode_images`` applies the vision tower and then ``mm_projector``. The projector is replaced by a
`RegionProjector`, which groups patches into regions before it projects them, and returns a list with one tensor per
image. LLaVA's code accepts such a list in place of a batch. Its scripts train the projector alone in stage 1, set its
learning rate and save it as ``mm_projector.bin``; the weights of the Regionizer are part of it and are included.
Tested with the last commit of LLaVA (May 2024).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from regiontok._checks import check_sizes
from regiontok.adapters._sizes import require_image_sizes
from regiontok.budgets import Budget, Keep
from regiontok.downsample import Masks
from regiontok.errors import CheckpointError, DTypeError, ShapeError, ValueRangeError
from regiontok.geometry import Size
from regiontok.regionizer import Regionizer


class RegionProjector(nn.Module):
    """Pool patch features to region tokens and project these, one tensor per image.

    Args:
        regionizer: Module that pools patch features to region tokens.
        projector: The model's ``mm_projector``.
        side: Number of patches per side of the vision tower's grid.

    Shape:
        features: ``(B, side * side, dim)``; returns a list of ``(regions, hidden)``.
    """

    def __init__(self, regionizer: Regionizer, projector: nn.Module, side: int) -> None:
        super().__init__()
        self.regionizer = regionizer
        self.projector = projector
        self.side = side
        self._masks: Sequence[Masks] | None = None
        self._sizes: list[Size] | None = None
        self._budget: dict[str, Any] = {}

    @contextmanager
    def side_inputs(
        self,
        *,
        masks: Sequence[Masks] | None = None,
        image_sizes: Sequence[Size] | None = None,
        num_regions: Budget | None = None,
        keep: Keep | None = None,
    ) -> Iterator[None]:
        """Set masks, sizes and budgets of the images that are encoded in a ``with`` block.

        Args:
            masks: One entry per image of the batch; see `Regionizer`.
            image_sizes: Height and width of each image before preprocessing, to exclude padding from regions.
            num_regions: Budget of tokens instead of the Regionizer's: one number, or one per image.
            keep: The same budget as a fraction of the valid patches.

        Raises:
            ValueRangeError: Masks of padded images without ``image_sizes``.

        Example:
            LLaVA's ``generate`` has no argument for masks, so they are set around it::

                projector = add_regions(model, Regionizer(source="segmentation", dim=1024))
                with projector.side_inputs(masks=masks, image_sizes=sizes):
                    model.generate(input_ids, images=images)
        """
        sizes = None if image_sizes is None else check_sizes("image_sizes", image_sizes)
        require_image_sizes(self.regionizer, masks, sizes)
        before = self._masks, self._sizes, self._budget
        self._masks, self._sizes, self._budget = masks, sizes, {"num_regions": num_regions, "keep": keep}
        try:
            yield
        finally:
            self._masks, self._sizes, self._budget = before

    def num_tokens(
        self, image_sizes: Sequence[Size], *, num_regions: Budget | None = None, keep: Keep | None = None
    ) -> list[int]:
        """Return the number of tokens of images from their sizes, before they are encoded.

        Args:
            image_sizes: Height and width of each image before preprocessing.
            num_regions: Budget of tokens, as in `side_inputs`.
            keep: The same budget as a fraction of the valid patches.

        Raises:
            ValueRangeError: The number depends on the features or on masks.
        """
        sizes = check_sizes("image_sizes", image_sizes)
        grids = [(self.side, self.side)] * len(sizes)
        patches = self.regionizer.num_patches(grids, sizes)
        return self.regionizer.num_tokens(patches, num_regions=num_regions, keep=keep)

    def forward(self, features: Tensor) -> list[Tensor]:
        """Return the projected region tokens of each image."""
        if features.ndim != 3 or features.shape[1] != self.side**2:
            raise ShapeError(
                f"features must be (images, {self.side**2}, dim), the tower's patches; got {tuple(features.shape)}. "
                "Set mm_vision_select_feature to 'patch'."
            )
        grid = features.unflatten(1, (self.side, self.side))
        tokens = self.regionizer(grid, masks=self._masks, sizes=self._sizes, **self._budget)
        return tokens.map(self.projector).split()


def add_regions(model: Any, regionizer: Regionizer) -> RegionProjector:
    """Replace the projector of a LLaVA model by one that makes region tokens.

    Args:
        model: LLaVA's causal language model with its vision tower and projector.
        regionizer: Module that pools patch features to region tokens. It is moved to the projector's device and dtype.

    Returns:
        The new projector; see `RegionProjector.side_inputs` for masks and budgets of a call.

    Raises:
        DTypeError: The model is not a LLaVA, or has no vision modules.
        ValueRangeError: The model cuts images into tiles, keeps the class token of the tower, or has regions already.
        ShapeError: ``regionizer`` has another dimension than the tower's features.
    """
    inner: Any = model.get_model() if hasattr(model, "get_model") else None
    projector: Any = getattr(inner, "mm_projector", None)
    tower = model.get_vision_tower() if projector is not None else None
    if tower is None:
        raise DTypeError(
            f"model must be a LLaVA with a vision tower and an mm_projector; got {type(model).__name__}. Build them "
            "with initialize_vision_modules first."
        )
    if isinstance(projector, RegionProjector):
        raise ValueRangeError("this model has regions already. Remove them with remove_regions first.")
    config = model.config
    if (
        "anyres" in (getattr(config, "image_aspect_ratio", None) or "")
        or getattr(config, "mm_patch_merge_type", "flat") != "flat"
    ):
        raise ValueRangeError(
            "images that are cut into tiles (anyres) are not supported. Set image_aspect_ratio to 'pad' or 'square', "
            "and mm_patch_merge_type to 'flat'."
        )
    if getattr(config, "mm_vision_select_feature", "patch") != "patch":
        raise ValueRangeError("mm_vision_select_feature must be 'patch': regions are made of patches only.")
    if regionizer.config.dim not in (None, tower.hidden_size):
        raise ShapeError(
            f"the Regionizer has dim={regionizer.config.dim}, and the features of this vision tower have dimension "
            f"{tower.hidden_size}. Create it with dim={tower.hidden_size}."
        )
    weight = next(projector.parameters(), None)
    if weight is not None:
        regionizer = regionizer.to(weight.device, weight.dtype)
    inner.mm_projector = RegionProjector(regionizer, projector, tower.num_patches_per_side)
    config.regiontok = regionizer.config.to_dict()
    return inner.mm_projector


def remove_regions(model: Any) -> Regionizer:
    """Restore the original projector of a LLaVA model and return its `Regionizer`.

    Raises:
        DTypeError: The model has no regions.
    """
    projector = _projector(model)
    model.get_model().mm_projector = projector.projector
    del model.config.regiontok
    return projector.regionizer


def load_regions(model: Any, saved: str | Path) -> None:
    """Load the weights of the projector and the Regionizer into a model that has regions.

    LLaVA loads weights, also those of ``--pretrain_mm_mlp_adapter``, before `add_regions` and ignores the Regionizer's.

    Args:
        model: A model after `add_regions`.
        saved: ``mm_projector.bin`` of stage 1, ``non_lora_trainables.bin`` of LoRA, another file of weights, or a
            folder that contains one of these or a whole model.

    Raises:
        DTypeError: The model has no regions.
        CheckpointError: The file is missing or damaged, has no weights of a Regionizer, or has other shapes.
    """
    projector = _projector(model)
    marker = "mm_projector."
    weights = {name.split(marker, 1)[1]: value for name, value in _read(Path(saved)) if marker in name}
    buffers = {name for name, _ in projector.named_buffers()}  # LLaVA saves parameters only
    try:
        missing, unexpected = projector.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{saved} does not have the shapes of this model: {error}") from error
    if unexpected or set(missing) - buffers:
        wrong = sorted({*unexpected, *missing} - buffers)
        raise CheckpointError(
            f"{saved} does not match this model's projector and regions; they differ in {wrong[0]} and "
            f"{len(wrong) - 1} more. Load a stock projector with LLaVA itself, before add_regions."
        )


def _read(saved: Path) -> Iterator[tuple[str, Tensor]]:
    """Iterate over the names and tensors of a file, or of all files of a model's folder."""
    named = [saved / name for name in ("mm_projector.bin", "non_lora_trainables.bin") if (saved / name).is_file()]
    files = [saved] if saved.is_file() else named[:1] or [*saved.glob("*.safetensors")] or [*saved.glob("*model*.bin")]
    if not files:
        raise CheckpointError(f"{saved} is neither a file nor a folder of weights.")
    for file in files:
        try:
            if file.suffix == ".safetensors":
                weights = load_file(file)
            else:
                weights = torch.load(file, map_location="cpu", weights_only=True)
            yield from weights.items()
        except Exception as error:  # damaged bytes raise errors of all kinds
            raise CheckpointError(f"{file} is damaged or has no weights: {error}") from error


def _projector(model: Any) -> RegionProjector:
    projector = getattr(model.get_model(), "mm_projector", None) if hasattr(model, "get_model") else None
    if not isinstance(projector, RegionProjector):
        raise DTypeError(f"model must be a LLaVA with regions; got {type(model).__name__}. Call add_regions first.")
    return projector
