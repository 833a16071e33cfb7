"""Generators of other packages: the pipeline of transformers, the sam2 package, and scikit-image."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.segmentation import felzenszwalb
from transformers import Sam2Config, Sam2HieraDetConfig, Sam2Model, Sam2VisionConfig

from regiontok.errors import DTypeError, ValueRangeError
from regiontok.masks import FelzenszwalbMasks, MaskSettings, PackageMasks, PipelineMasks, Sam2Masks
from tests.conftest import assert_close
from tests.models import tiny_sam2, tiny_sam3

ALL = MaskSettings(points_per_side=3, stability_score_thresh=0, pred_iou_thresh=0, box_nms_thresh=1)


def iou(a, b):
    a, b = (one.masks().flatten(1).float() for one in (a, b))
    shared = a @ b.T
    return shared / (a.sum(1)[:, None] + b.sum(1) - shared)


@pytest.mark.parametrize("make", [tiny_sam2, tiny_sam3])
def test_the_pipeline_gives_the_same_masks_as_ours(make, china):
    model = make(2)
    for image in (china, china.rotate(90, expand=True)):
        [ours], [theirs] = Sam2Masks(model, settings=ALL)(image), PipelineMasks(model, settings=ALL)(image)
        assert theirs.size == (image.height, image.width)
        assert len(ours) > 3
        overlap = iou(ours, theirs)  # the pipeline rounds resized pixels, which random weights amplify
        assert overlap.amax(1).mean() > 0.9
        assert overlap.amax(0).mean() > 0.9


def test_pipeline_points_cover_non_square_images(china):
    model = tiny_sam2(2)
    generate = PipelineMasks(model, settings=ALL)
    for image in (china, china.rotate(90, expand=True)):
        _, points, _, _ = generate.pipeline.image_processor.generate_crop_boxes(image, 128, 0, 0.3, 4, 1)
        middle = (torch.arange(4) + 0.5) * 32
        assert_close(points.reshape(-1, 2), torch.stack([middle.repeat(4), middle.repeat_interleave(4)], 1))


def test_the_pipeline_may_return_no_masks(china):
    strict = MaskSettings(points_per_side=2, stability_score_thresh=1, pred_iou_thresh=1)
    assert [len(one) for one in PipelineMasks(tiny_sam2(), settings=strict)([china, china])] == [0, 0]


def test_the_pipeline_rejects_other_models_and_schedules():
    with pytest.raises(DTypeError, match="Sam2Model or Sam3TrackerModel; got Linear"):
        PipelineMasks(torch.nn.Linear(2, 2))
    with pytest.raises(DTypeError, match="one MaskSettings here"):
        PipelineMasks(tiny_sam2(), settings=[ALL, ALL])


@pytest.fixture(scope="module")
def models():
    pytest.importorskip("sam2", reason="the sam2 package is not installed")
    from sam2.build_sam import build_sam2  # noqa: PLC0415

    from benchmarks.generators import to_transformers  # noqa: PLC0415

    torch.manual_seed(1)
    widths = [24, 48, 96, 192]  # a quarter of those of the tiny model
    channels = widths[::-1]
    overrides = [
        f"model.image_encoder.trunk.embed_dim={widths[0]}", f"model.image_encoder.neck.backbone_channel_list={channels}",
    ]  # fmt: skip
    official = build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", None, device="cpu", hydra_overrides_extra=overrides)
    backbone = Sam2HieraDetConfig(hidden_size=widths[0], embed_dim_per_stage=widths)
    vision = Sam2VisionConfig(backbone_config=backbone, backbone_channel_list=channels)
    model = Sam2Model(Sam2Config(vision_config=vision)).eval()
    model.load_state_dict(to_transformers(official.state_dict()))
    return official, model


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # in the package
class TestPackage:
    """The official package, with the weights of one model in its code and in transformers'."""

    def test_the_package_gives_the_same_masks_as_ours(self, models, china):
        official, model = models
        settings = MaskSettings(points_per_side=2, stability_score_thresh=0, pred_iou_thresh=0, box_nms_thresh=1)
        [theirs] = PackageMasks(official, settings=settings)(china)
        [ours] = Sam2Masks(model, settings=settings)(china)
        assert len(ours) == len(theirs) == 12
        assert_close(torch.from_numpy(theirs.scores), torch.from_numpy(ours.scores))
        assert (ours.masks() != theirs.masks()).float().mean() < 1e-3
        assert (torch.from_numpy(ours.stability) - torch.from_numpy(theirs.stability)).abs().max() < 0.05

    def test_a_schedule_encodes_each_image_once(self, models, china):
        official, _ = models
        steps = [MaskSettings(side, 0, 0, 1) for side in (1, 2)]
        generate = PackageMasks(official, settings=steps, bound=(12, 12))
        encoded = []
        forward = official.forward_image
        official.forward_image = lambda image: encoded.append(image) or forward(image)
        try:
            [one, other] = generate([china, china.rotate(180)])
        finally:
            del official.forward_image
        assert len(encoded) == 2
        assert (len(one), len(other)) == (12, 12)
        assert iou(one, other).diagonal().mean() < 0.999


class TestFelzenszwalb:
    def test_segments_equal_those_of_scikit_image(self):
        image = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)
        [found] = FelzenszwalbMasks(scale=50, sigma=0.5, min_size=20)(Image.fromarray(image))
        labels = felzenszwalb(image, scale=50, sigma=0.5, min_size=20)
        assert np.array_equal(found.masks().numpy(), labels == np.arange(labels.max() + 1)[:, None, None])
        assert np.isnan(found.scores).all()

    def test_segments_cover_images_of_any_size(self, china):
        small, large = FelzenszwalbMasks()([china, china.resize((2560, 1708))])
        for found in (small, large):
            assert 60 < len(found) < 160
            assert found.areas().sum() == found.size[0] * found.size[1]
        assert (small.masks().sum(0) == 1).all()
        assert large.size == (1708, 2560)

    def test_invalid_settings_are_errors(self):
        with pytest.raises(ValueRangeError, match="scale must be in"):
            FelzenszwalbMasks(scale=-1)
        with pytest.raises(ValueRangeError, match="min_size must be at least 1"):
            FelzenszwalbMasks(min_size=0)
