"""What type checkers say of a user's file: each mistake is reported, and correct code is not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CORRECT = """
import torch
from regiontok import ImageGeometry, Regionizer, Regions, RegionTokens, UnionFindClusterer, cluster_regions

features = torch.rand(2, 8, 8, 32)
regionizer = Regionizer(source="clustering", dim=32, num_regions=16, norm="none", pool="mean")
tokens: RegionTokens = regionizer(features, num_regions=[4, 8])
values: torch.Tensor = tokens.values
regions: Regions = regionizer.group(features, keep=0.5)
first: RegionTokens = tokens[0]
images: list[RegionTokens] = list(tokens)
prompt = Regionizer(dim=32, num_regions="prompt", linkage="ward", mask_weight=0.3)
masked = Regionizer(source="combined", dim=32, geometry=ImageGeometry.letterbox(96), uncovered="cluster")
budget: int | str | None = regionizer.config.num_regions
again: Regionizer = Regionizer.from_config(regionizer.config)
few: RegionTokens = cluster_regions(features, num_regions=4)
clusterer = UnionFindClusterer(keep=0.5, linkage="ward")
both: RegionTokens = RegionTokens.cat([tokens, few]).to(torch.bfloat16)
"""
SETUP = """
import torch
from regiontok import Regionizer, RegionTokens, UnionFindClusterer, cluster_regions

features = torch.rand(2, 8, 8, 32)
regionizer = Regionizer(pool="mean")
"""
MISTAKES = (
    'Regionizer(sources="clustering")',
    'Regionizer(source="clusters")',
    'Regionizer(dim="32")',
    'Regionizer(norm="layer")',
    'Regionizer("clustering")',
    "Regionizer(geometry=336)",
    "regionizer(features, num_region=4)",
    "values: torch.Tensor = regionizer(features)",
    'cluster_regions(features, linkage="single")',
    "regionizer.config.num_clusters",
    'regionizer.group(features, keep="half")',
)
ROOT = Path(__file__).parents[2]


def lines_with_mypy_errors(file):
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "/dev/null", "--cache-dir", "/dev/null"]
    done = subprocess.run([*command, str(file)], capture_output=True, text=True, check=False, cwd=ROOT)
    found = [line.split(":") for line in done.stdout.splitlines() if line.startswith(str(file))]
    return {int(parts[1]) for parts in found if parts[2].strip() == "error"}


def lines_with_pyright_errors(file):
    settings = {"typeCheckingMode": "standard", "extraPaths": [str(ROOT)]}
    (file.parent / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=file.parent)
    return {1 + one["range"]["start"]["line"] for one in json.loads(done.stdout)["generalDiagnostics"]}


@pytest.mark.parametrize("check", [lines_with_mypy_errors, lines_with_pyright_errors])
def test_type_checkers_report_every_mistake_and_nothing_else(tmp_path, check):
    (tmp_path / "correct.py").write_text(CORRECT)
    assert check(tmp_path / "correct.py") == set()
    (tmp_path / "mistakes.py").write_text(SETUP + "\n".join(MISTAKES) + "\n")
    first = len(SETUP.splitlines()) + 1
    assert check(tmp_path / "mistakes.py") == set(range(first, first + len(MISTAKES)))


def test_the_core_imports_no_package_that_only_some_calls_need():
    code = "import torch; from regiontok import Regionizer"
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "regiontok.clustering" in imported
    slow = ("scipy.ndimage", "sklearn", "transformers", "pyarrow", "matplotlib", "torchvision", "torch._dynamo")
    assert not imported & set(slow)
