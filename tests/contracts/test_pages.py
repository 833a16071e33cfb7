"""Programs in README, the documentation and examples run, with small models and folders in place of real ones."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import regiontok
from regiontok import ImageGeometry, MaskSet, Regionizer, encoders
from regiontok.adapters import huggingface
from regiontok.pipeline import Listing, TokenizeJob, run_job
from regiontok.store import Manifest, MaskStore, StoreWriter, write_masks
from tests.families import CASES, build
from tests.models import IMAGE, tiny_clip, tiny_llava, tiny_processor
from tests.processors import PROCESSORS, TEMPLATE, placeholder
from tests.video_processors import PROCESSORS as VIDEO_PROCESSORS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples" / "train_llava" / "README.md"]
KEY = "sub/image.jpg"


def blocks(page, language):
    """Code blocks of a page, and hidden ones in comments that start with ``setup``, with their first lines' numbers."""
    text = page.read_text(encoding="utf-8")
    start = f"```{language}" + ("|<!-- setup" if language == "py" else "")
    found = re.finditer(rf"^(?:{start})\n(.*?)^(?:```|-->)$", text, re.DOTALL | re.MULTILINE)
    return [(f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}", match[1]) for match in found]


def test_programs_run_and_print_the_promised_lines(subtests, tmp_path, monkeypatch):
    """The programs of a page share their names, as the cells of a notebook do."""
    monkeypatch.chdir(tmp_path)
    count = 0
    for page in PAGES:
        printed = []
        names = {"__name__": "__main__", "print": lambda *words: printed.append(" ".join(map(str, words)))}  # noqa: B023
        for place, code in blocks(page, "python"):
            with subtests.test(place):
                printed.clear()
                exec(compile(code, place, "exec"), names)
                assert printed == re.findall(r"print\(.*\) +# (.*)", code)
                count += 1
    assert count > 8


NOT_RUN = {
    "class Gemma3Mixin": "an excerpt of the package",
    "register_family(": "needs another package; tests/adapters/test_registering.py registers a family",
    "label_studio_sdk": "is not a dependency",
    "from vllm": "needs a GPU",
    "import sglang": "needs a GPU",
    "torch.hub": "downloads code",
    "Trainer(": "tests/adapters/test_trainers.py runs them",
    "use_cache=False": "tests/adapters/test_trainers.py runs it",
    "merge_and_unload": "tests/adapters/test_trainers.py runs it",
}
"""Parts of excerpts that are only parsed, and the reasons."""

BEFORE = {
    "model.expand(": "model = load_model('out/instruct/model'); processor = AutoProcessor.from_pretrained('out/instruct/model')",
}
"""Parts of excerpts that need another model than the one before them, and programs that load it."""


def save_models(folder):
    """Save tiny models under the names that the pages load, with the sizes that the pages name."""
    torch.manual_seed(0)
    vision = tiny_clip(hidden_size=1024, num_hidden_layers=2, image_size=336)
    processor = tiny_processor()
    processor.image_processor = transformers.CLIPImageProcessor(size={"shortest_edge": 336}, crop_size=336)
    for part in (tiny_llava(vision), processor):
        part.save_pretrained(folder / "llava-hf" / "llava-1.5-7b-hf")
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0, "mrope_interleaved": True}
    text = {
        "hidden_size": 2048, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16,
        "num_key_value_heads": 2, "vocab_size": 100, "rope_parameters": rope,
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 32, "intermediate_size": 32, "out_hidden_size": 2048, "num_heads": 2, "patch_size": 4,
        "num_position_embeddings": 64, "deepstack_visual_indexes": [0],
    }  # fmt: skip
    ids = {"image_token_id": IMAGE, "video_token_id": 98, "vision_start_token_id": 97, "vision_end_token_id": 96}
    for part in (build("Qwen3VL", text_config=text, vision_config=vision, **ids), PROCESSORS["Qwen3-VL"]()):
        part.save_pretrained(folder / "Qwen" / "Qwen3-VL-2B-Instruct")
    processor = VIDEO_PROCESSORS["Qwen3-VL"]()
    processor.chat_template = TEMPLATE.replace("{% else %}", "{% elif c['type'] == 'video' %}<|video_pad|> {% else %}")
    for part in (CASES["Qwen3-VL"].make(), processor):
        part.save_pretrained(folder / "Qwen" / "Qwen3-VL-8B-Instruct")
    internvl = PROCESSORS["InternVL"]()
    internvl.chat_template = TEMPLATE.replace("IMAGE", placeholder("InternVL", internvl))
    for part in (CASES["InternVL"].make(), internvl):
        part.save_pretrained(folder / "OpenGVLab" / "InternVL3-1B-hf")
    masked = Regionizer(source="segmentation", pool="mean", norm="none", geometry=ImageGeometry.center_crop(56))
    for part in (huggingface.with_regions(tiny_llava(), masked), tiny_processor()):
        part.save_pretrained(folder / "out" / "instruct" / "model")


def save_data(folder):
    """Save an image and a damaged one, and stores of their masks and tokens."""
    (folder / "images" / "sub").mkdir(parents=True)
    Image.effect_noise((80, 60), 90).convert("RGB").save(folder / "images" / KEY)
    (folder / "images" / "damaged.jpg").write_bytes(b"no image")
    write_masks(folder / "masks", [(KEY, MaskSet.from_masks(half_mask(60, 80)))], provenance={})
    images, job = Listing([str(folder / "images")]), TokenizeJob(encoders.load("pixels"), Regionizer(pool="mean"))
    with StoreWriter(folder / "tokens", Manifest(kind=job.kind, provenance=job.describe())) as writer:
        run_job(writer, images, images, job, batch_size=2, num_readers=1)


def half_mask(height, width):
    return np.arange(width)[None, None] * np.ones((1, height, 1)) < width / 2


def names_for(folder):
    """Names that excerpts use without making them."""
    optional = {name: pytest.importorskip(name) for name in ("datasets", "duckdb", "pycocotools.mask")}
    image = Image.effect_noise((640, 480), 90).convert("RGB")
    columns = MaskStore(folder / "masks")[KEY].to_coco()[0]
    processor = transformers.AutoProcessor.from_pretrained(folder / "llava-hf" / "llava-1.5-7b-hf")
    return {
        **{name: getattr(regiontok, name) for name in regiontok.__all__},
        **{name: getattr(huggingface, name) for name in ("image_embeddings", "load_model", "vllm_request")},
        "torch": torch, "BitsAndBytesConfig": transformers.BitsAndBytesConfig, "AutoProcessor": transformers.AutoProcessor,
        "encoder": encoders.load("pixels"),
        "datasets": optional["datasets"], "duckdb": optional["duckdb"], "pycocotools": sys.modules["pycocotools"],
        "processor": processor, "image": image, "images": [image, image], "prompt": "w5 <image> w6", "prompts": ["w5 <image> w6"] * 2,
        "masks_of_the_image": half_mask(480, 640), "rank": 0, "world_size": 1,
        "row": {"height": 60, "width": 80, "counts": [columns["counts"]]},
        "rows": optional["datasets"].Dataset.from_dict({"image": [image]}),
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # of other packages
def test_excerpts_run_with_tiny_models_under_the_names_of_real_ones(subtests, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_models(tmp_path)
    save_data(tmp_path)
    ran, reasons = 0, set()
    for page in PAGES:
        names = names_for(tmp_path)
        for place, block in blocks(page, "py"):
            with subtests.test(place):
                ast.parse(block)
                reason = [part for part in NOT_RUN if part in block]
                reasons.update(reason)
                if reason:
                    continue
                code = block.replace('device_map="cuda"', 'device_map="cpu"')
                code = "".join(f"{program}\n" for part, program in BEFORE.items() if part in block) + code
                code = code.replace("llava-hf/", str(tmp_path / "llava-hf") + "/")
                code = code.replace('StoreWriter("tokens"', 'StoreWriter("new-tokens"')
                exec(compile(code, place, "exec"), names)
                ran += 1
    assert ran > 10
    assert reasons == set(NOT_RUN), "entries of NOT_RUN that no page has"


EXAMPLES = """
import os, runpy, sys
from pathlib import Path

if os.environ.get("REGIONTOK_TEST_PROFILE") != "thorough":  # few steps in place of a minute of training
    sys.path.insert(0, str(Path(sys.argv[1]).parent / "train_llava"))
    import tiny

    prepare, train_one = tiny.prepare, tiny.train_one
    tiny.prepare = lambda folder, **_: prepare(folder, train=24, test=6, language_steps=3)
    tiny.train_one = lambda row, folder, **_: train_one(row, folder, steps=(2, 2))
sys.path.insert(0, str(Path(sys.argv[1]).parent))  # as if each ran by itself
for file in sys.argv[1:]:
    sys.argv = [file]
    print(f"example {file}", flush=True)
    runpy.run_path(file, run_name="__main__")
"""


def test_examples_run_in_reading_order(tmp_path):
    """Later examples load the model that an earlier one trains."""
    files = sorted(map(str, (ROOT / "examples").glob("*.py")))
    command = [sys.executable, "-c", EXAMPLES, *files]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    parts = re.split(r"^example (.*)\n", done.stdout, flags=re.MULTILINE)[1:]
    printed = dict(zip(parts[::2], parts[1::2], strict=True))
    assert list(printed) == files
    for text in printed.values():
        promised = set(re.findall(r"[\w-]+\.(?:png|html)", text.splitlines()[-1]))
        assert promised <= {path.name for path in tmp_path.iterdir()}
