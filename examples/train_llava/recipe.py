"""Hyperparameters of the two stages of LLaVA-1.5, and the rows of Table 1 of the paper by name."""

import dataclasses
from typing import Any

from regiontok.presets import TABLE_1, Row

REGIONS_AND_PROJECTOR = ("model.regionizer.", "model.multi_modal_projector.")
LANGUAGE_MODEL = ("model.language_model.", "lm_head.")


@dataclasses.dataclass(frozen=True)
class Stage:
    """Hyperparameters of one training stage.

    Attributes:
        name: ``align`` or ``instruct``.
        trained: Name prefixes of the trained weights. All other weights are frozen.
        batch_size: Samples per optimizer step, over all processes and accumulation steps.
        learning_rate: Peak learning rate of a cosine schedule with warm-up.
        geometry: Mode of the `ImageGeometry` for images and masks.
        template: Name of the prompt template in `conversations.TEMPLATES`.
        warmup: Fraction of steps for the warm-up.
        max_length: Maximum number of tokens of a sample, including region tokens.
        max_steps: Maximum number of steps; -1 for one epoch, as in the paper.
        extra_arguments: Further arguments of transformers' ``TrainingArguments``.
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
    extra_arguments: tuple[tuple[str, Any], ...] = ()

    def replace(self, **changes: Any) -> "Stage":
        """Return a copy with some fields replaced."""
        return dataclasses.replace(self, **changes)

    def training_arguments(self, folder: str, *, per_device: int, processes: int, **changes: Any) -> dict[str, Any]:
        """Return arguments for transformers' ``TrainingArguments``."""
        steps, remainder = divmod(self.batch_size, per_device * processes)
        if remainder or not steps:
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
            "warmup_steps": self.warmup,  # a fraction if below 1
            "weight_decay": 0.0,
            "seed": 42,
            "remove_unused_columns": False,  # the stock model has no arguments for masks and sizes
            "ddp_find_unused_parameters": False,  # batches of text also give gradients for every trained weight
            "report_to": "none",
        } | dict(self.extra_arguments) | changes  # fmt: skip


ALIGN = Stage("align", REGIONS_AND_PROJECTOR, 256, 1e-3, geometry="center_crop", template="plain")
INSTRUCT = Stage(
    "instruct", REGIONS_AND_PROJECTOR + LANGUAGE_MODEL, 128, 2e-5, geometry="letterbox", template="vicuna_v1"
)
"""Batch size, learning rate, epochs, precision and seed are from Supplement A.2, the rest from LLaVA-1.5's scripts."""


def row(name: str) -> Row:
    """Return a row of Table 1 by its name."""
    if name not in TABLE_1:
        raise SystemExit(f"there is no row {name!r}. List them with --rows.")
    return TABLE_1[name]


def print_rows() -> None:
    """Print all rows with the results of the paper."""
    width = max(map(len, TABLE_1))
    columns = list(next(iter(TABLE_1.values())).figures)
    print(f"{'row':<{width}}  " + "  ".join(f"{column:>{max(6, len(column))}}" for column in columns))
    for name, table_row in TABLE_1.items():
        figures = ("-" if value is None else f"{value:g}" for value in table_row.figures.values())
        cells = (f"{figure:>{max(6, len(column))}}" for figure, column in zip(figures, columns, strict=True))
        print(f"{name:<{width}}  " + "  ".join(cells))
