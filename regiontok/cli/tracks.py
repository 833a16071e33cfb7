"""``regiontok tracks``: find the objects of videos and their masks in every frame, and write a file per video."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

from regiontok._files import make_folder, read_json
from regiontok.cli.console import one_line, progress
from regiontok.cli.inputs import open_listing
from regiontok.cli.mask_sources import load_generator
from regiontok.cli.output import report
from regiontok.cli.values import FrameChoice, GeneratorChoice, ListingChoice, TrackChoice
from regiontok.errors import DataError, RegiontokError
from regiontok.masks.tracking import AutomaticTracks, load_predictor
from regiontok.pipeline.run import IMAGE_ERRORS
from regiontok.sampling import FrameSampling
from regiontok.track_files import read_tracks, write_tracks
from regiontok.tracks import TrackSet


def run_tracks(options: Namespace) -> int:
    """Run ``tracks``, and return the exit code."""
    sampling, choice = FrameChoice.of(options) or FrameSampling(), TrackChoice.of(options)
    listing = open_listing(ListingChoice.of(options), frames=sampling)
    videos = list(listing)
    folder = make_folder(options.out)
    predictor = load_predictor(choice.predictor, model=choice.video_model, device=options.device)
    settings = {name: value for name, value in vars(choice).items() if name in ("max_objects", "new_area")}
    generator = load_generator(GeneratorChoice(options.masks or "sam2", options.sam_model), options.device)
    find = AutomaticTracks(predictor, generator, every=choice.key_every, **settings)
    info = find.describe() | {"frames": sampling.describe()}
    errors: dict[str, str] = {}
    made = skipped = 0
    for video in progress(videos):
        target = track_file(folder, video.key)
        if target.is_file() and not options.overwrite:
            check_info(target, info)
            skipped += 1
            continue
        try:
            frames = listing.read_video(video)
            tracks = find(frames.frames)
            numbered = {frames.indices[place]: masks for place, masks in tracks.frames.items()}
            make_folder(target.parent)
            write_tracks(target, replace(tracks, frames=numbered, num_frames=frames.num_frames), info=info)
        except IMAGE_ERRORS as error:
            errors[video.path] = str(error) or "not enough memory"
        else:
            made += 1
    print(f"{made} videos tracked, {skipped} skipped as finished -> {one_line(folder)}")
    return report(errors, len(videos), "videos")


def track_file(folder: Path, key: str) -> Path:
    """Return the file of the tracks of a video."""
    return folder / f"{key}.tracks.json"


def check_info(file: Path, info: dict[str, Any]) -> None:
    """Raise an error for a file that was made with other settings."""
    previous = read_json(file).get("info")
    if previous != info:
        raise RegiontokError(
            f"{file} was made with other settings, {previous}; now they are {info}. Name another folder, or pass "
            "--overwrite."
        )


class TrackFiles:
    """Tracks that ``regiontok tracks`` wrote, or files of the same names in a format of `read_tracks`.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise DataError(f"{folder}: there is no such folder of tracks. Write it with regiontok tracks.")
        self.folder = folder

    def __call__(self, key: str, indices: list[int], num_frames: int) -> TrackSet:
        """Return the tracks of sampled frames of a video.

        Raises:
            DataError: There are no tracks of the video, or they have another number of frames.
        """
        file = track_file(self.folder, key)
        if not file.is_file():
            raise DataError(f"there are no tracks of this video: {file} does not exist.")
        tracks = read_tracks(file)
        if tracks.num_frames != num_frames:
            raise DataError(f"{file} has {tracks.num_frames} frames, and the video {num_frames}. Track it again.")
        return tracks.at(indices)

    def describe(self) -> dict[str, Any]:
        """Return the folder of the tracks."""
        return {"tracks": str(self.folder)}
