"""Images to stores of masks or tokens: listed, read, made in batches and written, here or by Ray Data.

listing = Listing(["images"])
work = MakeTokens(encoder, Regionizer(pool="mean"))
with StoreWriter("tokens", Manifest(kind=work.kind, made_by=work.describe())) as writer:
fill(writer, listing, listing, work, batch=16, workers=4)

roots     which folder keys are below
listing   which images there are
work      what is made of them
run       the threads of one process
ray       the actors of a cluster
"""

from regiontok.pipeline.listing import ListedImage, Listing, Reader, in_slice
from regiontok.pipeline.run import Made, Stop, fill, make_rows
from regiontok.pipeline.work import GenerateMasks, MakeTokens, TakeMasks, Work

__all__ = [
    "GenerateMasks",
    "ListedImage",
    "Listing",
    "Made",
    "MakeTokens",
    "Reader",
    "Stop",
    "TakeMasks",
    "Work",
    "fill",
    "in_slice",
    "make_rows",
]
