"""Region tokenizers for multimodal language models: from patch features to a few region tokens.

    from regiontok import Regionizer

    regionizer = Regionizer(source="clustering", dim=1024)
    tokens = regionizer(features)                  # features (B, rows, cols, 1024) of any vision encoder
    tokens.values, tokens.counts                   # (R, 1024), (B,)

The way of the data, and where each step lives:

    encoders      images to patch features                                     regiontok.encoders.load
    geometry      how an image, its masks and points lie on an encoder's input  ImageGeometry, Placement
    normalize     root mean square, without a weight                           rms_normalize
    clustering    merging neighbours, by three rules                           UnionFindClusterer, MergeTree
    masks         images to masks, or annotated ones                           regiontok.masks.load
    coco_format   COCO's masks as runs; mask_formats: SAM, label maps, arrays  MaskSet.from_coco
    maskset       the masks of one image                                       MaskSet
    downsample    masks brought to the patch grid                              MaskDownsampler
    splitting     masks split by what is in them                               split_regions
    regions       which patches belong to which region                         Regions
    tokens        one vector per region                                        RegionTokens
    ordering      the order of tokens                                          order_regions
    pooling       one token per region                                         CrossAttnPool, MeanPool
    config        every option, checked and saved                              RegionizerConfig
    regionizer    all of it, saved and loaded                                  Regionizer
    functional    clustering in one call                                       cluster_regions
    token_files   tokens of an image in a file                                  save_tokens, load_tokens
    store         masks or tokens of any number of images                      regiontok.store.MaskStore, TokenStore
    pipeline      images to stores, on one machine or many                     regiontok.pipeline
    presets       the paper's Table 1                                          regiontok.presets
    viewing       pictures, the paper's figures, a page in the browser         regiontok.viewing
    adapters      tokens in whole multimodal models                            regiontok.adapters
    evaluation    questions, benchmarks, the focus metric                      regiontok.evaluation

Everything that regiontok raises on purpose is a `RegiontokError` (regiontok.errors).

Names are imported when they are first used, so that the command line can print help without loading torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regiontok import encoders, masks
    from regiontok.clustering import UnionFindClusterer
    from regiontok.config import RegionizerConfig
    from regiontok.downsample import MaskDownsampler
    from regiontok.errors import RegiontokError
    from regiontok.functional import cluster_regions
    from regiontok.geometry import ImageGeometry, Placement
    from regiontok.images import read_image
    from regiontok.maskset import MaskSet
    from regiontok.merge_tree import MergeTree
    from regiontok.normalize import rms_normalize
    from regiontok.ordering import order_regions
    from regiontok.pooling import CrossAttnPool, MeanPool
    from regiontok.regionizer import Regionizer
    from regiontok.regions import Dropped, Regions
    from regiontok.splitting import split_regions
    from regiontok.token_files import load_tokens, save_tokens
    from regiontok.tokens import RegionTokens

__all__ = [
    "CrossAttnPool",
    "Dropped",
    "ImageGeometry",
    "MaskDownsampler",
    "MaskSet",
    "MeanPool",
    "MergeTree",
    "Placement",
    "RegionTokens",
    "Regionizer",
    "RegionizerConfig",
    "Regions",
    "RegiontokError",
    "UnionFindClusterer",
    "cluster_regions",
    "encoders",
    "load_tokens",
    "masks",
    "order_regions",
    "read_image",
    "rms_normalize",
    "save_tokens",
    "split_regions",
]

_MODULES = {
    "CrossAttnPool": "pooling",
    "Dropped": "regions",
    "ImageGeometry": "geometry",
    "MaskDownsampler": "downsample",
    "MaskSet": "maskset",
    "MeanPool": "pooling",
    "MergeTree": "merge_tree",
    "Placement": "geometry",
    "RegionTokens": "tokens",
    "Regionizer": "regionizer",
    "RegionizerConfig": "config",
    "Regions": "regions",
    "RegiontokError": "errors",
    "UnionFindClusterer": "clustering",
    "cluster_regions": "functional",
    "load_tokens": "token_files",
    "order_regions": "ordering",
    "read_image": "images",
    "rms_normalize": "normalize",
    "save_tokens": "token_files",
    "split_regions": "splitting",
}
"""The module of each name but ``encoders`` and ``masks``, which are modules themselves."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = importlib.import_module("importlib.metadata").version("regiontok")
    elif name in _MODULES:
        value = getattr(importlib.import_module(f"regiontok.{_MODULES[name]}"), name)
    elif name in ("encoders", "masks"):
        value = importlib.import_module(f"regiontok.{name}")
    else:
        raise AttributeError(f"module 'regiontok' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
