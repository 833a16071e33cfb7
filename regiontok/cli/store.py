"""``regiontok store``: what a store has, whether it is whole, and its rows as other files."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from regiontok._files import make_folder, write_bytes, written
from regiontok.cli.common import open_store
from regiontok.cli.console import is_terminal, progress, warn
from regiontok.errors import RegiontokError, StoreError
from regiontok.pipeline import Listing
from regiontok.store import MaskStore, TokenStore, check_key
from regiontok.store.base import Store
from regiontok.store.failures import read_failures
from regiontok.store.manifest import read_manifest
from regiontok.store.places import Place, is_remote
from regiontok.token_files import save_tokens
from regiontok.tokens import RegionTokens

_MOST_NAMED = 20


def run_store(options: argparse.Namespace) -> int:
    """Run ``store``; return the exit code."""
    store = _open(options.store)
    if options.verify:
        return _verify(store, options.images)
    if options.repair:
        return _repair(store)
    if options.export is not None:
        return _export(store, options.export, options.out)
    if options.stats:
        print(json.dumps(_stats(store), indent=2))
        return 0
    print(store)
    for key, value in _stats(store).items():
        if value not in (None, {}, [], 0) and key != "made_by":
            print(f"{key.replace('_', ' ')}: {json.dumps(value) if isinstance(value, list | dict) else value}")
    print(f"made by: {json.dumps(store.made_by)}")
    return 0


def _open(path: str) -> Store[Any]:
    """The store of a folder, of whatever kind."""
    found = read_manifest(Place.of(path))
    kind = TokenStore if found is not None and found.kind == TokenStore.kind else MaskStore
    return open_store(kind, path)


def _stats(store: Store[Any]) -> dict[str, Any]:
    """What can be told of a store without reading its rows."""
    sizes = Place.of(store.path).names()
    counts = np.array([store.count(key) for key in store], np.int64)
    failures = store.failures
    each: dict[str, Any] = {}
    if len(counts):
        quartiles = np.quantile(counts, (0, 0.25, 0.5, 0.75, 1)).tolist()
        each = dict(zip(("least", "quarter", "median", "three_quarters", "most"), quartiles, strict=True))
        each["mean"] = float(counts.mean())
    return {
        "kind": store.kind,
        "images": len(store),
        store.kind: int(counts.sum()),
        f"{store.kind}_per_image": each,
        "shards": len(store.shards),
        "bytes": sum(sizes.get(name, 0) for name in store.shards),
        "failures": len(failures),
        "failure_kinds": store.failure_kinds,
        "first_failures": dict(list(failures.items())[:_MOST_NAMED]),
        "damaged": store.damaged,
        "repeated": store.repeated,
        "images_of": [one.get("name") for one in store.manifest.images],
        "made_by": store.made_by,
    }


def _verify(store: Store[Any], images: str | None) -> int:
    """Read every row; compare the images with those that the rows were made of, if their folder is named."""
    bad = 0
    for key in _progress(store):
        try:
            store.check(key)
        except StoreError as error:
            bad += 1
            if bad <= _MOST_NAMED:
                warn(error)
    if store.repeated:
        warn(f"{store.repeated} rows have a key that another has too; the later one counts.")
    lost = f"{bad} rows and {len(store.damaged)} shards are damaged"
    if bad or store.damaged:
        warn(f"{lost}. Set them aside by --repair; then the command that made the store makes their images again.")
    changed = 0 if images is None else _count_changed(store, images)
    if bad or store.damaged or changed:
        return 1
    print(f"{store!r} is whole; {len(store.failures)} images failed.")
    return 0


def _count_changed(store: Store[Any], images: str) -> int:
    """Name the images in a folder that have changed since their rows were made; return their number."""
    listing = Listing([images])
    several = len(store.manifest.images) > 1  # then keys begin with the folder's name
    changed = seen = 0
    for image in listing:
        key = f"{listing.roots.names[0]}/{image.key}" if several else image.key
        if key not in store:
            continue
        seen += 1
        if store.stamp(key).differs(listing.stamp(image)):
            changed += 1
            if changed <= _MOST_NAMED:
                warn(f"{key} has changed since its row was made.")
    if not seen:
        raise RegiontokError(f"none of the images in {images} is in {store.path}. Name the folder that keys are below.")
    if changed:
        warn(f"{changed} of {seen} images have changed; --remake-changed makes their rows again.")
    return changed


def _repair(store: Store[Any]) -> int:
    """Set aside shards of which anything cannot be read, so that their images are made again."""
    place = Place.of(store.path)
    names = [*store.damaged, *read_failures(place).damaged]
    for name in store.shards:
        alone = type(store)(store.path, shards=[name])
        try:
            for key in alone:
                alone.check(key)
        except StoreError:
            names.append(name)
    for name in names:
        place.set_aside(name)
        print(f"{name} is damaged, and now {name}.damaged")
    print(f"{len(names)} files of {store.path} are set aside." + " Make their images again." * bool(names))
    return 0


def _export(store: Store[Any], kind: str, out: str) -> int:
    """Write every row as a file of its own, or all of them as lines."""
    if is_remote(out):
        raise RegiontokError(f"--out must be a folder on a disk; got {out}.")
    folder = make_folder(out)
    damaged: list[str] = []
    if kind == "jsonl":
        if isinstance(store, TokenStore):
            raise RegiontokError("--export jsonl is for masks; take npz or safetensors for tokens.")
        with written(folder / "annotations.jsonl") as path, path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in _annotations(store, damaged))
        print(f"{len(store) - len(damaged)} images -> {folder / 'annotations.jsonl'}")
        return 1 if damaged else 0
    failed = 0
    for key in _progress(store):
        try:
            _export_one(store, key, kind, folder)
        except (RegiontokError, OSError) as error:
            failed += 1
            if failed <= _MOST_NAMED:
                warn(f"{key}: {error}")
    print(f"{len(store) - failed} images -> {folder}")
    return 1 if failed else 0


def _export_one(store: Store[Any], key: str, kind: str, folder: Path) -> None:
    """A row as a file below the folder, wherever its key would lead."""
    target = folder / f"{check_key(key)}.{kind}"
    make_folder(target.parent)
    value = store[key]
    if kind == "safetensors" and isinstance(value, RegionTokens):
        save_tokens(target, value, config={"image": key, **store.made_by})
    elif kind == "npz":
        arrays: dict[str, Any] = _arrays(value)
        with written(target) as path, path.open("wb") as file:
            np.savez_compressed(file, **arrays)  # without allow_pickle, which NumPy 2.0 would store as an array
    else:
        write_bytes(target, save({name: torch.from_numpy(array) for name, array in _arrays(value).items()}))


def _arrays(value: Any) -> dict[str, np.ndarray]:
    """Tokens with their regions, or masks, as arrays."""
    if isinstance(value, RegionTokens):
        regions = value.regions
        made = {"tokens": value.values, "masks": regions.masks()[0], "mask_index": regions.mask_index}
        return {name: tensor.numpy() for name, tensor in made.items()} | {"scores": regions.score.numpy()}
    arrays = {"masks": np.ascontiguousarray(value.masks().numpy())}
    for name in ("scores", "stability", "ids", "categories"):
        if (found := getattr(value, name)) is not None:
            arrays[name] = np.asarray(found)
    return arrays


def _annotations(store: Store[Any], damaged: list[str]) -> Iterator[dict[str, Any]]:
    """Masks as COCO's annotations, with the image's key as ``file_name``; those that are damaged are noted."""
    for key in _progress(store):
        try:
            masks = store[key]
        except StoreError as error:
            damaged.append(key)
            warn(error)
            continue
        for number, rle in enumerate(masks.to_coco()):
            one = {"file_name": key, "id": number, "segmentation": rle | {"counts": rle["counts"].decode()}}
            one["score"] = None if np.isnan(masks.scores[number]) else float(masks.scores[number])
            if masks.ids is not None:
                one["id"] = int(masks.ids[number])
            if masks.categories is not None:
                one["category_id"] = int(masks.categories[number])
            yield one


def _progress(store: Store[Any]) -> Any:
    return progress(store, least=1000 if is_terminal() else sys.maxsize)
