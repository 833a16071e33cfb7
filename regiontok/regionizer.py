"""`Regionizer`: normalisation, grouping, ordering and pooling in one module that can be saved and loaded."""

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, overload

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from regiontok._checks import check_grid, check_sizes
from regiontok._compile import uncompiled
from regiontok._files import make_folder, read_json, write_bytes, write_json
from regiontok._steps import make_clusterer, make_downsampler
from regiontok._values import check_integer
from regiontok.batch import Features, PatchBatch, Valid, flatten_valid
from regiontok.budgets import Budget, Keep, resolve_budget
from regiontok.choices import MASK_SOURCES, PROMPT
from regiontok.config import RegionizerConfig, check_names
from regiontok.downsample import Masks
from regiontok.errors import AmbiguousShapeWarning, CheckpointError, ShapeError, ValueRangeError
from regiontok.geometry import Size
from regiontok.masked import merge_masks
from regiontok.normalize import rms_normalize
from regiontok.ordering import order_regions
from regiontok.pooling import CrossAttnPool, MeanPool
from regiontok.regions import Regions
from regiontok.splitting import split_regions
from regiontok.tokens import RegionTokens

_CONFIG_FILE = "regionizer.json"
_WEIGHTS_FILE = "regionizer.safetensors"


_P = ParamSpec("_P")


def _takes_options_of(_: Callable[_P, Any]) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, _P], None]]:
    """Declare the options of a config as the arguments of ``__init__``, for type checkers and editors."""
    return lambda function: function


class Regionizer(nn.Module):
    """Turn the patch features of a batch of images into region tokens.

    Four steps: normalise the features, group patches into regions, order the regions, and pool each region into a
    token. Each step is a method that can be called or overridden; `forward` passes a `PatchBatch` from step to step.
    Gradients flow through normalisation and pooling, not through grouping. ``torch.compile`` runs a call uncompiled,
    between the compiled graphs of the surrounding model.

    Args:
        options: The options of `RegionizerConfig` by name, such as ``source="clustering", dim=1024, num_regions=64``.

    Raises:
        UnknownOptionError: An option that does not exist.
        DTypeError, ValueRangeError: An invalid option or combination of options.

    Shape:
        features: ``(B, rows, cols, dim)`` or a list of ``(rows, cols, dim)``, floating point.
        masks: A list with one entry per image: a `MaskSet`, ``(M, height, width)`` bool, a label map, or another form
            that `MaskDownsampler` accepts.
        valid: ``(B, rows, cols)`` bool or a list of ``(rows, cols)``: patches that show the image. By default all
            patches, or those given by the geometry of the masks.
        sizes: Height and width of each image, ``(B, 2)``. Masks of another size are rejected. For other sources they
            give, with ``geometry``, the patches that show the image, unless ``valid`` is passed.

    Example:
        >>> features = torch.tensor([[[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]]])
        >>> tokens = Regionizer(pool="mean", norm="none")(features)
        >>> tokens.regions.labels()
        tensor([[[0, 0, 1]]])
        >>> tokens.values
        tensor([[1.0000, 0.0500],
                [0.0000, 1.0000]])

        With masks of an image of 20 x 60 pixels:

        >>> regionizer = Regionizer(source="segmentation", pool="mean", geometry=ImageGeometry.squash((16, 48)))
        >>> left = torch.arange(60) < 20
        >>> regionizer(features, masks=[left.expand(1, 20, 60)]).regions.labels()
        tensor([[[ 0, -1, -1]]])

    Source:
        The paper's system; see `RegionizerConfig`.
    """

    if TYPE_CHECKING:

        def __call__(
            self,
            features: Features,
            *,
            masks: Sequence[Masks] | None = None,
            valid: Valid | None = None,
            sizes: Sequence[Size] | None = None,
            num_regions: Budget | None = None,
            keep: Keep | None = None,
        ) -> RegionTokens:
            """Call `forward`; torch annotates the result as Any."""

    @_takes_options_of(RegionizerConfig)
    def __init__(self, **options: Any) -> None:
        super().__init__()
        check_names(options)
        self.config = RegionizerConfig(**options)
        self._clusterer, self._downsampler = make_clusterer(self.config), make_downsampler(self.config)
        self.pool: CrossAttnPool | MeanPool = MeanPool()
        if self.config.pool == "cross_attention" and self.config.dim is not None:  # the config requires dim for it
            self.pool = CrossAttnPool(self.config.dim, self.config.num_heads)

    def reset_parameters(self) -> None:
        """Initialise the pool so that it returns the mean."""
        if isinstance(self.pool, CrossAttnPool):
            self.pool.reset_parameters()

    def extra_repr(self) -> str:
        """Return the options, for ``repr``."""
        return ", ".join(f"{name}={value!r}" for name, value in self.config.to_dict().items())

    @uncompiled
    def forward(
        self,
        features: Features,
        *,
        masks: Sequence[Masks] | None = None,
        valid: Valid | None = None,
        sizes: Sequence[Size] | None = None,
        num_regions: Budget | None = None,
        keep: Keep | None = None,
    ) -> RegionTokens:
        """Return the region tokens of a batch, with values ``(R, dim)``.

        Args:
            features: See the class for shapes of this and the next three.
            masks: Masks of each image, for the sources ``segmentation`` and ``combined``.
            valid: Patches that show the image.
            sizes: Height and width of each image.
            num_regions: Budget of this batch, one number or one per image, which overrides the options.
            keep: The same as a fraction of the valid patches.

        Raises:
            ShapeError, DTypeError, ValueRangeError: Invalid features, masks or ``valid``; see the steps. Tokens that
                are not finite, except under autocast.
        """
        batch = self.normalize(PatchBatch.of(features))
        regions = self.order(
            self.group(batch, masks=masks, valid=valid, sizes=sizes, num_regions=num_regions, keep=keep)
        )
        tokens = self.pool(batch, regions)
        tokens.check_finite()
        return tokens

    @overload
    def normalize(self, features: PatchBatch) -> PatchBatch: ...

    @overload
    def normalize(self, features: Tensor) -> Tensor: ...

    @overload
    def normalize(self, features: Sequence[Tensor]) -> Sequence[Tensor]: ...

    def normalize(self, features: Features) -> Features:
        """Return checked features, normalised if ``norm`` says so, in the same form."""
        batch = PatchBatch.of(features)
        self._check_dim(batch)
        if self.config.norm == "rms":
            batch = rms_normalize(batch)
        return batch if isinstance(features, PatchBatch) else batch.unflatten()

    def _check_dim(self, batch: PatchBatch) -> None:
        dim, (rows, cols) = batch.values.shape[1], batch.shapes[0][-2:]
        if self.config.dim not in (None, dim):
            hint = " Channels come last: features.permute(0, 2, 3, 1)." if rows == self.config.dim else ""
            raise ShapeError(f"features must have dim {self.config.dim} like this Regionizer; got {dim}.{hint}")
        if self.config.dim is None and len(batch.shapes[0]) == 2 and dim == cols and rows >= max(64, 4 * cols):
            warnings.warn(
                f"features are read as {rows} x {cols} patches of dimension {dim}. If channels come first, pass "
                f"features.permute(0, 2, 3, 1); else make this Regionizer with dim={dim} to leave out this warning.",
                AmbiguousShapeWarning,
                stacklevel=4,
            )

    @uncompiled
    def group(
        self,
        features: Features,
        *,
        masks: Sequence[Masks] | None = None,
        valid: Valid | None = None,
        sizes: Sequence[Size] | None = None,
        num_regions: Budget | None = None,
        keep: Keep | None = None,
    ) -> Regions:
        """Return the `Regions` of normalised features, in raster order; see `forward` for the arguments."""
        source = self.config.source
        batch = PatchBatch.of(features)
        self.check_budget(num_regions, keep)
        if (masks is None) == (source in MASK_SOURCES):
            needs = "needs masks, one entry per image" if masks is None else "takes no masks"
            raise ValueRangeError(f"source={source!r} {needs}, as in regionizer(features, masks=[...]).")
        if masks is None and sizes is not None:
            shown = self._shown(batch, sizes)
            valid = shown if valid is None else valid
        if self.config.padding == "keep":
            valid = None
        if source == "clustering":
            return self._clusterer(batch, valid, num_regions=num_regions, keep=keep)
        if masks is None:
            return _single_patches(batch, valid)
        regions, valid = self._downsampler.with_valid(masks, features=batch, valid=valid, sizes=sizes)
        batch.check_finite(_used_patches(batch, regions))
        budgets = self._budgets(valid, num_regions, keep)
        if budgets is not None and source == "combined":
            return self._clusterer(batch, num_regions=budgets, masks=regions)
        if budgets is not None:
            regions = merge_masks(batch, regions, budgets, mask_weight=self._clusterer.mask_weight)
        elif source == "combined":
            regions = split_regions(
                batch,
                regions,
                eps=self.config.eps,
                min_samples=self.config.min_samples,
                split_min_patches=self.config.split_min_patches,
                noise=self.config.noise,
                valid=valid,
            )
        return order_regions(regions, "raster")

    def num_patches(self, grids: Sequence[Size], sizes: Sequence[Size] | None = None) -> list[int]:
        """Return the number of patches of each image that may be in a region.

        Args:
            grids: Rows and columns of each image.
            sizes: Height and width of each image, which ``geometry`` places. Without sizes or a geometry, all patches.

        Example:
            >>> Regionizer(pool="mean", geometry=ImageGeometry.letterbox(336)).num_patches([(24, 24)], [(100, 400)])
            [144]
        """
        geometry = self.config.geometry
        grids = [check_grid(grid) for grid in grids]
        sizes = None if sizes is None else check_sizes("sizes", sizes, len(grids))
        if sizes is None or geometry is None or self.config.padding == "keep":
            return [rows * cols for rows, cols in grids]
        return [int(geometry.place(size).valid(grid).sum()) for size, grid in zip(sizes, grids, strict=True)]

    def num_tokens(
        self, patches: Sequence[int] | Tensor, *, num_regions: Budget | None = None, keep: Keep | None = None
    ) -> list[int]:
        """Return the number of tokens of each image, before its features are known.

        Args:
            patches: Number of patches of each image that may be in a region, from `num_patches`, or from
                `Encoder.num_patches` if padding is dropped.
            num_regions: Budget, as in a call.
            keep: Relative budget, as in a call.

        Raises:
            ValueRangeError: Counts that depend on masks or, without a budget, on the features.

        Example:
            >>> encoder, regionizer = encoders.load("pixels"), Regionizer(dim=48, num_regions=64)
            >>> regionizer.num_tokens(encoder.num_patches([(480, 640), (20, 640)]))
            [64, 48]
        """
        source = self.config.source
        has_budget = num_regions is not None or keep is not None or self.config.has_budget
        if source in MASK_SOURCES and (source == "segmentation" or self.config.unassigned == "drop" or not has_budget):
            raise ValueRangeError(f"the number of tokens of source={source!r} depends on the masks.")
        self.check_budget(num_regions, keep)
        if source == "patch":
            numbers = patches.tolist() if isinstance(patches, Tensor) else patches
            return [check_integer("patches", number) for number in numbers]
        return self._clusterer.counts(patches, num_regions=num_regions, keep=keep)

    def _budgets(self, valid: Valid, num_regions: Budget | None, keep: Keep | None) -> list[int] | None:
        """Return the budget of each image with masks; None without a budget, as in the paper."""
        if num_regions is None and keep is None:
            if self.config.num_regions == PROMPT:
                raise ValueRangeError("num_regions='prompt' needs a budget in every call. Pass num_regions or keep.")
            num_regions, keep = self.config.num_regions, self.config.keep
        return resolve_budget([int(shown.sum()) for shown in valid], num_regions, keep)

    def check_budget(self, num_regions: Budget | None, keep: Keep | None) -> None:
        """Reject the budget of a call if the source has none."""
        source = self.config.source
        for name, value in (("num_regions", num_regions), ("keep", keep)):
            if value is not None and source == "patch":
                raise ValueRangeError(
                    f"{name} is not for source='patch', whose regions are single patches. Leave it out."
                )

    def _shown(self, batch: PatchBatch, sizes: Sequence[Size]) -> list[Tensor]:
        """Return the patches that show images of these sizes."""
        geometry = self._downsampler.geometry
        if geometry is None:
            raise ValueRangeError(
                "sizes of images need the geometry that places them, as in geometry=encoder.geometry."
            )
        checked = check_sizes("sizes", sizes, len(batch))
        return [
            geometry.place(size).valid((shape[-2], shape[-1])).to(batch.device).expand(shape)
            for size, shape in zip(checked, batch.shapes, strict=True)
        ]

    def order(self, regions: Regions) -> Regions:
        """Return the regions in the order of the tokens."""
        name = self.config.order
        return regions if name == "raster" else order_regions(regions, name)  # `group` returns raster order

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the options and weights into a folder, as ``regionizer.json`` and ``regionizer.safetensors``.

        Raises:
            OutputError: The folder cannot be made or written to.
        """
        folder = make_folder(folder)
        config = {"regiontok": version("regiontok"), **self.config.to_dict()}
        state = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        write_bytes(folder / _WEIGHTS_FILE, save(state))
        write_json(folder / _CONFIG_FILE, config)

    @classmethod
    def from_config(cls, config: RegionizerConfig | Mapping[str, Any]) -> "Regionizer":
        """Return a new Regionizer with the options of a config, or of the dictionary from ``config.to_dict()``.

        Raises:
            CheckpointError: An unknown option, or an invalid value.
        """
        options = config if isinstance(config, RegionizerConfig) else RegionizerConfig.from_dict(config)
        try:
            return cls(**vars(options))
        except ValueRangeError as error:  # such as a number of heads that does not divide the dimension
            raise CheckpointError(f"the options of a Regionizer are damaged: {error}") from error

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Regionizer":
        """Load what `save_pretrained` wrote.

        Raises:
            CheckpointError: A file is missing or damaged, has an unknown option, or does not fit the other.
        """
        folder = Path(folder)
        for name in (_CONFIG_FILE, _WEIGHTS_FILE):
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder} has no {name}. Give a folder that Regionizer.save_pretrained wrote.")
        config = read_json(folder / _CONFIG_FILE, CheckpointError)
        try:
            state = {
                name: tensor.clone() for name, tensor in load_file(folder / _WEIGHTS_FILE).items()
            }  # detaches it from the file
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(f"{folder / _WEIGHTS_FILE} is damaged: {error}") from error
        if not isinstance(config, dict):
            raise CheckpointError(
                f"{folder / _CONFIG_FILE} must hold an object of options; got {type(config).__name__}."
            )
        saved_by = config.pop("regiontok", "unknown")
        try:
            with torch.device(
                "meta"
            ):  # needs no memory for sizes from a damaged config, and keeps the dtype of the weights
                regionizer = cls.from_config(config)
            regionizer.load_state_dict(state, assign=True)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise CheckpointError(
                f"{folder}, saved by regiontok {saved_by}, does not fit this version: {error}"
            ) from error
        return regionizer


Regionizer.__signature__ = inspect.signature(RegionizerConfig)  # type: ignore[attr-defined]  # for help and editors


def _used_patches(batch: PatchBatch, regions: Regions) -> Tensor:
    """Return the patches that are in a region, ``(N,)`` bool."""
    used = torch.zeros(len(batch.values), dtype=torch.bool, device=batch.device)
    used[regions.flat_patch] = True
    return used


def _single_patches(batch: PatchBatch, valid: Valid | None) -> Regions:
    """Return each valid patch as a region."""
    is_valid = flatten_valid(valid, batch.shapes)
    patch = torch.cat([torch.arange(size, device=batch.device) for size in batch.sizes])
    if is_valid is not None:
        is_valid = is_valid.to(batch.device)
        patch = torch.where(is_valid, patch, -1)
    batch.check_finite(is_valid)
    return Regions.from_labels(
        [labels.reshape(shape) for labels, shape in zip(batch.split(patch), batch.shapes, strict=True)]
    )
