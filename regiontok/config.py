"""Every option of a `Regionizer` in one place: name, default, meaning, check, and how it is saved."""

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from regiontok._checks import check_choice, check_integer, check_number
from regiontok.choices import (
    MASK_SOURCES,
    MASK_WEIGHT,
    METHODS,
    NORMS,
    ORDERS,
    PADDINGS,
    POOLS,
    PROMPT,
    SOURCES,
    Linkage,
    Method,
    Noise,
    Norm,
    Order,
    Overlap,
    Padding,
    Pool,
    Prompt,
    Source,
    Uncovered,
)
from regiontok.clustering import UnionFindClusterer
from regiontok.downsample import MaskDownsampler
from regiontok.errors import CheckpointError, UnknownOptionError, ValueRangeError
from regiontok.geometry import ImageGeometry
from regiontok.splitting import check_splitting


def check_options(options: Mapping[str, Any]) -> None:
    """Reject options that a `Regionizer` does not have.

    Raises:
        UnknownOptionError: Such an option; the one of the nearest name is named.
    """
    known = [field.name for field in fields(RegionizerConfig)]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Its options are {', '.join(known)}."
            raise UnknownOptionError(f"a Regionizer has no option {name!r}. {hint}")


@dataclass(frozen=True, kw_only=True)
class RegionizerConfig:
    """The options of a `Regionizer`, checked alone and together. ``Regionizer(**options)`` takes them by name.

    Args:
        source: Where regions come from: ``clustering`` of similar neighbours; ``patch``, every patch a region;
            ``segmentation``, the masks given with the features; ``combined``, these masks split by `split_regions`.
        dim: Feature dimension; needed by ``cross_attention``, and checked wherever it is given.
        norm: ``rms``, root mean square of each patch feature without a weight, or ``none``.
        pool: ``cross_attention`` or ``mean``. None is the paper's: cross-attention, and the mean for ``patch``, whose
            regions have one patch each.
        num_heads: Heads of cross-attention.
        order: Order of an image's tokens: ``raster``, ``centroid``, ``area``, ``random`` or, for masks with scores,
            ``score``; see `order_regions`. ``random`` draws anew in every call, from torch's generator on the CPU.
        linkage: Which pair of regions clustering merges next: ``centroid``, ``average`` or ``ward``; see
            `UnionFindClusterer` for this and the next four. None for ``ward`` where a budget stops, else ``centroid``.
        threshold: Least cosine at which clustering merges, of all patches or of those that no mask covers. None for
            0.7, where nothing else stops.
        num_regions: The number of tokens per image instead, or all valid patches where these are fewer. With masks it
            replaces the paper's way: ``combined`` merges patches by Ward's rule that respects masks, and
            ``segmentation`` merges whole masks to at most so many regions. A call may bring its own. ``"prompt"``:
            every call brings one, as the number of placeholders in the prompt of a multimodal model.
        keep: The fraction of an image's valid patches instead, rounded up, at least 1.
        explained_variance: The share of the squared deviation that tokens keep instead; for ``clustering`` by ``ward``.
        connectivity: 4 or 8 neighbours for clustering.
        mask_weight: With a budget and masks: how much masks count beside features, from 0 to ``inf``; see
            `regiontok.masked`.
        padding: ``drop`` keeps the patches that are not valid out of every region; ``keep`` uses all. Masks never lie
            on padding.
        geometry: How the encoder places images, ``encoder.geometry``; their masks go the same way.
        coverage: The share of a patch above which it is in a mask; see `MaskDownsampler` for this and the next three.
        downsampling: ``exact`` or ``two_step``.
        uncovered: Patches in no mask: ``drop``, ``background``, ``single_patches`` or ``cluster``.
        overlap: Patches in several masks: ``keep`` or ``smallest``.
        eps: Greatest distance between near patches; see `split_regions` for this and the next three.
        min_samples: Near patches that make a patch the core of a group.
        split_min_patches: The least patches of a mask that is split.
        noise: Patches in no group: ``own_region``, ``single_patches`` or ``drop``.

    Raises:
        DTypeError, ValueRangeError: An option, or a combination of them, that cannot be.

    Example:
        >>> RegionizerConfig(source="patch").pool
        'mean'
        >>> RegionizerConfig(dim=48, num_regions=64).clusterer()  # doctest: +ELLIPSIS
        UnionFindClusterer(linkage=None, threshold=None, num_regions=64, ...)

    Source:
        The paper's system: A.1 for sources and their numbers, A.2 for pooling, Table 1 for norm and order. That the
        norm has no weight, the default order, and what becomes of padding, overlaps, noise and uncovered patches are
        our choices; linkages other than ``centroid`` and budgets go beyond it.
    """

    source: Source = "clustering"
    dim: int | None = None
    norm: Norm = "rms"
    pool: Pool | None = None
    num_heads: int = 16
    order: Order = "raster"
    linkage: Linkage | None = None
    threshold: float | None = None
    num_regions: int | Prompt | None = None
    keep: float | None = None
    explained_variance: float | None = None
    connectivity: int = 4
    mask_weight: float = MASK_WEIGHT
    padding: Padding = "drop"
    geometry: ImageGeometry | None = None
    coverage: float = 0.07
    downsampling: Method = "exact"
    uncovered: Uncovered = "drop"
    overlap: Overlap = "keep"
    eps: float = 0.7
    min_samples: int = 3
    split_min_patches: int = 10
    noise: Noise = "own_region"

    def __post_init__(self) -> None:
        check_choice("source", self.source, SOURCES)
        if self.pool is None:
            self._set(pool="mean" if self.source == "patch" else "cross_attention")
        for name, choices in (("norm", NORMS), ("pool", POOLS), ("order", ORDERS), ("padding", PADDINGS)):
            check_choice(name, getattr(self, name), choices)
        check_choice("downsampling", self.downsampling, METHODS)
        self._check_combinations()
        if isinstance(self.geometry, Mapping):  # as in a saved folder
            self._set(geometry=ImageGeometry(**self.geometry))
        check_splitting(self.eps, self.min_samples, self.split_min_patches, self.noise, patches="split_min_patches")
        clusterer = self.clusterer()
        self._set(
            dim=None if self.dim is None else check_integer("dim", self.dim),
            num_heads=check_integer("num_heads", self.num_heads),
            threshold=clusterer.threshold,
            num_regions=PROMPT if self.num_regions == PROMPT else clusterer.num_regions,
            keep=clusterer.keep,
            explained_variance=clusterer.explained_variance,
            connectivity=clusterer.connectivity,
            mask_weight=clusterer.mask_weight,
            coverage=check_number("coverage", self.coverage, low=0, high=1),
            eps=float(self.eps),
            min_samples=int(self.min_samples),
            split_min_patches=int(self.split_min_patches),
        )
        self.downsampler()  # checks the rest

    def _set(self, **values: Any) -> None:
        """Put values into their final form, once, though the class is frozen."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _check_combinations(self) -> None:
        if self.source != "clustering":
            names = (
                ("explained_variance",)
                if self.source in MASK_SOURCES
                else ("num_regions", "keep", "explained_variance")
            )
            for name in names:
                if getattr(self, name) is not None:
                    raise ValueRangeError(
                        f"{name} is for source='clustering'; got source={self.source!r}. Leave it out."
                    )
            by_budget = self.source in MASK_SOURCES and self.has_budget
            if self.linkage == "ward" and not by_budget:
                raise ValueRangeError(
                    f"linkage='ward' needs num_regions or keep for source={self.source!r}. Pass one of them, or take "
                    "'centroid' or 'average'."
                )
            if by_budget and self.linkage not in (None, "ward"):
                raise ValueRangeError(
                    f"masks are merged by linkage='ward' to a budget; got {self.linkage!r}. Leave linkage out."
                )
        if self.padding == "keep" and self.source in MASK_SOURCES:
            raise ValueRangeError(
                f"padding='keep' is not for source={self.source!r}: masks never lie on padding. Leave it out."
            )
        if self.order == "score" and (self.num_regions is not None or self.keep is not None):
            raise ValueRangeError("order='score' is not for a budget, whose regions have no scores. Use another order.")
        if self.order == "score" and (self.source not in MASK_SOURCES or self.uncovered != "drop"):
            raise ValueRangeError(
                "order='score' needs a score for every region: source='segmentation' or 'combined' with "
                "uncovered='drop'. Use another order."
            )
        if self.dim is None and self.pool == "cross_attention":
            raise ValueRangeError(
                "pool='cross_attention' needs the dimension of the features, as in dim=1024. For use without training "
                "pass pool='mean' and norm='none', which need none."
            )

    @property
    def has_budget(self) -> bool:
        """Whether the options name a number of regions, or leave it to each call."""
        return self.num_regions is not None or self.keep is not None

    def clusterer(self) -> UnionFindClusterer:
        """Return what merges patches."""
        if self.num_regions == PROMPT:
            return self._clusterer_of_prompts()
        if self.source in MASK_SOURCES and self.has_budget:
            return UnionFindClusterer(
                num_regions=self.num_regions,
                keep=self.keep,
                connectivity=self.connectivity,
                mask_weight=self.mask_weight,
            )
        return UnionFindClusterer(
            linkage=self.linkage,
            threshold=self.threshold,
            num_regions=self.num_regions,
            keep=self.keep,
            explained_variance=self.explained_variance,
            connectivity=self.connectivity,
            mask_weight=self.mask_weight,
        )

    def _clusterer_of_prompts(self) -> UnionFindClusterer:
        """A clusterer without a budget of its own, which every call brings."""
        for name in ("threshold", "keep", "explained_variance"):
            value = getattr(self, name)
            if value is not None:
                raise ValueRangeError(
                    f"num_regions={PROMPT!r} and {name}={value} are several ways to say when to stop. Leave one out."
                )
        return UnionFindClusterer(
            linkage=self.linkage or "ward", connectivity=self.connectivity, mask_weight=self.mask_weight
        )

    def downsampler(self) -> MaskDownsampler:
        """What brings masks to the grid."""
        return MaskDownsampler(
            geometry=self.geometry,
            threshold=self.coverage,
            method=self.downsampling,
            uncovered=self.uncovered,
            overlap=self.overlap,
            clusterer=self._clusterer_of_rest(),
        )

    def _clusterer_of_rest(self) -> UnionFindClusterer:
        """Return what merges patches that no mask covers, for ``uncovered="cluster"``."""
        if self.source not in MASK_SOURCES:
            return UnionFindClusterer()
        linkage = None if self.has_budget else self.linkage
        return UnionFindClusterer(linkage=linkage, threshold=self.threshold, connectivity=self.connectivity)

    def to_dict(self) -> dict[str, Any]:
        """Return all options in a form that JSON can hold."""
        return asdict(self) | {"geometry": None if self.geometry is None else self.geometry.to_config()}

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "RegionizerConfig":
        """Return the options that `to_dict` wrote; options that are missing have their defaults.

        Raises:
            CheckpointError: An unknown option, or an invalid value.
        """
        if not isinstance(config, Mapping):
            raise CheckpointError(f"the options of a Regionizer must be a mapping; got {type(config).__name__}.")
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(config) - known)
        if unknown:
            raise CheckpointError(
                f"this version knows no option {', '.join(map(repr, unknown))} of a Regionizer; a newer one may."
            )
        try:
            return cls(**config)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"a saved Regionizer has options that cannot be: {error}") from error
