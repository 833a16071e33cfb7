import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from regiontok import ImageGeometry, MaskDownsampler, MaskSet, masks
from regiontok.errors import DTypeError, ImageError, ValueRangeError
from regiontok.masks import GRANULARITY_SCHEDULE, MaskSettings, Sam2Masks
from regiontok.masks.candidates import Candidates
from tests import references
from tests.conftest import assert_close, for_each
from tests.models import tiny_sam2, tiny_sam3

ALL = MaskSettings(points_per_side=4, stability_score_thresh=0, pred_iou_thresh=0, box_nms_thresh=1)
SOME = MaskSettings(points_per_side=6, stability_score_thresh=0.3, pred_iou_thresh=0.1, box_nms_thresh=0.9)


@pytest.fixture(scope="module")
def model():
    return tiny_sam2(2)


@pytest.fixture(scope="module")
def images(china):
    return [china, china.rotate(90, expand=True), china.resize((64, 50)), Image.new("RGB", (7, 3), "teal")]


def smooth_logits(count, side, *, seed=0):
    """Round candidates of any size in clusters, with soft or sharp boundaries; some are empty, some cover the image."""
    generator = torch.Generator().manual_seed(seed)
    clump = torch.randint(count // 8, (count,), generator=generator)
    center = side * torch.rand(count // 8, 2, generator=generator)[clump] + torch.randn(count, 2, generator=generator)
    radius = 1 + side / 3 * torch.rand(count, 1, 1, generator=generator)
    axis = torch.arange(side) + 0.5
    distance = ((axis[:, None] - center[:, 0, None, None]) ** 2 + (axis - center[:, 1, None, None]) ** 2).sqrt()
    logits = (radius - distance) * 8 * torch.rand(count, 1, 1, generator=generator)
    logits[::17] = -1.0
    logits[1::17] = 20.0
    return logits, torch.rand(count, generator=generator)


class Replay(Sam2Masks):
    """The generator over given logits ``(points**2, 3, h, w)`` instead of a decoder's."""

    def replay(self, logits, scores):
        self.logits, self.given, self.at, self.embedded = logits, scores, 0, 0
        return self

    def _embed(self, inputs):
        self.embedded += 1
        return [torch.zeros(len(inputs), 1)]

    def _decode(self, embeddings, prompts):
        part = slice(self.at, self.at + len(prompts))
        self.at = part.stop % len(self.logits)
        count = len(embeddings[-1])
        return self.logits[part].expand(count, -1, -1, -1, -1), self.given[part].expand(count, -1, -1)


@for_each(seed=range(6))
def test_masks_equal_the_reference_implementation(model, seed):
    logits, scores = smooth_logits(300, 32, seed=seed)
    settings = MaskSettings(points_per_side=10, stability_score_thresh=0.613, pred_iou_thresh=0.2, box_nms_thresh=0.613)
    generate = Replay(model, settings=settings, points_per_batch=7)
    generate.replay(logits.reshape(100, 3, 32, 32), scores.reshape(100, 3))
    [found] = generate(Image.new("RGB", (32, 32)))
    expected = references.automatic_masks(
        logits.numpy(), scores.numpy(), stability=0.613, quality=0.2, overlap=0.613, offset=1.0
    )
    assert len(expected) > 5
    assert np.array_equal(found.masks().numpy(), (logits[expected] > 0).numpy())
    assert_close(torch.from_numpy(found.scores), scores[expected])


def test_filters_agree_on_other_devices():
    logits, scores = smooth_logits(50, 20)
    settings = MaskSettings(stability_score_thresh=0.5, pred_iou_thresh=0.1)
    here = Candidates.from_logits(logits, scores, settings, lambda values: values)

    class Elsewhere(torch.Tensor):
        device = torch.device("meta")  # what the code asks to choose its way

    there = Candidates.from_logits(logits.as_subclass(Elsewhere), scores, settings, lambda values: values)
    assert len(here.boxes) > 5
    assert torch.equal(here.values[0], there.values[0].as_subclass(torch.Tensor))
    for name in ("boxes", "scores", "stability"):
        assert torch.equal(getattr(here, name), getattr(there, name).as_subclass(torch.Tensor))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_masks(model, images):
    here = Sam2Masks(model, settings=SOME)(images)
    there = Sam2Masks(tiny_sam2(2).cuda(), settings=SOME)(images)
    assert [len(one) for one in here] == [len(one) for one in there]
    assert all((a.masks() != b.masks()).float().mean() < 1e-3 for a, b in zip(here, there, strict=True))


def test_masks_are_the_resized_logits_of_the_model(model, china):
    generate = Sam2Masks(model, settings=ALL)
    [found] = generate(china)
    embeddings = generate._embed([[china]])
    middle = (torch.arange(4) + 0.5) * 32
    points = torch.stack([middle.repeat(4), middle.repeat_interleave(4)], 1)[None, :, None]
    with torch.no_grad():
        output = model(image_embeddings=embeddings, input_points=points, input_labels=torch.ones(1, 16, 1).int())
    logits, scores = output.pred_masks.flatten(0, 2), output.iou_scores.flatten()
    wanted = [index for index in scores.argsort(descending=True, stable=True).tolist() if (logits[index] > 0).any()]
    enlarged = torch.nn.functional.interpolate(logits[wanted][:, None], (427, 640), mode="bilinear")[:, 0] > 0
    assert len(found) == len(wanted) > 20
    assert_close(torch.from_numpy(found.scores), scores[wanted])
    assert (found.masks() != enlarged).float().mean() < 1e-4


@pytest.mark.parametrize("make", [tiny_sam2, tiny_sam3])
def test_batches_equal_single_images(make, images):
    model = make(2).double()  # random weights amplify rounding errors
    one_by_one = [Sam2Masks(model, settings=SOME)(image)[0] for image in images]
    assert [one.size for one in one_by_one] == [(image.height, image.width) for image in images]
    for points, count in ((1, 1), (64, 4), (7, 3), (1000, 2)):
        together = Sam2Masks(model, settings=SOME, points_per_batch=points, images_per_batch=count)(images)
        assert [len(one) for one in together] == [len(one) for one in one_by_one]
        for a, b in zip(one_by_one, together, strict=True):
            assert (a.masks() != b.masks()).float().mean() < 1e-3
            assert_close(torch.from_numpy(a.scores), torch.from_numpy(b.scores))


def test_masks_on_the_grid_equal_downsampled_masks_except_at_boundaries(model, images):
    geometry, grid = ImageGeometry.letterbox(128), (8, 8)
    generate = Sam2Masks(model, settings=SOME)
    for image, full, direct in zip(
        images, generate(images), generate.on_grid(images, geometry=geometry, grid=grid), strict=True
    ):
        assert len(full) == len(direct)
        assert direct.size == grid
        assert np.array_equal(full.scores, direct.scores)
        covered = MaskDownsampler(grid, geometry=geometry).coverage(full)
        assert (covered - direct.coverage).abs().mean() < (0.03 if min(image.size) > 16 else 0.15)


def test_masks_on_the_grid_have_valid_patches(model):
    """Without them, padding would be part of the background region or of an image without masks."""
    geometry = ImageGeometry.letterbox(64)
    none = MaskSettings(1, stability_score_thresh=1, pred_iou_thresh=1)
    [found] = Sam2Masks(model, settings=none).on_grid(Image.new("RGB", (40, 20)), geometry=geometry, grid=(4, 4))
    assert found.valid.sum() == 8
    for unassigned in ("drop", "background"):
        regions = MaskDownsampler((4, 4), geometry=geometry, unassigned=unassigned)([found])
        assert regions.areas().tolist() == [8]


def test_pixels_of_the_decoder_are_binary_on_the_grid(model):
    logits = torch.full((1, 3, 32, 32), -5.0)
    logits[0, 0, :16, :8] = 5
    generate = Replay(model, settings=MaskSettings(points_per_side=1)).replay(logits, torch.ones(1, 3))
    [found] = generate.on_grid(Image.new("RGB", (40, 20)), geometry=ImageGeometry.letterbox(64), grid=(4, 4))
    assert found.coverage.tolist() == [[[0.0] * 4, [1.0, 0, 0, 0], [0.0] * 4, [0.0] * 4]]


class TestSchedule:
    """Steps with 12, 48 and 108 candidates without suppression."""

    steps = tuple(MaskSettings(side, 0, 0, 1) for side in (2, 4, 6))

    def generator(self, model, bound, **options):
        generator = Replay(model, settings=self.steps, bound=bound, **options)
        return generator

    @pytest.mark.parametrize(
        ("bound", "count", "decoded"),
        [
            ((5, 20), 12, 4),
            ((13, 50), 48, 20),
            ((60, 200), 108, 56),
            ((90, 100), 108, 56),
            ((1, 2), 12, 56),
            ((20, 30), 12, 56),
            ((25, 47), 48, 56),
        ],
    )
    def test_the_first_step_within_the_bound_or_the_nearest(self, model, bound, count, decoded):
        generate = self.generator(model, bound)
        prompts = []

        def decode(embeddings, points):
            prompts.append(len(points))
            logits = torch.full((1, len(points), 3, 32, 32), -1.0)
            logits[..., 3, 3] = 1
            return logits, torch.ones(1, len(points), 3)

        generate.replay(None, None)._decode = decode
        [found] = generate(Image.new("RGB", (32, 32)))
        assert len(found) == count
        assert sum(prompts) == decoded
        assert generate.embedded == 1

    def test_each_image_selects_its_own_step(self, model, images):
        singles = [Sam2Masks(model, settings=self.steps, bound=(20, 40))(image)[0] for image in images]
        together = Sam2Masks(model, settings=self.steps, bound=(20, 40), images_per_batch=3)(images)
        assert [len(one) for one in together] == [len(one) for one in singles]

    def test_the_papers_steps(self):
        assert [
            (one.points_per_side, one.stability_score_thresh, one.pred_iou_thresh) for one in GRANULARITY_SCHEDULE
        ] == [
            (48, 0.92, 0.6),
            (64, 0.9, 0.5),
            (96, 0.85, 0.4),
        ]
        assert masks.TARGET_MASK_COUNT == (80, 160)
        assert (
            masks.DEFAULT_SETTINGS.points_per_side,
            masks.DEFAULT_SETTINGS.stability_score_thresh,
            masks.DEFAULT_SETTINGS.pred_iou_thresh,
        ) == (
            24,
            0.9,
            0.5,
        )


class TestMosaic:
    def test_masks_are_cropped_to_their_images(self, model):
        """Candidates of a 2 x 2 mosaic fill the left half of the cell of their point and part of the next cell."""
        sides = [(40, 20), (10, 30), (16, 16)]
        generate = Replay(model, settings=MaskSettings(4, 0, 0, 0.5), mosaic=2)

        def decode(embeddings, points):
            logits = torch.full((1, len(points), 3, 32, 32), -1.0)
            for index, (x, y) in enumerate(points.tolist()):
                left, top = int(x // 64) * 16, int(y // 64) * 16
                logits[0, index, :, top : top + 16, max(0, left - 8) : left + 8] = 1
            return logits, torch.ones(1, len(points), 3)

        generate.replay(None, None)._decode = decode
        found = generate([Image.new("RGB", size) for size in sides])
        assert [one.size for one in found] == [(height, width) for width, height in sides]
        for one in found:
            [mask] = one.masks()
            half = one.size[1] // 2
            assert mask[:, : half - 1].all()
            assert not mask[:, half + 1 :].any()

    def test_each_image_receives_a_share_of_the_points(self, model, images):
        generate = Sam2Masks(model, settings=MaskSettings(6, 0, 0, 1), mosaic=2)
        decoded = []
        decode = generate._decode
        generate._decode = lambda embeddings, points: decoded.append(points) or decode(embeddings, points)
        found = generate(images * 2)
        assert len(found) == 8
        points = torch.cat(decoded)
        assert len(points) == 36
        assert torch.unique(points, dim=0).shape == points.shape
        assert points.min() == 128 / 12
        assert points.max() == 128 - 128 / 12
        assert all(len(one) <= 27 for one in found)

    def test_the_input_has_the_images_side_by_side(self, model, images):
        seen = []
        generate = Sam2Masks(model, settings=ALL, mosaic=2)
        model.get_image_embeddings = lambda pixels: seen.append(pixels)
        try:
            generate._embed([images[:3]])
        finally:
            del model.get_image_embeddings
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        for image, row, col in zip(images, (0, 0, 64), (0, 64, 0), strict=False):
            values = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
            small = torch.nn.functional.interpolate(values, (64, 64), mode="bilinear", antialias=True)[0]
            expected = ((small.permute(1, 2, 0) - mean) / std).permute(2, 0, 1)
            assert_close(seen[0][0, :, row : row + 64, col : col + 64], expected)
        assert (seen[0][0, :, 64:, 64:] == 0).all()

    def test_mosaic_must_divide_the_input_and_have_points(self, model):
        with pytest.raises(ValueRangeError, match=r"must divide the input side \(128\) and mask side \(32\) of"):
            Sam2Masks(model, mosaic=3)
        with pytest.raises(ValueRangeError, match="points_per_side must be at least mosaic=4, .*; got"):
            Sam2Masks(model, mosaic=4, settings=MaskSettings(points_per_side=2))


def test_images_may_have_no_masks(model, images):
    generate = Sam2Masks(model, settings=MaskSettings(points_per_side=2, stability_score_thresh=1, pred_iou_thresh=1))
    assert [len(one) for one in generate(images)] == [0] * 4
    on_grid = generate.on_grid(images, geometry=ImageGeometry.squash(64), grid=(4, 4))
    assert [one.coverage.shape for one in on_grid] == [(0, 4, 4)] * 4


def test_half_precision_runs(china):
    generate = Sam2Masks(tiny_sam2(2).to(torch.bfloat16), settings=SOME)
    assert isinstance(generate(china)[0], MaskSet)


def test_describe_returns_the_settings(model):
    told = Sam2Masks(model, settings=GRANULARITY_SCHEDULE, mosaic=2).describe()
    assert told["generator"] == "sam2"
    assert told["model"] == "random weights"
    assert told["mosaic"] == 2
    assert told["bound"] == [80, 160]
    assert [one["points_per_side"] for one in told["settings"]] == [48, 64, 96]
    assert "bound" not in Sam2Masks(model).describe()
    assert "Sam2Model" in repr(Sam2Masks(model))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": nn.Linear(2, 2)}, DTypeError, "must be transformers' Sam2Model or Sam3TrackerModel; got Linear"),
        ({"settings": 24}, DTypeError, "settings must be MaskSettings, or a list of them"),
        ({"settings": []}, DTypeError, "settings must be MaskSettings"),
        ({"bound": (160, 80)}, ValueRangeError, "bound must be"),
        ({"bound": 80}, ValueRangeError, "bound must be"),
        ({"points_per_batch": 0}, ValueRangeError, "points_per_batch must be at least 1"),
        ({"images_per_batch": 0}, ValueRangeError, "images_per_batch must be at least 1"),
        ({"mosaic": 0}, ValueRangeError, "mosaic must be at least 1"),
    ],
)
def test_invalid_options_are_errors(model, options, error, message):
    with pytest.raises(error, match=message):
        Sam2Masks(**({"model": model} | options))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"points_per_side": 0}, ValueRangeError, "points_per_side must be at least 1"),
        ({"stability_score_thresh": 2}, ValueRangeError, "stability_score_thresh must be in"),
        ({"pred_iou_thresh": "x"}, DTypeError, "pred_iou_thresh must be a number"),
        ({"box_nms_thresh": -1}, ValueRangeError, "box_nms_thresh must be in"),
        ({"stability_score_offset": -1}, ValueRangeError, "stability_score_offset must be in"),
    ],
)
def test_invalid_settings_are_errors(options, error, message):
    with pytest.raises(error, match=message):
        MaskSettings(**options)


def test_invalid_images_are_named(model, china):
    with pytest.raises(DTypeError, match="an image must be a PIL image"):
        Sam2Masks(model)([china, None])
    with pytest.raises(ImageError, match="b.jpg: there is no such file"):
        Sam2Masks(model)([china, "b.jpg"])
    with pytest.raises(ImageError, match="at least one"):
        Sam2Masks(model)([])
