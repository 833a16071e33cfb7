"""The commands that README and docs show, the extras that each needs, and how it is run without networks and GPUs."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples" / "train_llava" / "README.md"]

ENVIRONMENTS = ("", "encoders", "store", "video", "masks", "hf", "viz", "focus", "datasets", "ray", "train")
"""Extras that are installed by themselves, one after another; the first is the core alone."""
MORE = {"ray": "masks", "video": "masks+viz", "viz": "masks"}
"""Extras that are added to another one at its end, for commands that the documentation shows with all of them."""

EXEMPT = {
    r"^(python3 -m venv|\S*pip install|SAM2_BUILD_CUDA=0 pip|\. \.venv|cd |row=)": "it sets an environment up",
    r"-m pytest|^make ": "it runs next to the development tools, in the last step of .ci/run",
    r"lmms_eval|regiontok evaluate (?!.*--questions)": "lmms-eval has an environment of its own, which a test makes",
    r"^sbatch": "it needs a SLURM cluster",
    r"^(vllm|regiontok) serve": "vLLM has an environment of its own: .ci/vllm",
    r"^REGIONTOK_VLLM=": "it needs that environment",
    r"train\.py.*--language-model|train\.py .*\.\.\.": "it trains a model of 7B parameters on eight GPUs",
    r"LLaVA-Pretrain|llava_v1_5": "it needs LLaVA's training data",
    r"python (tiny|equal_tokens|moving)\.py|train\.py --tiny": "it takes ten minutes to hours; tests run parts of it",
}
"""Commands that no environment runs, and why."""

ANNOTATIONS = "--(?:coco|mask-files|label-maps)"
"""Options that read masks instead of generating them."""

NEEDS = (
    (rf"--masks |--missing |regiontok masks (?!.*{ANNOTATIONS})", "masks"),
    (r"regiontok masks|--store|regiontok store", "store"),
    (r"regiontok (figures(?!.* --num-frames)|compare|count)", "viz"),
    (r"--(num-frames|fps|every) ", "video"),
    (r"regiontok tracks", "masks"),
    (r"--encoders? (?!hf:|pixels)", "encoders"),
    (r"--encoder hf:|regiontok chat|figures attention|--model |--questions mine", "hf"),
    (r"regiontok focus", "focus"),
    (r"regiontok tokenize rows/", "datasets"),
    (r"--engine ray", "ray"),
    (r"python train\.py", "train"),
)
"""What a command needs, by what is in it."""


class Command(NamedTuple):
    """A command of a page: as it is written, and the extras that it needs."""

    page: str
    line: str
    needs: frozenset[str]


def read_commands() -> list[str]:
    """Return every command line in a shell block of the documentation, as ``PAGE: COMMAND``."""
    lines = []
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                for command in re.sub(r"(^|\s)#.*", "", line).split(" && "):
                    if command.strip():
                        lines.append(f"{page.relative_to(ROOT)}: {' '.join(command.split())}")
    return lines


def commands_to_run() -> list[Command]:
    """Return the commands that an environment must run, each once.

    Raises:
        SystemExit: A command of which nothing says what it needs.
    """
    found: dict[frozenset[str], Command] = {}
    for entry in read_commands():
        page, _, line = entry.partition(": ")
        if any(re.search(pattern, line) for pattern in EXEMPT):
            continue
        if not re.match(r"(regiontok|torchrun .*regiontok|python train\.py)\b", line):
            raise SystemExit(f"{entry}: say in .ci/commands.py what this command needs, or why nothing runs it")
        needs = frozenset(extra for pattern, extra in NEEDS if re.search(pattern, line))
        found.setdefault(frozenset(line.split()), Command(page, line, needs))  # once, in whatever order
    return list(found.values())


def environments_of(command: Command, closures: dict[str, set[str]]) -> list[str]:
    """Return the environments that run a command: those of its extras that bring all that it needs.

    If none does, the first entry of `MORE` that does so, or ``train``, which brings most.
    """
    if not command.needs:
        return ["", "train"] if command.line == "regiontok env" else [""]
    own = [extra for extra in ENVIRONMENTS if extra in command.needs and command.needs <= closures[extra]]
    names = [f"{extra}+{others}" for extra, others in MORE.items()]
    joint = [name for name in names if command.needs <= set().union(*(closures[part] for part in name.split("+")))]
    return own or joint[:1] or (["train"] if command.needs <= closures["train"] else [])


def as_run(line: str, *, has: set[str]) -> str:
    """Return a command with small random models for trained ones, this machine's CPU, and folders for buckets."""
    sam = "--sam-model $STANDINS/sam2" + ("" if "--ladder" in line else " --points-per-side 4")
    rules = [
        (r"--device cuda", "--device cpu"),
        (r"s3://bucket/", ""),
        (r" --address auto", ""),
        (r"--nproc_per_node 8", "--nproc_per_node 2"),
        (r"--encoder (?!hf:|pixels)\S+", "--encoder timm:vit_tiny_patch16_224 --weights $STANDINS/vit.safetensors"),
        (r"--encoder hf:\S+", "--encoder hf:$STANDINS/dinov2"),
        (r"--encoders \S+ \S+", "--encoders pixels timm:vit_tiny_patch16_224 --random"),
        (r"--masks sam2", f"--masks sam2 {sam}"),
        (r"^(regiontok tracks .*)", r"\1 --video-model $STANDINS/sam2_video --max-objects 4"),
        (rf"^((?:.* )?regiontok masks (?!.*(?:--masks|{ANNOTATIONS})).*)", rf"\1 {sam}"),
        (r"out/instruct/model(?=.*--masks)", "$STANDINS/masked"),
        (r"\bDIR\b|out/instruct/model", "$STANDINS/clustered"),
        (r"llava-hf/\S+", "$STANDINS/stock"),
        (r"PixFoundation/data/pixcvbench|(?<=--annotations )pixcvbench", "$STANDINS/pixcvbench"),
        (r"\S*test_2d.parquet", "$STANDINS/test_2d.parquet"),
    ]
    for pattern, replacement in rules:
        line = re.sub(pattern, replacement, line)
    if "masks" not in has:  # the generator is for another extra, and the command is run for this one
        line = line.replace(f" --masks sam2 {sam}", "")
    return line


def prerequisites(line: str, *, has: set[str]) -> list[str]:
    """Return the commands that make the stores which a command reads."""
    before = []
    if re.search(r"--masks masks\b|store masks", line):
        before.append(f"regiontok masks images/ --out masks{'' if 'masks' in has else ' --coco instances.json'}")
    if "--tracks tracks" in line:
        before.append("regiontok tracks films/ --num-frames 16 --out tracks --masks felzenszwalb")
    if re.search(r"regiontok store tokens|--remake-changed", line):
        before.append("regiontok tokenize images/ --store tokens")
    return before
