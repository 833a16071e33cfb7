"""What is public, and that it changes only on purpose.

``api.txt`` is a snapshot of every public name and signature. Where a change is meant, write it anew and tell of it in
the changelog::

    python -m tests.contracts.test_api
"""

import ast
import dataclasses
import enum
import importlib
import inspect
import re
from pathlib import Path

import torch

from tests.contracts.subjects import SUBJECTS, values

SNAPSHOT = Path(__file__).with_name("api.txt")
MODULES = (
    "regiontok", "regiontok.encoders", "regiontok.masks", "regiontok.viewing", "regiontok.presets", "regiontok.errors",
    "regiontok.adapters.huggingface", "regiontok.adapters.llava", "regiontok.evaluation.assistant",
    "regiontok.evaluation.benchmarks", "regiontok.evaluation.conversation", "regiontok.evaluation.focus",
    "regiontok.evaluation.partition", "regiontok.evaluation.pixcv", "regiontok.evaluation.prompts",
    "regiontok.evaluation.questions", "regiontok.evaluation.table",
    "regiontok.masks.tracking", "regiontok.pipeline", "regiontok.sampling", "regiontok.store", "regiontok.streaming", "regiontok.track_files",
    "regiontok.tracks", "regiontok.videos",
)  # fmt: skip


def public(module):
    """Names that a module offers: those it lists, or those that it defines."""
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return sorted(listed)
    own = {name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__}
    tree = ast.parse(inspect.getsource(module))
    assigned = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    constants = {target.id for target in assigned if isinstance(target, ast.Name) and target.id.isupper()}
    return sorted(name for name in own | constants if not name.startswith("_"))


def signature(thing):
    """Arguments and defaults; types are left to mypy, and are written otherwise by every version of Python."""
    try:
        told = inspect.signature(thing)
    except (TypeError, ValueError):
        return ""
    arguments = [one.replace(annotation=inspect.Parameter.empty) for one in told.parameters.values()]
    return re.sub(r"<[^<>]* at 0x[0-9a-f]+>", "<...>", str(inspect.Signature(arguments)))


def describe(name, thing):
    """Lines of one public thing."""
    if inspect.ismodule(thing):
        return [f"{name}: module"]
    if inspect.isclass(thing):
        bases = ", ".join(base.__name__ for base in thing.__bases__)
        lines = [f"{name}: class({bases}){signature(thing)}"]
        fields = [field.name for field in dataclasses.fields(thing)] if dataclasses.is_dataclass(thing) else []
        lines += [f"{name}.{field}" for field in fields]
        if issubclass(thing, enum.Enum | BaseException):
            return lines
        for method, value in sorted(vars(thing).items()):
            if method.startswith("_") and method not in (
                "__call__",
                "__getitem__",
                "__len__",
                "__iter__",
                "__contains__",
            ):
                continue
            function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
            if isinstance(function, property):
                lines.append(f"{name}.{method}: property")
            elif inspect.isfunction(function):
                lines.append(f"{name}.{method}{signature(function)}")
        return lines
    if callable(thing) and not isinstance(thing, torch.nn.Module):
        return [f"{name}{signature(thing)}"]
    return [f"{name}: {type(thing).__name__}"]


def api():
    lines = []
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name in public(module):
            lines += describe(f"{module_name}.{name}", getattr(module, name))
    return lines


def test_the_public_api_changes_only_on_purpose():
    kept = SNAPSHOT.read_text(encoding="utf-8").splitlines()
    found = api()
    told = [f"gone: {line}" for line in kept if line not in found] + [
        f"new: {line}" for line in found if line not in kept
    ]
    assert not told, "\n".join(["the API changed; if that is meant, run python -m tests.contracts.test_api", *told])


OTHERWISE = {
    "tests/test_encoders.py": (
        "encoders.load", "encoders.ENCODERS", "encoders.Encoded", "encoders.EncodedImage", "encoders.ImageEncoder",
        "encoders.LoadOptions", "encoders.register",
    ),
    "tests/test_images.py": ("read_image",),
    "tests/test_videos.py": ("read_video", "videos.*", "sampling.*"),
    "tests/test_streaming.py": ("streaming.*",),
    "tests/test_tracks.py": ("TrackSet", "tracks.*", "track_files.*"),
    "tests/test_functional.py": ("cluster_regions",),
    "tests/test_presets.py": ("presets.*",),
    "tests/contracts/test_package.py": ("errors.*", "RegiontokError", "encoders", "masks"),
    "tests/masks": (
        "masks.load", "masks.register", "masks.GENERATORS", "masks.MaskGenerator", "masks.TARGET_MASK_COUNT", "masks.DEFAULT_SETTINGS", "masks.GRANULARITY_SCHEDULE",
        "masks.Sam2Masks", "masks.PipelineMasks", "masks.PackageMasks", "masks.tracking.*",
        "masks.CocoMasks", "masks.LabelMaps", "masks.MaskFiles",
    ),
    "tests/store": ("store.*", "load_tokens", "save_tokens"),
    "tests/pipeline": ("pipeline.*",),
    "tests/viewing": ("viewing.*",),
    "tests/adapters": ("adapters.*",),
    "tests/evaluation": (
        "evaluation.assistant.*", "evaluation.benchmarks.*", "evaluation.conversation.*", "evaluation.focus.*",
        "evaluation.pixcv.*", "evaluation.prompts.*", "evaluation.questions.*", "evaluation.table.*",
        "evaluation.partition.PartitionScores", "evaluation.partition.PartitionResult", "evaluation.partition.compare_clip_partitions",
    ),
}  # fmt: skip
"""Names with promises of their own: they read files or images, draw, or wrap whole models. Where these are kept."""


def test_every_public_name_has_a_contract():
    covered = {f"regiontok.{name}" for subject in SUBJECTS for name in subject.covers}
    covered |= {f"regiontok.evaluation.{name}" for subject in SUBJECTS for name in subject.covers}
    names = {name.partition(",")[0] for name in values()}
    covered |= {f"regiontok.{room}{name}" for name in names for room in ("", "encoders.", "masks.")}
    patterns = [f"regiontok.{one}" for some in OTHERWISE.values() for one in some]
    root = Path(__file__).parents[2]
    assert all((root / place).exists() for place in OTHERWISE)
    missing = []
    used = set()
    for module_name in MODULES:
        for name in public(importlib.import_module(module_name)):
            full = f"{module_name}.{name}"
            fitting = [one for one in patterns if one == full or (one.endswith(".*") and full.startswith(one[:-1]))]
            used.update(fitting)
            if full not in covered and not fitting:
                missing.append(full)
    assert not missing, "put them into SUBJECTS or values() of subjects.py, or into OTHERWISE with their tests"
    assert used == set(patterns), "names that are no longer there"


def test_the_check_of_names_can_fail(monkeypatch):
    import regiontok  # noqa: PLC0415

    monkeypatch.setattr(regiontok, "__all__", [*regiontok.__all__, "torch"])
    monkeypatch.setattr(regiontok, "torch", torch, raising=False)
    for check in (test_every_public_name_has_a_contract, test_the_public_api_changes_only_on_purpose):
        try:
            check()
        except AssertionError:
            continue
        raise AssertionError(f"{check.__name__} saw no change")


if __name__ == "__main__":
    SNAPSHOT.write_text("\n".join(api()) + "\n", encoding="utf-8")
