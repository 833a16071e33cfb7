"""Region tokenizers for multimodal language models: from patch features to a few region tokens.

    from regiontok import Regionizer

    regionizer = Regionizer(source="clustering", dim=1024)
    tokens = regionizer(features)                  # features (B, rows, cols, 1024) of any vision encoder
    tokens.values, tokens.counts                   # (R, 1024), (B,)

The steps in the order of the data, and their modules:

    encoders      patch features of images                           regiontok.encoders.load
    geometry      placement of images and masks on the input         ImageGeometry, Placement
    batch         the features of a batch, checked once              PatchBatch
    normalize     root mean square, without a weight                 rms_normalize
    clustering    merging of neighbouring patches                    UnionFindClusterer, MergeTree
    masks         mask generators and annotation files               regiontok.masks.load
    maskset       masks of one image; coco_format, mask_formats      MaskSet
    tracks        masks of the objects of a video; track_files       TrackSet
    downsample    masks on the patch grid                            MaskDownsampler
    splitting     masks split by DBSCAN                              split_regions
    regions       sets of patches                                    Regions
    tokens        vectors of regions                                 RegionTokens
    ordering      order of tokens                                    order_regions
    pooling       one token per region                               CrossAttnPool, MeanPool
    config        options; described in options                      RegionizerConfig
    regionizer    all steps in one module                            Regionizer
    streaming     clustering of clips that arrive in chunks          UnionFindClusterer.stream
    videos        frames of video files                              read_video
    functional    clustering in one call                             cluster_regions
    placeholders  region tokens in prompts                           regiontok.placeholders
    store         masks or tokens of many images                     regiontok.store; save_tokens, load_tokens
    pipeline      images to stores, on one machine or a cluster      regiontok.pipeline
    presets       Table 1 of the paper                               regiontok.presets
    viewing       figures, and a page for the browser                regiontok.viewing
    adapters      regions in multimodal models                       regiontok.adapters
    evaluation    benchmarks and the focus metric                    regiontok.evaluation

All errors that regiontok raises deliberately are subclasses of `RegiontokError` (regiontok.errors).

Names are imported on first use, so that the command line can print help without loading torch.
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
    from regiontok.store.token_files import load_tokens, save_tokens
    from regiontok.tokens import RegionTokens
    from regiontok.tracks import TrackSet
    from regiontok.videos import read_video

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
    "TrackSet",
    "UnionFindClusterer",
    "cluster_regions",
    "encoders",
    "load_tokens",
    "masks",
    "order_regions",
    "read_image",
    "read_video",
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
    "TrackSet": "tracks",
    "UnionFindClusterer": "clustering",
    "cluster_regions": "functional",
    "load_tokens": "store.token_files",
    "order_regions": "ordering",
    "read_image": "images",
    "read_video": "videos",
    "rms_normalize": "normalize",
    "save_tokens": "store.token_files",
    "split_regions": "splitting",
}
"""The module of each name; ``encoders`` and ``masks`` are modules themselves."""


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
