"""The mechanism that all families share: encode photos to region tokens, then write a placeholder for each.

Counts of regions are known only once a photo is encoded. So the model itself expands the prompt, and hands features
that are encoded already to the stock class through its ``mm_encoder_outputs``. Tested with transformers 5.24.
"""

import copy
import functools
import inspect
import itertools
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from regiontok._checks import Features, check_integer, check_sizes
from regiontok._require import require
from regiontok.adapters._sizes import need_sizes
from regiontok.adapters.huggingface.placeholders import Layout, lay_out
from regiontok.budgets import Budget
from regiontok.downsample import Masks
from regiontok.errors import CheckpointError, DTypeError, MissingDependencyError, ShapeError, ValueRangeError
from regiontok.geometry import Size
from regiontok.pooling import MeanPool
from regiontok.regionizer import Regionizer
from regiontok.regions import Regions, RegionTokens
from regiontok.views import View, count_photos, cut_masks, share_budget, whole_photos

transformers = require("transformers", extra="hf")

_MODEL_OPTIONS = ("dtype", "torch_dtype", "quantization_config", "attn_implementation")
"""Arguments of ``from_pretrained`` that are the model's, though a config has their names."""
_CACHES = ("cache", "past_key_values")
_OF_TEXT = ("language_model", "text_model", "lm_head")
_OTHER_MEDIA = {"pixel_values_videos": "videos", "input_features": "sounds"}
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


class Patches(NamedTuple):
    """Photos as patch features.

    Attributes:
        features: ``(views, rows, cols, dim)``, or a list of ``(rows, cols, dim)``. Most families have one view of each
            photo.
        written: Per run of placeholders, the number that the stock class wants in it.
        views: Which part of which photo each grid shows; None for one view of every photo.
        layers: Features of further layers, each like ``features``, that the language model takes beside them.
    """

    features: Features
    written: list[int]
    views: list[View] | None = None
    layers: Sequence[Features] = ()


class RegionInputs(NamedTuple):
    """A batch with its region tokens in place.

    Attributes:
        inputs: What the stock class's ``forward`` takes: ``input_ids``, ``attention_mask``, ``labels`` and more, all
            ``(B, length)``, with a placeholder per region; and ``mm_encoder_outputs``.
        regions: The batch's `Regions`, in the order of their placeholders. Their images are the views.
        layout: Which of the caller's columns stands where.
        columns: ``(B, length)`` bool: where region tokens are. Placeholders elsewhere are newlines.
        views: What each image of the regions shows.
    """

    inputs: dict[str, Any]
    regions: Regions
    layout: Layout
    columns: Tensor
    views: list[View]

    @property
    def counts(self) -> list[int]:
        """Region tokens of each photo."""
        return _per_photo(self.views, self.regions.counts.tolist())


class RegionMixin:
    """Region tokens for a ``*ForConditionalGeneration`` of transformers, mixed in before it.

    A family says which grids show its photos (`views`), what their patch features are (`encode_patches`), what
    projects those of regions (`projector`), and where tokens stand (`place`). The rest is here.

    The model's ``forward`` and ``generate`` take what the stock class's do, and more. Logits, and so a Trainer's
    predictions, are of the prompt as it was laid out: `prepare` gives the labels beside them.

    Masks and budgets are per photo, also where a photo is cut into tiles: masks are cut with it, and a budget is shared
    over its grids in proportion to their patches.

    Shape:
        masks: For the sources of masks: a list with the masks of each photo of the batch; see `Regionizer`.
        image_sizes: Height and width of each photo before preprocessing, ``(photos, 2)``, so that masks of another size
            are refused, and padding is in no region; by default masks tell it, or all patches show the photo.
        num_images: How many photos each sample has, to check that its placeholders are its own.
        num_regions: A budget of tokens, one number or one per photo, in place of the Regionizer's own.
    """

    regionizer: Regionizer
    config: Any
    generation_config: Any
    training: bool

    _stock: type[Any]
    """The class of transformers that the family stands for."""
    _keys_to_ignore_on_load_unexpected: list[str]
    encoder_inputs: tuple[str, ...] = ()
    """What `encode_patches` takes besides pixels."""
    token_inputs: Mapping[str, int] = MappingProxyType({})
    """What comes per token besides ids and mask, ``(B, columns)``, and what it is at padding."""
    places_photos: ClassVar[bool] = False
    """Whether views know where they lie, so that the Regionizer needs no geometry."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Give a family's ``forward`` the stock one's arguments, for all that looks at them: ``generate`` does."""
        super().__init_subclass__(**kwargs)
        if "_stock" in vars(cls):
            cls.forward = _signed(RegionMixin.forward, cls._stock.forward)  # type: ignore[method-assign]
            ignored = [*(cls._stock._keys_to_ignore_on_load_unexpected or ()), r"regionizer\.draws"]  # of old versions
            cls._keys_to_ignore_on_load_unexpected = ignored

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        options = getattr(config, "regiontok", None)
        if options is None:
            raise CheckpointError(
                f"{type(self).__name__} needs a Regionizer and its config names none: it is of a stock model. Pass "
                "regionizer=Regionizer(...) to from_pretrained, or set config.regiontok = regionizer.config."
            )
        self.regionizer = Regionizer.from_config(options)
        self._check_regionizer(self.regionizer)
        guard_inner(self)
        self.post_init()  # type: ignore[attr-defined]

    @classmethod
    def from_pretrained(
        cls,
        name: Any,
        *args: Any,
        regionizer: Regionizer | None = None,
        newline: str | None = None,
        config: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Load what ``save_pretrained`` wrote, or with ``regionizer`` a stock checkpoint.

        All other arguments are those of transformers. The weights of a ``regionizer`` given here are the model's, and
        are left as they are by a ``quantization_config``. For ``newline`` see `with_regions`.

        Raises:
            CheckpointError: A stock checkpoint, and no ``regionizer``; or a checkpoint that lacks weights of its
                Regionizer, or has others.
            ShapeError: A ``regionizer`` of another dimension than the features.
        """
        check_supported(cls._stock)
        if not isinstance(config, transformers.PreTrainedConfig):
            hub = {option: kwargs[option] for option in HUB_OPTIONS if option in kwargs}
            config = transformers.AutoConfig.from_pretrained(name if config is None else config, **hub)
        config = copy.deepcopy(config)
        for option in [one for one in kwargs if hasattr(config, one) and one not in _MODEL_OPTIONS]:
            setattr(config, option, kwargs.pop(option))
        set_newline(config, cls, newline)
        for given in (kwargs, vars(config)):
            if given.get("quantization_config") is not None:
                given["quantization_config"] = _without_regionizer(given["quantization_config"])
        if regionizer is not None:
            config.regiontok = dict(regionizer.config)
        wants_report = kwargs.pop("output_loading_info", False)
        model, report = super().from_pretrained(name, *args, config=config, output_loading_info=True, **kwargs)
        if regionizer is not None:
            model.regionizer.load_state_dict(regionizer.state_dict())
        else:
            _check_loaded(name, report)
        return (model, report) if wants_report else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Save the model as transformers does, with the options of the Regionizer that it has now."""
        self.config.regiontok = dict(self.regionizer.config)
        return super().save_pretrained(save_directory, *args, **kwargs)

    @property
    def patch_dim(self) -> int:
        """The dimension of the patch features that regions are made of; by default the language model's."""
        return int(self.config.get_text_config().hidden_size)

    @property
    def projector(self) -> Callable[[Tensor], Tensor]:
        """From features of regions ``(R, dim)`` to tokens ``(R, text_dim)``; nothing by default."""
        return nn.Identity()

    @abstractmethod
    def views(self, photos: int, image_sizes: Any = None, **inputs: Any) -> list[View]:
        """The grids that show photos, without encoding them."""

    @abstractmethod
    def encode_patches(self, pixel_values: Tensor, **inputs: Any) -> Patches:
        """Patch features of a batch's photos."""

    @abstractmethod
    def blank_image(self) -> dict[str, Any]:
        """The smallest input of `encode_patches`."""

    def read_prompts(
        self, input_ids: Tensor, attention_mask: Tensor | None, pixel_values: Tensor, inputs: dict[str, Any]
    ) -> dict[str, Any]:
        """The inputs of `encode_patches`, with what prompts tell of photos; as they are, by default."""
        return inputs

    def add_newlines(self, tokens: RegionTokens, views: Sequence[View]) -> tuple[Tensor, Tensor]:
        """Tokens as they stand in the prompt, ``(N, text_dim)``, and which region each is, -1 for none."""
        return tokens.values, torch.arange(len(tokens), device=tokens.values.device)

    def place(self, inputs: dict[str, Any], regions: Regions) -> dict[str, Any]:
        """What the stock class needs besides, such as positions of the tokens; nothing, by default."""
        return {}

    def hand_over(self, output: Any) -> Any:
        """Encoded features, a list of ``(tokens, text_dim)``, as the stock class takes them; a list, by default."""
        return output

    def encode_regions(
        self,
        pixel_values: Tensor,
        *,
        masks: Sequence[Masks] | None = None,
        image_sizes: Any = None,
        num_regions: Budget | None = None,
        **inputs: Any,
    ) -> RegionTokens:
        """Region tokens of photos, in the language model's dimension; the images of its regions are the views."""
        patches = self._encode(pixel_values, image_sizes, inputs)
        return self._regionize(patches, masks, image_sizes, num_regions).map(self.projector)

    def num_tokens(
        self, image_sizes: Any = None, *, num_regions: Budget | None = None, images: int | None = None, **inputs: Any
    ) -> list[int]:
        """How many tokens images will get, before they are encoded, as a server wants to know.

        Args:
            image_sizes: See `RegionMixin`. Where the Regionizer's geometry pads photos, padding is in no token.
            num_regions: See `RegionMixin`.
            images: How many, where ``image_sizes`` does not tell.
            inputs: What the family's encoder takes besides pixels. Families of native resolution need the processor's
                ``image_grid_thw``, which tells how many there are too; some that cut photos need ``tiles``.

        Raises:
            ShapeError: Numbers of images that differ.
            ValueRangeError: Counts that depend on the features or on masks, or nothing that tells how many images
                there are.
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
        views = self.views(images or (0 if sizes is None else len(sizes)), sizes, **inputs)
        for name, count in (("images", images), ("image_sizes", None if sizes is None else len(sizes))):
            if count not in (None, count_photos(views)):
                raise ShapeError(
                    f"{name} must be of the {count_photos(views)} photos that the rest tells; got {count}."
                )
        if self.places_photos:
            keeps = self.regionizer.config["padding"] == "keep"
            valid = [None if keeps else view.valid(sizes) for view in views]
            patches = [view.patches if one is None else int(one.sum()) for view, one in zip(views, valid, strict=True)]
        else:
            patches = self.regionizer.num_patches([view.grid for view in views], sizes)
        counts = self.regionizer.num_tokens(patches, num_regions=self._budgets(views, num_regions))
        return [
            count + more for count, more in zip(_per_photo(views, counts), self._count_newlines(views), strict=True)
        ]

    def prepare(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        *,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        masks: Sequence[Masks] | None = None,
        image_sizes: Any = None,
        num_images: Sequence[int] | None = None,
        num_regions: Budget | None = None,
        left: bool | None = None,
        **inputs: Any,
    ) -> RegionInputs:
        """Encode a batch's images and write a placeholder for each region into its prompts.

        Args:
            input_ids: ``(B, columns)``: one placeholder per image, or the run that the stock processor writes.
            pixel_values: The images of all samples, in the order of their placeholders.
            attention_mask: ``(B, columns)``, 0 at padding.
            labels: ``(B, columns)``; regions get -100.
            masks: See `RegionMixin`.
            image_sizes: See `RegionMixin`.
            num_images: See `RegionMixin`.
            num_regions: See `RegionMixin`.
            left: Pad on the left; by default on the side where padding came.
            inputs: What the family's encoder takes besides.

        Raises:
            ShapeError, DTypeError, ValueRangeError: Placeholders, masks or sizes that do not fit the images.
        """
        unknown = sorted(set(inputs) - {*self.encoder_inputs, *self.token_inputs})
        if unknown:
            raise ValueRangeError(f"prepare takes no {unknown[0]}. Leave it out.")
        if not isinstance(pixel_values, Tensor):
            raise DTypeError(
                f"pixel_values must be a tensor, as the processor returns it; got {type(pixel_values).__name__}."
            )
        if num_images is not None and not isinstance(num_images, Sequence | Tensor):
            raise DTypeError(f"num_images must have a number per sample; got {num_images!r}.")
        given = {name: inputs.pop(name) for name in self.token_inputs if name in inputs}
        inputs = self.read_prompts(input_ids, attention_mask, pixel_values, inputs)
        patches = self._encode(pixel_values, image_sizes, inputs)
        regional = self._regionize(patches, masks, image_sizes, num_regions)
        regions = regional.regions
        views = patches.views or whole_photos([(rows, cols) for rows, cols in regions.grids.tolist()])
        values, of_region = self.add_newlines(regional.map(self.projector), views)
        run = torch.tensor([view.run for view in views], device=values.device)[regions.image]
        run = run[of_region.cummax(0).values]  # a newline stands in the run of the region before it
        if left is None:
            left = attention_mask is not None and attention_mask.ndim == 2 and not bool(attention_mask[:, 0].all())
        layout = lay_out(
            input_ids,
            attention_mask,
            image_token_id=self.config.image_token_id,
            counts=torch.bincount(run, minlength=len(patches.written)),
            written=torch.tensor(patches.written),
            num_images=None if num_images is None else _runs_per_sample(num_images, views),
            left=left,
        )
        ids = layout.put(input_ids, _padding_id(self.config))
        placed: dict[str, Any] = {"input_ids": ids, "attention_mask": layout.mask}
        if labels is not None:
            placed["labels"] = layout.put(labels, -100).masked_fill(ids == self.config.image_token_id, -100)
        for name, one in given.items():
            placed[name] = layout.put(one, self.token_inputs[name])
        columns = (ids == self.config.image_token_id) & layout.mask.bool()
        held = [count for count in columns.sum(1).tolist() if count]
        columns = columns.masked_scatter(columns, (of_region >= 0).to(columns.device))
        placed |= self.place(placed, regions)
        placed["mm_encoder_outputs"] = {"image": self._output(values, held, patches.layers, regions)}
        return RegionInputs(placed, regions, layout, columns, views)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        masks: Sequence[Masks] | None = None,
        image_sizes: Any = None,
        num_images: Sequence[int] | None = None,
        num_regions: Budget | None = None,
        **kwargs: Any,
    ) -> Any:
        """The stock class's, with region tokens; logits are of the prompt as it was laid out, see `prepare`."""
        _refuse_other_media(kwargs)
        if labels is not None and not _keeps_all(kwargs.get("logits_to_keep")):
            raise ValueRangeError("labels need all logits; logits_to_keep leaves some out. Pass one of them.")
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        if pixel_values is not None:
            self._refuse_given(input_ids, kwargs)
            names = (*self.encoder_inputs, *self.token_inputs)
            more = {name: kwargs.pop(name) for name in names if kwargs.get(name) is not None}
            inputs = self.prepare(
                input_ids,  # type: ignore[arg-type]
                pixel_values,
                attention_mask=attention_mask,
                labels=labels,
                masks=masks,
                image_sizes=image_sizes,
                num_images=num_images,
                num_regions=num_regions,
                **more,
            ).inputs
            kwargs |= inputs
            return super().forward(**kwargs | self._handed_over(kwargs))
        if kwargs.get("mm_encoder_outputs") is not None:  # generation's first step
            return super().forward(**inputs, **kwargs | self._handed_over(kwargs))
        if not _has_past(kwargs):
            self._refuse_images(input_ids, masks, num_regions)
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(**inputs, **kwargs)
        as_tuple = kwargs.pop("return_dict", None) is False
        output = super().forward(**inputs, **kwargs, return_dict=True)
        self._touch(output)
        return output.to_tuple() if as_tuple else output

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, generation_config: Any = None, *args: Any, **kwargs: Any) -> Any:
        """The stock class's, with region tokens; returns the caller's prompt followed by the new tokens.

        ``max_length`` and ``min_length`` count as if the prompt were as long as it came. A cache cannot be kept for a
        next turn: what comes back is shorter than what it holds.
        """
        _refuse_other_media(kwargs)
        pixel_values = kwargs.pop("pixel_values", None)
        if pixel_values is None:
            if kwargs.get("mm_encoder_outputs") is None and not _has_past(kwargs):
                self._refuse_images(kwargs.get("input_ids", inputs), kwargs.get("masks"), kwargs.get("num_regions"))
            for name in ("masks", "image_sizes", "num_images", "num_regions", "tiles"):
                kwargs.pop(name, None)
            return super().generate(inputs, generation_config, *args, **kwargs)
        ids = kwargs.pop("input_ids", inputs)
        self._refuse_given(ids, kwargs)
        of_all = ("attention_mask", "masks", "image_sizes", "num_images", "num_regions")
        names = (*of_all, *self.encoder_inputs, *self.token_inputs)
        given = {name: one for name in names if (one := kwargs.pop(name, None)) is not None}
        prepared = self.prepare(ids, pixel_values, left=True, **given)
        laid = prepared.inputs["input_ids"].shape[1]
        given_config = generation_config or self.generation_config
        adds = kwargs.get("max_new_tokens") or given_config.max_new_tokens  # which goes before max_length
        for name in ("max_length", "min_length"):
            length = kwargs.get(name) or getattr(given_config, name)
            if length and not (name == "max_length" and adds):
                kwargs[name] = length + laid - ids.shape[1]
        output = super().generate(None, generation_config, *args, **prepared.inputs, **kwargs)
        sequences = output if isinstance(output, Tensor) else output.sequences
        prompt = ids.repeat_interleave(len(sequences) // len(ids), 0)
        sequences = torch.cat([prompt.to(sequences.device), sequences[:, laid:]], 1)
        if isinstance(output, Tensor):
            return sequences
        output.sequences = sequences
        return output

    def _refuse_images(
        self, input_ids: Tensor | None, masks: Sequence[Masks] | None, num_regions: Budget | None
    ) -> None:
        """Refuse what speaks of images where none came."""
        if masks:
            raise ValueRangeError(f"there are masks of {len(masks)} images and no pixel_values. Pass both or neither.")
        if num_regions is not None:
            raise ValueRangeError("there is a budget of tokens for images and no pixel_values. Pass both or neither.")
        held = 0 if input_ids is None else int((input_ids == self.config.image_token_id).sum())
        if held:
            raise ShapeError(f"the samples hold {held} placeholders of images, and no pixel_values came. Pass both.")

    def _refuse_given(self, ids: Tensor | None, kwargs: dict[str, Any]) -> None:
        """Refuse what cannot come with photos."""
        for name in ("inputs_embeds", "position_ids", "mm_encoder_outputs", *_CACHES):
            if kwargs.get(name) is not None:
                raise ValueRangeError(
                    f"{name} cannot come with pixel_values: how long the prompt is, is known only after the photos are "
                    "encoded. Leave it out."
                )
        for name in ("vision_feature_layer", "vision_feature_select_strategy"):
            if kwargs.get(name) not in (None, getattr(self.config, name, None)):
                raise ValueRangeError(f"{name} is the config's, for which the regions are made; got {kwargs[name]}.")
        if ids is None:
            raise ValueRangeError("pixel_values need input_ids, whose placeholders they fill. Pass both.")

    def _touch(self, output: Any) -> None:
        """Let a batch of text alone reach the weights of regions and projector, by a blank image that counts nothing.

        Ranks that train together wait for the same gradients: one without an image would stop the others for ever.
        """
        named: Any = self.named_parameters()  # type: ignore[attr-defined]
        if not any(one.requires_grad for name, one in named if not any(part in name for part in _OF_TEXT)):
            return
        patches = self.encode_patches(**self.blank_image())
        features = self.regionizer.normalize(patches.features)
        whole = Regions.from_labels([torch.zeros_like(one[..., 0], dtype=torch.int64) for one in features])
        views = patches.views or whole_photos([(rows, cols) for rows, cols in whole.grids.tolist()])
        values, _ = self.add_newlines(self.regionizer.pool(features, whole).map(self.projector), views)
        nothing = 0.0 * (values.sum() + sum(one.sum() for layer in patches.layers for one in layer))
        if output.loss is not None:
            output.loss = output.loss + nothing.to(output.loss)
        else:
            output.logits = output.logits + nothing.to(output.logits)

    def _encode(self, pixel_values: Tensor, image_sizes: Any, inputs: dict[str, Any]) -> Patches:
        if "image_sizes" in self.encoder_inputs:
            inputs = inputs | {"image_sizes": image_sizes}
        return self.encode_patches(pixel_values, **inputs)

    def _regionize(
        self, patches: Patches, masks: Sequence[Masks] | None, image_sizes: Any, num_regions: Budget | None
    ) -> RegionTokens:
        sizes = None if image_sizes is None else check_sizes("image_sizes", image_sizes)
        if patches.views is not None:
            views, options = patches.views, self.regionizer.config
            budgets = self._budgets(views, num_regions)
            if masks is not None:
                downsampling = {"method": options["downsampling"], "threshold": options["coverage"]}
                cut = cut_masks(views, masks, sizes, overlap=options["overlap"], **downsampling)
                return self.regionizer(patches.features, masks=cut, num_regions=budgets)
            return self.regionizer(patches.features, valid=_valid(views, sizes), num_regions=budgets)
        need_sizes(self.regionizer, masks, sizes)
        if masks is None and self.regionizer.config["geometry"] is None:
            sizes = None  # as processors of some families give them with every photo
        return self.regionizer(patches.features, masks=masks, sizes=sizes, num_regions=num_regions)

    def _budgets(self, views: Sequence[View], num_regions: Budget | None) -> Budget | None:
        """Budgets of views: their photos', shared; None where none is set."""
        own = self.regionizer.config["num_regions"] if num_regions is None else num_regions
        if own is None or count_photos(views) == len(views):
            return num_regions
        return share_budget(views, own)

    def _count_newlines(self, views: Sequence[View]) -> list[int]:
        return [0] * count_photos(views)

    def _output(self, values: Tensor, held: list[int], layers: Sequence[Features], regions: Regions) -> Any:
        """Features as ``generate`` takes them: of each sample that has photos."""
        outputs = transformers.modeling_outputs
        parts = list(values.split(held))
        if not layers:
            return outputs.BaseModelOutputWithPooling(pooler_output=parts)
        pool = MeanPool()
        deep = [list(pool(layer, regions).values.split(held)) for layer in layers]
        output = require(self._stock.__module__, extra="hf").BaseModelOutputWithDeepstackFeatures
        return output(pooler_output=parts, deepstack_features=deep)

    def _handed_over(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        outputs = kwargs["mm_encoder_outputs"]
        image = outputs.get("image")
        return {} if image is None else {"mm_encoder_outputs": outputs | {"image": self.hand_over(image)}}

    def _check_regionizer(self, regionizer: Regionizer) -> None:
        """Refuse a Regionizer that cannot be this model's."""
        check_dim(regionizer, self.patch_dim)
        if self.places_photos and regionizer.config["geometry"] is not None:
            raise ValueRangeError(
                f"{type(self).__name__} knows itself how photos lie on tiles. Leave geometry out of the Regionizer."
            )

    def _init_weights(self, module: nn.Module) -> None:
        """Start the Regionizer as it starts itself; weights that were loaded transformers keeps from ``nn.init``."""
        regionizer = self._modules.get("regionizer")  # type: ignore[attr-defined]
        if regionizer is not None and any(module is one for one in regionizer.modules()):
            regionizer.reset_parameters()
        else:
            super()._init_weights(module)


def _check_loaded(name: Any, report: Mapping[str, Any]) -> None:
    """Reject a checkpoint whose weights of the Regionizer are not those that its config asks for."""
    for keys, fault in (
        (report["missing_keys"], "lacks"),
        (report["unexpected_keys"], "has unexpected"),
        (report.get("mismatched_keys") or (), "has of another shape"),
    ):
        wrong = sorted(key for key in keys if "regionizer." in str(key))
        if wrong:
            raise CheckpointError(
                f"{name} {fault} {len(wrong)} weights of the Regionizer that its config describes, the first "
                f"{wrong[0]}. A stock class that loads and saves a region model loses them: take the folder that the "
                "region model's save_pretrained wrote, or remove regiontok from its config.json and pass regionizer=."
            )


def guard_inner(model: Any) -> None:
    """Let the inner model of a region model reject pixels: it would make every patch a token.

    Trainers and engines that call the inner model themselves, and put a head of their own on it, would train or serve
    the stock model without a word.
    """
    unguard_inner(model)
    model.model.register_forward_pre_hook(_reject_pixels, with_kwargs=True)


def unguard_inner(model: Any) -> None:
    """Let the inner model take pixels again. Hooks of a module that shares its weights are left alone."""
    hooks = dict(model.model._forward_pre_hooks)
    with_kwargs = dict(model.model._forward_pre_hooks_with_kwargs)
    for number in [number for number, hook in hooks.items() if hook is _reject_pixels]:
        del hooks[number], with_kwargs[number]
    model.model._forward_pre_hooks = OrderedDict(hooks)
    model.model._forward_pre_hooks_with_kwargs = OrderedDict(with_kwargs)


def _reject_pixels(inner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    names = [name for name in inspect.signature(type(inner).forward).parameters if name != "self"]
    if (kwargs | dict(zip(names, args, strict=False))).get("pixel_values") is not None:
        raise ValueRangeError(
            f"pixel_values came to {type(inner).__name__}, the inner model of a region model, which makes no regions: "
            "every patch would be a token, and the Regionizer would not be trained. Call the region model itself. "
            "Trainers that call the inner model, as those of TRL do, are not supported."
        )


def _without_regionizer(quantization: Any) -> Any:
    """A config of quantisation that leaves the Regionizer as it is, and the head where nothing else is said."""
    kept = copy.deepcopy(quantization)
    fields = kept if isinstance(kept, dict) else vars(kept)
    known = [name for name in ("llm_int8_skip_modules", "modules_to_not_convert") if name in fields]
    for name in known or ("llm_int8_skip_modules",):
        fields[name] = sorted({*(fields.get(name) or ("lm_head",)), "regionizer"})
    return kept


def register(family: type[Any]) -> None:
    """Let transformers rename a stock checkpoint's weights for a family as it does for the stock class.

    It skips classes that are not its own, and would lose ``lm_head`` without a word.
    """
    mapping = require("transformers.conversion_mapping", extra="hf")
    of_class, of_type = family._stock.__name__, family.config_class.model_type  # the first goes before, as there
    known = mapping.get_checkpoint_conversion_mapping(of_class)
    known = mapping.get_checkpoint_conversion_mapping(of_type) if known is None else known
    if known is not None:
        mapping.register_checkpoint_conversion_mapping(family.__name__, known, overwrite=True)


def check_supported(stock: type[Any]) -> None:
    """Refuse a transformers whose stock class takes no features that are encoded already."""
    if "mm_encoder_outputs" not in inspect.signature(stock.forward).parameters:
        raise MissingDependencyError(
            f"transformers {transformers.__version__} is too old: {stock.__name__} takes no mm_encoder_outputs. Run: "
            "pip install 'regiontok[hf]'"
        )


def set_newline(config: Any, family: type[Any], newline: str | None) -> None:
    """Keep in a config what becomes of newlines, of a family that has them; None leaves it as it is."""
    if newline is None:
        return
    if not hasattr(family, "newline"):
        raise ValueRangeError(
            f"newline={newline!r} is for families whose tiles are packed; {family._stock.__name__} has no newlines. "
            "Leave it out."
        )
    config.regiontok_newline = newline


def check_dim(regionizer: Regionizer, dim: int) -> None:
    """Refuse a Regionizer for features of another dimension."""
    if regionizer.config["dim"] not in (None, dim):
        raise ShapeError(
            f"the Regionizer is for features of dimension {regionizer.config['dim']}; this model's are of {dim}. Make "
            f"it with dim={dim}, or take the checkpoint of its encoder."
        )


def _signed(forward: Callable[..., Any], stock: Callable[..., Any]) -> Callable[..., Any]:
    """``forward`` with the arguments of a stock class's, in its order, and those that it takes besides."""
    own = inspect.signature(forward).parameters
    given = inspect.signature(stock).parameters
    besides = [one.replace(kind=one.KEYWORD_ONLY) for name, one in own.items() if name not in given]
    rest = [one for one in given.values() if one.kind is one.VAR_KEYWORD]
    signature = inspect.Signature(
        [one for one in given.values() if one not in rest] + [one for one in besides if one.name != "kwargs"] + rest
    )

    @functools.wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        if len(args) == 1:  # the model alone
            return forward(*args, **kwargs)
        named = signature.bind(*args, **kwargs).arguments
        return forward(named.pop("self"), **(named.pop(rest[0].name, {}) if rest else {}), **named)

    del call.__wrapped__  # accelerate looks through it, and would find the bare one
    call.__signature__ = signature  # type: ignore[attr-defined]
    return call


def _has_past(kwargs: dict[str, Any]) -> bool:
    """Whether a cache holds something, as in all but the first step of generation."""
    return any(kwargs.get(name) is not None and kwargs[name].get_seq_length() > 0 for name in _CACHES)


def _refuse_other_media(kwargs: dict[str, Any]) -> None:
    for name, media in _OTHER_MEDIA.items():
        if kwargs.get(name) is not None:
            raise ValueRangeError(f"{media} are not cut into regions. Leave {name} out.")


def _valid(views: Sequence[View], sizes: Sequence[Size] | None) -> list[Tensor] | None:
    """Which patches of views show their photos; None for all."""
    valid = [view.valid(sizes) for view in views]
    if all(one is None for one in valid):
        return None
    return [
        torch.ones(view.grid, dtype=torch.bool) if one is None else one for view, one in zip(views, valid, strict=True)
    ]


def _per_photo(views: Sequence[View], counts: Sequence[int]) -> list[int]:
    """What views hold, added up for their photos."""
    added = [0] * count_photos(views)
    for view, count in zip(views, counts, strict=True):
        added[view.photo] += count
    return added


def _keeps_all(logits_to_keep: Any) -> bool:
    return logits_to_keep is None or (isinstance(logits_to_keep, int) and logits_to_keep == 0)


def _runs_per_sample(num_images: Sequence[int], views: Sequence[View]) -> list[int]:
    """How many runs of placeholders each sample has, whose photos are counted."""
    if count_photos(views) == len(views):
        return [int(one) for one in num_images]
    runs = [len({view.run for view in views if view.photo == photo}) for photo in range(count_photos(views))]
    ends = list(itertools.accumulate([int(one) for one in num_images], initial=0))
    if ends[-1] != len(runs):
        raise ShapeError(f"num_images must add up to the {len(runs)} images; got {list(num_images)}.")
    return [sum(runs[start:end]) for start, end in itertools.pairwise(ends)]


def _padding_id(config: Any) -> int:
    padding = getattr(config.get_text_config(), "pad_token_id", None)
    return 0 if padding is None else int(padding)
