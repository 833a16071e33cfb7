"""Run jobs that turn images into stores of masks or tokens, in one process or on a Ray cluster.

Example:
    listing = Listing(["images"])
    job = TokenizeJob(encoder, Regionizer(pool="mean"))
    with StoreWriter("tokens", Manifest(kind=job.kind, provenance=job.describe())) as writer:
        run_job(writer, listing, listing, job, batch_size=16, num_readers=4)

Modules:

    files       local and remote files and folders
    roots       image folders and keys
    containers  datasets, Parquet files and tars
    sources     folders, patterns and lists of images
    listing     the images of all sources with their keys, and their reader
    jobs        the computation of rows from images
    memory      a limit for the images in memory
    run         the threads of one process
    ray         the actors of a cluster
"""

from regiontok.pipeline.jobs import GenerateMasksJob, ImportMasksJob, Job, TokenizeJob
from regiontok.pipeline.listing import ListedImage, Listing, Reader, in_slice
from regiontok.pipeline.run import BatchResult, make_rows, run_job

__all__ = [
    "BatchResult",
    "GenerateMasksJob",
    "ImportMasksJob",
    "Job",
    "ListedImage",
    "Listing",
    "Reader",
    "TokenizeJob",
    "in_slice",
    "make_rows",
    "run_job",
]
