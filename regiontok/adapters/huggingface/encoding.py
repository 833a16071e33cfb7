"""Encode images as region tokens in a multimodal model, without prompts; shared by all families."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from regiontok._checks import check_sizes
from regiontok._values import check_integer
from regiontok.adapters._sizes import require_image_sizes
from regiontok.adapters.huggingface.patches import (
    EncodedImages,
    Patches,
    Prompt,
    check_dim,
    count_valid,
    per_image,
    unmerged_images,
)
from regiontok.budgets import Budget, Keep
from regiontok.choices import PROMPT
from regiontok.downsample import Masks
from regiontok.errors import CheckpointError, ShapeError, ValueRangeError
from regiontok.regionizer import Regionizer
from regiontok.regions import Regions
from regiontok.tile_masks import cut_masks
from regiontok.tiles import Tile, count_images, share_budget
from regiontok.tokens import RegionTokens


class RegionEncoderMixin:
    """Encode images of a family as region tokens, without a prompt.

    A family provides the grids of its images (`tiles`), their patch features (`encode_patches`) and the projection of
    pooled regions (`projector`). Masks and budgets are per image. If an image is cut into tiles, its masks are cut in
    the same way, and its budget is shared over the tiles in proportion to their patches.
    """

    regionizer: Regionizer
    config: Any
    training: bool

    _stock: type[Any]
    """Stock outer class, a ``*ForConditionalGeneration`` of transformers."""
    _inner: type[Any]
    """Stock inner class of transformers, such as ``LlavaModel``."""
    encoder_inputs: tuple[str, ...] = ()
    """Names of the inputs of `encode_patches` other than pixels."""
    token_types: str | None = None
    """Name of the input that marks image tokens, if the stock class needs it."""
    answer_type: ClassVar[int] = 0
    """Value of ``token_type_ids`` at the tokens of an answer."""
    knows_tile_layout: ClassVar[bool] = False
    """Whether each `Tile` has the part of the image that it shows, so that the Regionizer needs no geometry."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Return a module or method of the stock model."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        self.attach()

    def attach(self, regionizer: Regionizer | None = None) -> None:
        """Add a Regionizer, by default a new one with the options in the config.

        Raises:
            CheckpointError: There is no Regionizer, and the config has no options for one.
            ShapeError: The Regionizer is for features of another dimension.
        """
        if regionizer is None:
            options = getattr(self.config, "regiontok", None)
            if options is None:
                raise CheckpointError(
                    f"{type(self).__name__} needs a Regionizer, and the config of a stock model has no options for it. "
                    "Pass regionizer=Regionizer(...) to from_pretrained, or set config.regiontok = regionizer.config."
                )
            regionizer = Regionizer.from_config(options)
        self.check_regionizer(regionizer)
        self.regionizer = regionizer

    @property
    def patch_dim(self) -> int:
        """Dimension of the patch features that are pooled; by default that of the language model."""
        return int(self.config.get_text_config().hidden_size)

    @property
    def projector(self) -> Callable[[Tensor], Tensor]:
        """Function that maps pooled regions ``(R, dim)`` to tokens ``(R, text_dim)``; by default the identity."""
        return nn.Identity()

    @abstractmethod
    def tiles(self, num_images: int, image_sizes: Any = None, **inputs: Any) -> list[Tile]:
        """Return the tiles of images, without encoding them.

        Args:
            num_images: Number of images, for families whose tiles do not depend on further inputs.
            image_sizes: Height and width of each image.
            inputs: Inputs of the family's encoder other than pixels.
        """

    @abstractmethod
    def encode_patches(self, pixel_values: Tensor, **inputs: Any) -> Patches:
        """Return the patch features of a batch's images."""

    @abstractmethod
    def blank_image(self) -> dict[str, Any]:
        """Return the smallest valid input of `encode_patches`."""

    def infer_tilings(self, pixel_values: Tensor, inputs: dict[str, Any], prompt: Prompt | None = None) -> None:
        """Add ``tilings`` to ``inputs``, inferred from the sizes of images or the prompt; by default do nothing."""

    def arrange(self, tokens: RegionTokens, tiles: Sequence[Tile], unmerged: Sequence[bool]) -> tuple[Tensor, Tensor]:
        """Return tokens in the order of their placeholders.

        Args:
            tokens: Tokens of all tiles, in the order of their regions.
            tiles: Tiles of the batch.
            unmerged: For each image, whether every patch is a region. The tokens of such an image have the order and
                the newlines of the stock model.

        Returns:
            Values ``(N, text_dim)``, and the region of each ``(N,)`` int64: -1 for newlines.
        """
        return tokens.values, torch.arange(len(tokens), device=tokens.values.device)

    def count_newlines(self, tiles: Sequence[Tile], unmerged: Sequence[bool]) -> list[int]:
        """Return the number of newlines of each image."""
        return [0] * count_images(tiles)

    def encode_regions(
        self,
        pixel_values: Tensor,
        *,
        masks: Sequence[Masks] | None = None,
        image_sizes: Any = None,
        num_regions: Budget | None = None,
        keep: Keep | None = None,
        **inputs: Any,
    ) -> RegionTokens:
        """Return region tokens of images without a prompt, in the dimension of the language model.

        Args:
            pixel_values: Pixels, as the processor returns them.
            masks: See `RegionModelMixin`, as for the next three arguments.
            image_sizes: Height and width of each image before preprocessing.
            num_regions: Budget of tokens, one number or one per image.
            keep: The same budget as a fraction of the valid patches.
            inputs: Inputs of the family's encoder other than pixels.
        """
        patches, sizes, valid = self._encode(pixel_values, image_sizes, inputs)
        budgets = self._budgets(patches.tiles, valid, num_regions, keep)
        return self._project(self._regionize(patches, masks, sizes, valid, budgets), patches)

    def _project(self, tokens: RegionTokens, patches: Patches) -> RegionTokens:
        """Return tokens in the dimension of the language model."""
        return tokens if patches.is_projected else tokens.map(self.projector)

    def _budgets(
        self, tiles: Sequence[Tile], valid: Sequence[Tensor | None], num_regions: Budget | None, keep: Keep | None
    ) -> list[int] | None:
        """Return the budget of each tile; None without a budget.

        Raises:
            ShapeError, ValueRangeError: The budgets do not fit the images.
        """
        if num_regions is None and keep is None:
            config = self.regionizer.config
            if not config.has_budget or config.num_regions == PROMPT:
                return None
            num_regions, keep = config.num_regions, config.keep
        else:
            self.regionizer.check_budget(num_regions, keep)
        return share_budget(tiles, num_regions, keep=keep, patches=count_valid(tiles, valid))

    def _known_counts(
        self, tiles: Sequence[Tile], valid: Sequence[Tensor | None], budgets: list[int] | None
    ) -> list[int] | None:
        """Return the number of regions of each tile; None if it depends on features or masks."""
        config = self.regionizer.config
        if config.source == "patch":
            return count_valid(tiles, valid)
        if config.source == "segmentation" or (config.source == "combined" and config.unassigned == "drop"):
            return None
        return budgets

    def num_tokens(
        self,
        image_sizes: Any = None,
        *,
        num_regions: Budget | None = None,
        keep: Keep | None = None,
        num_images: int | None = None,
        **inputs: Any,
    ) -> list[int]:
        """Return the number of tokens of each image, before it is encoded.

        Args:
            image_sizes: Height and width of each image before preprocessing. Padding is not counted.
            num_regions: Budget of tokens, one number or one per image.
            keep: The same budget as a fraction of the valid patches.
            num_images: Number of images, if no other argument gives it.
            inputs: Inputs of the family's encoder other than pixels. Families of dynamic resolution need
                ``image_grid_thw``; some families that cut images into tiles need ``tilings``.

        Raises:
            ShapeError: Arguments are of different numbers of images.
            ValueRangeError: The counts depend on features or masks, or no argument gives the number of images.
        """
        sizes = None if image_sizes is None else check_sizes("image_sizes", image_sizes)
        unknown = sorted(set(inputs) - set(self.encoder_inputs))
        if unknown:
            raise ValueRangeError(f"num_tokens takes no {unknown[0]}. Leave it out.")
        if num_images is not None:
            num_images = check_integer("num_images", num_images)
        if sizes is not None and num_images not in (None, len(sizes)):
            raise ShapeError(f"num_images must be the number of image_sizes, {len(sizes)}; got {num_images}.")
        if sizes is None and num_images is None and not inputs:
            raise ValueRangeError(
                "the number of tokens depends on the images. Pass image_sizes, or num_images if the sizes do not "
                "matter."
            )
        tiles = self.tiles(num_images or (0 if sizes is None else len(sizes)), image_sizes=sizes, **inputs)
        for name, count in (("num_images", num_images), ("image_sizes", None if sizes is None else len(sizes))):
            if count not in (None, count_images(tiles)):
                raise ShapeError(
                    f"{name} must match the {count_images(tiles)} images of the other arguments; got {count}."
                )
        valid = self._valid(tiles, sizes)
        counts = self._known_counts(tiles, valid, self._budgets(tiles, valid, num_regions, keep))
        if counts is None:  # raises an error with the reason
            counts = self.regionizer.num_tokens(count_valid(tiles, valid), num_regions=num_regions, keep=keep)
        newlines = self.count_newlines(tiles, unmerged_images(tiles, counts))
        return [sum(pair) for pair in zip(per_image(tiles, counts), newlines, strict=True)]

    def check_regionizer(self, regionizer: Regionizer) -> None:
        """Raise an error for a Regionizer that does not fit this model."""
        check_dim(regionizer, self.patch_dim)
        if self.knows_tile_layout and regionizer.config.geometry is not None:
            raise ValueRangeError(
                f"{type(self).__name__} computes how images are placed on tiles. Leave geometry out of the Regionizer."
            )

    def _encode(
        self,
        pixel_values: Tensor,
        image_sizes: Any,
        inputs: dict[str, Any],
        prompt: Prompt | None = None,
    ) -> tuple[Patches, Any, list[Tensor | None]]:
        """Return patch features, checked sizes of the images, and the valid patches of each tile."""
        sizes = None if image_sizes is None else check_sizes("image_sizes", image_sizes)
        inputs = inputs | {"image_sizes": image_sizes}
        self.infer_tilings(pixel_values, inputs, prompt)
        if inputs["image_sizes"] is None:  # sizes of resized images, which gave the tiles
            sizes = None
        if "image_sizes" not in self.encoder_inputs:
            del inputs["image_sizes"]
        patches = self.encode_patches(pixel_values, **inputs)
        return patches, sizes, self._valid(patches.tiles, sizes)

    def _encode_regions(
        self,
        patches: Patches,
        masks: Sequence[Masks] | None,
        sizes: Any,
        valid: Sequence[Tensor | None],
        num_regions: Budget | None,
        keep: Keep | None,
        *,
        unmerged: list[bool] | None = None,
    ) -> EncodedImages:
        """Return tokens in the order of their placeholders; ``unmerged`` images have the order of the stock model."""
        tiles = patches.tiles
        budgets = self._budgets(tiles, valid, num_regions, keep)
        tokens = self._project(self._regionize(patches, masks, sizes, valid, budgets), patches)
        if unmerged is None:
            limits = None if patches.valid is None else count_valid(tiles, valid)
            unmerged = unmerged_images(tiles, self._known_counts(tiles, valid, budgets), limits)
        tokens = self._in_block_order(tokens, tiles, unmerged)
        values, region, neighbour = self._arranged(tokens, patches, unmerged)
        block = self.block_of_regions(tokens.regions, tiles, unmerged)[neighbour]
        lengths = torch.bincount(block, minlength=len(patches.num_placeholders)).tolist()
        offsets = self.offsets(tokens.regions, patches)
        return EncodedImages(values, region, tokens.regions, patches, lengths, offsets)

    def block_of_regions(self, regions: Regions, tiles: Sequence[Tile], unmerged: Sequence[bool]) -> Tensor:
        """Return the block of placeholders of each region, ``(R,)`` int64."""
        return torch.tensor([tile.block for tile in tiles], device=regions.device)[regions.image]

    def _in_block_order(self, tokens: RegionTokens, tiles: Sequence[Tile], unmerged: Sequence[bool]) -> RegionTokens:
        """Return tokens ordered by their blocks; the tokens of an image are in one block, or in order already."""
        return tokens

    def offsets(self, regions: Regions, patches: Patches) -> Tensor | None:
        """Return the ``offsets`` of ``EncodedImages``; by default None, for positions in one dimension."""
        return None

    def _arranged(
        self, tokens: RegionTokens, patches: Patches, unmerged: Sequence[bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return values in the order of their placeholders, the region of each, and a region in the block of each."""
        values, region = self.arrange(tokens, patches.tiles, unmerged)
        return values, region, region.cummax(0).values if (region < 0).any() else region  # newlines follow regions

    def regionizer_for(self, patches: Patches) -> Regionizer:
        """Return the Regionizer for a batch."""
        return self.regionizer

    def _valid(self, tiles: Sequence[Tile], sizes: Any) -> list[Tensor | None]:
        """Return the valid patches of each tile ``(rows, cols)``; None if all are valid."""
        options = self.regionizer.config
        if sizes is None or options.padding == "keep" or not (self.knows_tile_layout or options.geometry):
            return [None] * len(tiles)
        if len(sizes) != count_images(tiles):
            raise ShapeError(f"image_sizes must have one entry per image, {count_images(tiles)}; got {len(sizes)}.")
        if options.geometry is None:
            return [tile.valid(sizes) for tile in tiles]
        return [options.geometry.place(sizes[tile.image]).valid(tile.grid) for tile in tiles]

    def _regionize(
        self,
        patches: Patches,
        masks: Sequence[Masks] | None,
        sizes: Any,
        valid: Sequence[Tensor | None],
        budgets: list[int] | None,
    ) -> RegionTokens:
        """Return tokens in the dimension of the patch features."""
        regionizer = self.regionizer_for(patches)
        config = regionizer.config
        if masks is not None and self.knows_tile_layout:
            masks = cut_masks(
                patches.tiles,
                masks,
                sizes,
                overlap=config.overlap,
                downsampling=config.downsampling,
                min_coverage=config.min_coverage,
            )
            sizes = None
        if masks is not None:
            require_image_sizes(regionizer, masks, sizes)
            return regionizer(patches.features, masks=masks, sizes=sizes, num_regions=budgets)
        if all(mask is None for mask in valid):
            return regionizer(patches.features, num_regions=budgets)
        device = patches.features[0].device
        valid_masks = [
            torch.ones(tile.shape, dtype=torch.bool, device=device) if mask is None else mask.to(device)
            for tile, mask in zip(patches.tiles, valid, strict=True)
        ]
        return regionizer(patches.features, valid=valid_masks, num_regions=budgets)
