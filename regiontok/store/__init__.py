"""Masks and tokens of any number of images, on a disk or elsewhere: a folder of Parquet shards.

    store = MaskStore("masks")                   # or "s3://bucket/masks"
    masks = store["train2017/000000000009.jpg"]  # a mapping from keys

    loader = DataLoader(store.rows(), batch_size=32, collate_fn=collate)

``regiontok masks`` and ``regiontok tokenize --store`` write stores of folders of images, and go on where they stopped;
`write_masks` and `write_tokens` write what a program makes.

A store is a folder with

    store.json                    what it holds, made by which options, of which images
    part-WRITER-NUMBER.parquet    shards, a row per image: see `regiontok.store.masks` and `regiontok.store.tokens`
    failed-WRITER-NUMBER.parquet  images that failed: key and reason

Each file appears whole or not at all, and each writer has numbers of its own, so that many may share a folder.
"""

from regiontok.store.collate import collate
from regiontok.store.keys import check_key
from regiontok.store.manifest import Manifest
from regiontok.store.masks import MaskStore, write_masks
from regiontok.store.tokens import TokenStore, write_tokens
from regiontok.store.writer import StoreWriter

__all__ = ["Manifest", "MaskStore", "StoreWriter", "TokenStore", "check_key", "collate", "write_masks", "write_tokens"]
