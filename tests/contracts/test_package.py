"""Promises of the package as a whole: the cost of an import, documentation, errors and the tests' own comparisons."""

import ast
import importlib.metadata
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import regiontok
from regiontok import errors
from tests.conftest import assert_close

ROOT = Path(__file__).parents[2]
OPTIONAL = (
    "timm", "open_clip", "sam2", "transformers", "matplotlib", "skimage", "torchvision", "higra", "pyarrow", "pycocotools", "peft", "accelerate", "tokenizers",
    "lmms_eval",
)  # fmt: skip
MODULES = sorted((ROOT / "regiontok").rglob("*.py"))


def run(code, *arguments, **environment):
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)


MODULES_TO_IMPORT = (
    "regiontok, regiontok.viewing, regiontok.cli.tokenize, regiontok.cli.figures, regiontok.cli.masks, "
    "regiontok.cli.evaluate, regiontok.cli.focus, regiontok.adapters.llava, regiontok.evaluation.benchmarks"
)
STATE = f"""
import sys, sklearn.datasets  # which imports pandas, and pyarrow with it
before = set(sys.modules)
exec(sys.argv[1])
optional = [module for module in {OPTIONAL!r} if module in sys.modules and module not in before]
optional += [module for module in ("numba", "llvmlite") if module in sys.modules]
import torch, regiontok._kernels.merge
print((optional, torch.cuda.is_initialized(), len(regiontok._kernels.merge.merge.signatures)))
"""


def state_after(statement):
    """Return the optional packages that a statement imports, whether it starts CUDA, and how often it compiles."""
    done = run(STATE, statement)
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout)


def test_an_import_loads_no_optional_package_starts_no_cuda_and_compiles_nothing():
    names = "[getattr(regiontok, name) for name in regiontok.__all__]"
    assert state_after(f"import {MODULES_TO_IMPORT}; {names}") == ([], False, 0)


def test_the_check_of_imports_can_fail():
    call = "regiontok.UnionFindClusterer()(torch.rand(1, 2, 2, 3))"
    optional, _, compiled = state_after(f"import regiontok, skimage, torch; {call}")
    assert "skimage" in optional
    assert compiled == 1


def test_an_import_takes_a_fraction_of_torchs_time():
    """And loads no package that only some calls need."""
    code = "import torch; from regiontok import Regionizer"
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True)
    rows = [line.removeprefix("import time:").split("|") for line in done.stderr.splitlines() if "|" in line]
    times = {name.strip(): (int(own), int(total)) for own, total, name in rows if own.strip().isdigit()}
    assert "regiontok.clustering" in times
    slow = {"scipy.ndimage", "sklearn", "transformers", "pyarrow", "matplotlib", "torchvision", "torch._dynamo"}
    assert not slow & set(times)
    torch_time = times["torch"][1]
    package_time = sum(own for name, (own, _) in times.items() if name.partition(".")[0] == "regiontok")
    after_torch = sum(own for own, _ in list(times.values())[list(times).index("torch") + 1 :])
    assert package_time < torch_time / 5
    assert after_torch < torch_time


CLUSTER = (
    "import torch; from regiontok import UnionFindClusterer;"
    "print(len(UnionFindClusterer()(torch.eye(6).reshape(1, 2, 3, 6))))"
)


def test_it_works_where_no_cache_folder_can_be_written(tmp_path):
    """As in a container in which neither the package nor any folder for numba's cache is writable."""
    blocker = tmp_path / "file"
    blocker.write_text("a file in place of a folder")
    done = run(CLUSTER, NUMBA_CACHE_DIR=str(blocker / "cache"))
    assert (done.returncode, done.stdout) == (0, "6\n"), done.stderr
    done = run(
        "import numba.core.caching as c\n"
        "c.CacheImpl._locator_classes = []\n"  # as if every place were read-only
        "import regiontok._kernels.merge as m; print(type(m.merge.kernel._cache).__name__)"
    )
    assert (done.returncode, done.stdout) == (0, "NullCache\n"), done.stderr


def test_every_public_name_is_documented_with_an_example():
    in_other_examples = {"Dropped", "Placement", "RegiontokError", "encoders", "masks", "read_image"}
    undocumented = [name for name in regiontok.__all__ if not inspect.getdoc(getattr(regiontok, name))]
    assert undocumented == []
    docs = {name: getattr(regiontok, name).__doc__ for name in regiontok.__all__ if name not in in_other_examples}
    assert [name for name, doc in docs.items() if ">>>" not in doc] == []


def public_definitions():
    """Yield every public function, class and method of the package with its place."""
    for module in MODULES:
        for node in ast.walk(ast.parse(module.read_text())):
            for child in node.body if isinstance(node, ast.Module | ast.ClassDef) else []:
                if isinstance(child, ast.FunctionDef | ast.ClassDef) and not child.name.startswith("_"):
                    yield f"{module.relative_to(ROOT)}:{child.lineno} {child.name}", child


def documented_arguments(node):
    """Names in the ``Args`` section of a docstring; None without one."""
    section = re.search(r"Args:\n((?: +.*\n|\n)*)", (ast.get_docstring(node) or "") + "\n")
    if section is None:
        return None
    indent = min(len(line) - len(line.lstrip()) for line in section[1].splitlines() if line.strip())
    return re.findall(rf"^ {{{indent}}}(\w+):", section[1], re.MULTILINE)


def test_documented_arguments_are_the_arguments():
    wrong, checked = [], 0
    for place, node in public_definitions():
        documented, function = documented_arguments(node), node
        if isinstance(node, ast.ClassDef):
            function = next((child for child in node.body if getattr(child, "name", "") == "__init__"), None)
        if documented is None or function is None:
            continue
        args = function.args
        arguments = [*args.posonlyargs, *args.args, args.vararg, *args.kwonlyargs, args.kwarg]
        names = [argument.arg for argument in arguments if argument and argument.arg not in ("self", "cls")]
        checked += 1
        if documented not in (names, [name for name in names if args.vararg is None or name != args.vararg.arg]):
            wrong.append(f"{place}: documents {documented}; has {names}")
    assert not wrong, "\n".join(wrong)
    assert checked > 100


def test_errors_are_value_errors_or_import_errors():
    for name, error in vars(errors).items():
        if inspect.isclass(error) and error is not errors.RegiontokError and not issubclass(error, Warning):
            assert issubclass(error, errors.RegiontokError), name
            assert issubclass(error, ValueError | ImportError), name


def test_only_the_edges_name_optional_packages():
    pattern = re.compile(rf"^\s*(?:import|from) (?:{'|'.join(OPTIONAL)})\b", re.MULTILINE)
    assert [module for module in MODULES if pattern.search(module.read_text())] == []


def test_comparisons_can_fail():
    with pytest.raises(AssertionError):
        assert_close(torch.ones(2), torch.tensor([1.0, 1.001]))
    with pytest.raises(AssertionError):
        assert_close(torch.ones(2), torch.ones(3))


def test_the_version_is_the_same_everywhere():
    citation = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)[1]
    changes = re.search(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert regiontok.__version__ == citation == changes


def test_the_description_on_the_package_index_has_no_relative_link():
    description = importlib.metadata.metadata("regiontok").get_payload()
    assert description.startswith("# regiontok")
    text = re.sub(r"```.*?```", "", description, flags=re.DOTALL)
    assert re.findall(r"\]\((?!https?:)[^)]*\)", text) == []
    assert "Installation" in text
