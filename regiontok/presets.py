"""The encoders of the paper by name, and the rows of its Table 1 with the published figures.

Each row is named by its settings, such as ``radio-384/combined/rms/cross_attention/raster``.

    from regiontok import Regionizer, encoders
    from regiontok.presets import TABLE_1

    row = TABLE_1["radio-384/combined/rms/cross_attention/raster"]
    encoder = encoders.load(row.encoder)
    regionizer = Regionizer(**row.options, dim=1024, geometry=encoder.geometry)
    row.figures["pope"]                            # 84.76

Rows of RADIO are not directly comparable: the paper used RADIOv2.5, but the encoder here is C-RADIOv3. The paper does
not specify its default token order; ``raster`` is our choice.
"""

from typing import Any, NamedTuple


class Recipe(NamedTuple):
    """Settings of a named encoder: the timm model, the side of its input, and the layer of its features."""

    timm_model: str
    img_size: int
    layer: int = -1
    final_norm: bool = True


ENCODERS = {
    "clip-336": Recipe("vit_large_patch14_clip_336.openai", 336, layer=-2, final_norm=False),
    "siglip2-378": Recipe("vit_so400m_patch14_siglip_378.v2_webli", 378),
    "radio-384": Recipe("vit_large_patch16_radio_v3.c_radio", 384),
    "radio-576": Recipe("vit_large_patch16_radio_v3.c_radio", 576),
    "dinov2": Recipe("vit_large_patch14_dinov2.lvd142m", 518),
    "dinov2-reg": Recipe("vit_large_patch14_reg4_dinov2.lvd142m", 518),
    "aimv2-448": Recipe("aimv2_large_patch14_448.apple_pt", 448),
}
"""The encoders of the paper by name. RADIO is C-RADIOv3-L; for the paper's RADIOv2.5 see the example of `Encoder`."""

FIGURES = (
    "tokens", "focus", "pope", "ocrbench", "cv_bench", "mmstar", "mme_perception", "mme_cognition", "mmbench", "mm_vet",
)  # fmt: skip
"""Columns of Table 1. ``tokens`` is the mean number of tokens per image."""


class Row(NamedTuple):
    """A row of Table 1: encoder, options of the `Regionizer`, and published figures (None if not published)."""

    encoder: str
    options: dict[str, Any]
    figures: dict[str, float | None]


_TABLE = """
clip-336/patch/none/mean/raster                        576  12.54 86.05 331 55.82 33.47 1500 300 66.84 32.1
clip-336/patch/rms/mean/raster                         576  11.96 85.39 321 56.09 32.87 1477 285 66.58 32.5
clip-336/patch/rms/mean/random                         576  -     85.74 312 58.80 34.27 1493 284 65.98 30.2
clip-336/segmentation/rms/cross_attention/raster       101  15.54 86.21 275 57.69 34.67 1414 320 65.38 29.7
clip-336/clustering/rms/cross_attention/raster         257  12.72 85.80 310 57.66 35.80 1493 306 66.84 29.6
clip-336/combined/rms/cross_attention/raster           139  14.41 85.48 288 57.24 33.73 1386 316 66.15 32.0
siglip2-378/patch/none/mean/raster                     729  11.31 85.99 405 60.03 35.27 1463 321 67.53 35.1
siglip2-378/patch/rms/mean/raster                      729  11.51 86.17 389 57.67 34.93 1477 333 67.87 34.3
siglip2-378/segmentation/rms/cross_attention/raster    101  15.24 84.96 301 57.45 34.07 1441 311 65.81 33.3
siglip2-378/clustering/rms/cross_attention/raster      334   8.34 85.68 379 59.68 36.33 1542 324 69.67 35.8
siglip2-378/combined/rms/cross_attention/raster        142  14.21 85.40 335 59.63 33.40 1457 361 67.18 33.2
radio-384/patch/none/mean/raster                       576  10.57 85.82 315 56.92 36.00 1494 305 67.35 29.6
radio-384/patch/none/mean/random                       -    -     85.10 313 57.45 36.33 1472 289 -     -
radio-384/patch/rms/mean/raster                        576  12.44 85.25 314 57.61 34.80 1464 326 65.64 30.5
radio-384/segmentation/none/cross_attention/raster     101  16.29 84.82 237 55.96 32.53 1371 333 63.57 25.3
radio-384/segmentation/rms/cross_attention/raster      101  16.22 84.32 250 56.95 33.60 1394 327 64.60 25.7
radio-384/clustering/none/cross_attention/raster       117  13.50 84.91 273 58.31 33.13 1463 354 65.12 23.8
radio-384/clustering/rms/cross_attention/raster        124  13.39 84.51 280 58.10 35.47 1456 350 65.38 26.7
radio-384/combined/none/cross_attention/raster         134  14.86 84.66 260 58.20 34.00 1436 336 65.03 30.3
radio-384/combined/rms/cross_attention/raster          134  14.88 84.76 264 59.35 33.27 1420 330 65.12 25.7
radio-576/patch/none/mean/raster                       1296 10.91 86.92 357 59.58 33.40 1498 296 -     -
radio-576/segmentation/rms/cross_attention/raster      104  15.80 85.91 270 57.51 35.33 1459 326 -     -
radio-576/combined/rms/cross_attention/raster          159  14.72 86.05 284 57.07 35.80 1479 311 -     -
radio-384/segmentation/none/mean/raster                -    -     84.14 252 56.62 34.00 1432 324 -     -
radio-384/clustering/none/mean/raster                  -    -     84.36 271 57.82 32.80 1451 288 -     -
radio-384/combined/none/mean/raster                    -    -     85.03 259 54.89 33.47 1432 305 -     -
"""


def _parse(line: str) -> tuple[str, Row]:
    name, *values = line.split()
    encoder, source, norm, pool, order = name.split("/")
    options: dict[str, Any] = {"source": source, "norm": norm, "pool": pool, "order": order}
    if source == "patch":
        options["padding"] = "keep"  # as in LLaVA: all 576 patches are tokens
    figures = {figure: None if value == "-" else float(value) for figure, value in zip(FIGURES, values, strict=True)}
    return name, Row(encoder, options, figures)


TABLE_1: dict[str, Row] = dict(_parse(line) for line in _TABLE.strip().splitlines())
"""All 26 rows by name, ``encoder/source/norm/pool/order``, in the order of the paper."""


def paper_tokens(encoder: str, source: str, norm: str) -> float | None:
    """Return the mean number of tokens for an encoder, source and norm in Table 1, or None if not published."""
    counts = (
        row.figures["tokens"]
        for row in TABLE_1.values()
        if (row.encoder, row.options["source"], row.options["norm"]) == (encoder, source, norm)
    )
    return next((count for count in counts if count is not None), None)
