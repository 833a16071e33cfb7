"""Images as region tokens in a multimodal model, without prompts; shared by all families."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from regiontok._checks import Features, check_integer, check_sizes
from regiontok._require import require
from regiontok.adapters._sizes import need_sizes
from regiontok.budgets import Budget, Keep
from regiontok.choices import PROMPT
from regiontok.downsample import Masks
from regiontok.errors import CheckpointError, ShapeError, ValueRangeError
from regiontok.regionizer import Regionizer
from regiontok.regions import Regions
from regiontok.tokens import RegionTokens
from regiontok.views import View, count_images, cut_masks, share_budget

transformers = require("transformers", extra="hf")


class Patches(NamedTuple):
    """Images as patch features.

    Attributes:
        features: ``(views, rows, cols, dim)``, or a list of ``(rows, cols, dim)``. Most families have one view of each
            image.
        num_placeholders: Number of placeholders that the stock processor writes, per block of them.
        views: Which part of which image each grid shows.
        layers: Features of further layers, each like ``features``, that the language model takes too.
    """

    features: Features
    num_placeholders: list[int]
    views: list[View]
    layers: Sequence[Features] = ()


class Prompt(NamedTuple):
    """What the prompts of a batch say about its images.

    Attributes:
        input_ids: ``(B, columns)``.
        blocks: Blocks of placeholders, as `find_blocks` returns them.
        num_regions: Budget of the call.
        keep: Budget of the call.
    """

    input_ids: Tensor
    blocks: Tensor
    num_regions: Budget | None = None
    keep: Keep | None = None


class EncodedImages(NamedTuple):
    """Images of a batch as region tokens, before they are put into prompts.

    Attributes:
        values: ``(N, text_dim)``: region tokens, and newlines of families that have them.
        region: ``(N,)`` int64: the region of each, -1 for newlines.
        regions: Their `Regions`; the images of these are the views.
        patches: The patch features that the regions are made of.
        lengths: Number of tokens of each block of placeholders.
    """

    values: Tensor
    region: Tensor
    regions: Regions
    patches: Patches
    lengths: list[int]


class RegionEncoderMixin:
    """Images of a family as region tokens, without a prompt.

    A family provides the grids that show its images (`views`), their patch features (`encode_patches`) and the
    projection of pooled regions (`projector`). Masks and budgets are per image, also where an image is cut into tiles:
    masks are cut with it, and a budget is shared over its grids in proportion to their patches.
    """

    regionizer: Regionizer
    config: Any
    training: bool

    _stock: type[Any]
    """The outer class of transformers."""
    _inner: type[Any]
    """The inner class of transformers."""
    encoder_inputs: tuple[str, ...] = ()
    """Names of the inputs of `encode_patches` other than pixels."""
    token_types: str | None = None
    """Name of the input that marks the tokens of images, where the stock class needs it."""
    answer_type: ClassVar[int] = 0
    """What ``token_type_ids`` are for the tokens of an answer."""
    places_images: ClassVar[bool] = False
    """Whether views know which part of the image they show, so that the Regionizer needs no geometry."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Parts of the stock model."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        self.attach()

    def attach(self, regionizer: Regionizer | None = None) -> None:
        """Add a Regionizer, by default a new one with the options of the config.

        Raises:
            CheckpointError: A config without options.
            ShapeError: A Regionizer for features of another dimension.
        """
        if regionizer is None:
            options = getattr(self.config, "regiontok", None)
            if options is None:
                raise CheckpointError(
                    f"{type(self).__name__} needs a Regionizer and its config names none: it is of a stock model. Pass "
                    "regionizer=Regionizer(...) to from_pretrained, or set config.regiontok = regionizer.config."
                )
            regionizer = Regionizer.from_config(options)
        self.check_regionizer(regionizer)
        self.regionizer = regionizer

    @property
    def patch_dim(self) -> int:
        """Dimension of the patch features that regions are made of; by default that of the language model."""
        return int(self.config.get_text_config().hidden_size)

    @property
    def projector(self) -> Callable[[Tensor], Tensor]:
        """Map pooled regions ``(R, dim)`` to tokens ``(R, text_dim)``; the identity by default."""
        return nn.Identity()

    @abstractmethod
    def views(self, images: int, image_sizes: Any = None, **inputs: Any) -> list[View]:
        """Return the grids that show images, without encoding them."""

    @abstractmethod
    def encode_patches(self, pixel_values: Tensor, **inputs: Any) -> Patches:
        """Return the patch features of a batch's images."""

    @abstractmethod
    def blank_image(self) -> dict[str, Any]:
        """Return the smallest input of `encode_patches`."""

    def infer_tiles(self, pixel_values: Tensor, inputs: dict[str, Any], prompt: Prompt | None = None) -> None:
        """Add the tiles of images to ``inputs``, by their sizes or by the prompt's blocks; nothing by default."""

    def arrange(self, tokens: RegionTokens, views: Sequence[View], whole: Sequence[bool]) -> tuple[Tensor, Tensor]:
        """Return tokens in the order of their placeholders, ``(N, text_dim)``, and the region of each.

        Args:
            tokens: Of all views, in the order of their regions.
            views: Of the batch.
            whole: Per image, whether each of its patches is a region. Such an image is arranged as by the stock model.

        Returns:
            Values, and ``(N,)`` int64 with -1 for values that are no region, as newlines are.
        """
        return tokens.values, torch.arange(len(tokens), device=tokens.values.device)

    def count_newlines(self, views: Sequence[View], whole: Sequence[bool]) -> list[int]:
        """Return the number of newlines of each image."""
        return [0] * count_images(views)

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
        """Return region tokens of images without a prompt, in the dimension of the language model."""
        patches, sizes, valid = self._encode(pixel_values, image_sizes, inputs)
        budgets = self._budgets(patches.views, valid, num_regions, keep)
        return self._regionize(patches, masks, sizes, valid, budgets).map(self.projector)

    def _budgets(
        self, views: Sequence[View], valid: Sequence[Tensor | None], num_regions: Budget | None, keep: Keep | None
    ) -> list[int] | None:
        """Return the budget of each view; None without a budget.

        Raises:
            ShapeError, ValueRangeError: Budgets that do not fit the images.
        """
        if num_regions is None and keep is None:
            config = self.regionizer.config
            if not config.has_budget or config.num_regions == PROMPT:
                return None
            num_regions, keep = config.num_regions, config.keep
        else:
            self.regionizer.check_budget(num_regions, keep)
        return share_budget(views, num_regions, keep=keep, patches=_count_valid(views, valid))

    def _known_counts(
        self, views: Sequence[View], valid: Sequence[Tensor | None], budgets: list[int] | None
    ) -> list[int] | None:
        """Return the number of regions of each view; None where it depends on features or masks."""
        config = self.regionizer.config
        if config.source == "patch":
            return _count_valid(views, valid)
        if config.source == "segmentation" or (config.source == "combined" and config.uncovered == "drop"):
            return None
        return budgets

    def num_tokens(
        self,
        image_sizes: Any = None,
        *,
        num_regions: Budget | None = None,
        keep: Keep | None = None,
        images: int | None = None,
        **inputs: Any,
    ) -> list[int]:
        """Return how many tokens images will get, before they are encoded.

        Args:
            image_sizes: See `RegionModelMixin`. Where the Regionizer's geometry pads images, padding is in no token.
            num_regions: See `RegionModelMixin`.
            keep: See `RegionModelMixin`.
            images: Number of images, where ``image_sizes`` does not give it.
            inputs: Inputs of the family's encoder other than pixels. Families of dynamic resolution need
                ``image_grid_thw``, which gives the number of images too; some families that cut images need ``tiles``.

        Raises:
            ShapeError: Numbers of images that differ.
            ValueRangeError: Counts that depend on features or masks, or nothing that gives the number of images.
        """
        sizes = None if image_sizes is None else check_sizes("image_sizes", image_sizes)
        unknown = sorted(set(inputs) - set(self.encoder_inputs))
        if unknown:
            raise ValueRangeError(f"num_tokens takes no {unknown[0]}. Leave it out.")
        if images is not None:
            images = check_integer("images", images)
        if sizes is not None and images not in (None, len(sizes)):
            raise ShapeError(f"images must be as many as image_sizes, {len(sizes)}; got {images}.")
        if sizes is None and images is None and not inputs:
            raise ValueRangeError(
                "how many tokens there are depends on the images. Pass image_sizes, or images where their size does "
                "not matter."
            )
        views = self.views(images or (0 if sizes is None else len(sizes)), image_sizes=sizes, **inputs)
        for name, count in (("images", images), ("image_sizes", None if sizes is None else len(sizes))):
            if count not in (None, count_images(views)):
                raise ShapeError(
                    f"{name} must be of the {count_images(views)} images of the other arguments; got {count}."
                )
        valid = self._valid(views, sizes)
        counts = self._known_counts(views, valid, self._budgets(views, valid, num_regions, keep))
        if counts is None:  # raises an error that says why
            counts = self.regionizer.num_tokens(_count_valid(views, valid), num_regions=num_regions, keep=keep)
        newlines = self.count_newlines(views, whole_images(views, counts))
        return [count + more for count, more in zip(per_image(views, counts), newlines, strict=True)]

    def check_regionizer(self, regionizer: Regionizer) -> None:
        """Reject a Regionizer that does not fit this model."""
        check_dim(regionizer, self.patch_dim)
        if self.places_images and regionizer.config.geometry is not None:
            raise ValueRangeError(
                f"{type(self).__name__} knows itself how images are placed on tiles. Leave geometry out of the "
                "Regionizer."
            )

    def _encode(
        self,
        pixel_values: Tensor,
        image_sizes: Any,
        inputs: dict[str, Any],
        prompt: Prompt | None = None,
    ) -> tuple[Patches, Any, list[Tensor | None]]:
        """Return patch features, checked sizes of the images, and which patches of each view may be in a region."""
        sizes = None if image_sizes is None else check_sizes("image_sizes", image_sizes)
        inputs = inputs | {"image_sizes": image_sizes}
        self.infer_tiles(pixel_values, inputs, prompt)
        if inputs["image_sizes"] is None:  # they were the sizes of resized images
            sizes = None
        if "image_sizes" not in self.encoder_inputs:
            del inputs["image_sizes"]
        patches = self.encode_patches(pixel_values, **inputs)
        return patches, sizes, self._valid(patches.views, sizes)

    def _encode_regions(
        self,
        patches: Patches,
        masks: Sequence[Masks] | None,
        sizes: Any,
        valid: Sequence[Tensor | None],
        num_regions: Budget | None,
        keep: Keep | None,
        *,
        whole: list[bool] | None = None,
    ) -> EncodedImages:
        """Return tokens in the order of their placeholders; ``whole`` images are arranged as by the stock model."""
        views = patches.views
        budgets = self._budgets(views, valid, num_regions, keep)
        tokens = self._regionize(patches, masks, sizes, valid, budgets).map(self.projector)
        if whole is None:
            whole = whole_images(views, self._known_counts(views, valid, budgets))
        values, region = self.arrange(tokens, views, whole)
        of_view = torch.tensor([view.run for view in views], device=values.device)
        block = of_view[tokens.regions.image][region.cummax(0).values if (region < 0).any() else region]
        lengths = torch.bincount(block, minlength=len(patches.num_placeholders)).tolist()
        return EncodedImages(values, region, tokens.regions, patches, lengths)

    def _valid(self, views: Sequence[View], sizes: Any) -> list[Tensor | None]:
        """Return which patches of each view may be in a region; None for all."""
        options = self.regionizer.config
        if sizes is None or options.padding == "keep" or not (self.places_images or options.geometry):
            return [None] * len(views)
        if len(sizes) != count_images(views):
            raise ShapeError(f"image_sizes must have one entry per image, {count_images(views)}; got {len(sizes)}.")
        if options.geometry is None:
            return [view.valid(sizes) for view in views]
        return [options.geometry.place(sizes[view.image]).valid(view.grid) for view in views]

    def _regionize(
        self,
        patches: Patches,
        masks: Sequence[Masks] | None,
        sizes: Any,
        valid: Sequence[Tensor | None],
        budget: list[int] | None,
    ) -> RegionTokens:
        """Return tokens in the dimension of the patch features."""
        config = self.regionizer.config
        if masks is not None and self.places_images:
            masks = cut_masks(
                patches.views,
                masks,
                sizes,
                overlap=config.overlap,
                method=config.downsampling,
                threshold=config.coverage,
            )
            sizes = None
        if masks is not None:
            need_sizes(self.regionizer, masks, sizes)
            return self.regionizer(patches.features, masks=masks, sizes=sizes, num_regions=budget)
        if all(shown is None for shown in valid):
            return self.regionizer(patches.features, num_regions=budget)
        device = patches.features[0].device
        shown = [
            torch.ones(view.grid, dtype=torch.bool, device=device) if mask is None else mask.to(device)
            for view, mask in zip(patches.views, valid, strict=True)
        ]
        return self.regionizer(patches.features, valid=shown, num_regions=budget)


def check_dim(regionizer: Regionizer, dim: int) -> None:
    """Reject a Regionizer for features of another dimension."""
    if regionizer.config.dim not in (None, dim):
        raise ShapeError(
            f"the Regionizer is for features of dimension {regionizer.config.dim}; this model's are of {dim}. Make "
            f"it with dim={dim}, or take the checkpoint of its encoder."
        )


def per_image(views: Sequence[View], counts: Sequence[int]) -> list[int]:
    """Return the sums of counts of views for each image."""
    sums = [0] * count_images(views)
    for view, count in zip(views, counts, strict=True):
        sums[view.image] += count
    return sums


def whole_images(views: Sequence[View], counts: Sequence[int] | None) -> list[bool]:
    """Return for each image whether every patch is a region."""
    if counts is None:
        return [False] * count_images(views)
    patches = per_image(views, [view.patches for view in views])
    return [count == most for count, most in zip(per_image(views, counts), patches, strict=True)]


def _count_valid(views: Sequence[View], valid: Sequence[Tensor | None]) -> list[int]:
    """Return the number of patches of each view that may be in a region."""
    return [view.patches if mask is None else int(mask.sum()) for view, mask in zip(views, valid, strict=True)]
