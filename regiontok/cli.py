"""The command line: ``regiontok tokenize``, ``demo`` and ``env``."""

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from PIL import Image
from safetensors.torch import save
from sklearn.datasets import load_sample_image
from tqdm import tqdm

from regiontok import __version__, encoders
from regiontok.clustering import UnionFindClusterer
from regiontok.encoders import Encoder
from regiontok.errors import RegiontokError
from regiontok.ordering import ORDERS
from regiontok.photos import read_photo
from regiontok.regionizer import NORMS, PADDINGS, SOURCES, Regionizer
from regiontok.regions import RegionTokens
from regiontok.viewing import draw_regions

_STAGES = ("read", "encode", "normalize", "group", "pool", "write")
_T = TypeVar("_T")


class Row(NamedTuple):
    """One line of the table: a photo, its counts, and seconds per stage."""

    photo: str
    patches: int
    regions: int
    seconds: dict[str, float]


class Stopwatch:
    """Seconds per stage; waits for the device, whose work would else be counted in a later stage."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    def time(self, stage: str, work: Callable[[], _T]) -> _T:
        """Run ``work`` and note how long it took."""
        start = time.perf_counter()
        result = work()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[stage] = time.perf_counter() - start
        return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is 0, 1 where a photo failed, 2 where the command could not run."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except RegiontokError as error:
        print(f"regiontok: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="regiontok", description="Region tokenizers for multimodal language models.")
    parser.add_argument("--version", action="version", version=f"regiontok {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    tokenize = commands.add_parser(
        "tokenize",
        help="cut photos into region tokens",
        description="Write, per photo, NAME.regions.png (its regions, outlined and filled) and "
        "NAME.regions.safetensors: tokens (K, dim), labels (rows, cols; -1 for padding), and the options as JSON. "
        "A token is its region's mean.",
    )
    tokenize.add_argument("photos", nargs="+", type=Path, metavar="PHOTO")
    tokenize.add_argument(
        "--encoder",
        default="pixels",
        help=f"pixels (default, needs no weights), {', '.join(encoders.ENCODERS)}, timm:MODEL or open_clip:MODEL/TAG",
    )
    tokenize.add_argument("--weights", type=Path, metavar="FILE", help="safetensors file with the encoder's weights")
    tokenize.add_argument(
        "--geometry",
        default="letterbox",
        choices=("letterbox", "squash", "center_crop"),
        help="how a photo is brought to the encoder's input; default: %(default)s",
    )
    tokenize.add_argument("--source", default="clustering", choices=SOURCES, help="of regions; default: %(default)s")
    amount = tokenize.add_mutually_exclusive_group()
    amount.add_argument(
        "--threshold",
        type=float,
        metavar="T",
        help="merge neighbours while their cosine is at least T; fewer regions for a lower T; default: 0.7",
    )
    amount.add_argument("--tokens", type=int, metavar="K", help="exactly K tokens per photo instead")
    tokenize.add_argument("--connectivity", type=int, default=4, choices=(4, 8), help="neighbours; default: 4")
    tokenize.add_argument("--norm", default="rms", choices=NORMS, help="of patch features; default: %(default)s")
    tokenize.add_argument("--order", default="raster", choices=ORDERS, help="of the tokens; default: %(default)s")
    tokenize.add_argument("--seed", type=int, default=0, help="of the random order; default: %(default)s")
    tokenize.add_argument("--padding", default="drop", choices=PADDINGS, help="letterbox padding; default: %(default)s")
    tokenize.add_argument("--device", default="cpu", help="such as cuda; default: cpu")
    tokenize.add_argument("--out", type=Path, default=Path("regiontok-out"), metavar="DIR", help="default: %(default)s")
    tokenize.set_defaults(run=_tokenize)

    demo = commands.add_parser("demo", help="cut scikit-learn's sample photo into region tokens, offline, in seconds")
    demo.add_argument("--out", type=Path, default=Path("regiontok-demo"), metavar="DIR", help="default: %(default)s")
    demo.set_defaults(run=_demo)

    env = commands.add_parser("env", help="print versions and what runs where")
    env.set_defaults(run=_env)
    return parser


def _tokenize(options: argparse.Namespace) -> int:
    if options.source == "patch" and options.threshold is not None:
        raise RegiontokError("--threshold is for --source clustering. Leave it out.")
    encoder = encoders.load(options.encoder, weights=options.weights, geometry=options.geometry, device=options.device)
    regionizer = Regionizer(
        source=options.source,
        norm=options.norm,
        pool="mean",  # what an untrained cross-attention pool gives
        order=options.order,
        seed=options.seed,
        threshold=0.7 if options.threshold is None else options.threshold,
        num_regions=options.tokens,
        connectivity=options.connectivity,
        padding=options.padding,
    )
    out = _make_folder(options.out)
    _warm_up()
    rows, failed = [], []
    names = _output_names(options.photos, out)
    for path, name in tqdm(list(zip(options.photos, names, strict=True)), unit="photo", disable=len(names) == 1):
        try:
            rows.append(_tokenize_photo(str(path), partial(read_photo, path), encoder, regionizer, out / name))
        except (RegiontokError, OSError, MemoryError) as error:
            told = str(error) or "not enough memory"
            failed.append(told if told.startswith(f"{path}:") else f"{path}: {told}")
    if rows:
        _print_table(rows)
        print(f"Pictures and tokens are in {out}{os.sep}")
    for message in failed:
        print(f"regiontok: {message}", file=sys.stderr)
    if failed:
        print(f"regiontok: {len(failed)} of {len(names)} photos failed and are named above.", file=sys.stderr)
    return 1 if failed else 0


def _demo(options: argparse.Namespace) -> int:
    start = time.perf_counter()
    encoder = encoders.load("pixels")
    regionizer = Regionizer(pool="mean")
    out = _make_folder(options.out)
    compiling = _warm_up()
    row = _tokenize_photo(
        "china.jpg", lambda: Image.fromarray(load_sample_image("china.jpg")), encoder, regionizer, out / "china"
    )
    _print_table([row])
    whole = time.perf_counter() - start
    print(f"\n{row.patches} patches -> {row.regions} regions; see {out / 'china.regions.png'}")
    print(
        f"Clustering took {1000 * row.seconds['group']:.1f} ms of {whole:.1f} s "
        f"({compiling:.1f} s of that to load or compile it)."
    )
    return 0


def _env(_: argparse.Namespace) -> int:
    print(f"regiontok      {__version__}")
    print(f"python         {platform.python_version()} on {platform.platform()}")
    for package in ("torch", "numpy", "scipy", "scikit-learn", "einops", "numba", "pillow", "safetensors"):
        print(f"{package:<14} {importlib.metadata.version(package)}")
    extras = {
        "timm": "encoders",
        "open_clip_torch": "encoders",
        "sam2": "sam2",
        "transformers": "hf",
        "matplotlib": "viz",
    }
    for package, extra in extras.items():
        try:
            print(f"{package:<14} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"{package:<14} not installed (pip install 'regiontok[{extra}]')")
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    print(f"cuda device    {cuda}")
    compiled = (
        "uncompiled, since NUMBA_DISABLE_JIT is set"
        if os.environ.get("NUMBA_DISABLE_JIT", "0") != "0"
        else "compiled by numba"
    )
    print(f"clustering     on the CPU, {compiled}; a batch on {torch.get_num_threads()} threads")
    print("other steps    where the features are")
    return 0


def _tokenize_photo(
    photo: str, read: Callable[[], Image.Image], encoder: Encoder, regionizer: Regionizer, target: Path
) -> Row:
    """Run one photo through every stage and write its picture and tensors beside ``target``."""
    watch = Stopwatch(encoder.mean.device)
    image = watch.time("read", read)
    features, valid = watch.time("encode", lambda: encoder(image))
    features = watch.time("normalize", lambda: regionizer.normalize(features))
    regions = watch.time("group", lambda: regionizer.order(regionizer.group(features, valid=valid)))
    tokens = watch.time("pool", lambda: regionizer.pool(features, regions))
    watch.time("write", lambda: _write(photo, image, encoder, regionizer, tokens, target))
    patches = int(valid.sum()) if regionizer.config["padding"] == "drop" else valid.numel()
    return Row(photo, patches, len(regions), watch.seconds)


def _write(
    photo: str, image: Image.Image, encoder: Encoder, regionizer: Regionizer, tokens: RegionTokens, target: Path
) -> None:
    regions = tokens.regions
    placement = encoder.geometry.place((image.height, image.width))
    draw_regions(image, regions, placement).save(_picture(target))
    description = {
        "regiontok": __version__,
        "photo": photo,
        "photo_size": [image.height, image.width],
        "encoder": encoder.name,
        "geometry": encoder.geometry.to_config(),
        "regionizer": regionizer.config,
    }
    tensors = {"tokens": tokens.values.cpu().contiguous(), "labels": regions.labels()[0].int().cpu().contiguous()}
    _tensors(target).write_bytes(save(tensors, metadata={"config": json.dumps(description)}))


def _warm_up() -> float:
    """Compile before the first photo, whose times would else tell of compiling; returns the seconds it took."""
    start = time.perf_counter()
    UnionFindClusterer()(torch.ones(1, 1, 2, 1))
    return time.perf_counter() - start


def _picture(target: Path) -> Path:
    return target.with_name(target.name + ".regions.png")


def _tensors(target: Path) -> Path:
    return target.with_name(target.name + ".regions.safetensors")


def _output_names(photos: Sequence[Path], out: Path) -> list[str]:
    """A name per photo: its stem, with a number where that would write over another's output, or over a photo."""
    kept = {photo.resolve() for photo in photos}
    taken: set[str] = set()
    names = []
    for photo in photos:
        name, number = photo.stem, 2
        while name.lower() in taken or _picture(out / name).resolve() in kept:
            name, number = f"{photo.stem}-{number}", number + 1
        taken.add(name.lower())
        names.append(name)
    return names


def _make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RegiontokError(f"--out must be a folder that can be made; got {folder} ({error.strerror}).") from error
    return folder


def _print_table(rows: Sequence[Row]) -> None:
    width = min(40, max(5, *(len(row.photo) for row in rows)))
    print(f"{'photo':<{width}}  patches  regions  " + "  ".join(f"{stage:>9}" for stage in _STAGES) + "  ms")
    for row in rows:
        name = row.photo if len(row.photo) <= width else "..." + row.photo[3 - width :]
        times = "  ".join(f"{1000 * row.seconds[stage]:>9.1f}" for stage in _STAGES)
        print(f"{name:<{width}}  {row.patches:>7}  {row.regions:>7}  {times}")
