"""Print the lowest versions that pyproject.toml allows, as arguments of pip: ``python .ci/lowest.py EXTRA ...``."""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
extras, pinned = ["", *sys.argv[1:]], {}
while extras:
    extra = extras.pop()
    for requirement in project["dependencies"] if not extra else project["optional-dependencies"][extra]:
        if requirement.startswith("regiontok["):
            extras += re.findall(r"[a-z0-9]+", requirement.partition("[")[2])
            continue
        name, version = re.match(r"([\w-]+)>=([\w.]+)", requirement).groups()
        key = tuple(int(part) for part in version.split("."))
        pinned[name] = max(pinned.get(name, ()), key)
print(" ".join(f"{name}=={'.'.join(map(str, version))}" for name, version in sorted(pinned.items())))
