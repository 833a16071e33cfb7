"""Promises of the package as a whole: what an import costs, what is documented, what the comparisons can tell."""

import ast
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


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment, check=False
    )


def imported_after(statement):
    """Optional packages that a statement imports, besides those that scikit-learn does (pandas, and pyarrow with it)."""
    done = run(
        f"import sys, sklearn.datasets; before = set(sys.modules)\n{statement}\n"
        f"print([m for m in {OPTIONAL!r} if m in sys.modules and m not in before])"
    )
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout)


def test_import_loads_no_optional_package():
    assert (
        imported_after(
            "import regiontok, regiontok.viewing, regiontok.cli.tokenize, regiontok.cli.figures, regiontok.cli.masks, regiontok.cli.evaluate, regiontok.cli.focus, regiontok.adapters.llava, regiontok.evaluation.benchmarks; [getattr(regiontok, name) for name in regiontok.__all__]"
        )
        == []
    )


def test_the_check_of_imports_can_fail():
    assert "skimage" in imported_after("import regiontok, skimage")


def test_import_does_not_start_cuda_or_compile():
    code = (
        "import regiontok, torch, regiontok._kernels.merge as m; print(torch.cuda.is_initialized(), m.merge.signatures)"
    )
    assert run(code).stdout == "False []\n"


CLUSTER = (
    "import torch; from regiontok import UnionFindClusterer;"
    "print(len(UnionFindClusterer()(torch.eye(6).reshape(1, 2, 3, 6))))"
)


def test_it_works_where_no_cache_folder_can_be_written(tmp_path):
    """As in a container: neither the package nor any folder for numba's cache is writable."""
    blocker = tmp_path / "file"
    blocker.write_text("a file where a folder is wanted")
    done = run(CLUSTER, NUMBA_CACHE_DIR=str(blocker / "cache"))
    assert (done.returncode, done.stdout) == (0, "6\n"), done.stderr
    done = run(
        "import numba.core.caching as c\n"
        "c.CacheImpl._locator_classes = []\n"  # what numba finds when every place is read-only
        "import regiontok._kernels.merge as m; assert type(m.merge._cache).__name__ == 'NullCache'\n" + CLUSTER
    )
    assert (done.returncode, done.stdout) == (0, "6\n"), done.stderr


def test_kernels_give_the_same_uncompiled_and_stay_within_their_arrays(tmp_path):
    code = (
        "import torch; from regiontok import UnionFindClusterer as U; from tests.conftest import smooth_features as f\n"
        "for c in (4, 8): print(U(connectivity=c)(f(7, 9, 12, batch=2)).labels().tolist())\n"
        "for r in ('average', 'ward'): print(U(linkage=r, num_regions=9)(f(7, 9, 12, batch=2)).labels().tolist())\n"
        "print(U(explained_variance=0.6, connectivity=8)(f(7, 9, 12)).labels().tolist())\n"
        "print(U().tree(f(1, 6, 3))[0].cut(num_regions=2).labels().tolist(), U(num_regions=5)(f(5, 1, 4)).labels().tolist())\n"
        "import numpy as np; from regiontok import *; from regiontok._kernels.logits import measure\n"
        "m = np.random.default_rng(0).random((3, 17, 13)) < 0.4; m[2] = True\n"
        "s = MaskSet.from_coco(MaskSet.from_masks(m).to_coco()); l = MaskSet.from_labels(m[0].astype(int) - 1)\n"
        "print(s.runs.tolist(), s.areas().tolist(), int(s.masks().sum()), l.runs.tolist())\n"
        "for g in (ImageGeometry.letterbox(8), ImageGeometry.center_crop((30, 8)), ImageGeometry.squash(64)):\n"
        "    for grid in ((2, 2), (5, 3), (40, 40)):\n"
        "        for one in (m, s): print(MaskDownsampler(grid, geometry=g).coverage(one).sum((1, 2)).mul(100).round().tolist())\n"
        "r = Regions.from_masks([torch.from_numpy(m[:, :6, :5].copy())])\n"
        "print(split_regions(f(6, 5, 8), r, min_patches=2).region.tolist())\n"
        "a, b = np.empty((3, 2), np.int64), np.empty((3, 4), np.int64); measure((m * 4 - 2).astype(np.float32), 1, a, b)\n"
        "print(a.tolist(), b.tolist())"
    )
    environment = {"PYTHONPATH": str(ROOT)}
    compiled = run(code, **environment)
    assert compiled.returncode == 0, compiled.stderr
    assert len(compiled.stdout) > 200
    assert run(code, NUMBA_DISABLE_JIT="1", **environment).stdout == compiled.stdout
    checked = run(code, NUMBA_BOUNDSCHECK="1", NUMBA_CACHE_DIR=str(tmp_path), **environment)
    assert checked.stdout == compiled.stdout, checked.stderr


@pytest.mark.parametrize("name", regiontok.__all__)
def test_every_public_name_is_documented_with_an_example(name):
    thing = getattr(regiontok, name)
    assert inspect.getdoc(thing)
    if name not in (
        "Dropped",
        "Placement",
        "RegiontokError",
        "encoders",
        "masks",
        "read_image",
    ):  # used in the examples of what makes them
        assert ">>>" in thing.__doc__


def public_functions():
    for module in MODULES:
        for node in ast.walk(ast.parse(module.read_text())):
            body = getattr(node, "body", [])
            for child in body if isinstance(node, ast.Module | ast.ClassDef) else []:
                if isinstance(child, ast.FunctionDef | ast.ClassDef) and not child.name.startswith("_"):
                    yield pytest.param(child, id=f"{module.stem}.{child.name}")


@pytest.mark.parametrize("node", list(public_functions()))
def test_documented_arguments_are_the_arguments(node):
    documented = re.search(r"Args:\n((?: +.*\n|\n)*)", (ast.get_docstring(node) or "") + "\n")
    if documented is None:
        return
    source = node
    if isinstance(node, ast.ClassDef):
        source = next((child for child in node.body if getattr(child, "name", "") == "__init__"), None)
        if source is None:
            return
    every = source.args.args + source.args.kwonlyargs + [one for one in (source.args.kwarg,) if one]
    arguments = [one.arg for one in every if one.arg not in ("self", "cls")]
    indent = min(len(line) - len(line.lstrip()) for line in documented[1].splitlines() if line.strip())
    names = re.findall(rf"^ {{{indent}}}(\w+):", documented[1], re.MULTILINE)
    assert names == arguments


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


def python_blocks(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)


PROGRAMS = [
    pytest.param(code, id=f"{page.stem}-{number}")
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for number, code in enumerate(python_blocks(page))
]


@pytest.mark.parametrize("code", PROGRAMS)
def test_programs_in_the_pages_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = []
    exec(compile(code, "a page", "exec"), {"print": lambda *words: printed.append(" ".join(map(str, words)))})
    promised = re.findall(r"print\(.*\) +# (.*)", code)
    assert printed == promised


@pytest.fixture(scope="module")
def examples_folder(tmp_path_factory):
    """One folder for all, in reading order: later ones use the model that an earlier one trains."""
    return tmp_path_factory.mktemp("examples")


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_examples_run(example, examples_folder):
    done = subprocess.run(
        [sys.executable, str(example)], cwd=examples_folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    promised = set(re.findall(r"[\w-]+\.(?:png|html)", done.stdout.splitlines()[-1]))
    assert promised <= {path.name for path in examples_folder.iterdir()}
