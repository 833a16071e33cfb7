"""Region tokens in the original LLaVA code base, which is a source checkout and no package; nothing of it is imported.

    from regiontok.adapters.llava import add_regions

    add_regions(model, Regionizer(source="clustering", dim=1024))    # a LlavaLlamaForCausalLM with its vision tower
    model.generate(input_ids, images=images)                         # as before, with fewer tokens per image

LLaVA's ``encode_images`` is the vision tower followed by ``mm_projector``. The projector is replaced by one that makes
regions first and returns one tensor per image, which LLaVA's code takes as it takes a batch. So all that its scripts do
to the projector (train it alone in stage 1, give it a learning rate, save it as ``mm_projector.bin``) is done to the
regions' weights too. Tested with LLaVA at its last commit, of May 2024.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from regiontok._checks import check_sizes
from regiontok.adapters._sizes import need_sizes
from regiontok.budgets import Budget, Keep
from regiontok.downsample import Masks
from regiontok.errors import CheckpointError, DTypeError, ShapeError, ValueRangeError
from regiontok.geometry import Size
from regiontok.regionizer import Regionizer


class RegionProjector(nn.Module):
    """Patch features to projected region tokens, one tensor per image.

    Args:
        regionizer: How patches become regions.
        projector: LLaVA's own ``mm_projector``.
        side: Patches per side of the vision tower's grid.

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
    def seeing(
        self,
        *,
        masks: Sequence[Masks] | None = None,
        image_sizes: Sequence[Size] | None = None,
        num_regions: Budget | None = None,
        keep: Keep | None = None,
    ) -> Iterator[None]:
        """Give the next images their masks, sizes before preprocessing and budgets, for calls inside a ``with``.

        Args:
            masks: One entry per image of the batch; see `Regionizer`.
            image_sizes: Height and width per image, so that padding is in no region.
            num_regions: A budget of tokens, one number or one per image, in place of the Regionizer's own.
            keep: Likewise, a fraction of the valid patches.
        """
        sizes = None if image_sizes is None else check_sizes("image_sizes", image_sizes)
        need_sizes(self.regionizer, masks, sizes)
        before = self._masks, self._sizes, self._budget
        self._masks, self._sizes, self._budget = masks, sizes, {"num_regions": num_regions, "keep": keep}
        try:
            yield
        finally:
            self._masks, self._sizes, self._budget = before

    def num_tokens(
        self, image_sizes: Sequence[Size], *, num_regions: Budget | None = None, keep: Keep | None = None
    ) -> list[int]:
        """How many tokens images of these sizes will get, before they are encoded.

        Raises:
            ValueRangeError: Counts that depend on the features or on masks.
        """
        sizes = check_sizes("image_sizes", image_sizes)
        grids = [(self.side, self.side)] * len(sizes)
        patches = self.regionizer.num_patches(grids, sizes)
        return self.regionizer.num_tokens(patches, num_regions=num_regions, keep=keep)

    def forward(self, features: Tensor) -> list[Tensor]:
        """Tokens of each image."""
        if features.ndim != 3 or features.shape[1] != self.side**2:
            raise ShapeError(
                f"features must be (images, {self.side**2}, dim), the tower's patches; got {tuple(features.shape)}. "
                "Set mm_vision_select_feature to 'patch'."
            )
        grid = features.unflatten(1, (self.side, self.side))
        tokens = self.regionizer(grid, masks=self._masks, sizes=self._sizes, **self._budget)
        return tokens.map(self.projector).split()


def add_regions(model: Any, regionizer: Regionizer) -> RegionProjector:
    """Let a LLaVA see region tokens, by a projector that makes them first.

    Args:
        model: LLaVA's causal language model, its vision tower and projector built.
        regionizer: How patches become regions; it is moved to the projector's device and dtype.

    Returns:
        The new projector, whose `RegionProjector.seeing` takes masks.

    Raises:
        DTypeError: No LLaVA, or one without vision modules.
        ValueRangeError: One that cuts images into tiles, or whose tower's class token is kept.
        ShapeError: A ``regionizer`` of another dimension than the tower's features.
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
        raise ValueRangeError("this model has regions already. Take them off with remove_regions first.")
    config = model.config
    if (
        "anyres" in (getattr(config, "image_aspect_ratio", None) or "")
        or getattr(config, "mm_patch_merge_type", "flat") != "flat"
    ):
        raise ValueRangeError(
            "images cut into tiles (anyres) have several grids each and are not supported. Set image_aspect_ratio to "
            "'pad' or 'square', and mm_patch_merge_type to 'flat'."
        )
    if getattr(config, "mm_vision_select_feature", "patch") != "patch":
        raise ValueRangeError("mm_vision_select_feature must be 'patch': a class token is in no region.")
    if regionizer.config.dim not in (None, tower.hidden_size):
        raise ShapeError(
            f"the Regionizer is for features of dimension {regionizer.config.dim}; this tower's are of "
            f"{tower.hidden_size}. Make it with dim={tower.hidden_size}."
        )
    weight = next(projector.parameters(), None)
    if weight is not None:
        regionizer = regionizer.to(weight.device, weight.dtype)
    inner.mm_projector = RegionProjector(regionizer, projector, tower.num_patches_per_side)
    config.regiontok = regionizer.config.to_dict()
    return inner.mm_projector


def remove_regions(model: Any) -> Regionizer:
    """Put LLaVA's own projector back; returns the `Regionizer`.

    Raises:
        DTypeError: A model without regions.
    """
    projector = _projector(model)
    model.get_model().mm_projector = projector.projector
    del model.config.regiontok
    return projector.regionizer


def load_regions(model: Any, saved: str | Path) -> None:
    """Load the projector and the regions' weights into a model that has regions.

    LLaVA's own loading, and its ``--pretrain_mm_mlp_adapter``, comes before there are regions and does not know them.

    Args:
        model: After `add_regions`.
        saved: ``mm_projector.bin`` of stage 1, ``non_lora_trainables.bin`` of LoRA, another file of weights, or a
            folder with one of these or with a whole model.

    Raises:
        DTypeError: A model without regions.
        CheckpointError: No such file, a stock one, or one of another width.
    """
    projector = _projector(model)
    marker = "mm_projector."
    found = {name.split(marker, 1)[1]: value for name, value in _read(Path(saved)) if marker in name}
    buffers = {name for name, _ in projector.named_buffers()}  # LLaVA saves parameters only
    try:
        missing, unexpected = projector.load_state_dict(found, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{saved} is of another width than this model: {error}") from error
    if unexpected or set(missing) - buffers:
        wrong = sorted({*unexpected, *missing} - buffers)
        raise CheckpointError(
            f"{saved} is not of this model's projector and regions; they differ in {wrong[0]} and {len(wrong) - 1} "
            "more. A stock one is loaded before add_regions, by LLaVA itself."
        )


def _read(saved: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a file, or of all files of a model's folder."""
    named = [saved / name for name in ("mm_projector.bin", "non_lora_trainables.bin") if (saved / name).is_file()]
    files = [saved] if saved.is_file() else named[:1] or [*saved.glob("*.safetensors")] or [*saved.glob("*model*.bin")]
    if not files:
        raise CheckpointError(f"there is no file {saved}, nor a folder of weights.")
    for file in files:
        try:
            if file.suffix == ".safetensors":
                weights = load_file(file)
            else:
                weights = torch.load(file, map_location="cpu", weights_only=True)
            yield from weights.items()
        except Exception as error:  # damaged bytes raise errors of all kinds
            raise CheckpointError(f"{file} is damaged or holds no weights: {error}") from error


def _projector(model: Any) -> RegionProjector:
    projector = getattr(model.get_model(), "mm_projector", None) if hasattr(model, "get_model") else None
    if not isinstance(projector, RegionProjector):
        raise DTypeError(f"model must be a LLaVA with regions; got {type(model).__name__}. Call add_regions first.")
    return projector
