"""A transformers Trainer that groups batches by modality and length, and saves only trained weights."""

from pathlib import Path
from typing import Any

import torch
from building import STAGE_FILE, trained_names
from conversations import ByModalityAndLength, DataError
from safetensors.torch import save_file
from transformers import Trainer

from regiontok.errors import RegiontokError


class RegionTrainer(Trainer):
    """Trainer for a region model.

    Args:
        lengths: Lengths from ``Conversations.lengths``, to group samples of similar length; None for random order.
        max_length: Maximum number of tokens of a sample, checked here because some sources give the number of region
            tokens only after encoding.
        skipped: File to which the names of longer samples are written; None to stop at the first.
        args: Arguments of ``Trainer``.
        kwargs: Arguments of ``Trainer``.
    """

    def __init__(
        self,
        *args: Any,
        lengths: list[int] | None = None,
        max_length: int = 2048,
        skipped: Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.lengths = lengths
        self.max_length = max_length
        self.skipped = skipped
        self._save_mode = "checkpoint"

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any) -> Any:
        """Return the loss.

        Raises:
            DataError: Masks or images are invalid (the message names the samples of the batch), or a sample is longer
                than ``max_length``.
        """
        names, num_images = inputs.pop("names", []), inputs.pop("num_images", None)
        try:
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        except RegiontokError as error:
            raise DataError(f"in the batch of samples {', '.join(names)}: {error}") from error
        self._check_lengths(names, num_images, inputs, outputs)
        return (loss, outputs) if return_outputs else loss

    def save_stage(self, folder: Path) -> None:
        """Save the trained weights for the next stage. Sharded weights are gathered first."""
        self._save_mode = "stage"
        self.save_model(str(folder))
        self._save_mode = "checkpoint"

    def save_full_model(self, folder: Path) -> None:
        """Save the whole model, to be loaded with ``from_pretrained``."""
        self._save_mode = "model"
        self.save_model(str(folder))
        self._save_mode = "checkpoint"

    def _check_lengths(
        self, names: list[str], num_images: list[int] | None, inputs: dict[str, Any], outputs: Any
    ) -> None:
        if num_images is None:
            return
        counts = iter(outputs["image_outputs"].regions.counts.tolist())
        lengths = inputs["attention_mask"].sum(1).tolist()
        for name, prompt_length, images in zip(names, lengths, num_images, strict=True):
            length = prompt_length - images + sum(next(counts) for _ in range(images))
            if length > self.max_length:
                message = f"sample {name}: it has {length} tokens with its regions; at most {self.max_length} fit"
                if self.skipped is None:
                    raise DataError(f"{message}.")
                with self.skipped.open("a", encoding="utf-8") as file:
                    file.write(f"{message}. Training used the full sample.\n")

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.lengths is None:
            return super()._get_train_sampler(train_dataset)
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return ByModalityAndLength(self.lengths, batch_size, self.args.seed)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Save only trained weights, under the names that resuming expects.

        By default, transformers saves the weights of LLaVA under older names, which its own resuming does not find.
        """
        if not self.args.should_save:
            return
        model, folder = self.accelerator.unwrap_model(self.model), Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if hasattr(model, "peft_config"):
            super()._save(str(folder), state_dict)
            return
        state = model.state_dict() if state_dict is None else state_dict
        if self._save_mode == "model":
            model.save_pretrained(folder, state_dict=state)
            return
        trained = {name: state[name] for name in trained_names(model)}
        if self._save_mode == "stage":
            weights = {name: tensor.detach().cpu().contiguous() for name, tensor in trained.items()}
            save_file(weights, folder / STAGE_FILE)
        else:
            model.save_pretrained(folder, state_dict=trained, save_original_format=False)
