"""transformers' Trainer, with batches grouped by modality and length, and files of what is trained."""

from pathlib import Path
from typing import Any

import torch
from building import STAGE_FILE, trained_names
from conversations import ByModalityAndLength, DataError
from safetensors.torch import save_file
from transformers import Trainer

from regiontok.errors import RegiontokError


class RegionTrainer(Trainer):
    """Train a region model.

    Args:
        lengths: Of ``Conversations.lengths``, to group batches by; None for plain random order.
        max_length: Tokens of a sample, with those of its images: counted here, where their number is known.
        skipped: A file for the names of samples that are longer; None stops at the first.
        args: Those of ``Trainer``.
        kwargs: Those of ``Trainer``.
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
        self._writes = "checkpoint"

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any) -> Any:
        """The loss; errors of masks and images name their samples, and samples that are too long are told."""
        names, held = inputs.pop("names", []), inputs.pop("num_images", None)
        try:
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        except RegiontokError as error:
            raise DataError(f"in the batch of samples {', '.join(names)}: {error}") from error
        self._check_lengths(names, held, inputs, outputs)
        return (loss, outputs) if return_outputs else loss

    def save_stage(self, folder: Path) -> None:
        """Write what was trained, for the next stage; gathered first where it is in shards."""
        self._writes = "stage"
        self.save_model(str(folder))
        self._writes = "checkpoint"

    def save_whole(self, folder: Path) -> None:
        """Write the whole model, to be loaded by its class."""
        self._writes = "model"
        self.save_model(str(folder))
        self._writes = "checkpoint"

    def _check_lengths(self, names: list[str], held: list[int] | None, inputs: dict[str, Any], outputs: Any) -> None:
        if held is None:
            return
        counts = iter(outputs["image_outputs"].regions.counts.tolist())
        text = inputs["attention_mask"].sum(1).tolist()
        for name, words, images in zip(names, text, held, strict=True):
            length = words - images + sum(next(counts) for _ in range(images))
            if length > self.max_length:
                told = f"sample {name}: it has {length} tokens with its regions; at most {self.max_length} fit"
                if self.skipped is None:
                    raise DataError(f"{told}.")
                with self.skipped.open("a", encoding="utf-8") as file:
                    file.write(f"{told}, and it was trained on as it is.\n")

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.lengths is None:
            return super()._get_train_sampler(train_dataset)
        step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return ByModalityAndLength(self.lengths, step, self.args.seed)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Write only what is trained, under the names that resuming looks for.

        transformers' own way writes LLaVA's weights under older names, which its own resuming does not find.
        """
        if not self.args.should_save:
            return
        model, folder = self.accelerator.unwrap_model(self.model), Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if hasattr(model, "peft_config"):
            super()._save(str(folder), state_dict)
            return
        state = model.state_dict() if state_dict is None else state_dict
        if self._writes == "model":
            model.save_pretrained(folder, state_dict=state)
            return
        kept = {name: state[name] for name in trained_names(model)}
        if self._writes == "stage":
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in kept.items()}, folder / STAGE_FILE)
        else:
            model.save_pretrained(folder, state_dict=kept, save_original_format=False)
