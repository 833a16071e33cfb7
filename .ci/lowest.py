"""Print the lowest versions that pyproject.toml allows, as arguments of pip: ``python .ci/lowest.py EXTRA ...``."""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
wanted, pinned = ["", *sys.argv[1:]], {}
while wanted:
    extra = wanted.pop()
    for one in project["dependencies"] if not extra else project["optional-dependencies"][extra]:
        if one.startswith("regiontok["):
            wanted += re.findall(r"[a-z0-9]+", one.partition("[")[2])
            continue
        name, version = re.match(r"([\w-]+)>=([\w.]+)", one).groups()
        key = tuple(int(part) for part in version.split("."))
        pinned[name] = max(pinned.get(name, ()), key)
print(" ".join(f"{name}=={'.'.join(map(str, version))}" for name, version in sorted(pinned.items())))
