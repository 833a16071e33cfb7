"""Texts use plain technical English: `docs/style.md` has the words and names that are avoided."""

import ast
import io
import re
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORDS = (
    r"tells?", r"told", r"telling", r"lies", r"lay", r"stands? (?:for|in|at|there|where|beside)", r"goes? (?:on|along|the)",
    r"brings?", r"brought", r"besides", r"beside (?:it|them|the|a)", r"likewise", r"anew", r"nobody", r"no one", r"thereof",
    r"in hand", r"at hand", r"by now", r"but for", r"as ever", r"again and again", r"let go", r"(?:is|be|are) had",
    r"what (?:is|are|was|comes?|came|it|they|others|became|becomes)", r"(?:is|are|was|were) of (?:the|a|its|their|another)",
    r"that cannot be(?! \w+ed\b)", r"as it (?:was|came|lies|stands)", r"how many (?:it|there)", r"of (?:its|their) own accord",
    r"whoever", r"wherever it", r"mend(?:s|ed)?", r"wants? (?:it|them|a|an|the)",
)  # fmt: skip
OLD_WORDS = re.compile(rf"\b(?:{'|'.join(WORDS)})\b", re.IGNORECASE)
NAMES = {"one", "given", "found", "told", "own", "some", "known", "rest", "kept", "wanted", "laid"}
MOST = 3
"""Hits per 1000 lines that are left to judgement: a listed word can be the right one."""


def python_hits(text):
    """Yield lines and hits in comments, strings, and names of variables and arguments."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)):
            for match in OLD_WORDS.finditer(token.string):
                yield token.start[0] + token.string[: match.start()].count("\n"), match[0]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in NAMES:
            yield node.lineno, f"variable {node.id}"
        elif isinstance(node, ast.arg) and node.arg in NAMES:
            yield node.lineno, f"argument {node.arg}"
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
            docstring = ast.get_docstring(node)
            if docstring and len(docstring.split()) < 4:
                yield getattr(node, "lineno", 1), f"short docstring {docstring!r}"


def page_hits(text):
    """Yield lines and hits outside code blocks."""
    is_code = False
    for number, line in enumerate(text.splitlines(), 1):
        is_code ^= line.lstrip().startswith("```")
        if not is_code:
            yield from ((number, match[0]) for match in OLD_WORDS.finditer(line))


def files():
    for folder in ("regiontok", "examples", "benchmarks"):
        yield from sorted((ROOT / folder).rglob("*.py"))
    yield ROOT / "README.md"
    yield from (page for page in sorted((ROOT / "docs").glob("*.md")) if page.name != "style.md")


def test_texts_avoid_the_listed_words_and_names():
    num_lines, hits = 0, []
    for file in files():
        text = file.read_text(encoding="utf-8")
        num_lines += text.count("\n")
        find = python_hits if file.suffix == ".py" else page_hits
        hits += [f"{file.relative_to(ROOT)}:{line}: {hit}" for line, hit in sorted(find(text))]
    assert num_lines > 10_000
    most = num_lines * MOST // 1000
    assert len(hits) <= most, "\n".join([f"{len(hits)} hits in {num_lines} lines; at most {most} are allowed", *hits])


def test_the_check_can_fail():
    for text in ("# what is told", '"""How many it has."""', "one = 1", "def f(given): pass", '"""Its size."""'):
        assert list(python_hits(text)), text
