"""Claims about budgets, tested on trained features: DINOv2-small and images from packages, downloaded once.

Without a network the tests are skipped; in CI they fail.
"""

import importlib
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from regiontok import encoders, rms_normalize
from regiontok.evaluation.partition import compare_partitions
from tests.conftest import run_in_fork

sys.path.append(str(Path(__file__).parents[1] / "examples"))
import real_features

COUNTS = (32, 64, 100)
LAYERS = {"block 10": real_features.LAYER, "last block": -1}

RAMP = [[0.0203, 1.0220, 1.4124], [0.2392, -0.3212, -0.3312], [0.6679, 1.2738, -0.2699]]
"""First three features of the class token, the first patch and the last patch."""

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers")


@pytest.fixture(scope="module")
def folders():
    try:
        return real_features.dinov2_small(), real_features.random_small(), real_features.quokka()
    except OSError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"the trained weights are not available: {error}")


def compare_sources(folder, layer, images, **options):
    """Return for each image its scores by source and number of regions."""
    encoder = encoders.load(f"hf:{folder}", layer=layer, img_size=336)
    scores = []
    for image in images:
        features, valid = encoder(image)
        normed = rms_normalize(features)[0]
        rows = compare_partitions(normed, valid=valid[0], num_regions=COUNTS, geometry=encoder.geometry, **options)
        scores.append({(row.source, row.num_regions): row.scores for row in rows})
    return scores


@pytest.fixture(scope="module", params=LAYERS.values(), ids=LAYERS)
def layer_scores(request, folders):
    """Scores of every image with the features of a layer."""
    return compare_sources(folders[0], request.param, real_features.images().values())


def test_trained_weights_give_the_expected_features(folders):
    """A matrix that is not transposed, or is from another block, changes the features of this grey ramp."""
    model = transformers.Dinov2Model.from_pretrained(folders[0])
    ramp = torch.linspace(-1, 1, 224).expand(1, 3, 224, 224)
    with torch.no_grad():
        out = model(ramp).last_hidden_state[0]
    assert out.shape == (257, 384)
    np.testing.assert_allclose(out[[0, 1, 256], :3], RAMP, atol=1e-3)


def test_ward_explains_more_variance_than_centroid_and_grid(layer_scores):
    for name, scores in zip(real_features.images(), layer_scores, strict=True):
        for count in COUNTS:
            error = {source: 1 - scores[source, count].explained_variance for source in ("grid", "centroid", "ward")}
            assert error["ward"] <= 0.75 * error["grid"], (name, count)
            assert error["ward"] <= 0.85 * error["centroid"], (name, count)


def test_ward_leaves_fewer_singletons_than_centroid(layer_scores):
    single, largest = (
        {
            source: np.mean([getattr(scores[source, 64], name) for scores in layer_scores])
            for source in ("centroid", "ward")
        }
        for name in ("singleton_fraction", "largest_fraction")
    )
    assert single["centroid"] > 0.4
    assert single["ward"] < 0.6 * single["centroid"]
    assert largest["centroid"] > 0.2
    assert largest["ward"] < 0.5 * largest["centroid"]


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_trained_features_match_the_object_better_than_random_weights(folders, layer):
    trained_folder, random_folder, (image, outline) = folders
    trained, random = (
        compare_sources(folder, layer, [image], objects=outline)[0] for folder in (trained_folder, random_folder)
    )
    for count in (32, 64):  # 100 small regions match any outline
        assert trained["ward", count].miou > 0.87
        assert trained["ward", count].miou > random["ward", count].miou + 0.05
        assert trained["ward", count].miou > trained["grid", count].miou + 0.1
        assert trained["ward", count].boundary_recall > 0.97


def test_the_first_picture_of_the_readme_is_reproducible(folders, tmp_path):
    folder = Path(__file__).parents[1] / "docs"

    def draw():
        warnings.simplefilter("ignore")
        sys.path.insert(0, str(folder))
        pictures = importlib.import_module("pictures")
        pictures.draw_rules(pictures.real_features.images()["coffee"], tmp_path)
        return 0

    code, _, printed = run_in_fork(draw)
    assert code == 0, printed
    drawn, expected = (Image.open(parent / "rules.png").convert("RGB") for parent in (tmp_path, folder))
    assert drawn.size == expected.size
    difference = np.abs(np.asarray(drawn, int) - np.asarray(expected, int)).max(-1)
    assert (difference > 40).mean() < 0.004  # rounding differs between machines, and may change one or two patches
