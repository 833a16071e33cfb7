"""``regiontok store``: describe, verify, repair and export a store."""

import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from regiontok._files import atomic_write, make_folder, write_bytes
from regiontok.cli.console import is_terminal, progress, warn
from regiontok.cli.loading import open_store
from regiontok.errors import RegiontokError, StoreError
from regiontok.pipeline import Listing
from regiontok.store import MaskStore, TokenStore, check_key
from regiontok.store.base import Store
from regiontok.store.failures import read_failures
from regiontok.store.manifest import read_manifest
from regiontok.store.storage import Storage, is_remote
from regiontok.store.token_files import save_tokens
from regiontok.tokens import RegionTokens

_MAX_LISTED = 20
"""The number of rows and failures that are listed."""


def run_store(options: Namespace) -> int:
    """Run ``store``, and return the exit code."""
    manifest = read_manifest(Storage.of(options.store))
    is_tokens = manifest is not None and manifest.kind == TokenStore.kind
    store: Store[Any] = open_store(TokenStore if is_tokens else MaskStore, options.store)
    if options.verify:
        return _verify(store, options.images)
    if options.repair:
        return _repair(store)
    if options.export is not None:
        return _export(store, options.export, options.out)
    stats = _stats(store)
    if options.stats:
        print(json.dumps(stats, indent=2))
        return 0
    print(store)
    for key, value in stats.items():
        if value not in (None, {}, [], 0) and key != "provenance":
            print(f"{key.replace('_', ' ')}: {json.dumps(value) if isinstance(value, list | dict) else value}")
    print(f"made by: {json.dumps(store.provenance)}")
    return 0


def _stats(store: Store[Any]) -> dict[str, Any]:
    """Return statistics that can be computed without reading masks or tokens."""
    sizes = Storage.of(store.path).names()
    counts = np.array([store.count(key) for key in store], np.int64)
    per_image: dict[str, Any] = {}
    if len(counts):
        quartiles = np.quantile(counts, (0, 0.25, 0.5, 0.75, 1)).tolist()
        per_image = dict(zip(("least", "quarter", "median", "three_quarters", "most"), quartiles, strict=True))
        per_image["mean"] = float(counts.mean())
    failures = store.failures
    return {
        "kind": store.kind,
        "images": len(store),
        store.kind: int(counts.sum()),
        f"{store.kind}_per_image": per_image,
        "shards": len(store.shards),
        "bytes": sum(sizes.get(name, 0) for name in store.shards),
        "failures": len(failures),
        "failure_kinds": store.failure_kinds,
        "first_failures": dict(list(failures.items())[:_MAX_LISTED]),
        "damaged": store.damaged,
        "repeated": store.repeated,
        "images_of": [folder.get("name") for folder in store.manifest.images],
        "provenance": store.provenance,
    }


def _verify(store: Store[Any], images: str | None) -> int:
    """Read every row. If an image folder is given, also find the images that changed after their row was written."""
    errors = []
    for key in _progress(store):
        try:
            store.check(key)
        except StoreError as error:
            errors.append(error)
    for damage in errors[:_MAX_LISTED]:
        warn(damage)
    if store.repeated:
        warn(f"{store.repeated} rows have the same key as a later row, and are ignored.")
    if errors or store.damaged:
        warn(
            f"{len(errors)} rows and {len(store.damaged)} shards are damaged. Rename their files with --repair; then "
            "run the command that wrote the store again."
        )
    num_changed = 0 if images is None else _count_changed(store, images)
    if errors or store.damaged or num_changed:
        return 1
    print(f"{store!r} is complete; {len(store.failures)} images failed.")
    return 0


def _count_changed(store: Store[Any], images: str) -> int:
    """List the images in a folder that changed after their row was written, and return their number."""
    listing = Listing([images])
    prefix = f"{listing.roots.names[0]}/" if len(store.manifest.images) > 1 else ""  # as in keys of several folders
    stored = [(f"{prefix}{image.key}", image) for image in listing if f"{prefix}{image.key}" in store]
    if not stored:
        raise RegiontokError(f"{store.path} has no image of {images}. Name the folder that keys are relative to.")
    changed = [key for key, image in stored if store.stamp(key).differs(listing.stamp(image))]
    for key in changed[:_MAX_LISTED]:
        warn(f"{key} has changed since its row was written.")
    if changed:
        warn(f"{len(changed)} of {len(stored)} images have changed. Process them again with --remake-changed.")
    return len(changed)


def _repair(store: Store[Any]) -> int:
    """Rename the damaged files of a store, so that their images are processed again."""
    storage = Storage.of(store.path)
    names = [*store.damaged, *read_failures(storage).damaged]
    for name in store.shards:
        shard = type(store)(store.path, shards=[name])
        try:
            for key in shard:
                shard.check(key)
        except StoreError:
            names.append(name)
    for name in names:
        print(f"{name} is damaged; it is renamed to {storage.quarantine(name)}")
    print(f"{len(names)} files of {store.path} are damaged." + " Process their images again." * bool(names))
    return 0


def _export(store: Store[Any], kind: str, out: str) -> int:
    """Write every row to a file, or all rows to one file of annotations; and return the exit code."""
    if is_remote(out):
        raise RegiontokError(f"--out must be a local folder; got {out}.")
    if kind == "jsonl" and isinstance(store, TokenStore):
        raise RegiontokError("--export jsonl requires masks. Export tokens as npz or safetensors.")
    target = folder = make_folder(out)
    errors: list[str] = []
    if kind == "jsonl":
        target = folder / "annotations.jsonl"
        with atomic_write(target) as path, path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(annotation) + "\n" for annotation in _annotations(store, errors))
    else:
        for key in _progress(store):
            try:
                _write_row(store[key], folder / f"{check_key(key)}.{kind}", {"image": key, **store.provenance})
            except (RegiontokError, OSError) as error:
                errors.append(f"{key}: {error}")
    for message in errors[:_MAX_LISTED]:
        warn(message)
    print(f"{len(store) - len(errors)} images -> {target}")
    return 1 if errors else 0


def _write_row(value: Any, target: Path, config: dict[str, Any]) -> None:
    """Write masks or tokens to a file of the kind of its suffix."""
    make_folder(target.parent)
    if target.suffix == ".npz":
        arrays: dict[str, Any] = _arrays(value)
        with atomic_write(target) as path, path.open("wb") as file:
            np.savez_compressed(file, **arrays)  # without allow_pickle, which NumPy 2.0 would store as an array
    elif isinstance(value, RegionTokens):
        save_tokens(target, value, config=config)
    else:
        write_bytes(target, save({name: torch.from_numpy(array) for name, array in _arrays(value).items()}))


def _arrays(value: Any) -> dict[str, np.ndarray]:
    """Return masks, or tokens with their regions, as arrays."""
    if isinstance(value, RegionTokens):
        regions = value.regions
        tensors = {"tokens": value.values, "masks": regions.masks()[0], "mask_index": regions.mask_index}
        return {name: tensor.numpy() for name, tensor in (tensors | {"scores": regions.score}).items()}
    arrays = {"masks": np.ascontiguousarray(value.masks().numpy())}
    names = ("scores", "stability", "ids", "categories")
    return arrays | {name: np.asarray(getattr(value, name)) for name in names if getattr(value, name) is not None}


def _annotations(store: Store[Any], errors: list[str]) -> Iterator[dict[str, Any]]:
    """Yield masks as COCO annotations, with the key of the image as ``file_name``; add damaged rows to the errors."""
    for key in _progress(store):
        try:
            masks = store[key]
        except StoreError as error:
            errors.append(str(error))
            continue
        for number, rle in enumerate(masks.to_coco()):
            annotation = {"file_name": key, "id": number, "segmentation": rle | {"counts": rle["counts"].decode()}}
            annotation["score"] = None if np.isnan(masks.scores[number]) else float(masks.scores[number])
            if masks.ids is not None:
                annotation["id"] = int(masks.ids[number])
            if masks.categories is not None:
                annotation["category_id"] = int(masks.categories[number])
            yield annotation


def _progress(store: Store[Any]) -> Any:
    return progress(store, least=1000 if is_terminal() else sys.maxsize)
