"""What each of two processes does in a test: train, where the second sees text alone."""

import sys
from pathlib import Path

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from regiontok import Regionizer
from regiontok.adapters.huggingface import with_regions
from tests.models import tiny_llava


def main(folder):
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    model = with_regions(tiny_llava(), Regionizer(dim=32, num_heads=4)).train()
    model.model.vision_tower.requires_grad_(False)
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-2)
    losses = []
    for step in range(3):
        images = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(step))
        ids = torch.tensor([[5, 99, 6, 7 + step]] if rank == 0 else [[8, 9, 10 + step, 4]])
        more = {"pixel_values": images} if rank == 0 else {}
        loss = parallel(input_ids=ids, labels=ids, **more).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    torch.save({"losses": losses, "weights": model.state_dict()}, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
