"""LLaVA-1.5 in vLLM: regions of the features of the tower, before the projector."""

import re
from typing import Any

from torch import Tensor
from vllm.model_executor.models import llava
from vllm.model_executor.models.utils import WeightsMapper
from vllm.multimodal import MULTIMODAL_REGISTRY

from regiontok.adapters.vllm.model import Features, RegionModel
from regiontok.adapters.vllm.processing import REGIONIZER_NAMES, RegionInfo, RegionProcessor

_NAMES = WeightsMapper(  # of CLIP and SigLIP, as transformers 5.24 saves them
    orig_to_new_regex={re.compile(r"^(model\.)?vision_tower\.(?!vision_model\.)"): "vision_tower.vision_model."}
)


class LlavaInfo(RegionInfo, llava.LlavaProcessingInfo):
    """Processing info of LLaVA-1.5 with regions."""

    def get_num_image_tokens(self, *, image_width: int, image_height: int) -> int:
        """Return the number of patches of an image."""
        side: int = self.get_vision_encoder_info().get_patch_grid_length()
        return side**2


class LlavaProcessor(RegionProcessor, llava.LlavaMultiModalProcessor):
    """Processor of LLaVA-1.5 with regions."""


@MULTIMODAL_REGISTRY.register_processor(LlavaProcessor, info=LlavaInfo, dummy_inputs=llava.LlavaDummyInputsBuilder)
class RegionLlava(RegionModel, llava.LlavaForConditionalGeneration):
    """A LLaVA-1.5 whose images are region tokens."""

    hf_to_vllm_mapper = llava.LlavaForConditionalGeneration.hf_to_vllm_mapper | REGIONIZER_NAMES | _NAMES

    def patch_features(self, **kwargs: Any) -> Features:
        """Return ``(rows, cols, dim)`` of each image, without class tokens."""
        pixels = self._parse_and_validate_image_input(**kwargs)["pixel_values"]
        vision = self.config.vision_config
        side = vision.image_size // vision.patch_size
        hidden = self.vision_tower(pixels, feature_select_strategy="full")
        return Features(list(hidden[:, hidden.shape[1] - side**2 :].unflatten(1, (side, side))))

    def project(self, values: Tensor) -> Tensor:
        """Return the output of the projector."""
        return self.multi_modal_projector(values)
