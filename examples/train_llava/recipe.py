"""LLaVA-1.5's two stages, as numbers, and the rows of the paper's Table 1 by name."""

from dataclasses import dataclass, replace
from typing import Any

from regiontok.presets import TABLE_1, Row

REGIONS_AND_PROJECTOR = ("model.regionizer.", "model.multi_modal_projector.")
LANGUAGE_MODEL = ("model.language_model.", "lm_head.")


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
        name: ``align`` or ``instruct``.
        trained: What is trained, by the beginning of its weights' names; the rest is frozen.
        batch_size: Samples per step, over all processes and accumulated.
        learning_rate: The highest; it rises over the warm-up and falls as a cosine.
        geometry: How images, and their masks, are placed.
        template: Which of `conversations.TEMPLATES` writes the prompts.
        warmup: The share of steps over which the rate rises.
        max_length: Tokens of a sample, regions included.
        max_steps: Stop there; -1 for one epoch, as the paper.
        more: Further arguments of transformers' ``TrainingArguments``.
    """

    name: str
    trained: tuple[str, ...]
    batch_size: int
    learning_rate: float
    geometry: str
    template: str
    warmup: float = 0.03
    max_length: int = 2048
    max_steps: int = -1
    more: tuple[tuple[str, Any], ...] = ()

    def but(self, **changes: Any) -> "Stage":
        """The same stage with some numbers changed."""
        return replace(self, **changes)

    def arguments(self, folder: str, *, per_device: int, processes: int, **changes: Any) -> dict[str, Any]:
        """What transformers' ``TrainingArguments`` takes."""
        steps, rest = divmod(self.batch_size, per_device * processes)
        if rest or not steps:
            raise SystemExit(
                f"stage {self.name}: --per-device-batch times processes must divide the batch of {self.batch_size}; "
                f"got {per_device} x {processes}."
            )
        return {
            "output_dir": folder,
            "num_train_epochs": 1,
            "max_steps": self.max_steps,
            "per_device_train_batch_size": per_device,
            "gradient_accumulation_steps": steps,
            "learning_rate": self.learning_rate,
            "lr_scheduler_type": "cosine",
            "warmup_steps": self.warmup,  # a share where it is below 1
            "weight_decay": 0.0,
            "seed": 42,
            "remove_unused_columns": False,  # masks and sizes are no columns of the stock model
            "ddp_find_unused_parameters": False,  # text alone reaches every weight too
            "report_to": "none",
        } | dict(self.more) | changes  # fmt: skip


ALIGN = Stage("align", REGIONS_AND_PROJECTOR, 256, 1e-3, geometry="center_crop", template="plain")
INSTRUCT = Stage(
    "instruct", REGIONS_AND_PROJECTOR + LANGUAGE_MODEL, 128, 2e-5, geometry="letterbox", template="vicuna_v1"
)
"""Supplement A.2 for batch, rate, epoch, precision and seed; LLaVA-1.5's scripts for the rest."""


def row(name: str) -> Row:
    """A row of Table 1 by its name."""
    if name not in TABLE_1:
        raise SystemExit(f"there is no row {name!r}. List them with --rows.")
    return TABLE_1[name]


def print_rows() -> None:
    """List all rows with the paper's figures."""
    width = max(map(len, TABLE_1))
    columns = list(next(iter(TABLE_1.values())).figures)
    print(f"{'row':<{width}}  " + "  ".join(f"{column:>{max(6, len(column))}}" for column in columns))
    for name, one in TABLE_1.items():
        figures = ("-" if value is None else f"{value:g}" for value in one.figures.values())
        cells = (f"{figure:>{max(6, len(column))}}" for figure, column in zip(figures, columns, strict=True))
        print(f"{name:<{width}}  " + "  ".join(cells))
