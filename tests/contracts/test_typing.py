"""Type checkers report each mistake in a user's file, and nothing in a correct one."""

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
masked = Regionizer(source="combined", dim=32, geometry=ImageGeometry.letterbox(96), unassigned="cluster")
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


def mypy_errors(folder):
    """Return lines with errors by file."""
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "/dev/null", "--cache-dir", "/dev/null"]
    files = [str(file) for file in folder.glob("*.py")]
    done = subprocess.run([*command, *files], capture_output=True, text=True, check=False, cwd=ROOT)
    rows = [line.split(":") for line in done.stdout.splitlines() if line.startswith(str(folder))]
    return [(Path(row[0]).name, int(row[1])) for row in rows if row[2].strip() == "error"]


def pyright_errors(folder):
    """Return lines with errors by file."""
    settings = {"typeCheckingMode": "standard", "extraPaths": [str(ROOT)]}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    rows = json.loads(done.stdout)["generalDiagnostics"]
    return [(Path(row["file"]).name, 1 + row["range"]["start"]["line"]) for row in rows]


@pytest.mark.parametrize("errors", [mypy_errors, pyright_errors])
def test_type_checkers_report_every_mistake_and_nothing_else(tmp_path, errors):
    (tmp_path / "correct.py").write_text(CORRECT)
    (tmp_path / "mistakes.py").write_text(SETUP + "\n".join(MISTAKES) + "\n")
    first = len(SETUP.splitlines()) + 1
    assert set(errors(tmp_path)) == {("mistakes.py", first + number) for number in range(len(MISTAKES))}
