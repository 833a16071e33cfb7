"""Writes the table of families into docs/adapters.md: run ``python docs/families.py``."""

from pathlib import Path

from regiontok.adapters.huggingface.families import FAMILIES, REFUSED

PAGE = Path(__file__).parent / "adapters.md"
START, END = "<!-- written by docs/families.py -->\n", "<!-- to here -->\n"


def tables() -> str:
    """Families, and who is refused and why."""
    lines = ["| family | mechanism | regions are made of | needs | notes |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {one.title} | `{one.mechanism}` | {one.features} | {one.needs} | {one.notes} |" for one in FAMILIES]
    lines += ["", "Refused, each with its reason:", "", "| class of transformers | why |", "| --- | --- |"]
    lines += [f"| `{name}` | {why} |" for name, why in sorted(REFUSED.items())]
    return "\n".join(lines) + "\n"


def page() -> str:
    """The page with the tables of this code."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(START)
    return before + START + tables() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
