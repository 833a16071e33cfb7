"""Masks and tokens of any number of images in a folder of Parquet shards, local or remote.

    store = MaskStore("masks")                   # or "s3://bucket/masks"
    masks = store["train2017/000000000009.jpg"]  # a mapping from keys

    loader = DataLoader(store.as_dataset(), batch_size=32, collate_fn=collate)

``regiontok masks`` and ``regiontok tokenize --store`` write stores from folders of images; rerun the same command to
resume it. `write_masks` and `write_tokens` write stores from a program.

A store is a folder with these files:

    _store.json                    the kind of the store, the provenance of its rows, and the image folders
    _options-DIGEST.json           provenance, dimension and dtype that shards must have; see `regiontok.store.records`
    part-WRITER-NUMBER.parquet     shards with a row per image; see `regiontok.store.masks` and `regiontok.store.tokens`
    _failed-WRITER-NUMBER.parquet  failed images with the reason

Parquet readers skip files with a leading underscore, so ``pandas.read_parquet("tokens")`` reads the rows. Files are
written atomically, and each writer has its own number, so several writers can share a folder.
"""

from regiontok.store.collate import collate
from regiontok.store.keys import check_key
from regiontok.store.manifest import Manifest
from regiontok.store.masks import MaskStore, write_masks
from regiontok.store.tokens import TokenStore, write_tokens
from regiontok.store.writer import StoreWriter

__all__ = ["Manifest", "MaskStore", "StoreWriter", "TokenStore", "check_key", "collate", "write_masks", "write_tokens"]
