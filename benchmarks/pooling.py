"""Time of `CrossAttnPool`, compared with a lower bound and with masked ``nn.MultiheadAttention``."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.timing import ratio, save, take_turns
from regiontok import CrossAttnPool, MeanPool, Regions

IMAGES, REGIONS, SIDE, DIM, HEADS = 16, 101, 24, 1024, 16


def make() -> tuple[Tensor, Regions]:
    """Return random features, and regions that are the Voronoi cells of 101 random points."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(IMAGES, SIDE, SIDE, DIM, generator=generator)
    axis = torch.arange(SIDE) + 0.5
    patches = torch.cartesian_prod(axis, axis)
    labels = []
    while len(labels) < IMAGES:
        points = SIDE * torch.rand(REGIONS, 2, generator=generator)
        nearest = torch.cdist(patches, points).argmin(1)
        if len(nearest.unique()) == REGIONS:
            labels.append(nearest.reshape(SIDE, SIDE))
    return features, Regions.from_labels(torch.stack(labels))


def ours_and_theirs(regions: Regions) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Return a pool and torch's attention with the same weights, as functions from features to tokens ``(R, dim)``."""
    torch.manual_seed(0)
    attention = torch.nn.MultiheadAttention(DIM, HEADS, batch_first=True)
    pool = CrossAttnPool(DIM, HEADS)
    for name, weight in zip(("query", "key", "value"), attention.in_proj_weight.chunk(3), strict=True):
        getattr(pool, name).weight.data.copy_(weight)
    pool.out.load_state_dict(attention.out_proj.state_dict())
    blocked = ~torch.stack([masks.flatten(1) for masks in regions.masks()]).repeat_interleave(HEADS, 0)

    def theirs(features: Tensor) -> Tensor:
        mean = MeanPool()(features, regions).values.reshape(IMAGES, REGIONS, DIM)
        patches = features.flatten(1, 2)
        attended, _ = attention(mean, patches, patches, attn_mask=blocked, need_weights=False)
        return (mean + attended).flatten(0, 1)

    return lambda features: pool(features, regions).values, theirs


def main() -> None:
    """Check, measure, print the ratios and save all results."""
    features, regions = make()
    ours, theirs = ours_and_theirs(regions)
    with torch.no_grad():
        if not torch.allclose(ours(features), theirs(features), rtol=1e-4, atol=1e-5):
            raise SystemExit("pooling: regiontok and nn.MultiheadAttention disagree; nothing was timed.")
        projections = torch.nn.ModuleList(torch.nn.Linear(DIM, DIM) for _ in range(4))
        means = MeanPool()(features, regions).values
        forward = take_turns(
            {
                "floor": lambda: [project(means) for project in projections],
                "regiontok": lambda: ours(features),
                "nn.MultiheadAttention": lambda: theirs(features),
            },
            rounds=15,
        )
    trained = features.clone().requires_grad_()

    def step(pool: Callable[[Tensor], Tensor]) -> Tensor:
        trained.grad = None
        pool(trained).square().mean().backward()
        return trained.grad

    if not torch.allclose(step(ours), step(theirs), rtol=1e-3, atol=1e-8):
        raise SystemExit("pooling: gradients of regiontok and nn.MultiheadAttention disagree; nothing was timed.")
    both = take_turns({"regiontok": lambda: step(ours), "nn.MultiheadAttention": lambda: step(theirs)}, rounds=9)
    figures = {
        "shape": {"images": IMAGES, "regions": REGIONS, "patches": SIDE**2, "dim": DIM, "heads": HEADS},
        "forward": forward,
        "forward and backward": both,
        "forward over floor": ratio(forward, "regiontok", "floor"),
        "times faster forward": ratio(forward, "nn.MultiheadAttention", "regiontok"),
        "times faster forward and backward": ratio(both, "nn.MultiheadAttention", "regiontok"),
    }
    print({name: value for name, value in figures.items() if isinstance(value, float)})
    print(save("pooling", figures))


if __name__ == "__main__":
    main()
