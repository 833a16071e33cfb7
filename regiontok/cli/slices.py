"""The slice of the images that a process writes to a store: ``R/N``, or the numbers of torchrun or Slurm."""

import os

from regiontok.errors import RegiontokError

_VARIABLES = {
    "torchrun": [("RANK", "WORLD_SIZE")],
    "slurm": [("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"), ("SLURM_PROCID", "SLURM_NTASKS")],
}
_LOCAL_RANK = {"torchrun": "LOCAL_RANK", "slurm": "SLURM_LOCALID"}


def read_slice(text: str) -> tuple[int, int]:
    """Return the number of this process, counted from 0, and the number of processes.

    Args:
        text: ``R/N``, or ``torchrun`` or ``slurm`` for the numbers in their environment variables.

    Raises:
        RegiontokError: An invalid text, missing variables, or a Slurm array with gaps.
    """
    try:
        if text in _VARIABLES:
            first, last = next(names for names in _VARIABLES[text] if names[0] in os.environ)
            rank, world_size = int(os.environ[first]), int(os.environ[last])
            if first == "SLURM_ARRAY_TASK_ID":
                rank = _array_index(rank, world_size)
        else:
            rank, world_size = map(int, text.split("/"))
    except (ValueError, KeyError, StopIteration):
        raise RegiontokError(
            f"--slice must be R/N such as 0/4, or torchrun or slurm in a process that they started; got {text}."
        ) from None
    if not 0 <= rank < world_size:
        raise RegiontokError(f"--slice must be R/N with R from 0 to N - 1; got {rank}/{world_size}.")
    return rank, world_size


def _array_index(task: int, count: int) -> int:
    """Return the index of a task in a Slurm array, whose numbers may start anywhere and have a step."""
    start = int(os.environ.get("SLURM_ARRAY_TASK_MIN", "0"))
    step = int(os.environ.get("SLURM_ARRAY_TASK_STEP", "1"))
    end = int(os.environ.get("SLURM_ARRAY_TASK_MAX", str(start + step * (count - 1))))
    if (end - start) // step + 1 != count:
        raise RegiontokError("this Slurm array has gaps, so its numbers are no slices. Use --slice R/N.")
    return (task - start) // step


def local_rank(text: str | None) -> int | None:
    """Return the number of this process on its machine, or None if it is unknown."""
    value = os.environ.get(_LOCAL_RANK.get(text or "", ""))
    return None if value is None else int(value)
