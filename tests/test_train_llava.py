"""The recipe of examples/train_llava, on a few toy scenes for a few steps."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoProcessor,
    BitImageProcessor,
    Dinov2Config,
    Dinov2Model,
    PreTrainedTokenizerFast,
    TrainerCallback,
    TrainingArguments,
    pipeline,
)

from regiontok import Regionizer, read_image
from regiontok.adapters.huggingface import RegionLlavaForConditionalGeneration
from regiontok.encoders import Encoder
from regiontok.errors import CheckpointError
from regiontok.presets import TABLE_1, Row
from regiontok.store import MaskStore, write_masks

FOLDER = Path(__file__).parent.parent / "examples" / "train_llava"
sys.path.insert(0, str(FOLDER))

import building  # noqa: E402
import conversations  # noqa: E402
import equal_tokens  # noqa: E402
import language  # noqa: E402
import recipe  # noqa: E402
import scenes  # noqa: E402
import templates  # noqa: E402
import tiny  # noqa: E402
import toy_encoder  # noqa: E402
import train  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Return a folder with a few scenes and a language model of a few steps."""
    folder = tmp_path_factory.mktemp("toy")
    tiny.prepare(folder, train=24, test=6, language_steps=3)
    return folder


def make(work, *, seed=0, **options):
    torch.manual_seed(seed)
    regions = {"source": "segmentation", "num_heads": 8, "geometry": toy_encoder.PIXELS.geometry} | options
    return building.build("pixels", work / "language", regions, pretrained=False, img_size=scenes.SIDE)


def dataset(work, tokenizer, model, file="questions.json", template="bare", **options):
    data = work / "data"
    masks = conversations.StoredMasks(MaskStore(data / "masks"))
    defaults = {
        "tokenizer": tokenizer,
        "template": templates.TEMPLATES[template],
        "image_processor": building.image_processor(model.model.vision_tower, "squash"),
        "masks": masks,
        "visual_tokens": conversations.VisualTokens("segmentation", 144),
    }
    return conversations.Conversations(
        data / file if isinstance(file, str) else file, data / "images", **(defaults | options)
    )


def stage(base, steps, template, **changes):
    return tiny.toy_stage(base, steps, template).replace(batch_size=4, **changes)


def run(model, tokenizer, training_stage, work, out, file, **options):
    masks = conversations.StoredMasks(MaskStore(work / "data" / "masks"))
    return train.run_stage(
        model,
        tokenizer,
        training_stage,
        data=work / "data" / file,
        images=work / "data" / "images",
        masks=masks,
        out=out,
        per_device=4,
        **options,
    )


def test_stages_have_the_hyperparameters_of_the_paper():
    for training_stage, batch_size, rate in ((recipe.ALIGN, 256, 1e-3), (recipe.INSTRUCT, 128, 2e-5)):
        settings = training_stage.training_arguments("out", per_device=16, processes=4)
        assert settings["gradient_accumulation_steps"] * 16 * 4 == batch_size
        assert (settings["learning_rate"], settings["num_train_epochs"], settings["seed"]) == (rate, 1, 42)
        assert (settings["warmup_steps"], settings["lr_scheduler_type"]) == (0.03, "cosine")
        assert TrainingArguments(**settings, use_cpu=True).get_warmup_steps(1000) == 30
    assert (recipe.ALIGN.geometry, recipe.INSTRUCT.geometry) == ("center_crop", "letterbox")
    with pytest.raises(SystemExit, match="must divide the batch of 128; got 48 x 1"):
        recipe.INSTRUCT.training_arguments("out", per_device=48, processes=1)


@pytest.mark.parametrize("file", sorted(FOLDER.glob("configs/*.json")), ids=lambda file: file.stem)
def test_configs_are_valid_training_arguments(file):
    settings = json.loads(file.read_text())
    assert settings.pop("tf32")  # not available on a CPU
    if "deepspeed" in settings:  # not installed here
        assert set(settings) <= set(TrainingArguments.__dataclass_fields__)
        assert settings["deepspeed"]["zero_optimization"]["stage"] == int(file.stem[-1])
        return
    defaults = {"activation_checkpointing": True, "dataloader_num_workers": 4}  # defaults of train.py
    arguments = TrainingArguments(
        **recipe.INSTRUCT.training_arguments("out", per_device=16, processes=1, **(defaults | settings)), use_cpu=True
    )
    assert arguments.bf16
    if "fsdp" in settings:
        assert arguments.fsdp_config["activation_checkpointing"]


def test_rows_are_printed_with_the_results_of_the_paper(capsys):
    train.main(["--rows"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(TABLE_1)
    assert all(
        row.options.get("padding") == ("keep" if row.options["source"] == "patch" else None) for row in TABLE_1.values()
    )
    assert lines[-7].split()[1:6] == ["134", "14.88", "84.76", "264", "59.35"]


def test_prompts_have_the_format_of_llava():
    turns, files = conversations.read_turns(
        {"id": 1, "image": "a.png", "conversations": [
            {"from": "human", "value": "What is it?\n<image>"}, {"from": "gpt", "value": "A cat."},
            {"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes."},
        ]}
    )  # fmt: skip
    assert files == ["a.png"]
    text, spans = templates.TEMPLATES["vicuna_v1"].write(turns, "</s>")
    assert text == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
        "and polite answers to the user's questions. USER: <image>\nWhat is it? ASSISTANT: A cat.</s>USER: Sure? "
        "ASSISTANT: Yes.</s>"
    )
    assert [text[start:end] for start, end in spans] == ["A cat.</s>", "Yes.</s>"]
    text, spans = templates.TEMPLATES["plain"].write(turns[:1], "</s>")
    assert text == "<image>A cat.\n"
    assert [text[start:end] for start, end in spans] == ["A cat.\n"]


def test_only_answers_have_labels(work):
    model, tokenizer = make(work)
    sample = dataset(work, tokenizer, model)[0]
    entry = json.loads((work / "data" / "questions.json").read_text())[0]
    answers = [turn["value"] for turn in entry["conversations"] if turn["from"] == "gpt"]
    assert tokenizer.decode(sample["labels"][sample["labels"] >= 0]).split() == answers
    assert (sample["input_ids"] == tokenizer.convert_tokens_to_ids("<image>")).sum() == 1
    assert sample["image_sizes"] == [(192, 192)]
    assert sample["pixel_values"].shape == (1, 3, 192, 192)


def test_only_answers_have_labels_with_a_subword_tokenizer(work):
    """The tokenizer joins a space to the next piece, like that of Vicuna."""
    pieces = Tokenizer(models.BPE(unk_token="<unk>"))
    pieces.pre_tokenizer, pieces.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>", "<image>"]
    text = [templates.TEMPLATES["vicuna_v1"].system + "USER: ASSISTANT: how many circles two three what colour blue"]
    pieces.train_from_iterator(text, trainers.BpeTrainer(vocab_size=150, special_tokens=special, show_progress=False))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pieces, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    model, _ = make(work)
    sample = dataset(work, tokenizer, model, template="vicuna_v1").sample(
        entry(conversations=[
            {"from": "human", "value": "how many circles\n<image>"}, {"from": "gpt", "value": "two, or three"},
            {"from": "human", "value": "what colour"}, {"from": "gpt", "value": "blue"},
        ])
    )  # fmt: skip
    learned = tokenizer.decode(sample["labels"][sample["labels"] >= 0]).replace(" ", "")
    assert learned == "two,orthree</s>blue</s>".replace(",", "<unk>" if tokenizer.get_vocab().get(",") is None else ",")
    assert (sample["input_ids"] == tokenizer.convert_tokens_to_ids("<image>")).sum() == 1


def test_a_batch_joins_samples_with_and_without_images(work):
    model, tokenizer = make(work)
    samples = dataset(work, tokenizer, model)
    text = samples.sample(
        {"id": "t", "conversations": [{"from": "human", "value": "how many"}, {"from": "gpt", "value": "two"}]}
    )
    batch = conversations.Collator(tokenizer.pad_token_id, needs_masks=True)([samples[0], text, samples[1]])
    assert batch.pop("names") == ["00000", "t", "00001"]
    assert batch.pop("num_images") == [1, 0, 1]
    assert len(batch["masks"]) == len(batch["pixel_values"]) == 2
    assert model(**batch).loss.isfinite()
    text_only = conversations.Collator(tokenizer.pad_token_id, needs_masks=True)([text])
    assert set(text_only) == {"names", "input_ids", "attention_mask", "labels"}


def entry(**changes):
    turns = [{"from": "human", "value": "<image>\nhow many"}, {"from": "gpt", "value": "two"}]
    return {"id": "x7", "image": "00000.png", "conversations": turns} | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conversations": [{"from": "system", "value": "a"}]}, "sample x7: turn 0 is from 'system'; it must be from 'human' or 'gpt'"),
        ({"conversations": [{"from": "gpt", "value": "a"}]}, "sample x7: turn 0 is from 'gpt', out of turn"),
        ({"image": ["00000.png", "00001.png"]}, "sample x7: its questions hold 1 <image> and it names 2 images"),
        ({"image": None}, "sample x7: its questions hold 1 <image> and it names 0 images"),
        ({"conversations": []}, "sample x7: it must end with an answer"),
        ({"conversations": [{"from": "human", "value": "<image>"}]}, "sample x7: it must end with an answer"),
        ({"conversations": [{"from": "human"}]}, "sample x7: turn 0 has no text"),
        ({"conversations": [{"value": "a"}]}, "sample x7: turn 0 is from None"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "<image>"}]}, "sample x7: turn 1 is an answer; only questions may hold <image>"),
        ({"image": "none.png"}, "sample x7: .*none.png: there is no such file"),
        ({"image": "broken.png"}, "sample x7: .*broken.png: damaged or truncated"),
        ({"image": "other.png"}, "sample x7: .*other.png"),
        ({"conversations": [{"from": "human", "value": "<image>\n" + "how " * 200}, {"from": "gpt", "value": "two"}]}, "sample x7: it has 2.. tokens including its images; at most 100 fit"),
    ],
)  # fmt: skip
def test_errors_name_invalid_samples_and_options_skip_them(work, tmp_path, changes, message):
    shutil.copy(
        work / "data" / "images" / "00000.png", work / "data" / "images" / "other.png"
    )  # an image without masks
    (work / "data" / "images" / "broken.png").write_bytes((work / "data" / "images" / "00000.png").read_bytes()[:900])
    model, tokenizer = make(work)
    file = tmp_path / "bad.json"
    file.write_text(json.dumps([entry(**changes), entry(id="good")]))
    with pytest.raises(conversations.DataError, match=message):
        dataset(work, tokenizer, model, file, max_length=100)[0]
    options = {"on_bad_image": "skip", "on_too_long": "skip", "skipped": tmp_path / "skipped.txt", "max_length": 100}
    if ("image" not in changes and "tokens" not in message) or "hold" in message:
        with pytest.raises(conversations.DataError, match=message):
            dataset(work, tokenizer, model, file, **options)[0]
        return
    assert dataset(work, tokenizer, model, file, **options)[0]["name"] == "good"
    assert "sample x7" in (tmp_path / "skipped.txt").read_text()
    file.write_text(json.dumps([entry(**changes)]))
    with pytest.raises(conversations.DataError, match="all samples were skipped"):
        dataset(work, tokenizer, model, file, **options)[0]


class StopAt(TrainerCallback):
    """Interrupt training after a number of steps."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step == self.step


def test_errors_of_a_batch_name_the_samples(work, tmp_path):
    model, tokenizer = make(work)
    Image.fromarray(np.zeros((100, 90, 3), np.uint8)).save(work / "data" / "images" / "small.png")
    file = tmp_path / "one.json"
    file.write_text(json.dumps([entry(image="small.png")]))
    write_masks(tmp_path / "masks", [("small.png", MaskStore(work / "data" / "masks")["00000.png"])], provenance={})
    store = MaskStore(tmp_path / "masks")
    with pytest.raises(
        conversations.DataError,
        match=r"in the batch of samples x7: masks\[0\]: masks must be of their image's size \(100, 90\); got \(192, 192\)",
    ):
        train.run_stage(
            model, tokenizer, stage(recipe.ALIGN, 1, "bare"), data=file, images=work / "data" / "images", masks=conversations.StoredMasks(store),
            out=tmp_path, per_device=4,
        )  # fmt: skip


@pytest.mark.parametrize("option", ["error", "skip"])
def test_samples_that_are_too_long_after_encoding_are_named(work, tmp_path, option):
    """The number of regions from clustering is known only after encoding. Here every patch is a region."""
    model, tokenizer = make(work, source="clustering", threshold=1.0)
    options = {
        "data": work / "data" / "questions.json",
        "images": work / "data" / "images",
        "masks": None,
        "out": tmp_path,
        "per_device": 4,
    }
    training_stage = stage(recipe.ALIGN, 1, "bare", max_length=100)
    if option == "error":
        with pytest.raises(
            conversations.DataError, match=r"sample 000..: it has 1.. tokens with its regions; at most 100 fit"
        ):
            train.run_stage(model, tokenizer, training_stage, **options)
        return
    train.run_stage(model, tokenizer, training_stage, **options, on_too_long="skip")
    lines = (tmp_path / "skipped.txt").read_text().splitlines()
    assert len(lines) == 4
    assert all("Training used the full sample" in line for line in lines)


def test_batches_have_one_modality_and_similar_lengths_and_depend_on_the_seed():
    lengths = [*range(1, 81), *(-length for length in range(1, 41))]
    sampler = conversations.ByModalityAndLength(lengths, 8, seed=3)
    order = list(sampler)
    assert sorted(order) == list(range(120))
    assert order == list(sampler) == list(conversations.ByModalityAndLength(lengths, 8, seed=3))
    sampler.set_epoch(1)
    assert order != list(sampler)
    spread = []
    for start in range(0, 120, 8):
        batch = [lengths[index] for index in order[start : start + 8]]
        assert len({length > 0 for length in batch}) == 1
        spread.append(max(map(abs, batch)) - min(map(abs, batch)))
    assert np.mean(spread) < 12


def test_lengths_include_the_number_of_masks(work):
    model, tokenizer = make(work)
    samples = dataset(work, tokenizer, model)
    entries = json.loads((work / "data" / "questions.json").read_text())
    num_masks = len(MaskStore(work / "data" / "masks")["00000.png"])
    words = sum(len(turn["value"].split()) for turn in entries[0]["conversations"])
    assert samples.lengths()[0] == words + num_masks


@pytest.mark.parametrize("source", ["clustering", "combined"])
def test_the_second_stage_starts_from_the_weights_of_the_first(work, tmp_path, source):
    model, tokenizer = make(work, source=source, order="random")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run(model, tokenizer, stage(recipe.ALIGN, 3, "bare_caption"), work, tmp_path / "align", "captions.json")
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {"model.multi_modal_projector.linear_1.weight", "model.regionizer.pool.out.weight"} <= changed
    assert all(name.startswith(recipe.REGIONS_AND_PROJECTOR) for name in changed)
    second, _ = make(work, seed=1, source=source, order="random")
    building.load_stage(second, tmp_path / "align")
    for name, tensor in second.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    run(second, tokenizer, stage(recipe.INSTRUCT, 3, "bare"), work, tmp_path / "instruct", "questions.json")
    assert not torch.equal(second.lm_head.weight, model.lm_head.weight)
    loaded = RegionLlavaForConditionalGeneration.from_pretrained(tmp_path / "instruct" / "model")
    for name, tensor in second.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_load_stage_rejects_other_pools_and_encoders(work, tmp_path):
    model, _ = make(work)
    other, _ = make(work, pool="mean")
    for folder, trained in ((tmp_path, model), (tmp_path / "mean", other)):
        building.freeze_except(trained, recipe.REGIONS_AND_PROJECTOR)
        folder.mkdir(exist_ok=True)
        state = trained.state_dict()
        save_file({name: state[name] for name in building.trained_names(trained)}, folder / building.STAGE_FILE)
    with pytest.raises(CheckpointError, match=r"holds model.regionizer.pool.*, which this model does not have"):
        building.load_stage(other, tmp_path)
    with pytest.raises(CheckpointError, match=r"has no model.regionizer.pool.*, which this model needs"):
        building.load_stage(model, tmp_path / "mean")
    with pytest.raises(CheckpointError, match="there is no .*trained.safetensors"):
        building.load_stage(model, tmp_path / "none")
    model.model.regionizer = Regionizer(dim=64, num_heads=8)
    with pytest.raises(
        CheckpointError, match=r"must be \(64, 64\) for this model; got \(48, 48\). The encoder or language model is"
    ):
        building.load_stage(model, tmp_path)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft calls it
@pytest.mark.parametrize("lora", [None, 4])
def test_resumed_training_equals_uninterrupted_training(work, tmp_path, lora):
    settings = {"logging_strategy": "steps", "logging_steps": 1, "save_strategy": "steps", "save_steps": 3}

    def train_stage(out, **options):
        model, tokenizer = make(work, source="clustering", order="random")
        instruct = stage(recipe.INSTRUCT, 6, "bare")
        trainer = run(model, tokenizer, instruct, work, out, "questions.json", training=settings, lora=lora, **options)
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], model.state_dict()

    losses, weights = train_stage(tmp_path / "uninterrupted", resume=True)  # without a checkpoint to resume from
    first_losses, _ = train_stage(tmp_path / "interrupted", callbacks=[StopAt(3)])
    resumed_losses, resumed_weights = train_stage(tmp_path / "interrupted", resume=True)
    assert (len(losses), len(first_losses)) == (6, 3)
    assert resumed_losses == losses
    for name, tensor in weights.items():
        assert torch.equal(resumed_weights[name], tensor), name


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft calls it
def test_lora_is_merged_into_the_saved_model(work, tmp_path):
    model, tokenizer = make(work, source="clustering")
    before = model.lm_head.weight.clone(), model.model.language_model.layers[0].self_attn.q_proj.weight.clone()
    trainer = run(model, tokenizer, stage(recipe.INSTRUCT, 3, "bare"), work, tmp_path, "questions.json", lora=4)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    loaded = RegionLlavaForConditionalGeneration.from_pretrained(tmp_path / "model")
    state = trainer.model.state_dict()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert torch.equal(loaded.lm_head.weight, before[0])
    assert not torch.equal(loaded.model.language_model.layers[0].self_attn.q_proj.weight, before[1])
    assert loaded.regionizer.pool.out.weight.any()


def test_trained_weights_are_cast_to_float32(work):
    torch.manual_seed(0)
    regions = {"source": "clustering", "num_heads": 8}
    model, _ = building.build(
        "pixels", work / "language", regions, pretrained=False, img_size=scenes.SIDE, dtype=torch.bfloat16
    )
    building.freeze_except(model, recipe.REGIONS_AND_PROJECTOR)
    building.cast_trained(model)
    assert (
        model.model.multi_modal_projector.linear_1.weight.dtype
        == model.regionizer.pool.out.weight.dtype
        == torch.float32
    )
    assert model.lm_head.weight.dtype == torch.bfloat16
    ids = torch.tensor([[1, model.config.image_token_id, 9, 8]])
    with torch.autocast("cpu", torch.bfloat16):
        model.train()(input_ids=ids, pixel_values=torch.rand(1, 3, 192, 192), labels=ids).loss.backward()
    assert model.regionizer.pool.out.weight.grad.dtype == torch.float32


def test_the_command_line_runs_both_stages_of_a_row(work, tmp_path, monkeypatch, capsys):
    """The encoder without weights replaces that of the paper."""
    options = TABLE_1["radio-384/combined/rms/cross_attention/raster"].options
    monkeypatch.setattr(recipe, "row", lambda _: Row("pixels", options, {}))
    data = work / "data"
    arguments = ["--row", "radio-384/combined/rms/cross_attention/raster", "--language-model", str(work / "language")]
    arguments += ["--images", str(data / "images"), "--masks", str(data / "masks"), "--out", str(tmp_path)]
    arguments += ["--per-device-batch", "32", "--max-steps", "1", "--workers", "0"]
    train.main([*arguments, "--stage", "align", "--data", str(data / "captions.json")])
    assert (tmp_path / "align" / building.STAGE_FILE).is_file()
    train.main([*arguments, "--stage", "instruct", "--data", str(data / "questions.json")])
    loaded = RegionLlavaForConditionalGeneration.from_pretrained(tmp_path / "instruct" / "model")
    config = loaded.regionizer.config.to_dict()
    assert {name: config[name] for name in options} == options
    assert (tmp_path / "instruct" / "model" / "tokenizer.json").is_file()
    assert config["geometry"]["mode"] == "letterbox"
    assert "Stage instruct: 24 samples" in capsys.readouterr().out


def test_a_trained_model_works_with_processor_generate_and_pipeline(work, tmp_path):
    model, tokenizer = make(work, source="clustering")
    run(model, tokenizer, stage(recipe.INSTRUCT, 2, "bare"), work, tmp_path, "questions.json")
    loaded = RegionLlavaForConditionalGeneration.from_pretrained(tmp_path / "model")
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    image = read_image(work / "data" / "images" / "00000.png")
    sample = dataset(work, tokenizer, model).sample(entry())
    chat = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "how many"}]}]
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
    assert torch.equal(inputs["pixel_values"], sample["pixel_values"])
    placeholder = tokenizer.convert_tokens_to_ids("<image>")
    ids = inputs["input_ids"][0].tolist()
    assert ids.count(placeholder) == 144
    assert [token for token in ids if token != placeholder] == [
        token for token in sample["input_ids"].tolist() if token != placeholder
    ][:-1]
    inputs.pop("mm_token_type_ids", None)
    generated = loaded.generate(**inputs, max_new_tokens=3, do_sample=False)
    expected = loaded.generate(
        input_ids=sample["input_ids"][None, :-1], pixel_values=sample["pixel_values"], max_new_tokens=3, do_sample=False
    )
    assert torch.equal(generated[0, -3:], expected[0, -3:])
    answer = pipeline("image-text-to-text", model=loaded, processor=processor)(
        chat, max_new_tokens=3, return_full_text=False, do_sample=False
    )
    assert answer[0]["generated_text"].split() == tokenizer.decode(generated[0, -3:], skip_special_tokens=True).split()


def test_the_chat_template_matches_the_training_prompts(work):
    """A prompt ends before the space at the start of the answer."""
    vicuna, tokenizer = templates.TEMPLATES["vicuna_v1"], language.toy_tokenizer()

    def render(chat):
        return tokenizer.apply_chat_template(chat, chat_template=vicuna.jinja("</s>"), tokenize=False)

    image = [{"type": "text", "text": "how "}, {"type": "image"}, {"type": "text", "text": "many"}]
    chat = [
        {"role": "user", "content": image},
        {"role": "assistant", "content": [{"type": "text", "text": "two"}]},
        {"role": "user", "content": "sure"},
    ]
    turns = [("<image>\nhow many", "two"), ("sure", "")]
    assert render(chat) == vicuna.write(turns, "</s>")[0].removesuffix(" ")
    assert (
        render([*chat, {"role": "assistant", "content": "yes"}]) == vicuna.write([turns[0], ("sure", "yes")], "</s>")[0]
    )
    system = {"role": "system", "content": "Be brief."}
    assert render([system, *chat]) == render(chat).replace(vicuna.system, "Be brief. ")
    with pytest.raises(Exception, match="roles must be system"):
        render([*chat, {"role": "tool", "content": "x"}])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stage", "align"], "--row is required"),
        (["--row", "clip-336/none"], "--stage is required"),
        (["--row", "clip-336/none", "--stage", "align", "--language-model", "x", "--data", "x", "--images", "x"], "there is no row 'clip-336/none'. List them with --rows"),
        (["--row", "clip-336/patch/none/mean/raster", "--stage", "align", "--lora", "8", "--language-model", "x", "--data", "x", "--images", "x"], "--lora is for --stage instruct"),
        (["--row", "clip-336/patch/none/mean/raster", "--stage", "instruct", "--language-model", "x", "--data", "x", "--images", "x", "--out", "nowhere"], "there is no nowhere/align/trained.safetensors. Train --stage align first"),
        (["--tiny", "--row", "clip-336/patch/none/mean/raster"], "a toy row must be pixels/SOURCE/NORM/POOL/ORDER"),
    ],
)  # fmt: skip
def test_invalid_commands_are_rejected(work, arguments, message, monkeypatch):
    monkeypatch.setattr(tiny, "prepare", lambda _: None)
    with pytest.raises(SystemExit, match=message):
        train.main(arguments)


def test_masks_are_loaded_for_sources_that_need_them():
    with pytest.raises(SystemExit, match="source combined needs --masks"):
        train._load_masks(None, "combined", 0)
    with pytest.raises(SystemExit, match="--masks is for sources that need masks; the source of this row is patch"):
        train._load_masks("felzenszwalb", "patch", 0)
    masks = train._load_masks("felzenszwalb", "segmentation", 4)("a.png", Image.new("RGB", (30, 20)))
    assert masks.size == (20, 30)
    with pytest.raises(
        SystemExit, match="--masks sam2 generates masks on the device of the training, and needs --workers 0"
    ):
        train._load_masks("sam2", "segmentation", 4)


def test_toy_scenes_have_exact_masks_and_unique_answers():
    generator = np.random.default_rng(1)
    for _ in range(20):
        things = scenes.draw_things(generator)
        image, masks = scenes.paint(things, generator)
        assert image.size == (192, 192)
        assert (masks.sum(0) == 1).all()
        for question in scenes.questions_of(things, generator):
            assert question.kind in scenes.KINDS
            about = [things[index] for index in question.about]
            if question.kind == "colour":
                assert [thing.colour for thing in about] == [question.answer]
            if question.kind == "count":
                assert scenes.NUMBERS[len(about)] == question.answer
    tokenizer = language.toy_tokenizer()
    assert tokenizer.pad_token_id not in tokenizer("what colour is the cross two orange squares")["input_ids"]


@pytest.mark.parametrize("row", ["pixels/patch/rms/cross_attention/raster", "pixels/segmentation/none/mean/random"])
def test_a_toy_run_is_measured(work, row):
    result = tiny.train_one(row, work, steps=(2, 2), control="blind" if "patch" in row else None, max_questions=8)
    assert result["questions"] == 8
    assert set(result["accuracy"]) <= {*scenes.KINDS, "all"}
    assert 0 < result["focus"]["chance"] < 1
    assert len(tiny.table([result]).splitlines()) == 4
    tiny.plot([result], work / "plot.png")
    assert read_image(work / "plot.png").size[0] > 1000


@pytest.mark.parametrize("control", tiny.CONTROLS)
def test_controls_set_features_to_zero(work, control):
    model, _ = make(work)
    pixels = torch.rand(1, 3, 192, 192)
    plain = model.encode_patches(pixels).features
    tiny.add_control(model, control)
    changed = model.encode_patches(pixels).features
    assert not changed[..., -8:].any()
    assert torch.equal(changed[..., :-8], plain[..., :-8]) == (control == "no_position")


@pytest.mark.parametrize(
    ("source", "regions", "tokens"),
    [("grid", {"num_regions": 8}, 8), ("clustering", {"linkage": "ward", "num_regions": 9}, 9), ("patch", {}, 144)],
)
def test_stored_features_give_the_same_results(work, source, regions, tokens, monkeypatch):
    row = f"pixels/{source}/rms/mean/raster"
    plain = tiny.train_one(row, work, steps=(2, 2), regions=regions)
    file = toy_encoder.store_features(work, toy_encoder.PIXELS)
    encode = Encoder.encode
    calls = []
    monkeypatch.setattr(Encoder, "encode", lambda self, pixels: (calls.append(len(pixels)), encode(self, pixels))[1])
    stored = tiny.train_one(row, work, steps=(2, 2), regions=regions, stored=True)
    assert calls == [1]  # a blank image, when the config of the tower is made
    assert file == toy_encoder.store_features(work, toy_encoder.PIXELS)
    assert stored["tokens_per_image"] == tokens
    assert stored["accuracy"] == plain["accuracy"]
    assert stored["focus"]["focus"] == pytest.approx(plain["focus"]["focus"], rel=1e-4)
    assert stored["regions"] == regions


def test_images_without_stored_features_are_encoded(work):
    model, _ = make(work)
    encoder = model.model.vision_tower.encoder
    pixels = torch.rand(2, 3, 192, 192)
    expected = encoder.encode(pixels)
    toy_encoder.use_stored_features(encoder, work, toy_encoder.PIXELS)
    assert torch.equal(encoder.encode(pixels), expected)


def test_a_folder_of_transformers_is_a_toy_encoder(work, tmp_path):
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=56, patch_size=14
    )
    Dinov2Model(config).save_pretrained(tmp_path / "small")
    BitImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(tmp_path / "small")
    encoder = toy_encoder.find_encoder(str(tmp_path / "small"), layer=0)
    assert encoder == ("small-layer0", f"hf:{tmp_path / 'small'}", {"img_size": 168, "layer": 0})
    result = tiny.train_one(
        "small-layer0/segmentation/rms/mean/raster", work, encoder=encoder, steps=(2, 2), max_questions=8
    )
    assert result["questions"] == 8
    last_layer = toy_encoder.find_encoder(str(tmp_path / "small"))
    files = [toy_encoder.store_features(work, each) for each in (encoder, last_layer)]
    assert files[0] != files[1]
    assert not torch.equal(*(load_file(file)["features"] for file in files))
    with pytest.raises(SystemExit, match="--encoder must be pixels, dinov2-small or a folder; got nothing"):
        toy_encoder.find_encoder("nothing")
    with pytest.raises(SystemExit, match="a toy row must be small-layer0/SOURCE/NORM/POOL/ORDER; got 'pixels/"):
        tiny.train_one("pixels/patch/rms/mean/raster", work, encoder=encoder)


def toy_result(source, seed, right, tokens, **regions):
    return {
        "row": f"pixels/{source}/rms/mean/raster", "seed": seed, "regions": regions, "tokens_per_image": tokens,
        "accuracy": dict.fromkeys((*scenes.KINDS, "all"), right), "majority": dict.fromkeys((*scenes.KINDS, "all"), 35),
    }  # fmt: skip


def test_the_table_has_means_and_deviations_over_seeds(tmp_path):
    results = [
        toy_result("patch", 42, 90, 144),
        toy_result("clustering", 42, 80, 8, linkage="ward", num_regions=8),
        toy_result("clustering", 43, 84, 8, linkage="ward", num_regions=8),
        toy_result("grid", 42, 70, 8, num_regions=8),
    ]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in equal_tokens.table(results).splitlines()[2:]]
    assert [(line[0], line[1], line[2], line[-1]) for line in lines] == [
        ("grid", "8.0", "1", "70.0"), ("ward", "8.0", "2", "82.0 ± 2.8"), ("patch", "144.0", "1", "90.0"),
        ("*most frequent answer*", "", "", "35.0"),
    ]  # fmt: skip
    equal_tokens.plot(results, tmp_path / "plot.png")
    assert read_image(tmp_path / "plot.png").size[0] > 900


def test_every_linkage_is_run_at_every_budget():
    runs = equal_tokens.runs((8, 16, 32))
    assert len(runs) == len({(source, *regions.items(), seed) for source, regions, seed in runs}) == 44
    for count, seeds in equal_tokens.SEEDS.items():
        for linkage in ("centroid", "average", "ward"):
            assert sum(regions == {"linkage": linkage, "num_regions": count} for _, regions, _ in runs) == len(seeds)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read .* as JSON"),
        ("", "cannot read .* as JSON"),
        ("[[1]]", "entry 0 must be an object; got list"),
        ("[null]", "entry 0 must be an object; got NoneType"),
        ('[{"id": 1, "conversations": ["hi", "there"]}]', "sample 1: its conversations must be a list of objects"),
        ('[{"id": 1, "conversations": {"a": 1}}]', "sample 1: its conversations must be a list of objects"),
        (
            '[{"id": 1, "image": 5, "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}]',
            "image must be a file name",
        ),
        (
            '[{"id": 1, "image": [null], "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}]',
            "image must be a file name",
        ),
    ],
)
def test_invalid_json_is_rejected(tmp_path, text, message):
    (tmp_path / "q.json").write_text(text)
    with pytest.raises(conversations.DataError, match=message):
        list(map(conversations.read_turns, conversations.read_entries(tmp_path / "q.json")))
