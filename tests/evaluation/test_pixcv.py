import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco
from transformers import BloomConfig, LlavaConfig, LlavaForConditionalGeneration

from regiontok import ImageGeometry, MaskSet, Regionizer, masks
from regiontok.adapters.huggingface import with_regions
from regiontok.cli import main
from regiontok.errors import DataError, ValueRangeError
from regiontok.evaluation.assistant import Assistant, Question
from regiontok.evaluation.focus import FocusMeter, target_regions
from regiontok.evaluation.pixcv import Objects, Skipped, measure_focus, read_objects, read_questions
from regiontok.evaluation.prompts import OPTIONS
from regiontok.evaluation.table import read_scores, write_scores
from tests.conftest import for_each
from tests.models import IMAGE, tiny_clip, tiny_llava, tiny_processor

SIZES = {"a.jpg": (60, 80), "b.jpg": (90, 70), "c.jpg": (56, 56)}
TRIANGLE = [[10, 10, 70, 12, 30, 50]]


def rle(mask):
    one = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": one["size"], "counts": one["counts"].decode()}


def left_half(size):
    mask = np.zeros(size, bool)
    mask[:, : size[1] // 2] = True
    return mask


def annotations(segmentations, *, more_images=()):
    """COCO's form, as PixCV-Bench has it: some annotations with their area and box, most without."""
    names = [*dict.fromkeys(name for name, _ in segmentations), *more_images]
    return {
        "categories": [{"id": 0, "name": "foreground"}],
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "annotations": [
            {"image_id": names.index(name), "category_id": 0, "segmentation": segmentation}
            for name, segmentation in segmentations
        ],
    }


def write_annotations(root, source, data):
    (root / source).mkdir(parents=True)
    (root / source / "FinalSegmentations.json").write_text(json.dumps(data))


def image_of(name):
    height, width = SIZES[name]
    generator = np.random.default_rng(len(name) + height)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def question(name, number, **columns):
    told = {
        "idx": number, "type": "2D", "question": f"w{number + 1}", "choices": ["w1", "w2"], "answer": "(A)",
        "prompt": f"w{number + 1} w9\n(A) w1\n(B) w2", "filename": f"img/2D/{number}_{name}", "source": "ADE20K",
        "source_dataset": "ADE20K Validation Set", "source_filename": f"validation/images/{name}",
    }  # fmt: skip
    return told | columns


def write_jsonl(root, rows):
    for row in rows:
        file = root / row["filename"]
        file.parent.mkdir(parents=True, exist_ok=True)
        if row["source_filename"].rpartition("/")[2] in SIZES:
            image_of(row["source_filename"].rpartition("/")[2]).save(file, "PNG")
    (root / "test_2d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root / "test_2d.jsonl"


def write_parquet(file, rows):
    def png(row):
        buffer = io.BytesIO()
        image_of(row["source_filename"].rpartition("/")[2]).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    pq.write_table(pa.Table.from_pylist([row | {"image": png(row)} for row in rows]), file)
    return file


def assistant_of(**options):
    model = with_regions(tiny_llava(), Regionizer(**({"dim": 32, "num_heads": 4, "num_regions": 8} | options)))
    return Assistant(model, tiny_processor())


GEOMETRY = ImageGeometry.center_crop(56)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools, under numpy 2
def test_masks_of_any_format_and_size_are_united():
    size = (60, 80)
    small = left_half((32, 32))  # stretched to the image's left half
    polygon = coco.decode(coco.frPyObjects(TRIANGLE, *size))[..., 0].astype(bool)
    uncompressed = {"size": list(size), "counts": [0, 60, 60 * 79]}
    found = Objects.mask([rle(small), TRIANGLE, uncompressed], size)
    first_column = np.zeros(size, bool)
    first_column[:, 0] = True
    np.testing.assert_array_equal(found, left_half(size) | polygon | first_column)
    assert polygon[:, 40:].any()
    assert not Objects.mask([], size).any()


def test_read_objects_of_two_sources_and_of_one_file(tmp_path):
    write_annotations(tmp_path, "ADE20K", annotations([("a.jpg", TRIANGLE), ("a.jpg", rle(left_half((9, 9))))]))
    write_annotations(tmp_path, "COCO", annotations([("a.jpg", TRIANGLE)], more_images=["lonely.jpg"]))
    objects = read_objects(tmp_path)
    assert {key: len(some) for key, some in objects.segmentations.items()} == {
        ("ADE20K", "a.jpg"): 2,
        ("COCO", "a.jpg"): 1,
    }
    assert objects.find("COCO", "lonely.jpg") is None
    alone = read_objects(tmp_path / "COCO" / "FinalSegmentations.json")
    assert len(alone.find("anything", "a.jpg")) == 1


def test_damaged_annotations_are_skipped_and_named(tmp_path):
    data = annotations(
        [
            ("a.jpg", [[1, 2, 3, 4]]),
            ("a.jpg", [[1, 2, 3, 4, 5]]),
            ("a.jpg", []),
            ("a.jpg", [["x"] * 6]),
            ("b.jpg", {"size": [4, 4], "counts": "11"}),
            ("b.jpg", TRIANGLE),
        ]
    )
    data["annotations"].append({"image_id": 77, "segmentation": TRIANGLE})
    write_annotations(tmp_path, "COCO", data)
    objects = read_objects(tmp_path)
    assert list(objects.segmentations) == [("COCO", "b.jpg")]
    assert [one.name for one in objects.skipped] == [
        *(f"COCO, annotation {number} of a.jpg" for number in (0, 1, 3)),
        "COCO, annotation 4 of b.jpg",
        "COCO, annotation 2",
        "COCO, annotation 6",
    ]
    reasons = [one.reason for one in objects.skipped]
    assert reasons[:3] == [
        "4 numbers are a box or two points; a polygon has three points or more.",
        "a polygon has three points or more, [x, y, x, y, x, y, ...]; got 5 numbers.",
        "a polygon must be a list of numbers, [x, y, x, y, ...].",
    ]
    assert "add up" in reasons[3]
    assert reasons[4:] == ["no segmentation", "unknown image id"]


@for_each(text=["{", "[]", '{"images": []}', '{"images": [{}], "annotations": []}'])
def test_invalid_annotation_files_are_errors(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match="x.json is not (?:a COCO annotation file: |valid JSON: )"):
        read_objects(tmp_path / "x.json")


def test_missing_files_are_errors(tmp_path):
    for path in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(
            DataError, match="must be a file of annotations, or a folder with ./FinalSegmentations.json"
        ):
            read_objects(path)
    with pytest.raises(DataError, match="there is no file of questions"):
        next(read_questions(tmp_path / "none.parquet"))
    (tmp_path / "q.jsonl").write_text("{}")
    with pytest.raises(DataError, match="does not contain images. Name their folder with --images"):
        next(read_questions(tmp_path / "q.jsonl"))
    with pytest.raises(DataError, match="row 0 must have the columns of CV-Bench; got error 'filename'"):
        next(read_questions(tmp_path / "q.jsonl", tmp_path))
    (tmp_path / "q.jsonl").write_text(json.dumps(question("a.jpg", 0)) + "\nno")
    with pytest.raises(DataError, match="line 2 is not valid JSON"):
        list(read_questions(tmp_path / "q.jsonl", tmp_path))
    (tmp_path / "q.parquet").write_text("no")
    with pytest.raises(DataError, match="q.parquet is not a Parquet file or is damaged"):
        next(read_questions(tmp_path / "q.parquet"))


def test_questions_of_both_forms_are_the_same(tmp_path):
    rows = [question("a.jpg", 0), question("b.jpg", 1, prompt="", answer="(B)")]
    lines = list(read_questions(write_jsonl(tmp_path, rows), tmp_path))
    table = list(read_questions(write_parquet(tmp_path / "test_2d.parquet", rows)))
    assert lines[0].text == f"w1 w9\n(A) w1\n(B) w2\n{OPTIONS}"
    assert lines[1].text == f"w2\nA. w1\nB. w2\n{OPTIONS}"
    for one, other in zip(lines, table, strict=True):
        assert one.read().tobytes() == other.read().tobytes() == image_of(one.file).tobytes()
        assert (one.name, one.text, one.answer, one.source, one.file) == (
            other.name, other.text, other.answer, other.source, other.file,
        )  # fmt: skip
    assert [one.answer for one in lines] == ["A", "B"]


def prepared(tmp_path, more=()):
    rows = [question("a.jpg", 0), question("b.jpg", 1, source="COCO"), question("c.jpg", 2), *more]
    write_annotations(
        tmp_path / "pix", "ADE20K", annotations([("a.jpg", rle(left_half((60, 80)))), ("c.jpg", TRIANGLE)])
    )
    write_annotations(tmp_path / "pix", "COCO", annotations([("b.jpg", rle(left_half((32, 48))))]))  # another size
    return write_jsonl(tmp_path, rows)


@pytest.mark.parametrize("answers", ["generated", "right"])
def test_focus_of_a_benchmark_is_the_mean_of_its_questions(tmp_path, answers):
    """Question by question, with the pieces of `regiontok.evaluation.focus`."""
    file = prepared(tmp_path)
    objects = read_objects(tmp_path / "pix")
    assistant = assistant_of()
    options = {"query": "predicting", "threshold": 0.3, "layers": [1], "heads": [0, 2]}
    meter = FocusMeter([1], [0, 2], 0.3)
    for one in read_questions(file, tmp_path):
        image = one.read()
        asked = [Question(one.text, [image])]
        tokens = (
            assistant.answer(asked, max_new_tokens=16)[0].tokens if answers == "generated" else assistant.tokenize("A")
        )
        attention = assistant.attend(asked, [tokens], query="predicting")
        shown = Objects.mask(objects.find(one.source, one.file), image.size[::-1])[None]
        meter.add(attention, target_regions(attention.regions, [shown], threshold=0.3, geometry=GEOMETRY))
    expected = meter.result()
    for batch_size in (1, 2, 8):
        found = measure_focus(
            assistant, read_questions(file, tmp_path), objects, answers=answers, batch_size=batch_size, **options
        )
        assert found.focus.focus == pytest.approx(expected.focus, rel=1e-4)
        assert found.focus.to_dict() | {"focus": 0, "share": 0} == expected.to_dict() | {"focus": 0, "share": 0}
        assert (found.tokens, found.skipped, found.answers) == (8.0, [], answers)
        assert list(found.by_source) == ["ADE20K", "COCO"]
        mean = (2 * found.by_source["ADE20K"] + found.by_source["COCO"]) / 3
        assert mean == pytest.approx(found.focus.focus)


def test_unusable_questions_are_listed_with_reasons(tmp_path):
    more = [
        question("none.jpg", 3),
        question("gone.jpg", 4),
        question("torn.jpg", 5),
        question("a.jpg", 6, source="Omni3D"),
        question("tiny.jpg", 7),
    ]
    SIZES["tiny.jpg"] = (56, 56)
    try:
        file = prepared(tmp_path, more)
    finally:
        del SIZES["tiny.jpg"]
    speck = np.zeros((56, 56), bool)
    speck[0, 0] = True
    path = tmp_path / "pix" / "ADE20K" / "FinalSegmentations.json"
    known = [
        ("a.jpg", TRIANGLE),
        ("c.jpg", TRIANGLE),
        ("gone.jpg", TRIANGLE),
        ("torn.jpg", TRIANGLE),
        ("tiny.jpg", rle(speck)),
        ("far.jpg", TRIANGLE),
    ]
    path.write_text(json.dumps(annotations(known)))
    (tmp_path / "img/2D/5_torn.jpg").write_bytes(b"no image")
    found = measure_focus(assistant_of(), read_questions(file, tmp_path), read_objects(tmp_path / "pix"), batch_size=3)
    assert found.focus.questions == 3
    assert found.focus.without_target == 1
    assert sorted(found.skipped) == sorted(
        [
            Skipped("question 3 (none.jpg)", "image without annotation"),
            Skipped(f"question 4 ({tmp_path / 'img/2D/4_gone.jpg'}: there is no such file.)", "image cannot be read"),
            Skipped(
                f"question 5 ({tmp_path / 'img/2D/5_torn.jpg'}: not an image that Pillow {Image.__version__} can read.)",
                "image cannot be read",
            ),
            Skipped("question 6 (a.jpg)", "image without annotation"),
            Skipped("question 7", "no region shows enough of the object"),
            Skipped("ADE20K, far.jpg", "annotated image without question"),
        ]
    )  # fmt: skip
    assert found.reasons()["image cannot be read"] == 2


def test_empty_answers_are_skipped(tmp_path):
    assistant = assistant_of()
    asked = list(read_questions(prepared(tmp_path), tmp_path))
    first = assistant.answer([Question(asked[0].text, [asked[0].read()])])[0].tokens[0]
    assistant.model.generation_config.eos_token_id = first  # ends at once
    objects = read_objects(tmp_path / "pix")
    others = [assistant.answer([Question(one.text, [one.read()])])[0].tokens for one in asked]
    silent = sum(not tokens for tokens in others)
    assert 1 <= silent < 3
    found = measure_focus(assistant, asked, objects, batch_size=2)
    assert found.reasons() == {"empty answer": silent}
    assert found.focus.questions == 3 - silent


def test_error_without_usable_questions_gives_reasons(tmp_path):
    file = prepared(tmp_path)
    with pytest.raises(ValueRangeError, match="no question could be counted; skipped: 3 .image without annotation."):
        measure_focus(assistant_of(), read_questions(file, tmp_path), Objects({}))
    with pytest.raises(ValueRangeError, match="skipped: none, there was no question"):
        measure_focus(assistant_of(), [], Objects({}))


def test_unsupported_attention_is_an_error(tmp_path):
    text = BloomConfig(hidden_size=32, n_layer=2, n_head=2, vocab_size=100, pad_token_id=0, tie_word_embeddings=False)
    config = LlavaConfig(
        vision_config=tiny_clip(), text_config=text, image_token_index=IMAGE, tie_word_embeddings=False
    )
    model = with_regions(LlavaForConditionalGeneration(config).eval(), Regionizer(pool="mean"))
    file = prepared(tmp_path)
    with pytest.raises(
        ValueRangeError, match="cannot capture the attention of .*: its language model .bloom. does not use"
    ):
        measure_focus(
            Assistant(model, tiny_processor()), read_questions(file, tmp_path), read_objects(tmp_path / "pix"), answers="right"
        )  # fmt: skip


def test_masks_function_for_a_model_that_needs_masks(tmp_path):
    file = prepared(tmp_path)
    assistant = assistant_of(source="segmentation", geometry=GEOMETRY, num_regions=None)
    generate = masks.load("felzenszwalb")
    asked = []

    def masks_of(name, image):
        asked.append(name)
        return generate(image)[0]

    found = measure_focus(assistant, read_questions(file, tmp_path), read_objects(tmp_path / "pix"), masks=masks_of)
    assert asked == ["a.jpg", "b.jpg", "c.jpg"]
    assert found.focus.questions + len(found.skipped) == 3


def test_masks_of_an_image_are_generated_once(tmp_path):
    file = prepared(tmp_path)
    assistant = assistant_of(source="segmentation", geometry=GEOMETRY, num_regions=None)
    generate, asked = masks.load("felzenszwalb"), []

    def counting(images):
        asked.append(len(images))
        return generate(images)

    assistant.masks = counting
    measure_focus(assistant, read_questions(file, tmp_path), read_objects(tmp_path / "pix"))
    assert asked == [1, 1, 1]


def test_focus_command_writes_scores_and_skipped_questions(tmp_path, capsys):
    file = prepared(tmp_path, [question("none.jpg", 3)])
    with_regions(tiny_llava(), Regionizer(dim=32, num_heads=4, num_regions=8)).save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    given = [str(tmp_path / "model"), "--annotations", str(tmp_path / "pix"), "--questions", str(file)]
    row = "clip-336/clustering/rms/cross_attention/raster"
    arguments = ["focus", *given, "--images", str(tmp_path), "--out", str(tmp_path / "out"), "--row", row]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    expected = measure_focus(assistant_of(), read_questions(file, tmp_path), read_objects(tmp_path / "pix"))
    assert out.splitlines()[1].split()[-10:-7] == ["8", f"{100 * expected.focus.focus:.2f}", "-"]
    assert out.splitlines()[2].split()[2:4] == ["257", "12.72"]
    assert "1  image without annotation" in out
    saved = json.loads((tmp_path / "out" / "focus.json").read_text())
    assert saved["skipped"] == [{"name": "question 3 (none.jpg)", "reason": "image without annotation"}]
    assert saved["focus"]["threshold"] == 0.5
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["figures"] == pytest.approx({"tokens": 8.0, "focus": 100 * expected.focus.focus})
    assert main(["focus", *given[:-1], str(tmp_path / "nothing"), "--out", str(tmp_path / "out")]) == 2
    assert "--questions: there is no file" in capsys.readouterr().err


def test_invalid_layers_and_heads_are_rejected_before_generation(tmp_path, monkeypatch):
    file = prepared(tmp_path)
    assistant = assistant_of()
    monkeypatch.setattr(assistant, "answer", None)
    for options, message in (
        ({"layers": [0, 99]}, "layers must be from -2 to 1 for this model; got 99"),
        ({"heads": [-5]}, "heads must be at least -4|heads must be from -4 to 3 for this model; got -5"),
    ):
        with pytest.raises(ValueRangeError, match=message):
            measure_focus(assistant, read_questions(file, tmp_path), read_objects(tmp_path / "pix"), **options)


def test_different_paths_of_one_model_folder_share_scores(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    write_scores("out", {"run_id": {"model": "model", "tokens": 8}, "figures": {"pope": 1.0}, "details": {}})
    for name in ("./model", "model/", str(tmp_path / "model"), "../" + tmp_path.name + "/model"):
        assert read_scores("out", {"model": name, "tokens": 8})["figures"] == {"pope": 1.0}
    with pytest.raises(DataError, match="has scores with model model; this run has other"):
        read_scores("out", {"model": "other", "tokens": 8})


def test_dense_and_rle_targets_agree():
    mask = left_half((60, 80))
    one = MaskSet.from_masks(mask[None]).to_coco()
    np.testing.assert_array_equal(Objects.mask(one, (60, 80)), mask)
    assert torch.equal(MaskSet.from_coco(one).masks()[0], torch.from_numpy(mask))


def test_json_lines_end_at_newlines_only(tmp_path):
    write_jsonl(tmp_path, [question("a.jpg", 0, prompt="w1\u2028w2")])
    file = tmp_path / "test_2d.jsonl"
    file.write_text(json.dumps(json.loads(file.read_text()), ensure_ascii=False), encoding="utf-8")
    assert len(list(read_questions(file, tmp_path))) == 1
