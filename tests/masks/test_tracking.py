"""Automatic tracks: new objects, duplicates and limits with a predictor of known motion, and the predictors of SAM 2."""

from contextlib import ExitStack

import numpy as np
import pytest
import torch
from PIL import Image

from regiontok import MaskSet, read_video
from regiontok.cli import main
from regiontok.errors import CheckpointError, DTypeError, ShapeError, ValueRangeError
from regiontok.masks.tracking import AutomaticTracks, PackagePredictor, Sam2Predictor, load_predictor
from regiontok.store import TokenStore
from regiontok.track_files import read_tracks
from tests.models import tiny_sam2, tiny_sam2_video, tiny_sam3_video
from tests.test_videos import write

COUNT, SIZE = 6, (40, 60)


def boxes(*places):
    """Masks of boxes of 10 x 10 pixels."""
    masks = np.zeros((len(places), *SIZE), np.bool_)
    for mask, (top, left) in zip(masks, places, strict=True):
        mask[max(0, top) : top + 10, max(0, left) : left + 10] = True
    return masks


def frame(number, *, late=False):
    """Two objects that move right by five pixels per frame; a third is there from frame three."""
    image = np.zeros((*SIZE, 3), np.uint8)
    for colour, mask in enumerate(
        boxes((5, 5 * number), (25, 5 * number), (15, 50))[: 3 if late and number >= 3 else 2]
    ):
        image[mask] = 80 * (colour + 1)
    return Image.fromarray(image)


class Moving:
    """A predictor that moves masks right by five pixels per frame, except for those at the right edge."""

    def __init__(self):
        self.calls = []

    def start(self, frames, stack):
        def propagate(key, masks):
            self.calls.append((key, len(masks)))
            for number in range(len(frames)):
                moved = np.zeros_like(masks)
                shift = 5 * (number - key)
                for mask, source in zip(moved, masks, strict=True):
                    if source[:, 59].any():
                        mask[:] = source & (number >= 3)
                    elif shift >= 0:
                        mask[:, shift:] = source[:, : SIZE[1] - shift]
                    else:
                        mask[:, :shift] = source[:, -shift:]
                yield number, moved

        return propagate


def colours(images):
    """Masks of the colours of an image, with the largest colour first."""
    return [
        MaskSet.from_masks(np.stack([np.asarray(image)[..., 0] == value for value in (240, 160, 80) if (np.asarray(image)[..., 0] == value).any()]))
        for image in images
    ]  # fmt: skip


def test_objects_of_the_first_frame_are_tracked():
    predictor = Moving()
    tracks = AutomaticTracks(predictor, colours)([frame(number) for number in range(COUNT)])
    assert predictor.calls == [(0, 2)]
    assert len(tracks) == 2
    dense = tracks.masks().numpy()
    for number in range(COUNT):
        assert np.array_equal(dense[:, number], boxes((25, 5 * number), (5, 5 * number)))


def test_objects_that_appear_later_are_found_at_key_frames():
    frames = [frame(number, late=True) for number in range(COUNT)]
    assert len(AutomaticTracks(Moving(), colours)(frames)) == 2
    predictor = Moving()
    tracks = AutomaticTracks(predictor, colours, every=2)(frames)
    assert predictor.calls == [(0, 2), (4, 1)]  # in frame 2 every mask is in a track
    assert len(tracks) == 3
    assert tracks.masks()[2].any((1, 2)).tolist() == [False] * 3 + [True] * 3
    assert len(AutomaticTracks(Moving(), colours, every=2, max_objects=2)(frames)) == 2


def test_a_frame_with_a_new_area_is_a_key_frame():
    """The mask of the left half moves right. From frame seven on, a part of it is outside, by 5 of 60 columns more each."""

    def left(images):
        return [MaskSet.from_masks(np.arange(60)[None, None] < np.full((1, 40, 1), 30))]

    frames = [Image.new("RGB", SIZE[::-1])] * 10
    for new_area, calls in ((0.05, [(0, 1), (7, 1)]), (0.15, [(0, 1), (8, 1)]), (0.5, [(0, 1)])):
        predictor = Moving()
        tracks = AutomaticTracks(predictor, left, new_area=new_area)(frames)
        assert predictor.calls == calls
        assert len(tracks) == len(calls)


def test_duplicates_over_time_are_removed():
    frames = [frame(number) for number in range(COUNT)]

    def twice(images):
        (masks,) = colours(images)
        return [MaskSet.from_masks(np.concatenate([masks.masks().numpy()] * 2), scores=[0.9, 0.8, 0.7, 0.6])]

    assert len(AutomaticTracks(Moving(), twice)(frames)) == 2
    assert len(AutomaticTracks(Moving(), twice, duplicate_iou=1.0)(frames)) == 4


def test_invalid_videos_and_options_are_rejected():
    track = AutomaticTracks(Moving(), colours)
    with pytest.raises(ShapeError, match="a video must have frames of one size"):
        track([frame(0), Image.new("RGB", (8, 8))])
    for options, error in (({"every": 0}, ValueRangeError), ({"new_area": 0}, ValueRangeError), ({"max_objects": 1.5}, DTypeError), ({"duplicate_iou": 2}, ValueRangeError)):  # fmt: skip
        with pytest.raises(error):
            AutomaticTracks(Moving(), colours, **options)
    with pytest.raises(ValueRangeError, match="predictor must be one of"):
        load_predictor("sam4")
    with pytest.raises(CheckpointError, match="cannot load the video predictor 'no/model'"):
        load_predictor("sam2", model="no/model")


@pytest.mark.parametrize("make", [tiny_sam2_video, tiny_sam3_video])
def test_the_predictors_of_transformers_are_called_in_both_directions(make):
    """Their weights are random, so only the frames, the masks and the ids can be checked."""
    model = make()
    predictor = Sam2Predictor(model)
    tracks = AutomaticTracks(predictor, colours, every=2)([frame(number, late=True) for number in range(COUNT)])
    assert tracks.size == SIZE
    assert tracks.num_frames == COUNT
    seen = []

    class Recorded:
        def start(self, frames, stack):
            propagate = predictor.start(frames, stack)

            def call(key, masks):
                for number, moved in propagate(key, masks):
                    assert moved.shape == masks.shape
                    seen.append(number)
                    yield number, moved

            return call

    AutomaticTracks(Recorded(), lambda images: [MaskSet.from_masks(boxes((5, 5), (25, 5)))])(
        [frame(number) for number in range(3)]
    )
    assert seen == [0, 1, 2]
    with ExitStack() as stack:
        propagate = predictor.start([frame(number) for number in range(4)], stack)
        assert [number for number, _ in propagate(2, boxes((5, 15)))] == [2, 3, 2, 1, 0]


def test_the_predictor_of_the_package():
    build = pytest.importorskip("sam2.build_sam").build_sam2_video_predictor
    torch.manual_seed(0)
    small = ["++model.image_size=256"]  # in place of 1024
    model = build("configs/sam2.1/sam2.1_hiera_t.yaml", None, device="cpu", hydra_overrides_extra=small)
    tracks = AutomaticTracks(PackagePredictor(model), lambda images: [MaskSet.from_masks(boxes((5, 5)))])(
        [frame(0), frame(1)]
    )
    assert tracks.size == SIZE


def test_the_tracks_command_and_tokens_of_tracks(tmp_path, capsys):
    films = tmp_path / "films"
    films.mkdir()
    for name in ("a", "b"):
        write(films / f"{name}.mp4", [frame(number).resize((64, 48)) for number in range(COUNT)])
    (films / "bad.mp4").write_bytes(b"no video")
    tiny_sam2_video().save_pretrained(tmp_path / "video")
    tiny_sam2().save_pretrained(tmp_path / "sam2")
    command = ["tracks", str(films), "--num-frames", "3", "--out", str(tmp_path / "tracks"), "--masks", "felzenszwalb"]
    command += ["--video-model", str(tmp_path / "video"), "--max-objects", "3"]
    assert main(command) == 1
    output = capsys.readouterr()
    assert "2 videos tracked, 0 skipped" in output.out
    assert "bad.mp4: it cannot be read as a video" in output.err
    tracks = read_tracks(tmp_path / "tracks" / "a.mp4.tracks.json")
    assert tracks.num_frames == COUNT
    assert {number for number, masks in tracks.frames.items() if len(masks)} <= set(
        read_video(films / "a.mp4", num_frames=3).indices
    )
    assert main(command) == 1
    assert "0 videos tracked, 2 skipped" in capsys.readouterr().out
    assert main([*command[:-1], "2"]) == 2
    assert "was made with other settings" in capsys.readouterr().err
    tokens = ["tokenize", str(films), "--num-frames", "3", "--tracks", str(tmp_path / "tracks")]
    for more in (["--source", "segmentation", "--unassigned", "background"], ["--source", "combined", "--num-regions", "9"]):  # fmt: skip
        store = tmp_path / more[1]
        assert main([*tokens, *more, "--store", str(store)]) == 1
        assert sorted(TokenStore(store)) == ["a.mp4", "b.mp4"]
        assert main([*tokens, *more, "--out", str(tmp_path / "out")]) == 1
    capsys.readouterr()
    for options, message in (
        (tokens[:2] + tokens[4:], "--tracks requires videos"),
        ([*tokens, "--source", "clustering"], "videos need --tracks DIR for --source segmentation"),
        ([*tokens[:4], "--source", "segmentation"], "videos need --tracks DIR for --source segmentation"),
        ([*tokens[:4], "--source", "segmentation", "--masks", "felzenszwalb"], "--masks is for images"),
        ([*tokens[:5], str(tmp_path / "none"), "--source", "segmentation"], "there is no such folder of tracks"),
    ):
        assert main(options) == 2
        assert message in capsys.readouterr().err
