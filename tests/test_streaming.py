"""Clips that arrive in chunks."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regiontok import UnionFindClusterer
from regiontok.errors import ShapeError, ValueRangeError
from tests.test_clips import neighbours_in_time, same_partition, smooth_clip, unit


def run(clusterer, chunks, valid=None):
    """Push all chunks, and return the label map of the whole video and all finished regions."""
    stream = clusterer.stream()
    labels, finished, merged = [], [], {}
    for number, chunk in enumerate(chunks):
        result = stream.push(chunk, None if valid is None else valid[number])
        done = [int(one) for part in finished for one in part.ids]
        assert not set(done) & set(result.labels.unique().tolist()), "finished regions never change"
        assert not set(done) & {*result.merged, *result.merged.values()}
        labels.append(result.labels)
        finished.append(result.finished)
        merged |= result.merged
    finished.append(stream.close())
    video = torch.cat(labels)
    for number in sorted(merged, reverse=True):
        video[video == number] = merged[number]
    return video, finished


def slow_stream(chunks, budget, motion):
    """Cluster chunk by chunk: search all pairs of neighbouring groups of patches, of which open ones are continued."""
    groups, done, start = [], [], 0
    video = torch.cat(chunks)
    vectors = unit(video)
    following = neighbours_in_time(video, np.ones(video.shape[:3], bool), motion)
    neighbours = set()
    frames, rows, cols, _ = video.shape
    for place in np.ndindex(frames, rows, cols):
        for other in ((place[0], place[1] + 1, place[2]), (place[0], place[1], place[2] + 1)):
            if other[1] < rows and other[2] < cols:
                neighbours.add((place, other))
        if place in following:
            neighbours.add((place, following[place]))
    for chunk in chunks:
        end = start + len(chunk)
        new = [frozenset([(frame, *place)]) for frame in range(start, end) for place in np.ndindex(rows, cols)]
        target = budget + len(groups)
        groups += new
        while len(groups) > target:
            of = {place: number for number, group in enumerate(groups) for place in group}
            edges = {tuple(sorted((of[a], of[b]))) for a, b in neighbours if a in of and b in of and of[a] != of[b]}
            mean = [np.mean([vectors[place] for place in group], 0) for group in groups]

            def growth(edge, mean=mean, groups=groups):
                a, b = (len(groups[number]) for number in edge)
                difference = mean[edge[0]] - mean[edge[1]]
                return a * b / (a + b) * float(difference @ difference)

            a, b = min(edges, key=growth)
            groups[a] |= groups.pop(b)
        done += [group for group in groups if not any(place[0] == end - 1 for place in group)]
        groups = [group for group in groups if any(place[0] == end - 1 for place in group)]
        start = end
    labels = np.zeros((frames, rows, cols), int)
    for number, group in enumerate(done + groups):
        for place in group:
            labels[place] = number
    return labels


@given(
    lengths=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    motion=st.integers(0, 1),
    budget=st.integers(2, 5),
    seed=st.integers(0, 200),
)
def test_chunks_equal_a_slow_reference(lengths, motion, budget, seed):
    chunks = list(smooth_clip(sum(lengths), 2, 3, seed=seed).split(lengths))
    labels, finished = run(UnionFindClusterer(num_regions=budget, motion=motion), chunks)
    assert same_partition(labels, slow_stream(chunks, budget, motion))
    assert sum(map(len, finished)) == budget * len(lengths)


@pytest.mark.parametrize("options", [{"num_regions": 9}, {"keep": 0.1}, {"threshold": 0.6}, {"threshold": 0.5, "linkage": "average"}], ids=str)  # fmt: skip
def test_one_chunk_equals_a_call(options):
    clip = smooth_clip(4, 5, 6)
    clusterer = UnionFindClusterer(**options)
    labels, _ = run(clusterer, [clip])
    assert same_partition(labels, clusterer(clip[None]).labels()[0])


def test_finished_regions_describe_their_patches():
    clip = smooth_clip(12, 4, 5)
    valid = torch.rand(12, 4, 5, generator=torch.Generator().manual_seed(1)) < 0.9
    labels, finished = run(UnionFindClusterer(num_regions=8), clip.split(4), valid.split(4))
    assert torch.equal(labels >= 0, valid)
    for part in finished:
        assert part.ids.tolist() == sorted(part.ids.tolist())
        for number, value, area, track in zip(part.ids, part.values, part.areas, part.tracks, strict=True):
            place = (labels == number).nonzero().float()
            assert len(place) == area
            torch.testing.assert_close(value, clip[labels == number].mean(0))
            ends = torch.stack([place[place[:, 0] == end].mean(0) for end in (place[0, 0], place[-1, 0])])
            torch.testing.assert_close(track, ends)


def test_chunks_are_limited_by_max_frames():
    _, finished = run(UnionFindClusterer(num_regions=6, max_frames=3), smooth_clip(9, 3, 3, alike=0.99).split(2))
    for part in finished:
        first, last = part.tracks[..., 0].unbind(1)
        assert torch.equal(first // 3, last // 3)


def test_carrying_over_has_less_error_than_separate_chunks():
    clip = smooth_clip(32, 6, 6, alike=0.98)
    flat = torch.from_numpy(unit(clip)).reshape(-1, 8)

    def error(labels):
        _, region, count = labels.flatten().unique(return_inverse=True, return_counts=True)
        mean = torch.zeros(len(count), 8, dtype=flat.dtype).index_add_(0, region, flat) / count[:, None]
        return float((flat - mean[region]).square().sum())

    clusterer = UnionFindClusterer(num_regions=10)
    carried, _ = run(clusterer, clip.split(4))
    separate = torch.cat([clusterer(chunk[None]).labels()[0] + 10 * i for i, chunk in enumerate(clip.split(4))])
    assert len(carried.unique()) == len(separate.unique()) == 80
    assert error(carried) < 0.9 * error(separate)


def test_invalid_frames_are_rejected():
    stream = UnionFindClusterer(num_regions=2).stream()
    assert stream.close() is None
    with pytest.raises(ShapeError, match=r"frames must be \(frames, rows, cols, dim\); got \(2, 3, 4\)"):
        stream.push(torch.rand(2, 3, 4))
    stream.push(torch.rand(2, 3, 3, 4))
    with pytest.raises(ShapeError, match=r"rows, cols and dim as before, \(3, 3, 4\); got \(3, 2, 4\)"):
        stream.push(torch.rand(2, 3, 2, 4))
    with pytest.raises(ValueRangeError, match="NaN or infinity"):
        stream.push(torch.full((1, 3, 3, 4), torch.nan))
    with pytest.raises(ValueRangeError, match="explained_variance depends on the whole video"):
        UnionFindClusterer(explained_variance=0.5).stream()
    assert len(stream.close()) == 2
    stream.push(torch.rand(1, 5, 5, 8))


def test_a_rejected_chunk_leaves_the_stream_unchanged():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 2, 3, 3, 4, generator=generator)
    parts = torch.zeros(2, 3, 3, dtype=torch.bool)
    parts[0, 0, 0] = parts[0, 0, 2] = parts[0, 2, 0] = parts[0, 2, 2] = True  # not connected, but one region allowed
    options = {"linkage": "ward", "num_regions": 1, "max_frames": 2, "motion": 0}
    expected, stream = UnionFindClusterer(**options).stream(), UnionFindClusterer(**options).stream()
    with pytest.raises(ValueRangeError, match="finite"):
        stream.push(torch.full((2, 4, 4, 4), torch.nan))
    for chunk in (first, second):
        with pytest.raises(ValueRangeError, match="num_regions must be at least"):
            stream.push(chunk, parts)
        ours, theirs = stream.push(chunk), expected.push(chunk)
        assert torch.equal(ours.labels, theirs.labels)
        assert torch.equal(ours.finished.tracks, theirs.finished.tracks)
