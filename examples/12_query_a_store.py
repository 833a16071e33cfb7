"""
A store queried with SQL
========================

A store is a folder of Parquet files with one row per image. Here, tokens of six images are written to a store,
queried with DuckDB, and read back by key.
"""

import shutil
from pathlib import Path

import duckdb
import real_features

from regiontok import Regionizer, encoders
from regiontok.pipeline import Listing, TokenizeJob, run_job
from regiontok.store import Manifest, StoreWriter, TokenStore

for folder in ("gallery-images", "gallery-tokens"):
    shutil.rmtree(folder, ignore_errors=True)
Path("gallery-images").mkdir()
for name, image in real_features.images().items():
    image.save(f"gallery-images/{name}.jpg")

# %%
# Tokenize the folder. ``regiontok tokenize gallery-images --store gallery-tokens`` does the same.

listing = Listing(["gallery-images"])
job = TokenizeJob(encoders.load("pixels"), Regionizer(explained_variance=0.8, pool="mean"))
manifest = Manifest(kind=job.kind, provenance=job.describe())
with StoreWriter("gallery-tokens", manifest) as writer:
    run_job(writer, listing, listing, job, batch_size=4, num_readers=2)

# %%
# Which images need the most tokens?

query = "select key, height, width, len(tokens) as tokens from 'gallery-tokens/part-*.parquet' order by tokens desc"
print(duckdb.sql(query))

# %%
# A store is a mapping from keys to tokens.

tokens = TokenStore("gallery-tokens")["china.jpg"]
print(tokens.values.shape, tokens.regions.labels().shape)
