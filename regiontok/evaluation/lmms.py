"""Region models in lmms-eval, whose entry point for models names `manifest`.

    python -m lmms_eval --model regiontok --model_args pretrained=out/instruct/model --tasks pope

``regiontok evaluate`` runs the paper's seven benchmarks so. Tested with lmms-eval 0.7.3.
"""

import json
import os
import warnings
from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from regiontok import masks as generators
from regiontok._require import require
from regiontok.errors import ValueRangeError
from regiontok.evaluation.assistant import Assistant, Question, stock_regions
from regiontok.evaluation.kept import KeptMasks

_base = require("lmms_eval.api.model", extra="eval", distribution="lmms-eval")
_instance = require("lmms_eval.api.instance", extra="eval", distribution="lmms-eval")
_protocol = require("lmms_eval.protocol", extra="eval", distribution="lmms-eval")


def manifest() -> Any:
    """What lmms-eval's entry point group ``lmms_eval.models`` asks for."""
    registry = require("lmms_eval.models.registry_v2", extra="eval", distribution="lmms-eval")
    return registry.ModelManifest(model_id="regiontok", chat_class_path=f"{__name__}.RegiontokModel")


class RegiontokModel(_base.lmms):
    """A region model, or a stock one, that lmms-eval asks in chat form; it answers greedily, in batches.

    Args:
        pretrained: The model's folder or name, as of `Assistant.load`.
        batch_size: Questions at a time.
        device: By default each process's GPU, or the CPU where there is none.
        dtype: ``auto`` is the checkpoint's.
        masks: A generator of `regiontok.masks` by name, for a model of masks; or a store, which keeps masks by a digest
            of the image.
        missing: A generator that makes the masks that the store lacks, and adds them to it.
        sam_model: The generator's model.
        num_regions: For a stock model: so many tokens per image.
        keep: For a stock model: this fraction of the patches.
        threshold: For a stock model: clustering down to this cosine.
        explained_variance: For a stock model: as few tokens as keep this share of the patches' squared deviation.
        linkage: For a stock model: which regions merge first; see `UnionFindClusterer` for all five.
        norm: For a stock model: ``rms`` or ``none``.
        counts: A folder in which each process notes how many region tokens images had.
        max_batch_size: Passed by lmms-eval, and refused.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str = "auto",
        masks: str | None = None,
        missing: str | None = None,
        sam_model: str | None = None,
        num_regions: int | None = None,
        keep: float | None = None,
        threshold: float | None = None,
        explained_variance: float | None = None,
        linkage: str | None = None,
        norm: str | None = None,
        counts: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdigit() or int(batch_size) < 1 or max_batch_size is not None:
            raise ValueRangeError(f"batch_size must be a number from 1, without max_batch_size; got {batch_size!r}.")
        self.batch_size = int(batch_size)
        self._device = _device(device)
        name = masks if masks in generators.GENERATORS else missing
        generate: Any = None
        if name is not None:
            more: dict[str, Any] = {} if name == "felzenszwalb" else {"device": self._device, "model": sam_model}
            generate = generators.load(name, **more)
        self._kept = None
        if masks is not None and masks != name:
            self._kept = generate = KeptMasks(masks, generate, writer=int(os.environ.get("RANK", "0")))
        self.assistant = Assistant.load(
            pretrained,
            regionizer=stock_regions(
                norm=norm,
                num_regions=num_regions,
                keep=keep,
                threshold=threshold,
                explained_variance=explained_variance,
                linkage=linkage,
            ),
            masks=generate,
            device=self._device,
            dtype=dtype,
        )
        self._counts = None if counts is None else Path(counts)
        self._images = self._tokens = 0

    @property
    def device(self) -> str:
        """Where the model is."""
        return self._device

    def generate_until(self, requests: list[Any]) -> list[Any]:
        """Answers to questions, in their order; images are read batch by batch."""
        try:
            return self._answers(requests)
        finally:
            if self._kept is not None:
                self._kept.flush()

    def _answers(self, requests: list[Any]) -> list[Any]:
        answers: list[Any] = []
        bar = tqdm(total=len(requests), unit="question", desc="regiontok", disable=self.rank != 0)
        for settings, same in groupby(requests, key=lambda one: one.args[2]):
            length, stop = self._greedy(settings)
            for batch in _batches(same, self.batch_size):
                questions = [self._question(*one.args) for one in batch]
                made = self.assistant.answer(questions, max_new_tokens=length, stop=stop)
                for answer in made:
                    counts = _instance.TokenCounts(output_tokens=len(answer.tokens))
                    answers.append(_instance.GenerationResult(text=answer.text, token_counts=counts))
                    self._images += len(answer.counts)
                    self._tokens += sum(answer.counts)
                bar.update(len(batch))
        bar.close()
        if self._counts is not None:
            noted = {"images": self._images, "tokens": self._tokens}
            (self._counts / f"counts-{self.rank}.json").write_text(json.dumps(noted), encoding="utf-8")
        return answers

    def _question(self, _: str, messages_of: Any, __: Any, number: int, task: str, split: str) -> Question:
        chat = _protocol.ChatMessages(messages=messages_of(self.task_dict[task][split][number]))
        images, videos, sounds = chat.extract_media()
        if videos or sounds:
            raise ValueRangeError(f"{task}, question {number}: videos and sounds are not cut into regions.")
        if [message.role for message in chat.messages] != ["user"]:
            raise ValueRangeError(f"{task}, question {number}: it must be one turn of a user; examples are not shown.")
        words = [part.text for part in chat.messages[0].content if part.type == "text"]
        return Question("\n".join(words), images)

    def _greedy(self, settings: dict[str, Any]) -> tuple[int, Sequence[str]]:
        """The length and the stops that a task asks for; that it asks for chance is told, and not done."""
        if settings.get("do_sample") or float(settings.get("temperature") or 0) > 0 or settings.get("num_beams", 1) > 1:
            warnings.warn(f"decoding is greedy, as in the paper; the task asks for {settings}.", stacklevel=3)
        stop = settings.get("until") or []
        return int(settings.get("max_new_tokens") or 1024), [stop] if isinstance(stop, str) else stop

    def loglikelihood(self, requests: list[Any]) -> Any:
        """Not offered: none of the benchmarks asks for it."""
        raise ValueRangeError("regiontok generates answers; tasks that compare likelihoods are not supported.")

    def generate_until_multi_round(self, requests: list[Any]) -> Any:
        """Not offered: none of the benchmarks asks for it."""
        raise ValueRangeError("regiontok answers one question at a time; tasks of several rounds are not supported.")


def _batches(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while batch := list(islice(items, size)):
        yield batch


def _device(named: str | None) -> str:
    if named not in (None, "cuda") or not torch.cuda.is_available():
        return named or "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
