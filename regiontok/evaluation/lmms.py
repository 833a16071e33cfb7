"""The lmms-eval plugin for region models; lmms-eval finds `manifest` by its entry point.

    python -m lmms_eval --model regiontok --model_args pretrained=out/instruct/model --tasks pope

``regiontok evaluate`` uses it for the paper's seven benchmarks.
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
from regiontok.evaluation.assistant import Assistant, Question, stock_regionizer
from regiontok.evaluation.cached_masks import CachedMaskGenerator

_base = require("lmms_eval.api.model", extra="eval", distribution="lmms-eval")
_instance = require("lmms_eval.api.instance", extra="eval", distribution="lmms-eval")
_protocol = require("lmms_eval.protocol", extra="eval", distribution="lmms-eval")


def manifest() -> Any:
    """Return the manifest for lmms-eval's entry point group ``lmms_eval.models``."""
    registry = require("lmms_eval.models.registry_v2", extra="eval", distribution="lmms-eval")
    return registry.ModelManifest(model_id="regiontok", chat_class_path=f"{__name__}.RegiontokModel")


class RegiontokModel(_base.lmms):
    """A chat model of lmms-eval: a region model or a stock model. Decoding is greedy, in batches.

    Args:
        pretrained: Folder or name of the model; see `Assistant.load`.
        batch_size: Number of questions per batch.
        device: By default the GPU of each process, or the CPU without a GPU.
        dtype: A dtype, or ``auto`` for that of the checkpoint.
        masks: For a model that needs masks: the name of a generator of `regiontok.masks`, or a store whose keys are
            digests of images; see `CachedMaskGenerator`.
        missing: Name of the generator for masks that the store lacks.
        sam_model: Model of the generator.
        num_regions: For a stock model, like the next five: number of tokens per image.
        keep: Fraction of the patches.
        threshold: Cosine at which merging stops.
        explained_variance: Fraction of the squared deviation to preserve.
        linkage: Linkage of clustering; see `UnionFindClusterer` for all five.
        norm: ``rms`` or ``none``.
        counts: Folder in which each process writes its number of images and region tokens.
        max_batch_size: Not supported; lmms-eval passes None.
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
            raise ValueRangeError(f"batch_size must be an integer >= 1, without max_batch_size; got {batch_size!r}.")
        self.batch_size = int(batch_size)
        self._device = _device(device)
        name = masks if masks in generators.GENERATORS else missing
        generator: Any = None
        if name is not None:
            options: dict[str, Any] = {} if name == "felzenszwalb" else {"device": self._device, "model": sam_model}
            generator = generators.load(name, **options)
        self._cache: CachedMaskGenerator | None = None
        if masks is not None and masks != name:
            self._cache = generator = CachedMaskGenerator(masks, generator, writer=int(os.environ.get("RANK", "0")))
        self.assistant = Assistant.load(
            pretrained,
            regionizer=stock_regionizer(
                norm=norm,
                num_regions=num_regions,
                keep=keep,
                threshold=threshold,
                explained_variance=explained_variance,
                linkage=linkage,
            ),
            masks=generator,
            device=self._device,
            dtype=dtype,
        )
        self._counts = None if counts is None else Path(counts)
        self._images = self._tokens = 0

    @property
    def device(self) -> str:
        """The device of the model."""
        return self._device

    def generate_until(self, requests: list[Any]) -> list[Any]:
        """Return the answers to questions, in order. Images are read batch by batch."""
        try:
            return self._answer(requests)
        finally:
            if self._cache is not None:
                self._cache.flush()

    def _answer(self, requests: list[Any]) -> list[Any]:
        answers: list[Any] = []
        bar = tqdm(total=len(requests), unit="question", desc="regiontok", disable=self.rank != 0)
        for settings, group in groupby(requests, key=lambda request: request.args[2]):
            max_new_tokens, stop = self._generation_settings(settings)
            for batch in _batches(group, self.batch_size):
                questions = [self._question(*request.args) for request in batch]
                for answer in self.assistant.answer(questions, max_new_tokens=max_new_tokens, stop=stop):
                    counts = _instance.TokenCounts(output_tokens=len(answer.tokens))
                    answers.append(_instance.GenerationResult(text=answer.text, token_counts=counts))
                    self._images += len(answer.counts)
                    self._tokens += sum(answer.counts)
                bar.update(len(batch))
        bar.close()
        if self._counts is not None:
            counted = {"images": self._images, "tokens": self._tokens}
            (self._counts / f"counts-{self.rank}.json").write_text(json.dumps(counted), encoding="utf-8")
        return answers

    def _question(self, _: str, messages_of: Any, __: Any, number: int, task: str, split: str) -> Question:
        chat = _protocol.ChatMessages(messages=messages_of(self.task_dict[task][split][number]))
        images, videos, audios = chat.extract_media()
        if videos or audios:
            raise ValueRangeError(f"{task}, question {number}: videos and audio are not supported.")
        if [message.role for message in chat.messages] != ["user"]:
            raise ValueRangeError(f"{task}, question {number}: must be one user turn; few-shot is not supported.")
        texts = [part.text for part in chat.messages[0].content if part.type == "text"]
        return Question("\n".join(texts), images)

    def _generation_settings(self, settings: dict[str, Any]) -> tuple[int, Sequence[str]]:
        """Return the maximum length and the stop strings of a task. Sampling settings are ignored with a warning."""
        if settings.get("do_sample") or float(settings.get("temperature") or 0) > 0 or settings.get("num_beams", 1) > 1:
            warnings.warn(f"decoding is greedy, as in the paper; ignoring {settings} of the task.", stacklevel=3)
        stop = settings.get("until") or []
        return int(settings.get("max_new_tokens") or 1024), [stop] if isinstance(stop, str) else stop

    def loglikelihood(self, requests: list[Any]) -> Any:
        """Raise an error: likelihoods are not supported."""
        raise ValueRangeError("regiontok generates answers; tasks that compare likelihoods are not supported.")

    def generate_until_multi_round(self, requests: list[Any]) -> Any:
        """Raise an error: tasks of several rounds are not supported."""
        raise ValueRangeError("regiontok answers one question at a time; tasks of several rounds are not supported.")


def _batches(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while batch := list(islice(items, size)):
        yield batch


def _device(device: str | None) -> str:
    if device not in (None, "cuda") or not torch.cuda.is_available():
        return device or "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
