"""Check prose against the writing rules: words to avoid, and sentences that are too long.

`violations_in_page` reads a Markdown page, `violations_in_docstrings` the docstrings of a Python file. `violations_in_texts` reads its
other texts (errors, reasons, events, help), `violations_in_names` its names and comments, and `violations_in_script` JavaScript. All
yield `Violation`, which prints as `file:line: problem: sentence`. Code blocks, code spans, HTML comments and tables of old names are not prose. Table cells are
checked for words but not for length. Used by `test_docs_style.py`; imports nothing of the project.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAX_WORDS = 30
WORDS = (
    "told", "said", "kept", "wish", "wishes", "taught", "nobody", "whose", "anew", "stands", "by itself", "so many", "not known",
)  # fmt: skip
"""Words that stand for a missing term."""
OLD_NAMES_BEGIN, OLD_NAMES_END = "<!-- old names -->", "<!-- end of old names -->"

_AVOIDED = re.compile(r"\b(" + "|".join(word.replace(" ", r"\s+") for word in WORDS) + r")\b", re.IGNORECASE)
_SPAN = re.compile(r"(`+)(.+?)\1", re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->|<[^>\n]+>")
_IMAGE = re.compile(r"!\[[^\]]*\]\([^)]*\)")
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_ITEM = re.compile(r"^\s*(?:[-*+]|\d+\.)\s+")
_FENCE = re.compile(r"^\s*(```|~~~)")
_ARGUMENT = re.compile(r"^\s*[\w*`][\w*`., ]{0,60}:(?:\s|$)")
_END = re.compile(r"(?<=[.!?])(?:[\"')*_]*)\s+(?=[\"'(*_]*[A-Z0-9`\u0001])")
_ABBREVIATION = re.compile(r"(?:\be\.g|\bi\.e|\bet al|\bvs|\bNo|\bSt)\.$")
_CODE = "\u0001"
"""Replaces a code span: one word of a sentence."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One place that breaks a rule."""

    path: Path
    line: int
    problem: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.problem}: {self.text}"


@dataclass(frozen=True, slots=True)
class Block:
    """A run of prose: each line with its number; `length` is False where sentence length does not count."""

    lines: tuple[tuple[int, str], ...]
    length: bool = True

    def sentences(self) -> Iterator[tuple[int, str]]:
        """Each sentence with the number of its first line."""
        text, starts = "", []
        for number, line in self.lines:
            starts.append((len(text), number))
            text += line.strip() + "\n"
        text = _SPAN.sub(lambda found: _CODE + "\n" * found.group().count("\n"), text)
        if len(text) != sum(len(line.strip()) + 1 for _, line in self.lines):  # spans shrank: find the lines again
            starts, at = [], 0
            for (number, _), piece in zip(self.lines, text.split("\n"), strict=False):
                starts.append((at, number))
                at += len(piece) + 1
        begin = 0
        for end in [*(found.end() for found in _END.finditer(text)), len(text)]:
            sentence = text[begin:end]
            if end < len(text) and _ABBREVIATION.search(sentence.rstrip()):
                continue
            if sentence.strip():
                yield max(number for at, number in starts if at <= begin), " ".join(sentence.split())
            begin = end


def _plain(line: str) -> str:
    return _LINK.sub(r"\1", _IMAGE.sub("", _COMMENT.sub("", line)))


def blocks_of_page(text: str) -> Iterator[Block]:
    """The prose of a Markdown page: paragraphs, list items, headings, and the rows of tables."""
    current: list[tuple[int, str]] = []
    fenced = old_names = False
    for number, raw in enumerate([*text.splitlines(), ""], 1):
        old_names = (old_names or OLD_NAMES_BEGIN in raw) and OLD_NAMES_END not in raw
        fence = bool(_FENCE.match(raw))
        line = "" if fenced or fence or old_names else _plain(raw)
        fenced ^= fence
        table, heading, item = line.lstrip().startswith("|"), line.startswith("#"), bool(_ITEM.match(line))
        if current and (not line.strip() or table or heading or item):
            yield Block(tuple(current))
            current = []
        if table or heading:
            yield Block(((number, line.lstrip("#| ")),), length=False)
        elif line.strip():
            current.append((number, _ITEM.sub("", line)))


def blocks_of_docstring(text: str, first_line: int) -> Iterator[Block]:
    """The prose of one docstring: paragraphs, and the entries of `Args:`, `Raises:` and the like."""
    current: list[tuple[int, str]] = []
    for number, raw in enumerate([*text.splitlines(), ""], first_line):
        line = _plain(raw)
        starts = bool(_ITEM.match(line) or (line[:1] == " " and _ARGUMENT.match(line)))
        if current and (not line.strip() or starts):
            yield Block(tuple(current))
            current = []
        if line.strip():
            current.append((number, _ITEM.sub("", line)))


def violations_in_blocks(path: Path, blocks: Iterator[Block]) -> Iterator[Violation]:
    """Every broken rule in some prose of one file."""
    for block in blocks:
        for line, sentence in block.sentences():
            shown = sentence.replace(_CODE, "`...`")
            for found in _AVOIDED.finditer(sentence):
                yield Violation(path, line, f"word to avoid, {found.group(1)!r}", shown)
            count = sum(any(c.isalnum() or c == _CODE for c in word) for word in sentence.split())
            if block.length and count > MAX_WORDS:
                yield Violation(path, line, f"{count} words in a sentence, at most {MAX_WORDS}", shown)


def violations_in_page(path: Path) -> Iterator[Violation]:
    """Every broken rule on a Markdown page."""
    yield from violations_in_blocks(path, blocks_of_page(path.read_text(encoding="utf-8")))


def violations_in_docstrings(path: Path) -> Iterator[Violation]:
    """Every broken rule in the docstrings of a Python file, those of attributes included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            # the first line begins behind the quotes; the others are dedented as a reader sees them
            first, _, rest = node.value.value.partition("\n")
            indent = " " * node.col_offset
            text = "\n".join([first, *(line.removeprefix(indent) for line in rest.splitlines())])
            yield from violations_in_blocks(path, blocks_of_docstring(text, node.lineno))


def violations_in_texts(path: Path) -> Iterator[Violation]:
    """Every word to avoid in the texts of a Python file that have several words: errors, reasons, events, help. Docstrings are apart."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            text = _SPAN.sub("`...`", node.value)
            for found in _AVOIDED.finditer(text) if " " in text.strip() else ():
                yield Violation(path, node.lineno, f"word to avoid, {found.group(1)!r}", " ".join(text.split()))


def violations_in_names(path: Path) -> Iterator[Violation]:
    """Every word to avoid as a part of a name, or in a comment, of a Python file."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type in (tokenize.NAME, tokenize.COMMENT):
            text = token.string.replace("_", " ") if token.type == tokenize.NAME else _SPAN.sub("`...`", token.string)
            for found in _AVOIDED.finditer(text):
                yield Violation(path, token.start[0], f"word to avoid, {found.group(1)!r}", token.string)


def violations_in_script(path: Path) -> Iterator[Violation]:
    """Every word to avoid in a script, a style sheet or a page of HTML: names, comments and texts."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        for found in _AVOIDED.finditer(line):
            yield Violation(path, number, f"word to avoid, {found.group(1)!r}", line.strip())
