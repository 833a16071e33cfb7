"""Tracks of objects: their masks in each frame, their regions, and the formats of data sets."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from regiontok import ImageGeometry, MaskDownsampler, MaskSet, Regionizer
from regiontok.errors import DataError, DTypeError, ShapeError, ValueRangeError
from regiontok.track_files import read_tracks
from regiontok.tracks import TrackSet
from tests.conftest import for_each

SIZE = (48, 64)
GEOMETRY = ImageGeometry(mode="squash", size=SIZE)
IDS = (3, 9, 12)


def scene(frames=4):
    """Label maps of two moving objects, and a third that is in one frame only."""
    labels = np.zeros((frames, *SIZE), np.uint8)
    for number in range(frames):
        labels[number, 8:30, 4 * number : 4 * number + 20] = 3
        labels[number, 32:46, 40 - 4 * number : 60 - 4 * number] = 9
    labels[1, 0:6, 50:64] = 12
    return labels


def dense(labels):
    return np.stack([labels == number for number in IDS])


@st.composite
def labels_and_grids(draw):
    frames = draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = np.kron(rng.integers(0, 4, (frames, 4, 5)), np.ones((1, 7, 5), np.int64))
    return labels, (draw(st.integers(1, 5)), draw(st.integers(1, 5)))


@given(labels_and_grids(), st.sampled_from(["keep", "assign_smallest"]))
def test_regions_of_tracks_equal_the_coverage_of_each_frame(drawn, overlap):
    labels, grid = drawn
    tracks = TrackSet.from_labels(labels, ignore=(0,))
    downsampler = MaskDownsampler(geometry=ImageGeometry(mode="squash", size=labels.shape[1:]), overlap=overlap)
    features = torch.zeros(len(labels), *grid, 2)
    regions = downsampler([tracks], features=[features])
    covered = np.zeros((len(tracks), len(labels), *grid), bool)
    for row, track in enumerate(tracks.ids):
        for number, frame in enumerate(labels):
            if (frame == track).any():
                masks = torch.from_numpy(frame == track)[None]
                covered[row, number] = downsampler.coverage(masks, grid=grid)[0].numpy() > downsampler.min_coverage
    if overlap == "assign_smallest":
        order = np.argsort(covered.reshape(len(covered), -1).sum(1), kind="stable")
        for place, row in enumerate(order):
            covered[order[place + 1 :]] &= ~covered[row]
    shown = covered.reshape(len(covered), -1).any(1)
    if not shown.any():
        assert regions.fallback.all()
        return
    assert regions.mask_index.tolist() == np.flatnonzero(shown).tolist()
    assert np.array_equal(regions.masks()[0].numpy(), covered[shown])


def test_constructors_agree():
    labels = scene()
    tracks = TrackSet.from_labels(labels)
    assert repr(tracks) == "TrackSet(3 tracks in 4 frames of 48 x 64 pixels)"
    assert tracks.ids.tolist() == list(IDS)
    expected = dense(labels)
    assert np.array_equal(tracks.masks().numpy(), expected)
    for other in (
        TrackSet.from_masks(expected, ids=IDS),
        TrackSet.from_masks(torch.from_numpy(expected), ids=IDS),
        TrackSet.from_frames({n: MaskSet.from_labels(one, ignore=(0,)) for n, one in enumerate(labels)}),
    ):
        assert np.array_equal(other.ids, tracks.ids)
        assert torch.equal(other.masks(), tracks.masks())
    sparse = TrackSet.from_labels([labels[0], None, None, labels[3]])
    assert sorted(sparse.frames) == [0, 3]
    assert sparse.num_frames == 4


def test_sampled_frames():
    labels = scene(6)
    tracks = TrackSet.from_labels(labels).at([0, 3, 5])
    assert np.array_equal(tracks.masks().numpy(), dense(labels)[:, [0, 3, 5]])
    regions = MaskDownsampler(geometry=GEOMETRY)([tracks], features=[torch.zeros(3, 6, 8, 2)])
    assert regions.mask_index.tolist() == [0, 1]
    assert [(one.mask_index, one.reason) for one in regions.dropped] == [(2, "has no mask in these frames")]
    assert regions.durations().tolist() == [3, 3]
    first, last = regions.tracks()[0]
    assert (last - first).tolist() == [2, 0, 2]  # 20 pixels, of 8 per patch


def test_scores_are_means_over_frames():
    frames = {
        0: MaskSet.from_labels(np.array([[1, 2]]), scores=[0.5, 0.75]),
        2: MaskSet.from_labels(np.array([[2, 2]]), scores=[0.25]),
    }
    assert TrackSet.from_frames(frames).scores.tolist() == [0.5, 0.5]
    assert np.isnan(TrackSet.from_labels(scene()).scores).all()


@for_each(
    unassigned=["drop", "background", "single_patches", "cluster"],
    source=["segmentation", "combined"],
    budget=[None, 2, 20],
)
def test_regionizer(source, unassigned, budget):
    features = [torch.randn(4, 6, 8, 16, generator=torch.Generator().manual_seed(0)), torch.ones(6, 8, 16)]
    image = MaskSet.from_labels(scene()[0], ignore=(0,))
    regionizer = Regionizer(
        source=source, geometry=GEOMETRY, pool="mean", unassigned=unassigned, num_regions=budget, threshold=0.2
    )
    tokens = regionizer(features, masks=[TrackSet.from_labels(scene()), image])
    assert tokens.regions.grids.tolist() == [[4, 6, 8], [1, 6, 8]]
    if budget is not None:
        assert tokens.counts[0] <= budget
        assert source == "segmentation" or tokens.counts[0] == budget
    alone = regionizer(features[1:], masks=[image])
    assert torch.equal(tokens.values[-int(alone.counts[0]) :], alone.values)
    if unassigned != "drop":
        covered = torch.zeros(4 * 6 * 8, dtype=torch.bool)
        covered[tokens.regions.patch[tokens.regions.region < tokens.counts[0]]] = True
        assert covered.all()


def test_masks_touch_over_time_but_not_over_the_edges_of_frames():
    labels = np.zeros((3, 2, 2), np.int64)
    labels[0, 0, 0], labels[0, 1, 1], labels[1, 0, 0], labels[2, 1, 0] = 1, 2, 3, 4
    tracks = TrackSet.from_labels(labels, ignore=(0,))
    features = torch.tensor([[1.0, 0.0]]).repeat(12, 1).reshape(3, 2, 2, 2)
    regionizer = Regionizer(
        source="segmentation", geometry=ImageGeometry(mode="squash", size=(2, 2)), pool="mean", num_regions=3
    )
    regions = regionizer([features], masks=[tracks]).regions
    # all features are equal: masks 1 and 3 touch in time; 2 and 3 follow each other in raster order only
    assert sorted(map(tuple, regions.masks()[0].flatten(1).int().tolist()))[-1] == (1, 0, 0, 0, 1, *[0] * 7)


def encode(mask):
    rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def save(kind, folder, labels):
    """Write tracks in the format of a data set; return the path and what `read_tracks` needs for it."""
    masks = dense(labels)
    if kind == "label maps":
        for number, one in enumerate(labels):
            image = Image.fromarray(one, "P")
            image.putpalette([value for colour in range(256) for value in (colour, 0, 255 - colour)])
            image.save(folder / f"{number:05d}.png")
        return folder, {}
    if kind == "objects":
        for track, of_track in zip(IDS, masks, strict=True):
            (folder / f"{track:03d}").mkdir()
            for number, mask in enumerate(of_track):
                if mask.any() or number == 0:
                    Image.fromarray(mask).save(folder / f"{track:03d}" / f"{number:05d}.png")
        return folder, {}
    rle = [[encode(mask) for mask in frame] for frame in masks.swapaxes(0, 1)]
    if kind == "SA-V":
        data = {
            "video_id": "sav_000001", "video_height": SIZE[0], "video_width": SIZE[1],
            "video_frame_count": len(labels), "masklet_id": list(IDS), "masklet": rle,
        }  # fmt: skip
    elif kind == "YouTube-VIS":
        names = [f"bike/{number:05d}.jpg" for number in range(len(labels))]
        video = {"id": 5, "height": SIZE[0], "width": SIZE[1], "length": len(labels), "file_names": names}
        other = {**video, "id": 6, "file_names": ["dog/0.jpg"] * len(labels)}
        rows = [
            {
                "id": track, "video_id": 5, "category_id": 1,
                "segmentations": [one if mask.any() else None for one, mask in zip(column, of_track, strict=True)],
            }
            for track, column, of_track in zip(IDS, zip(*rle, strict=True), masks, strict=True)
        ]  # fmt: skip
        data = {"videos": [video, other], "annotations": rows}
    else:
        lines = [
            f"{number + 1} {track} 1 {SIZE[0]} {SIZE[1]} {one['counts']}"
            for number, frame in enumerate(rle)
            for track, one, mask in zip(IDS, frame, masks[:, number], strict=True)
            if mask.any()
        ]
        (folder / "gt.txt").write_text("\n".join([*lines, f"1 10000 10 {SIZE[0]} {SIZE[1]} {rle[0][0]['counts']}"]))
        return folder / "gt.txt", {"first_frame": 1, "num_frames": len(labels)}
    (folder / "tracks.json").write_text(json.dumps(data))
    return folder / "tracks.json", {"video": "bike"} if kind == "YouTube-VIS" else {}


@pytest.mark.parametrize("kind", ["label maps", "objects", "SA-V", "YouTube-VIS", "MOTS"])
def test_formats(kind, tmp_path):
    labels = scene()
    path, options = save(kind, tmp_path, labels)
    tracks = read_tracks(path, **options)
    assert tracks.ids.tolist() == list(IDS)
    assert (tracks.num_frames, tracks.size) == (4, SIZE)
    assert np.array_equal(tracks.masks().numpy(), dense(labels))


def test_every_fourth_frame_of_sa_v_is_annotated(tmp_path):
    path, _ = save("SA-V", tmp_path, scene())
    data = json.loads(path.read_text()) | {"video_frame_count": 13}
    path.write_text(json.dumps(data))
    tracks = read_tracks(path)
    assert (sorted(tracks.frames), tracks.num_frames) == ([0, 4, 8, 12], 13)


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("name", "content", "error", "words"),
    [
        ("a.json", "{", DataError, "not valid JSON"),
        ("a.json", [1], DataError, "expected masklet of SA-V"),
        ("a.json", {"masklet": [[]]}, DataError, "damaged: KeyError: 'video_height'"),
        (
            "a.json",
            {"masklet": [[]], "masklet_id": [1], "video_height": 4, "video_width": 4, "video_frame_count": 1},
            DataError,
            "masklet 0 must have a mask for each of the 1 ids; got 0",
        ),
        (
            "a.json",
            {"videos": [{"id": 1}, {"id": 2}], "annotations": []},
            ValueRangeError,
            "video must be one of 2, such as 1, 2; got None",
        ),
        ("a.txt", "", DataError, "expected a mask per line; the file is empty"),
        ("a.txt", "1 2 3", DataError, "line 1: expected frame, id, class, height, width and RLE; got '1 2 3'"),
        ("a.txt", "-1 2 1 1 1 01", ValueRangeError, "frame -1 is not among"),
    ],
)
def test_damaged_files(name, content, error, words, tmp_path):
    with pytest.raises(error, match=words):
        read_tracks(write(tmp_path / name, content))


def test_damaged_folders(tmp_path):
    with pytest.raises(DataError, match="expected a PNG file per frame; got none"):
        read_tracks(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        read_tracks(tmp_path / "missing.json")
    (tmp_path / "00000.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="00000.png"):
        read_tracks(tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "00000.png")
    with pytest.raises(DataError, match="label map must be"):
        read_tracks(tmp_path)
    Image.new("L", (4, 4)).save(tmp_path / "00000.png")
    Image.new("L", (4, 5)).save(tmp_path / "00001.png")
    with pytest.raises(DataError, match=r"all frames must have the size \(4, 4\); got \(5, 4\) for frame 1"):
        read_tracks(tmp_path)


def test_bad_tracks():
    masks = MaskSet.from_labels(scene()[0], ignore=(0,))
    plain = MaskSet.from_masks(np.ones((1, 4, 4), bool))
    for frames, options, error, words in (
        ({0: plain}, {}, DTypeError, "must be a MaskSet with the ids of its tracks"),
        ({3: masks}, {"num_frames": 2}, ValueRangeError, "frame 3 is not among the 2 frames"),
        ({}, {}, ShapeError, "need a size"),
        ({0: masks}, {"size": (4, 4)}, ShapeError, "all frames must have the size"),
    ):
        with pytest.raises(error, match=words):
            TrackSet.from_frames(frames, **options)
    tracks = TrackSet.from_labels(scene())
    with pytest.raises(ValueRangeError, match="tracks of another video"):
        tracks.at([0, 4])
    with pytest.raises(DTypeError, match="masks must be bool"):
        TrackSet.from_masks(np.zeros((1, 2, 3, 3)))
    with pytest.raises(ShapeError, match="ids must have one entry"):
        TrackSet.from_masks(np.ones((1, 2, 3, 3), bool), ids=[1, 2])
    with pytest.raises(ValueRangeError, match="several masks of track 1"):
        TrackSet.from_masks(np.ones((2, 2, 3, 3), bool), ids=[1, 1])
    downsampler = MaskDownsampler(geometry=GEOMETRY)
    clip = torch.zeros(3, 6, 8, 2)
    with pytest.raises(ShapeError, match="the tracks have 4 frames, and the features 3"):
        downsampler([tracks], features=[clip])
    with pytest.raises(DTypeError, match="masks of a clip must be a TrackSet"):
        downsampler([masks], features=[clip])
    with pytest.raises(DTypeError, match="a TrackSet needs the features of a clip"):
        downsampler([tracks], features=[clip[0]])
    with pytest.raises(ShapeError, match="masks must be of their image's size"):
        downsampler([tracks.at([0, 1, 2])], features=[clip], sizes=[(50, 50)])


def test_a_downsampler_with_a_grid_needs_no_features():
    tracks = TrackSet.from_labels(scene())
    with_grid, without = MaskDownsampler((6, 8), geometry=GEOMETRY), MaskDownsampler(geometry=GEOMETRY)
    image = MaskSet.from_labels(scene()[0], ignore=(0,))
    expected = without([tracks, image], features=[torch.zeros(4, 6, 8, 2), torch.zeros(6, 8, 2)])
    regions = with_grid([tracks, image])
    assert regions.grids.tolist() == [[4, 6, 8], [1, 6, 8]]
    assert torch.equal(regions.patch, expected.patch)
    assert torch.equal(regions.region, expected.region)
    covered = with_grid.coverage(tracks)
    assert covered.shape == (3, 4, 6, 8)
    assert torch.equal(covered[:2, 0], with_grid.coverage(image))


@pytest.mark.parametrize("kind", ["label maps", "objects", "SA-V", "YouTube-VIS", "MOTS"])
def test_every_option_applies_to_every_format(kind, tmp_path):
    path, options = save(kind, tmp_path, scene())
    tracks = read_tracks(path, **options | {"num_frames": 9, "ignore": (0, 9, 10000)})
    assert (tracks.num_frames, tracks.ids.tolist()) == (9, [3, 12])
    assert np.array_equal(tracks.masks().numpy()[:, :4], dense(scene())[[0, 2]])


def test_folders_of_objects_without_numbers_are_numbered(tmp_path):
    for name in ("1", "cat"):
        (tmp_path / name).mkdir()
        Image.fromarray(scene()[0] == 3).save(tmp_path / name / "00000.png")
    assert read_tracks(tmp_path).ids.tolist() == [0, 1]
