"""`Regionizer`: the composition of the steps, saved and loaded. No maths lives here."""

import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from regiontok._checks import (
    Features,
    Valid,
    check_features,
    check_finite,
    check_grid,
    check_integer,
    check_sizes,
    flatten_features,
    flatten_valid,
)
from regiontok._files import make_folder, read_json, write_bytes, write_json
from regiontok.budgets import Budget, Keep, resolve_budget
from regiontok.choices import MASK_SOURCES, PROMPT
from regiontok.config import RegionizerConfig, check_options
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
    """Let type checkers and editors see the options of a config as the arguments of ``__init__``."""
    return lambda function: function


_F = TypeVar("_F", bound=Callable[..., Any])


def _one_step(function: _F) -> _F:
    """Let ``torch.compile`` call a function as it is: grouping is a compiled loop of its own, with ragged results.

    ``torch.compiler.disable`` imports the compiler, which takes longer than all else, so it waits until one is used.
    """
    disabled: Callable[..., Any] | None = None

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal disabled
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        if disabled is None:
            disabled = torch.compiler.disable(function)
        return disabled(*args, **kwargs)

    return cast(_F, call)


class Regionizer(nn.Module):
    """Turn the patch features of a batch of images into region tokens.

    Normalise the features, group patches into regions, bring the regions into an order, pool each into one token. Each
    step is a method, to be called alone or replaced. Gradients flow through pooling and normalisation, not through the
    grouping. For ``torch.compile`` a call is one opaque step, between the compiled graphs of a model around it.

    Args:
        options: Those of `RegionizerConfig`, by name, such as ``source="clustering", dim=1024, num_regions=64``.

    Raises:
        UnknownOptionError: An option that it does not have.
        DTypeError, ValueRangeError: An option, or a combination of them, that cannot be.

    Shape:
        features: ``(B, rows, cols, dim)`` or a list of ``(rows, cols, dim)``, floating point.
        masks: A list with one entry per image: a `MaskSet`, ``(M, height, width)`` bool, a label map, or what else
            `MaskDownsampler` takes.
        valid: ``(B, rows, cols)`` bool or a list of ``(rows, cols)``: which patches show the image; None for all, or
            for what masks' geometry tells.
        sizes: Each image's height and width, ``(B, 2)``. Masks of another size are refused; for the other sources they
            tell, with ``geometry``, which patches show the image where ``valid`` does not.

    Example:
        >>> features = torch.tensor([[[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]]])
        >>> tokens = Regionizer(pool="mean", norm="none")(features)
        >>> tokens.regions.labels()
        tensor([[[0, 0, 1]]])
        >>> tokens.values
        tensor([[1.0000, 0.0500],
                [0.0000, 1.0000]])

        With masks of the image, here of 20 x 60 pixels:

        >>> regionizer = Regionizer(source="segmentation", pool="mean", geometry=ImageGeometry.squash((16, 48)))
        >>> left = torch.arange(60) < 20
        >>> regionizer(features, masks=[left.expand(1, 20, 60)]).regions.labels()
        tensor([[[ 0, -1, -1]]])

    Source:
        The paper's system; see `RegionizerConfig` for what is the paper's and what is ours.
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
            """Call `forward`; torch's own annotation says Any."""

    @_takes_options_of(RegionizerConfig)
    def __init__(self, **options: Any) -> None:
        super().__init__()
        check_options(options)
        self.config = RegionizerConfig(**options)
        self._clusterer, self._downsampler = self.config.clusterer(), self.config.downsampler()
        self.pool: CrossAttnPool | MeanPool = MeanPool()
        if self.config.pool == "cross_attention" and self.config.dim is not None:  # the config requires dim for it
            self.pool = CrossAttnPool(self.config.dim, self.config.num_heads)

    def reset_parameters(self) -> None:
        """Start anew: the pool as the mean."""
        if isinstance(self.pool, CrossAttnPool):
            self.pool.reset_parameters()

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        return ", ".join(f"{name}={value!r}" for name, value in self.config.to_dict().items())

    @_one_step
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
        """Region tokens of a batch, ``(R, dim)`` values with their regions.

        ``num_regions`` or ``keep`` is a budget of this batch, one number or one per image, in place of what the options
        say.

        Raises:
            ShapeError, DTypeError, ValueRangeError: Features, masks or ``valid`` that cannot be; see the steps. Tokens
                that are not finite, but for autocast.
        """
        features = self.normalize(features)
        regions = self.order(
            self.group(features, masks=masks, valid=valid, sizes=sizes, num_regions=num_regions, keep=keep)
        )
        tokens = self.pool(features, regions)
        _check_tokens(tokens)
        return tokens

    def normalize(self, features: Features) -> Features:
        """Features, checked and normalised as ``norm`` says, in the same shape."""
        check_features(features)
        dim = features[0].shape[-1]
        if self.config.dim not in (None, dim):
            first = features.shape[1] if isinstance(features, Tensor) else features[0].shape[0]
            hint = " Channels come last: features.permute(0, 2, 3, 1)." if first == self.config.dim else ""
            raise ShapeError(f"features must have dim {self.config.dim} like this Regionizer; got {dim}.{hint}")
        if self.config.dim is None and isinstance(features, Tensor):
            _, rows, cols, _ = features.shape
            if dim == cols and rows >= max(64, 4 * cols):
                warnings.warn(
                    f"features of {tuple(features.shape)} are read as {rows} x {cols} patches of dimension {dim}. If "
                    "channels come first, pass features.permute(0, 2, 3, 1); else make this Regionizer with "
                    f"dim={dim} to leave out this warning.",
                    AmbiguousShapeWarning,
                    stacklevel=3,
                )
        return rms_normalize(features) if self.config.norm == "rms" else features

    @_one_step
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
        """`Regions` of features that are already normalised, in raster order."""
        source = self.config.source
        self.check_budget(num_regions, keep)
        if (masks is None) == (source in MASK_SOURCES):
            needs = "needs masks, one entry per image" if masks is None else "takes no masks"
            raise ValueRangeError(f"source={source!r} {needs}, as in regionizer(features, masks=[...]).")
        if masks is None and sizes is not None:
            shown = self._shown(features, sizes)
            valid = shown if valid is None else valid
        if self.config.padding == "keep":
            valid = None
        if source == "clustering":
            return self._clusterer(features, valid, num_regions=num_regions, keep=keep)
        if masks is None:
            return _single_patches(features, valid)
        regions, valid = self._downsampler.with_valid(masks, features=features, valid=valid, sizes=sizes)
        _check_used(features, regions)
        budgets = self._budgets(valid, num_regions, keep)
        if budgets is not None and source == "combined":
            return self._clusterer(features, num_regions=budgets, masks=regions)
        if budgets is not None:
            merged = merge_masks(features, regions, budgets, mask_weight=self._clusterer.mask_weight)
            return order_regions(merged, "raster")
        if source == "combined":
            regions = split_regions(
                features,
                regions,
                eps=self.config.eps,
                min_samples=self.config.min_samples,
                min_patches=self.config.split_min_patches,
                noise=self.config.noise,
                valid=valid,
            )
        return order_regions(regions, "raster")

    def num_patches(self, grids: Sequence[Size], sizes: Sequence[Size] | None = None) -> list[int]:
        """How many patches of images may be in a region: all of their grids, or those that show images of ``sizes``.

        Args:
            grids: Rows and columns per image.
            sizes: Height and width of each image, which ``geometry`` places; where there is none, all patches count.

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
        """How many tokens images get, before there are features.

        Args:
            patches: Per image, how many of its patches may be in a region: `num_patches` tells it, and where padding
                is dropped `Encoder.num_patches`.
            num_regions: As of a call.
            keep: As of a call.

        Raises:
            ValueRangeError: Counts that depend on the features, as a threshold's or ``explained_variance``'s do, or on
                masks.

        Example:
            >>> encoder, regionizer = encoders.load("pixels"), Regionizer(dim=48, num_regions=64)
            >>> regionizer.num_tokens(encoder.num_patches([(480, 640), (20, 640)]))
            [64, 48]
        """
        source = self.config.source
        own = num_regions is None and keep is None
        has_budget = not own or self.config.has_budget
        if source in MASK_SOURCES and (source == "segmentation" or self.config.uncovered == "drop" or not has_budget):
            raise ValueRangeError(f"source={source!r} makes tokens of masks, so counts are known only with them.")
        self.check_budget(num_regions, keep)
        if source == "patch":
            given = patches.tolist() if isinstance(patches, Tensor) else patches
            return [check_integer("patches", one) for one in given]
        return self._clusterer.counts(patches, num_regions=num_regions, keep=keep)

    def _budgets(self, valid: Valid, num_regions: Budget | None, keep: Keep | None) -> list[int] | None:
        """Return the budget of each image with masks; None for the paper's way without a budget."""
        if num_regions is None and keep is None:
            if self.config.num_regions == PROMPT:
                raise ValueRangeError("num_regions='prompt' needs a budget in every call. Pass num_regions or keep.")
            num_regions, keep = self.config.num_regions, self.config.keep
        return resolve_budget([int(one.sum()) for one in valid], num_regions, keep)

    def check_budget(self, num_regions: Budget | None, keep: Keep | None) -> None:
        """Reject the budget of a call where the source has none."""
        source = self.config.source
        for name, value in (("num_regions", num_regions), ("keep", keep)):
            if value is not None and source == "patch":
                raise ValueRangeError(f"{name} is not for source='patch', whose patches are its regions. Leave it out.")

    def _shown(self, features: Features, sizes: Sequence[Size]) -> list[Tensor]:
        """Which patches show images of ``sizes``."""
        geometry = self._downsampler.geometry
        if geometry is None:
            raise ValueRangeError(
                "sizes of images need the geometry that places them, as in geometry=encoder.geometry."
            )
        grids = check_features(features).tolist()
        checked = check_sizes("sizes", sizes, len(grids))
        return [
            geometry.place(size).valid((rows, cols)).to(features[0].device)
            for size, (rows, cols) in zip(checked, grids, strict=True)
        ]

    def order(self, regions: Regions) -> Regions:
        """The same regions in the order of the tokens."""
        name = self.config.order
        return regions if name == "raster" else order_regions(regions, name)  # every source makes them in raster order

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
        """Return a new Regionizer with the options of a config, or of what ``config.to_dict()`` returned.

        Raises:
            CheckpointError: An unknown option, or an invalid value.
        """
        options = config if isinstance(config, RegionizerConfig) else RegionizerConfig.from_dict(config)
        try:
            return cls(**vars(options))
        except ValueRangeError as error:  # heads that do not divide the dimension, say
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
            state = {name: tensor.clone() for name, tensor in load_file(folder / _WEIGHTS_FILE).items()}  # off the file
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(f"{folder / _WEIGHTS_FILE} is damaged: {error}") from error
        if not isinstance(config, dict):
            raise CheckpointError(
                f"{folder / _CONFIG_FILE} must hold an object of options; got {type(config).__name__}."
            )
        saved_by = config.pop("regiontok", "unknown")
        try:
            with torch.device("meta"):  # no memory for what a damaged config asks for, and weights keep their dtype
                regionizer = cls.from_config(config)
            regionizer.load_state_dict(state, assign=True)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise CheckpointError(
                f"{folder}, saved by regiontok {saved_by}, does not fit this version: {error}"
            ) from error
        return regionizer


Regionizer.__signature__ = inspect.signature(RegionizerConfig)  # type: ignore[attr-defined]  # for help and editors


def _check_used(features: Features, regions: Regions) -> None:
    """Refuse NaN and infinity in patches that are in a region."""
    flat = flatten_features(features)
    used = torch.zeros(len(flat.values), dtype=torch.bool, device=flat.values.device)
    used[regions.flat_patch] = True
    sizes = flat.grids.prod(1).tolist()
    shown = torch.where(used[:, None], flat.values.detach(), 0)
    for image, (values, cols) in enumerate(zip(shown.split(sizes), flat.grids[:, 1].tolist(), strict=True)):
        check_finite(values, image, cols)


def _check_tokens(tokens: RegionTokens) -> None:
    """Refuse tokens that left the range of their dtype; under autocast that is for a gradient scaler to see."""
    values = tokens.values.detach()
    wide = torch.promote_types(values.dtype, torch.float32)
    if values.sum(dtype=wide).isfinite() or torch.is_autocast_enabled(values.device.type):  # most often one pass is all
        return
    wrong = (~values.isfinite().all(1)).nonzero()
    if len(wrong):
        raise ValueRangeError(
            f"{len(wrong)} of {len(values)} tokens are not finite, the first of image "
            f"{int(tokens.regions.image[wrong[0]])}, though the features are: their sums leave {values.dtype}, or the "
            "pool's weights are not finite. Take norm='rms' or a wider dtype."
        )


def _single_patches(features: Features, valid: Valid | None) -> Regions:
    """Every (valid) patch a region of its own."""
    flat = flatten_features(features)
    flat_valid = flatten_valid(valid, flat.grids)
    sizes = flat.grids.prod(1).tolist()
    patch = torch.cat([torch.arange(size, device=flat.values.device) for size in sizes])
    shown = flat.values
    if flat_valid is not None:
        flat_valid = flat_valid.to(patch.device)
        patch = torch.where(flat_valid, patch, -1)
        shown = torch.where(flat_valid[:, None], shown, 0)
    for image, (values, cols) in enumerate(zip(shown.split(sizes), flat.grids[:, 1].tolist(), strict=True)):
        check_finite(values, image, cols)
    grids = flat.grids.tolist()
    return Regions.from_labels([one.reshape(grid) for one, grid in zip(patch.split(sizes), grids, strict=True)])
