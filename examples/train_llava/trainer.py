"""transformers' Trainer, with batches grouped by modality and length, and checkpoints of what is trained."""

from typing import Any

import torch
from building import trained_state
from conversations import ByModalityAndLength
from transformers import Trainer


class RegionTrainer(Trainer):
    """Train a region model.

    Args:
        lengths: Of ``Conversations.lengths``, to group batches by; None for plain random order.
        args: Those of ``Trainer``.
        kwargs: Those of ``Trainer``.
    """

    def __init__(self, *args: Any, lengths: list[int] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lengths = lengths

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.lengths is None:
            return super()._get_train_sampler(train_dataset)
        step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return ByModalityAndLength(self.lengths, step, self.args.seed)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Write only what is trained, under the names that resuming looks for.

        transformers' own way writes LLaVA's weights under older names, which its own resuming does not find.
        """
        model = self.accelerator.unwrap_model(self.model)
        if hasattr(model, "peft_config"):
            super()._save(output_dir, state_dict)
            return
        own = trained_state(model)
        kept = own if state_dict is None else {name: state_dict[name] for name in own}
        folder = output_dir or self.args.output_dir
        model.save_pretrained(folder, state_dict=kept, save_original_format=False)
