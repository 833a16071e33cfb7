"""The options of a `Regionizer` and their defaults, checked alone and together.

This module imports no torch, so that the command line can check its options quickly.
"""

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from regiontok.choices import (
    MASK_SOURCES,
    MASK_WEIGHT,
    MOTION,
    PROMPT,
    Downsampling,
    Linkage,
    Noise,
    Norm,
    Order,
    Overlap,
    Padding,
    Pool,
    Prompt,
    Source,
    Unassigned,
)
from regiontok.errors import CheckpointError, DTypeError, UnknownOptionError, ValueRangeError
from regiontok.options import OPTIONS, check_option
from regiontok.stopping import check_linkage, check_stop

if TYPE_CHECKING:
    from regiontok.geometry import ImageGeometry


@dataclass(frozen=True, kw_only=True)
class RegionizerConfig:
    """The options of a `Regionizer`, checked alone and together. ``Regionizer(**options)`` takes the same names.

    Args:
        source: Source of the regions: ``clustering`` merges similar neighbouring patches; ``patch`` makes each patch a
            region; ``segmentation`` uses the masks of the call; ``combined`` splits these masks with `split_regions`.
        dim: Feature dimension. ``cross_attention`` needs it; features of another dimension are rejected.
        norm: ``rms`` divides each patch feature by its root mean square, without a learned weight; ``none`` does not.
        pool: ``cross_attention`` or ``mean``. None is the paper's choice: cross-attention, but the mean for ``patch``,
            whose regions have one patch each.
        num_heads: Number of attention heads of the pool.
        order: Order of the tokens of an image: ``raster``, ``centroid``, ``area``, ``random`` or, for masks with
            scores, ``score``; see `order_regions`. ``random`` uses torch's generator on the CPU in every call.
        linkage: Criterion by which clustering chooses the next pair of regions: ``centroid``, ``average`` or ``ward``;
            see `UnionFindClusterer` for this and the next four. None is ``ward`` with a budget, else ``centroid``.
        threshold: Least cosine similarity at which clustering merges two regions, of all patches or of the unassigned
            ones. None is 0.7 if no other option stops the merging.
        num_regions: Number of tokens per image; images with fewer valid patches get one token per patch. With masks,
            ``combined`` merges patches by Ward's criterion with a term for masks, and ``segmentation`` merges whole
            masks. A call may override it. ``"prompt"`` requires a number in every call, such as the number of
            placeholders in the prompt of a multimodal model.
        keep: Number of tokens as a fraction of the valid patches of an image, rounded up, at least 1.
        explained_variance: As few tokens as preserve this fraction of the squared deviation; for ``ward``.
        connectivity: 4 or 8 neighbours for clustering.
        mask_weight: Weight of the masks relative to the features, from 0 to ``inf``, for masks with a budget; see
            `regiontok.masked`.
        motion: For clips: a patch continues in the most similar patch within so many rows and columns of the next
            frame; see `UnionFindClusterer` for this and the next.
        max_frames: For clips: regions do not extend over multiples of this number of frames.
        padding: ``drop`` leaves padding patches out of all regions; ``keep`` uses all patches. Masks never contain
            padding.
        geometry: How the encoder places images on its input, ``encoder.geometry``. Masks are placed the same way.
        min_coverage: A patch belongs to a mask that covers more than this fraction of it; see `MaskDownsampler` for
            this and the next three.
        downsampling: ``exact`` or ``two_step``.
        unassigned: Patches in no mask: ``drop``, ``background``, ``single_patches`` or ``cluster``.
        overlap: Patches in several masks: ``keep`` or ``assign_smallest``.
        eps: Greatest distance between neighbours in feature space; see `split_regions` for this and the next three.
        min_samples: Number of neighbours, including the patch, that make a patch the core of a group.
        split_min_patches: Masks with fewer patches are not split.
        noise: Patches in no group: ``own_region``, ``single_patches`` or ``drop``.

    Raises:
        DTypeError, ValueRangeError: An invalid option or combination of options.

    Example:
        >>> RegionizerConfig(source="patch").pool
        'mean'
        >>> RegionizerConfig(dim=48, num_regions=64).keep is None
        True

    Source:
        The paper's system: A.1 for sources and their parameters, A.2 for pooling, Table 1 for norm and order. Linkages
        other than ``centroid`` and budgets are our extensions. ``docs/options.md`` compares each option with the
        paper.
    """

    source: Source = field(default="clustering", metadata=OPTIONS["source"])
    dim: int | None = field(default=None, metadata=OPTIONS["dim"])
    norm: Norm = field(default="rms", metadata=OPTIONS["norm"])
    pool: Pool | None = field(default=None, metadata=OPTIONS["pool"])
    num_heads: int = field(default=16, metadata=OPTIONS["num_heads"])
    order: Order = field(default="raster", metadata=OPTIONS["order"])
    linkage: Linkage | None = field(default=None, metadata=OPTIONS["linkage"])
    threshold: float | None = field(default=None, metadata=OPTIONS["threshold"])
    num_regions: int | Prompt | None = field(default=None, metadata=OPTIONS["num_regions"])
    keep: float | None = field(default=None, metadata=OPTIONS["keep"])
    explained_variance: float | None = field(default=None, metadata=OPTIONS["explained_variance"])
    connectivity: int = field(default=4, metadata=OPTIONS["connectivity"])
    mask_weight: float = field(default=MASK_WEIGHT, metadata=OPTIONS["mask_weight"])
    motion: int = field(default=MOTION, metadata=OPTIONS["motion"])
    max_frames: int | None = field(default=None, metadata=OPTIONS["max_frames"])
    padding: Padding = field(default="drop", metadata=OPTIONS["padding"])
    geometry: "ImageGeometry | None" = field(default=None, metadata=OPTIONS["geometry"])
    min_coverage: float = field(default=0.07, metadata=OPTIONS["min_coverage"])
    downsampling: Downsampling = field(default="exact", metadata=OPTIONS["downsampling"])
    unassigned: Unassigned = field(default="drop", metadata=OPTIONS["unassigned"])
    overlap: Overlap = field(default="keep", metadata=OPTIONS["overlap"])
    eps: float = field(default=0.7, metadata=OPTIONS["eps"])
    min_samples: int = field(default=3, metadata=OPTIONS["min_samples"])
    split_min_patches: int = field(default=10, metadata=OPTIONS["split_min_patches"])
    noise: Noise = field(default="own_region", metadata=OPTIONS["noise"])

    def __post_init__(self) -> None:
        if self.geometry is not None:
            self._set(geometry=_as_geometry(self.geometry))
        for name in OPTIONS:
            value = getattr(self, name)
            if not (name == "num_regions" and value == PROMPT):
                self._set(**{name: check_option(name, value)})
        if self.pool is None:
            self._set(pool="mean" if self.source == "patch" else "cross_attention")
        self._check_combinations()

    def _set(self, **values: Any) -> None:
        """Replace values during construction; afterwards the class is frozen."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _check_combinations(self) -> None:
        if self.num_regions == PROMPT:
            for name in ("threshold", "keep", "explained_variance"):
                value = getattr(self, name)
                if value is not None:
                    raise ValueRangeError(
                        f"num_regions={PROMPT!r} and {name}={value} are several ways to say when to stop. "
                        "Leave one out."
                    )
        elif self.source == "clustering":
            stop = check_stop(self.threshold, self.num_regions, self.keep, self.explained_variance)
            check_linkage(self.linkage or stop.default_linkage, stop)
        else:
            self._check_unclustered()
        if self.padding == "keep" and self.source in MASK_SOURCES:
            raise ValueRangeError(
                f"padding='keep' is not for source={self.source!r}: masks never contain padding. Leave it out."
            )
        if self.order == "score" and (self.num_regions is not None or self.keep is not None):
            raise ValueRangeError("order='score' is not for a budget, whose regions have no scores. Use another order.")
        if self.order == "score" and (self.source not in MASK_SOURCES or self.unassigned != "drop"):
            raise ValueRangeError(
                "order='score' needs a score for every region: source='segmentation' or 'combined' with "
                "unassigned='drop'. Use another order."
            )
        if self.dim is None and self.pool == "cross_attention":
            raise ValueRangeError(
                "pool='cross_attention' needs the dimension of the features, as in dim=1024. For use without training "
                "pass pool='mean' and norm='none', which do not need it."
            )

    def _check_unclustered(self) -> None:
        """Check the options that stop clustering for the other sources."""
        uses_masks = self.source in MASK_SOURCES
        for name in ("explained_variance",) if uses_masks else ("num_regions", "keep", "explained_variance"):
            if getattr(self, name) is not None:
                raise ValueRangeError(f"{name} requires source='clustering'; got source={self.source!r}. Leave it out.")
        check_stop(None if uses_masks else self.threshold, self.num_regions, self.keep)
        if self.linkage == "ward" and not self.has_budget:
            raise ValueRangeError(
                f"linkage='ward' needs num_regions or keep for source={self.source!r}. Pass one of them, or take "
                "'centroid' or 'average'."
            )
        if self.has_budget and self.linkage not in (None, "ward"):
            raise ValueRangeError(
                f"masks are merged by linkage='ward' to a budget; got {self.linkage!r}. Leave linkage out."
            )

    @property
    def has_budget(self) -> bool:
        """Whether the number of regions is given by the options or by each call."""
        return self.num_regions is not None or self.keep is not None

    def to_dict(self) -> dict[str, Any]:
        """Return all options as values that JSON can represent."""
        return asdict(self) | {"geometry": None if self.geometry is None else self.geometry.to_config()}

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "RegionizerConfig":
        """Return the options that `to_dict` wrote; missing options get their defaults.

        Raises:
            CheckpointError: An unknown option or an invalid value.
        """
        if not isinstance(config, Mapping):
            raise CheckpointError(f"the options of a Regionizer must be a mapping; got {type(config).__name__}.")
        unknown = sorted(set(config) - set(OPTIONS))
        if unknown:
            raise CheckpointError(
                f"this version has no option {', '.join(map(repr, unknown))} of a Regionizer; a newer one may."
            )
        try:
            return cls(**config)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"a saved Regionizer has invalid options: {error}") from error


def _as_geometry(geometry: Any) -> "ImageGeometry":
    """Return an `ImageGeometry`, or create it from what its ``to_config`` returned."""
    geometry_class = importlib.import_module("regiontok.geometry").ImageGeometry  # imported late because it needs torch
    if isinstance(geometry, Mapping):
        geometry = geometry_class(**geometry)
    if not isinstance(geometry, geometry_class):
        raise DTypeError(
            f"geometry must be an ImageGeometry, as in geometry=encoder.geometry; got {type(geometry).__name__}."
        )
    return geometry


def check_names(options: Mapping[str, Any]) -> None:
    """Reject options that a `Regionizer` does not have.

    Raises:
        UnknownOptionError: Such an option; the message suggests a similar name.
    """
    for name in options:
        if name not in OPTIONS:
            similar = difflib.get_close_matches(name, OPTIONS, 1)
            hint = f"Did you mean {similar[0]!r}?" if similar else f"Its options are {', '.join(OPTIONS)}."
            raise UnknownOptionError(f"a Regionizer has no option {name!r}. {hint}")
