"""What each of two processes does in a test: train some families, where the second sees text alone."""

import sys
from pathlib import Path

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from regiontok import Regionizer
from regiontok.adapters.huggingface import with_regions
from tests.families import CASES


def train(name, rank):
    case = CASES[name]
    stock = case.make()
    dim = with_regions(stock, Regionizer(pool="mean")).patch_dim
    model = with_regions(stock, Regionizer(dim=dim, num_heads=4, num_regions=6)).train()
    for one, parameter in model.named_parameters():
        parameter.requires_grad_(not any(part in one for part in ("vision_tower", "visual", "vision_model")))
    parallel = DistributedDataParallel(model, find_unused_parameters=False)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-2)
    losses = []
    for step in range(3):
        given = case.inputs([[5, "c", 6, 7 + step]] if rank == 0 else [[8, 9, 10 + step, 4]])
        given["labels"] = given["input_ids"].clone()
        loss = parallel(**given).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return {"losses": losses, "weights": model.state_dict()}


def main(folder, *names):
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    for name in names:
        torch.save(train(name, rank), Path(folder) / f"{name}-{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
