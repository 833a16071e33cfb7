"""Families without a class of their own here, through vLLM's Transformers backend.

The backend runs the inner region model and the region processor of `regiontok.adapters.huggingface`. A stock checkpoint
gets the config and the processor of a region model here. Requests cannot change the budget.
"""

from collections.abc import Mapping
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.logger import init_logger
from vllm.model_executor.models import transformers as backend
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import InputProcessingContext

from regiontok.adapters.huggingface.checkpoints import to_region_config
from regiontok.adapters.huggingface.classes import BY_STOCK, CONFIGS, family_classes, processor_class
from regiontok.adapters.huggingface.region_processor import RegionProcessorMixin
from regiontok.adapters.vllm import REJECTED
from regiontok.adapters.vllm.options import OPTIONS, check_options, region_options, reject_video_options
from regiontok.adapters.vllm.processing import RegionContext, check_inputs, check_server, check_version, server_budget
from regiontok.config import RegionizerConfig

_LOG = init_logger(__name__)
_ONE_IMAGE = ("LlavaOnevision",)
"""Families whose tiles depend on the number of images of a prompt, which vLLM processes one by one."""


def family_of(model_config: Any) -> str:
    """Return the family of a served region model: its class name without Region and ForConditionalGeneration."""
    architecture: str = model_config.hf_config.architectures[0]
    return architecture.removeprefix("Region").removesuffix("ForConditionalGeneration")


def to_regions(model_config: Any) -> None:
    """Change the config of a served model to that of a region model with the budget of the server.

    Raises:
        ValueError: The family, the Regionizer or its positions cannot be served.
    """
    family = family_of(model_config)
    if family in REJECTED:
        raise ValueError(f"vLLM cannot serve {family} with regions: {REJECTED[family]}.")
    stock = f"{family}ForConditionalGeneration"
    family_classes(BY_STOCK[stock])  # creates and registers the model classes
    is_stock = not isinstance(model_config.hf_config, CONFIGS[stock])
    options = region_options(model_config.hf_config)
    check_options(options)
    reject_video_options(model_config.get_multimodal_config().mm_processor_kwargs or {})
    budget = server_budget(model_config)
    config = to_region_config(model_config.hf_config, CONFIGS[stock])
    if getattr(BY_STOCK[stock].mixin, "has_positions", False):
        positions = "even" if is_stock else getattr(config, "regiontok_positions", None) or "centroid"
        if positions != "even":
            raise ValueError(
                f"vLLM computes the positions of {family} before images are encoded, so it serves positions='even'; "
                f"got {positions!r}. Convert the model with with_regions(model, ..., positions='even')."
            )
        config.regiontok_positions = positions
    stops = {"threshold": None, "num_regions": None, "keep": None, "explained_variance": None}
    config.regiontok = RegionizerConfig(**options | stops | budget).to_dict()
    model_config.hf_config = config


class BackendInfo(backend.MultiModalProcessingInfo):
    """Processing info of a region model in the Transformers backend, for images only.

    Raises:
        ValueError: This vLLM was not tested, or the model cannot be served.
    """

    _is_video_model = False
    _is_audio_model = False

    def __init__(self, ctx: InputProcessingContext) -> None:
        check_version()
        to_regions(ctx.model_config)
        super().__init__(RegionContext(ctx.model_config, ctx.tokenizer))

    def get_hf_processor(self, **kwargs: object) -> Any:
        """Return the region processor, with the options of the model."""
        processor = super().get_hf_processor(**kwargs)
        if not isinstance(processor, RegionProcessorMixin):
            processor.__class__ = processor_class(type(processor))
        config: Any = self.ctx.model_config.hf_config
        processor.regiontok = config.regiontok
        processor.regiontok_newline = getattr(config, "regiontok_newline", None)
        processor.regiontok_videos = getattr(config, "regiontok_videos", None)
        return processor

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Return the limits of images, and 0 for videos."""
        return {"image": 1 if family_of(self.ctx.model_config) in _ONE_IMAGE else None, "video": 0}


class BackendProcessor(backend.MultiModalProcessor):
    """Processor of a region model in the Transformers backend."""

    def apply(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Process a prompt.

        Raises:
            VLLMValidationError: The request has embeddings, a budget, or options that are not supported.
        """
        check_inputs(inputs, serves_videos=False)
        for name, value in inputs.hf_processor_mm_kwargs.items():
            if name in OPTIONS and value is not None:
                raise VLLMValidationError(
                    f"requests cannot change the budget of this model; got {name}={value}. Leave it out.",
                    parameter=name,
                )
        return super().apply(inputs, *args, **kwargs)


class _Converted:
    """Mixin before a class of the backend, for the checks and the config of a region model."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        check_server(vllm_config)
        to_regions(vllm_config.model_config)
        _LOG.info("%s is served through the Transformers backend.", family_of(vllm_config.model_config))
        super().__init__(vllm_config=vllm_config, prefix=prefix)


@MULTIMODAL_REGISTRY.register_processor(
    BackendProcessor, info=BackendInfo, dummy_inputs=backend.MultiModalDummyInputsBuilder
)
class RegionBackend(_Converted, backend.TransformersMultiModalForCausalLM):
    """A region model in the Transformers backend."""


@MULTIMODAL_REGISTRY.register_processor(
    BackendProcessor, info=BackendInfo, dummy_inputs=backend.MultiModalDummyInputsBuilder
)
class RegionMoEBackend(_Converted, backend.TransformersMultiModalMoEForCausalLM):
    """A region model with experts in the Transformers backend."""
