"""Region tokenizers for multimodal language models: from patch features to a few region tokens.

    from regiontok import Regionizer

    regionizer = Regionizer(source="clustering", dim=1024)
    tokens = regionizer(features)                  # features (B, rows, cols, 1024) of any vision encoder
    tokens.values, tokens.counts                   # (R, 1024), (B,)

The way of the data, and where each step lives:

    encoders      photos to patch features                                     regiontok.encoders.load
    geometry      how a photo, its masks and points lie on an encoder's input  ImageGeometry, Placement
    normalize     root mean square, without a weight                           rms_normalize
    clustering    merging neighbours, by three rules                           UnionFindClusterer, MergeTree
    masks         photos to masks, or annotated ones                           regiontok.masks.load
    annotations   what others call masks: COCO, SAM, label maps                MaskSet.from_coco
    maskset       the masks of one photo                                       MaskSet
    downsample    masks brought to the patch grid                              MaskDownsampler
    splitting     masks split by what is in them                               split_regions
    regions       which patches belong to which region; the tokens             Regions, RegionTokens
    ordering      the order of tokens                                          order_regions
    pooling       one token per region                                         CrossAttnPool, MeanPool
    options       every option, checked and saved                              RegionizerOptions
    regionizer    all of it, saved and loaded                                  Regionizer
    token_files   tokens of a photo in a file                                  save_tokens, load_tokens
    store         masks or tokens of any number of photos                      regiontok.store.MaskStore, TokenStore
    pipeline      photos to stores, on one machine or many                     regiontok.pipeline
    presets       the paper's Table 1                                          regiontok.presets
    viewing       pictures, the paper's figures, a page in the browser         regiontok.viewing
    adapters      tokens in whole multimodal models                            regiontok.adapters
    evaluation    questions, benchmarks, the focus metric                      regiontok.evaluation

Everything that regiontok raises on purpose is a `RegiontokError` (regiontok.errors).
"""

from importlib.metadata import version as _version

from regiontok import encoders, masks
from regiontok.clustering import MergeTree, UnionFindClusterer
from regiontok.downsample import MaskDownsampler
from regiontok.errors import RegiontokError
from regiontok.geometry import ImageGeometry, Placement
from regiontok.maskset import MaskSet
from regiontok.normalize import rms_normalize
from regiontok.options import RegionizerOptions
from regiontok.ordering import order_regions
from regiontok.photos import read_photo
from regiontok.pooling import CrossAttnPool, MeanPool
from regiontok.regionizer import Regionizer
from regiontok.regions import Dropped, Regions, RegionTokens
from regiontok.splitting import split_regions
from regiontok.token_files import load_tokens, save_tokens

__version__ = _version("regiontok")

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
    "RegionizerOptions",
    "Regions",
    "RegiontokError",
    "UnionFindClusterer",
    "encoders",
    "load_tokens",
    "masks",
    "order_regions",
    "read_photo",
    "rms_normalize",
    "save_tokens",
    "split_regions",
]
