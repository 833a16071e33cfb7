"""Time of splitting masks by DBSCAN, compared with a loop over scikit-learn."""

import numpy as np
import torch
from sklearn.cluster import DBSCAN
from threadpoolctl import threadpool_limits
from torch import Tensor

from benchmarks.timing import ratio, save, take_turns
from regiontok import Regions, split_regions

MASKS, SIDE, DIM = 100, 24, 1024


def make(*, noise: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return smooth features ``(24, 24, 1024)`` and 100 elliptical masks on their grid, of about 36 patches each."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, DIM, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bilinear")
    features = (smooth + noise * torch.randn(1, DIM, SIDE, SIDE, generator=generator))[0].permute(1, 2, 0)
    center = SIDE * torch.rand(MASKS, 2, generator=generator)
    radius = 1 + 5 * torch.rand(MASKS, 2, generator=generator)
    y, x = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    tall, wide = radius[:, 0, None, None], radius[:, 1, None, None]
    masks = ((y - center[:, 0, None, None]) / tall) ** 2 + ((x - center[:, 1, None, None]) / wide) ** 2 < 1
    return features.contiguous(), masks[masks.any(2).any(1)]


def by_scikit_learn(features: Tensor, masks: Tensor) -> list[np.ndarray]:
    """Return the labels of the patches of each mask; masks of fewer than 10 patches have label 0."""
    unit = torch.nn.functional.normalize(features.flatten(0, 1), dim=1).numpy()
    labels = []
    for mask in masks.flatten(1).numpy():
        patches = np.flatnonzero(mask)
        split = len(patches) >= 10
        labels.append(
            DBSCAN(eps=0.7, min_samples=3).fit_predict(unit[patches]) if split else np.zeros(len(patches), int)
        )
    return labels


def on_one_thread(features: Tensor, masks: Tensor) -> list[np.ndarray]:
    """Return the same labels with one thread, which is faster on so little data."""
    with threadpool_limits(1):
        return by_scikit_learn(features, masks)


def check(features: Tensor, masks: Tensor) -> int:
    """Return the number of regions; exit if they differ from scikit-learn's."""
    parts = split_regions(features[None], Regions.from_masks([masks])).masks()[0].flatten(1).numpy()
    expected = []
    for mask, labels in zip(masks.flatten(1).numpy(), by_scikit_learn(features, masks), strict=True):
        patches = np.flatnonzero(mask)
        for label in [*range(labels.max() + 1), -1]:
            if (labels == label).any():
                expected.append(np.isin(np.arange(mask.size), patches[labels == label]))
    if not np.array_equal(parts, np.stack(expected)):
        raise SystemExit("splitting: regiontok and scikit-learn disagree; nothing was timed.")
    return len(parts)


def main() -> None:
    """Run the measurements, print and save the results."""
    figures = {"shape": {"masks": MASKS, "grid": SIDE, "dim": DIM}}
    for name, noise in (("few parts", 0.2), ("many parts and noise", 0.35)):
        features, masks = make(noise=noise)
        regions = Regions.from_masks([masks])
        batch = features[None]
        patches = features.flatten(0, 1)
        times = take_turns(
            {
                "regiontok": lambda batch=batch, regions=regions: split_regions(batch, regions),
                "scikit-learn": lambda features=features, masks=masks: by_scikit_learn(features, masks),
                "scikit-learn, one thread": lambda features=features, masks=masks: on_one_thread(features, masks),
                "floor: one matrix product of all patches": lambda patches=patches: patches @ patches.T,
            },
            rounds=25,
        )
        figures[name] = {
            "masks": len(masks),
            "regions": check(features, masks),
            "times": times,
            "times faster": ratio(times, "scikit-learn", "regiontok"),
            "times faster than one thread": ratio(times, "scikit-learn, one thread", "regiontok"),
            "over one matrix product": ratio(times, "regiontok", "floor: one matrix product of all patches"),
        }
        print(name, figures[name])
    print(save("splitting", figures))


if __name__ == "__main__":
    main()
