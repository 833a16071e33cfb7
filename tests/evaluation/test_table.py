import json

import pytest
from transformers import LlavaConfig

from regiontok import Regionizer
from regiontok.adapters.huggingface import EncoderConfig
from regiontok.errors import DataError
from regiontok.evaluation.table import compare_with_paper, format_rows, read_scores, row_name, write_scores
from regiontok.presets import FIGURES, TABLE_1
from tests.models import tiny_clip


def test_format_rows_prints_table_1_like_the_paper():
    text = format_rows({name: row.figures for name, row in TABLE_1.items()}).splitlines()
    assert len({len(line) for line in text}) == 1
    first = text[1].split()
    assert first[1:] == ["576", "12.54", "86.05", "331", "55.82", "33.47", "1500", "300", "66.84", "32.1"]


def test_compare_with_paper_with_and_without_a_row():
    name = "radio-384/combined/rms/cross_attention/raster"
    text = compare_with_paper("mine", {"pope": 80.0}, name).splitlines()
    assert text[1].split() == ["mine", "-", "-", "80.00", *"-------"]
    assert text[2].split()[2:4] == ["134", "14.88"]
    assert compare_with_paper("mine", {}, None).splitlines()[-1].startswith("Table 1 of the paper has no row with this")


def config_of(vision, **options):
    config = LlavaConfig(vision_config=vision)
    config.regiontok = Regionizer(**{"dim": 1024} | options).config.to_dict()
    return config


def test_row_name_matches_encoder_and_options():
    radio = EncoderConfig(encoder="radio-384", hidden_size=1024)
    assert row_name(config_of(radio, source="combined")) == "radio-384/combined/rms/cross_attention/raster"
    assert row_name(config_of(radio, source="combined", order="area")) is None
    large = tiny_clip(hidden_size=1024, image_size=336, patch_size=14)
    assert row_name(config_of(large)) == "clip-336/clustering/rms/cross_attention/raster"
    assert row_name(config_of(tiny_clip())) is None
    for options in ({"num_regions": 32}, {"explained_variance": 0.5}, {"linkage": "average"}):
        assert row_name(config_of(radio, **options)) is None
    assert row_name(config_of(radio, threshold=0.7)) == "radio-384/clustering/rms/cross_attention/raster"
    stock = LlavaConfig(vision_config=large)
    assert row_name(stock) is None
    patches = Regionizer(source="patch", norm="none").config.to_dict()
    assert row_name(stock, patches) == "clip-336/patch/none/mean/raster"


def test_scores_file_belongs_to_one_model_and_setting(tmp_path):
    run_id = {"model": "a", "tokens": 64}
    assert read_scores(tmp_path, run_id) == {"run_id": run_id, "figures": {}, "details": {}}
    scores = {"run_id": run_id, "figures": dict.fromkeys(FIGURES, 1.5), "details": {"x": 2}, "row": None}
    write_scores(tmp_path / "new", scores)
    assert read_scores(tmp_path / "new", run_id) == scores
    with pytest.raises(DataError, match="has scores with model a; this run has b. Use another folder."):
        read_scores(tmp_path / "new", run_id | {"model": "b"})
    with pytest.raises(DataError, match="has scores with tokens 64; this run has None. Use another folder."):
        read_scores(tmp_path / "new", run_id | {"tokens": None})
    for damaged in ("{", "[]", json.dumps({"run_id": run_id}), json.dumps(scores | {"figures": 3})):
        (tmp_path / "new" / "scores.json").write_text(damaged)
        with pytest.raises(DataError, match="is damaged .* Move it or use another folder."):
            read_scores(tmp_path / "new", run_id)
