"""``regiontok masks``: generate masks of images, or import annotated ones, and write them to a store."""

from argparse import Namespace
from dataclasses import dataclass
from typing import cast

from regiontok.cli.inputs import open_listing
from regiontok.cli.mask_sources import Annotations, load_generator
from regiontok.cli.values import AnnotationChoice, GeneratorChoice, ListingChoice, RunChoice, mask_choice
from regiontok.cli.write_store import num_workers_on, write_store
from regiontok.pipeline import GenerateMasksJob, ImportMasksJob, Job
from regiontok.pipeline.roots import Roots


@dataclass(frozen=True)
class MaskJobMaker:
    """Make the job of ``regiontok masks``, here and in the actors of Ray."""

    masks: GeneratorChoice | Annotations

    def __call__(self, _: Roots, device: str) -> Job:
        """Return the job, with models on a device."""
        if isinstance(self.masks, GeneratorChoice):
            num_workers = num_workers_on(device) if self.masks.name == "felzenszwalb" else 1  # SAM uses all cores
            return GenerateMasksJob(load_generator(self.masks, device), num_workers)
        annotations, missing = self.masks, self.masks.choice.missing
        return ImportMasksJob(
            lambda image, size, orientation: annotations.read(image.path, size, orientation),
            annotations.describe(),
            None if missing is None else load_generator(missing, device),
        )


def run_masks(options: Namespace) -> int:
    """Run ``masks``, and return the exit code."""
    choice = mask_choice(options, default="sam2")
    listing = open_listing(ListingChoice.of(options), for_store=True)
    masks = Annotations(choice, listing) if isinstance(choice, AnnotationChoice) else cast(GeneratorChoice, choice)
    return write_store(options.out, listing, MaskJobMaker(masks), RunChoice.of(options))
