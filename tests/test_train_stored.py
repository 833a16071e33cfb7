"""Stage 1 of the recipe from stored features, without images and encoder."""

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from regiontok import MaskSet
from regiontok.cli import main
from regiontok.errors import CheckpointError, MissingKeyError
from regiontok.masks import FelzenszwalbMasks
from regiontok.store import MaskStore, TokenStore, write_masks
from tests.conftest import assert_close

FOLDER = Path(__file__).parents[1] / "examples" / "train_llava"
sys.path.insert(0, str(FOLDER))
import building  # noqa: E402
import conversations  # noqa: E402
import recipe  # noqa: E402
import stored  # noqa: E402
import tiny  # noqa: E402
import train  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
ALIGN = recipe.ALIGN.replace(template="bare_caption", geometry="squash", batch_size=4, max_steps=3)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    tiny.prepare(folder, train=24, test=6, language_steps=3)
    base = ["tokenize", str(folder / "data" / "images"), "--geometry", "squash", "--dtype", "float32", "--store"]
    patches = ["--source", "patch", "--norm", "none", "--padding", "keep"]
    assert main([*base, str(folder / "features"), *patches]) == 0
    assert main([*base, str(folder / "tokens")]) == 0
    assert (
        main([*base, str(folder / "masked"), "--source", "segmentation", "--masks", str(folder / "data" / "masks")])
        == 0
    )
    return folder


def row(**options):
    defaults = {"source": "clustering", "norm": "rms", "pool": "mean", "order": "raster"}
    return recipe.Row("pixels", defaults | options, {})


def train_align(work, out, trained_row, *, store=None, masks=None):
    """Return the weights that stage 1 trains, with an encoder or from a store."""
    torch.manual_seed(0)
    features = None if store is None else stored.StoredFeatures(TokenStore(work / store), trained_row, "squash")
    model, tokenizer = building.build(
        "pixels",
        work / "language",
        dict(trained_row.options),
        geometry="squash",
        tower=None if features is None else features.tower("pixels"),
    )
    if features is not None:
        assert not any("encoder" in name for name, _ in model.named_parameters())
    trainer = train.run_stage(
        model,
        tokenizer,
        ALIGN,
        data=work / "data" / "captions.json",
        images=work / "data" / "images" if store is None else work / "nowhere",
        masks=masks,
        out=out,
        per_device=4,
        features=features,
        group=False,  # lengths differ: only a store of tokens knows the number of tokens before encoding
        training={"report_to": [], "use_cpu": True},
    )
    assert trainer.state.global_step == 3
    return load_file(out / building.STAGE_FILE)


@pytest.fixture(scope="module")
def trained():
    """Weights of runs with the encoder by options."""
    return {}


@pytest.mark.parametrize(
    ("store", "options"),
    [
        ("features", {}),
        ("features", {"pool": "cross_attention", "num_heads": 8}),
        ("features", {"source": "patch", "pool": "mean"}),
        ("features", {"source": "segmentation"}),
        ("tokens", {}),
        ("masked", {"source": "segmentation"}),
    ],
)
def test_training_from_a_store_equals_training_with_the_encoder(work, trained, tmp_path, store, options):
    masks = None
    if options.get("source") == "segmentation":
        masks = conversations.StoredMasks(MaskStore(work / "data" / "masks"))
    trained_row = row(**options)
    if str(options) not in trained:  # two stores are compared with one run
        trained[str(options)] = train_align(work, tmp_path / "encoder", trained_row, masks=masks)
    expected = trained[str(options)]
    stored_masks = masks if store == "features" else None
    weights = train_align(work, tmp_path / "store", trained_row, store=store, masks=stored_masks)
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(weights[name], value)


@pytest.mark.parametrize(
    ("store", "options", "geometry", "message"),
    [
        ("tokens", {"pool": "cross_attention"}, "squash", "has mean-pooled tokens, but the row trains a pool"),
        ("tokens", {"norm": "none"}, "squash", 'regionizer.norm: "rms" in the store, "none" in the model'),
        ("tokens", {"threshold": 0.5}, "squash", "regionizer.threshold: not set in the store, 0.5 in the model"),
        ("features", {}, "letterbox", 'geometry.mode: "squash" in the store, "letterbox" in the model'),
    ],
)
def test_options_that_differ_from_the_model_are_named(work, store, options, geometry, message):
    with pytest.raises(CheckpointError, match=message):
        stored.StoredFeatures(TokenStore(work / store), row(**options), geometry)


def test_images_missing_in_the_store_are_named(work, tmp_path):
    features = stored.StoredFeatures(TokenStore(work / "features"), row(), "squash")
    with pytest.raises(MissingKeyError, match="features has no tokens of 'none.png'"):
        features("none.png")
    assert main(["tokenize", str(work / "data" / "images"), "--store", str(tmp_path / "t"), "--source", "patch", "--norm", "none", "--limit", "2"]) == 0  # fmt: skip
    padded = stored.StoredFeatures(TokenStore(tmp_path / "t"), row(), "letterbox")
    assert len(padded(next(iter(padded.store)))[0]) == 48
    Image.new("RGB", (64, 20)).save(tmp_path / "flat.png")
    assert main(["tokenize", str(tmp_path / "flat.png"), "--store", str(tmp_path / "f"), "--source", "patch", "--norm", "none"]) == 0  # fmt: skip
    with pytest.raises(CheckpointError, match=r"patches of flat.png and not all 576. Write it with --padding keep"):
        stored.StoredFeatures(TokenStore(tmp_path / "f"), row(), "letterbox")("flat.png")


def test_missing_masks_are_generated_or_an_error(work, tmp_path):
    write_masks(tmp_path / "m", [("a.png", MaskSet.from_masks(torch.ones(1, 4, 4, dtype=torch.bool)))])
    image = Image.new("RGB", (40, 30), "teal")
    masks = conversations.StoredMasks(MaskStore(tmp_path / "m"))
    with pytest.raises(MissingKeyError, match="has no masks of 'b.png'"):
        masks("b.png", image)
    masks = conversations.StoredMasks(MaskStore(tmp_path / "m"), conversations.GeneratedMasks("felzenszwalb"))
    assert masks("b.png", image).to_coco() == FelzenszwalbMasks()(image)[0].to_coco()
    assert len(masks("a.png", image)) == 1
    assert (masks.count("a.png"), masks.count("b.png")) == (1, None)


def test_the_command_line_trains_on_a_store(work, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(train.STAGES, "align", ALIGN)
    monkeypatch.setattr(train.recipe, "row", lambda name: row())
    base = ["--row", "x", "--language-model", str(work / "language"), "--data", str(work / "data" / "captions.json")]
    base += ["--images", str(work / "nowhere"), "--out", str(tmp_path), "--workers", "0", "--per-device-batch", "4"]
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"use_cpu": True, "report_to": []}))
    train.main([*base, "--stage", "align", "--features", str(work / "tokens"), "--config", str(config)])
    assert (tmp_path / "align" / building.STAGE_FILE).is_file()
    with pytest.raises(SystemExit, match="--features is for --stage align"):
        train.main([*base, "--stage", "instruct", "--features", str(work / "tokens")])
