"""The mechanism that all families share: encode photos to region tokens, then write a placeholder for each.

Counts of regions are known only once a photo is encoded. So the model itself expands the prompt, and hands features
that are encoded already to the stock class through its ``mm_encoder_outputs``. Tested with transformers 5.24.
"""

import copy
import functools
import inspect
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from regiontok._checks import Features, check_integer, check_sizes
from regiontok._require import require
from regiontok.adapters._sizes import need_sizes
from regiontok.adapters.huggingface.placeholders import Layout, lay_out
from regiontok.clustering import Budget
from regiontok.downsample import Masks
from regiontok.errors import CheckpointError, MissingDependencyError, ShapeError, ValueRangeError
from regiontok.geometry import Size
from regiontok.regionizer import Regionizer
from regiontok.regions import Regions, RegionTokens

transformers = require("transformers", extra="hf")

_MODEL_OPTIONS = ("dtype", "torch_dtype", "quantization_config", "attn_implementation")
"""Arguments of ``from_pretrained`` that are the model's, though a config has their names."""
_CACHES = ("cache", "past_key_values")
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


class Patches(NamedTuple):
    """Images as patch features.

    Attributes:
        features: ``(images, rows, cols, dim)``, or a list of ``(rows, cols, dim)``.
        written: Per image, the number of placeholders that the stock class wants for it.
    """

    features: Features
    written: list[int]


class RegionInputs(NamedTuple):
    """A batch with its region tokens in place.

    Attributes:
        inputs: What the stock class's ``forward`` takes: ``input_ids``, ``attention_mask``, ``labels`` and more, all
            ``(B, length)``, with one placeholder per region; and ``mm_encoder_outputs``.
        regions: The batch's `Regions`, in the order of the placeholders.
        layout: Which of the caller's columns stands where.
    """

    inputs: dict[str, Any]
    regions: Regions
    layout: Layout


class RegionMixin:
    """Region tokens for a ``*ForConditionalGeneration`` of transformers, mixed in before it.

    A family says how its photos become patch features (`encode_patches`) and what projects those of regions
    (`projector`). The rest is here.

    The model's ``forward`` and ``generate`` take what the stock class's do, and more. Logits, and so a Trainer's
    predictions, are of the prompt as it was laid out: `prepare` gives the labels beside them.

    Shape:
        masks: For the sources of masks: a list with the masks of each image of the batch; see `Regionizer`.
        image_sizes: Height and width of each photo before preprocessing, ``(images, 2)``, so that masks of another size
            are refused, and padding is in no region; by default masks tell it, or all patches show the photo.
        num_images: How many images each sample has, to check that its placeholders are its own.
        num_regions: A budget of tokens, one number or one per image, in place of the Regionizer's own.
    """

    regionizer: Regionizer
    config: Any
    generation_config: Any
    training: bool

    _stock: type[Any]
    """The class of transformers that the family stands for."""
    _keys_to_ignore_on_load_unexpected: list[str]
    _encoder_inputs: tuple[str, ...] = ()
    """What `encode_patches` takes besides pixels."""

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
        check_dim(self.regionizer, self.patch_dim)
        self.post_init()  # type: ignore[attr-defined]

    @classmethod
    def from_pretrained(
        cls, name: Any, *args: Any, regionizer: Regionizer | None = None, config: Any = None, **kwargs: Any
    ) -> Any:
        """Load what ``save_pretrained`` wrote, or with ``regionizer`` a stock checkpoint.

        All other arguments are those of transformers. The weights of a ``regionizer`` given here are the model's.

        Raises:
            CheckpointError: A stock checkpoint, and no ``regionizer``.
            ShapeError: A ``regionizer`` of another dimension than the features.
        """
        check_supported(cls._stock)
        if regionizer is not None:
            if config is None:
                hub = {option: kwargs[option] for option in _HUB_OPTIONS if option in kwargs}
                config = transformers.AutoConfig.from_pretrained(name, **hub)
            config = copy.deepcopy(config)
            for option in [one for one in kwargs if hasattr(config, one) and one not in _MODEL_OPTIONS]:
                setattr(config, option, kwargs.pop(option))
            config.regiontok = dict(regionizer.config)
        loaded = super().from_pretrained(name, *args, config=config, **kwargs)
        if regionizer is not None:
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            model.regionizer.load_state_dict(regionizer.state_dict())
        return loaded

    @property
    @abstractmethod
    def patch_dim(self) -> int:
        """The dimension of the patch features that regions are made of."""

    @abstractmethod
    def encode_patches(self, pixel_values: Tensor, **inputs: Any) -> Patches:
        """Patch features of a batch's images."""

    @property
    @abstractmethod
    def projector(self) -> Callable[[Tensor], Tensor]:
        """From features of regions ``(R, dim)`` to tokens of the language model ``(R, text_dim)``."""

    @abstractmethod
    def blank_image(self) -> dict[str, Any]:
        """The smallest input of `encode_patches`."""

    def place(self, inputs: dict[str, Any], regions: Regions) -> dict[str, Any]:
        """What the stock class needs besides, such as positions of the tokens; nothing, by default."""
        return {}

    def encode_regions(
        self,
        pixel_values: Tensor,
        *,
        masks: Sequence[Masks] | None = None,
        image_sizes: Any = None,
        num_regions: Budget | None = None,
        **inputs: Any,
    ) -> RegionTokens:
        """Region tokens of images, in the language model's dimension."""
        return self._regionize(self.encode_patches(pixel_values, **inputs).features, masks, image_sizes, num_regions)

    @abstractmethod
    def image_grids(self, images: int, **inputs: Any) -> list[Size]:
        """Rows and columns of the patch features of images, without encoding them."""

    def num_tokens(
        self, image_sizes: Any = None, *, num_regions: Budget | None = None, images: int | None = None, **inputs: Any
    ) -> list[int]:
        """How many tokens images will get, before they are encoded, as a server wants to know.

        Args:
            image_sizes: See `RegionMixin`. Where the Regionizer's geometry pads photos, padding is in no token.
            num_regions: See `RegionMixin`.
            images: How many, where ``image_sizes`` does not tell.
            inputs: What the family's encoder takes besides pixels. Qwen2.5-VL needs the processor's
                ``image_grid_thw``, which tells how many there are too.

        Raises:
            ShapeError: Numbers of images that differ.
            ValueRangeError: Counts that depend on the features or on masks, or nothing that tells how many images
                there are.
        """
        sizes = None if image_sizes is None else check_sizes("image_sizes", image_sizes)
        unknown = sorted(set(inputs) - set(self._encoder_inputs))
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
        grids = self.image_grids(images or (0 if sizes is None else len(sizes)), **inputs)
        return self.regionizer.num_tokens(self.regionizer.num_patches(grids, sizes), num_regions=num_regions)

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
        patches = self.encode_patches(pixel_values, **inputs)
        tokens = self._regionize(patches.features, masks, image_sizes, num_regions)
        regions = tokens.regions
        if left is None:
            left = attention_mask is not None and attention_mask.ndim == 2 and not bool(attention_mask[:, 0].all())
        layout = lay_out(
            input_ids,
            attention_mask,
            image_token_id=self.config.image_token_id,
            counts=regions.counts,
            written=torch.tensor(patches.written),
            num_images=num_images,
            left=left,
        )
        ids = layout.put(input_ids, _padding_id(self.config))
        placed: dict[str, Any] = {"input_ids": ids, "attention_mask": layout.mask}
        if labels is not None:
            placed["labels"] = layout.put(labels, -100).masked_fill(ids == self.config.image_token_id, -100)
        placed |= self.place(placed, regions)
        output = transformers.modeling_outputs.BaseModelOutputWithPooling(pooler_output=tokens.split())
        placed["mm_encoder_outputs"] = {"image": output}
        return RegionInputs(placed, regions, layout)

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
        _refuse_videos(kwargs)
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        if pixel_values is not None:
            self._refuse_given(input_ids, kwargs)
            more = {name: kwargs.pop(name) for name in self._encoder_inputs if name in kwargs}
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
            return super().forward(**inputs, **kwargs)
        if kwargs.get("mm_encoder_outputs") is not None:  # generation's first step
            return super().forward(**inputs, **kwargs)
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
        _refuse_videos(kwargs)
        pixel_values = kwargs.pop("pixel_values", None)
        if pixel_values is None:
            if kwargs.get("mm_encoder_outputs") is None and not _has_past(kwargs):
                self._refuse_images(kwargs.get("input_ids", inputs), kwargs.get("masks"), kwargs.get("num_regions"))
            for name in ("masks", "image_sizes", "num_images", "num_regions"):
                kwargs.pop(name, None)
            return super().generate(inputs, generation_config, *args, **kwargs)
        ids = kwargs.pop("input_ids", inputs)
        self._refuse_given(ids, kwargs)
        names = ("attention_mask", "masks", "image_sizes", "num_images", "num_regions", *self._encoder_inputs)
        given = {name: kwargs.pop(name) for name in names if name in kwargs}
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
        if not any(one.requires_grad for name, one in named if "language_model" not in name and "lm_head" not in name):
            return
        features = self.regionizer.normalize(self.encode_patches(**self.blank_image()).features)
        whole = Regions.from_labels([torch.zeros_like(one[..., 0], dtype=torch.int64) for one in features])
        nothing = 0.0 * self.regionizer.pool(features, whole).map(self.projector).values.sum()
        if output.loss is not None:
            output.loss = output.loss + nothing.to(output.loss)
        else:
            output.logits = output.logits + nothing.to(output.logits)

    def _regionize(
        self, features: Features, masks: Sequence[Masks] | None, image_sizes: Any, num_regions: Budget | None
    ) -> RegionTokens:
        sizes = None if image_sizes is None else check_sizes("image_sizes", image_sizes)
        need_sizes(self.regionizer, masks, sizes)
        if masks is None and self.regionizer.config["geometry"] is None:
            sizes = None  # as processors of some families give them with every photo
        return self.regionizer(features, masks=masks, sizes=sizes, num_regions=num_regions).map(self.projector)

    def _init_weights(self, module: nn.Module) -> None:
        """Start the Regionizer as it starts itself; weights that were loaded transformers keeps from ``nn.init``."""
        regionizer = self._modules.get("regionizer")  # type: ignore[attr-defined]
        if regionizer is not None and any(module is one for one in regionizer.modules()):
            regionizer.reset_parameters()
        else:
            super()._init_weights(module)


def register(family: type[Any]) -> None:
    """Let transformers rename a stock checkpoint's weights for a family as it does for the stock class.

    It skips classes that are not its own, and would lose ``lm_head`` without a word.
    """
    mapping = require("transformers.conversion_mapping", extra="hf")
    known = mapping.get_checkpoint_conversion_mapping(family.config_class.model_type)
    if known is not None:
        mapping.register_checkpoint_conversion_mapping(family.__name__, known, overwrite=True)


def check_supported(stock: type[Any]) -> None:
    """Refuse a transformers whose stock class takes no features that are encoded already."""
    if "mm_encoder_outputs" not in inspect.signature(stock.forward).parameters:
        raise MissingDependencyError(
            f"transformers {transformers.__version__} is too old: {stock.__name__} takes no mm_encoder_outputs. Run: "
            "pip install 'regiontok[hf]'"
        )


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


def _refuse_videos(kwargs: dict[str, Any]) -> None:
    if kwargs.get("pixel_values_videos") is not None:
        raise ValueRangeError("videos are not cut into regions. Leave pixel_values_videos out.")


def _padding_id(config: Any) -> int:
    padding = getattr(config.get_text_config(), "pad_token_id", None)
    return 0 if padding is None else int(padding)
