import torch

from regiontok import ImageGeometry, MaskSet, Regionizer, encoders
from regiontok.presets import FIGURES, TABLE_1, paper_tokens
from tests.conftest import for_each


def test_table_1_has_26_rows_of_7_figures_and_more():
    assert len(TABLE_1) == 26
    assert all(set(row.figures) == set(FIGURES) for row in TABLE_1.values())
    assert all(row.figures["pope"] for row in TABLE_1.values())
    assert sum(row.figures["tokens"] is None for row in TABLE_1.values()) == 4
    assert sum(row.encoder == "radio-576" for row in TABLE_1.values()) == 3


def test_rows_have_the_published_figures():
    figures = TABLE_1["siglip2-378/clustering/rms/cross_attention/raster"].figures
    assert list(figures.values()) == [334, 8.34, 85.68, 379, 59.68, 36.33, 1542, 324, 69.67, 35.8]


@for_each(name=TABLE_1)
def test_every_row_gives_a_regionizer_that_runs(name):
    row = TABLE_1[name]
    assert row.encoder in encoders.ENCODERS
    assert name == "/".join([row.encoder, *(row.options[option] for option in ("source", "norm", "pool", "order"))])
    regionizer = Regionizer(**row.options, dim=32, geometry=ImageGeometry.letterbox(64))
    masks = [MaskSet.on_grid(torch.ones(1, 4, 4))] if row.options["source"] in ("segmentation", "combined") else None
    assert len(regionizer(torch.randn(1, 4, 4, 32), masks=masks)) > 0


def test_paper_tokens_are_the_published_counts():
    assert paper_tokens("clip-336", "clustering", "rms") == 257
    assert paper_tokens("radio-384", "clustering", "none") == 117
    assert paper_tokens("radio-384", "patch", "none") == 576
    assert paper_tokens("clip-336", "clustering", "none") is None
    assert paper_tokens("pixels", "patch", "rms") is None
