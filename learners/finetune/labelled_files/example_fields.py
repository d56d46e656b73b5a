"""Define the fields of examples: their names in common formats, and the required values.

Column heads and JSON keys are compared without case and surrounding spaces. Two names of one field are refused, never
chosen between. Knows the names of fields and no file format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from learners.class_names import class_name, visible
from learners.data_error import DataError
from learners.finetune.labelled_files.text_files import LocatedExample, located
from learners.tasks.base import Task, without_target
from learners.tasks.inputs.pictures import SUFFIXES as PICTURES
from learners.tasks.inputs.sounds import SUFFIXES as SOUNDS

ALIASES = {
    "intent": "label", "class": "label", "category": "label", "sentence": "text", "utterance": "text",
    "document": "source", "summary": "target", "article": "source", "ner_tags": "tags", "words": "tokens",
    "answer_start": "start", "sentence1": "text", "sentence2": "text_pair", "premise": "text", "hypothesis": "text_pair",
    "question1": "text", "question2": "text_pair", "text1": "text", "text2": "text_pair",
}  # fmt: skip
"""Other usual names of fields."""
FIELDS = frozenset(ALIASES.values()) | {
    "text_pair", "question", "context", "answers", "answer", "start", "messages", "picture", "sound", "file", "rate_hz",
}  # fmt: skip
TEXTS = ("text", "text_pair", "source", "target", "question", "context")
MEDIA = ("picture", "sound")
ROLES = ("system", "user", "assistant", "tool")
"""Roles of a turn, as chat templates name them."""
_EXAMPLES = {"role": '"role": "user" or "role": "assistant"', "content": '"content": "..."'}
MOST_EXACT = 2**53
"""The largest whole number up to which a decimal number of JSON holds each one."""
MOST = 5
"""Problems that one error names."""


def field_of(name: str) -> str:
    """Return the field that a column head or key names; an unknown name stays as it is."""
    plain = visible(name).casefold()
    return ALIASES.get(plain, plain if plain in FIELDS else visible(name))


def fields_of(names: Iterable[str], where: str) -> dict[str, str]:
    """Map names to fields.

    Raises:
        DataError: two names mean one field; `where` begins the message.
    """
    found: dict[str, str] = {}
    for name in names:
        field = field_of(name)
        if field in found.values():
            first = next(other for other, known in found.items() if known == field)
            both = f"`{first.strip()}` and `{name.strip()}` both mean `{field}`"
            raise DataError(f"{where}: {both}; delete or rename the one that is not meant")
        found[name] = field
    return found


def media_kind(path: Path) -> str | None:
    """Return `picture` or `sound` by the suffix of a file, None for any other."""
    suffix = path.suffix.lower()
    return "picture" if suffix in PICTURES else "sound" if suffix in SOUNDS else None


def to_row(body: Any, file: Path, line: int, *, place: str | None = None) -> LocatedExample:
    """Turn one object of a file into an example with the tasks' names; labels become words, paths count from the file.

    Raises:
        DataError: it is no object, two keys mean one field, or a value is of a kind that no task takes.
    """
    where = place or f"{file}:{line}"
    if not isinstance(body, dict):
        raise DataError(f"{where}: an object is wanted, got {type(body).__name__}; write one object for each example")
    given = {str(key): value for key, value in body.items() if value is not None}
    names = fields_of(given, where)
    example: dict[str, Any] = {names[key]: value for key, value in given.items()}
    if "label" in example:
        example["label"] = _label(example["label"], where)
    for name in TEXTS:
        if isinstance(example.get(name), int | float):
            example[name] = _number(example[name], name, where)
    _media(example, file.parent)
    _answer(example, where)
    if "sound" in example and "target" not in example and "text" in example:
        example["target"] = example.pop("text")  # the text of a sound is its transcript
    return LocatedExample(example, place or file, 0 if place else line)


def _label(value: Any, where: str) -> Any:
    """Return a label as a word, or several as a list of words."""
    if isinstance(value, list | tuple):
        return [_label(one, where) for one in value]
    if isinstance(value, bool | int) or (isinstance(value, float) and value.is_integer()):
        return _number(value, "label", where)
    if isinstance(value, str):
        return class_name(value)
    raise DataError(f"{where}: the label {value!r} is a {type(value).__name__}; write the name of a class")


def _number(value: float, name: str, where: str) -> str:
    """Return a number or a truth value of JSON as it was written.

    Raises:
        DataError: more digits than a decimal number holds: several such numbers would become one.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if name == "label" or value.is_integer():
        if abs(value) > MOST_EXACT:
            raise DataError(
                f"{where}: `{name}` is a number of too many digits to be read exactly; write it in double quotes"
            )
        value = int(value) if name == "label" else value
    return str(value)


def _media(example: dict[str, Any], folder: Path) -> None:
    if "file" in example and (kind := media_kind(Path(str(example["file"]).strip()))):
        example[kind] = example.pop("file")
    for kind in MEDIA:
        if kind in example:
            example[kind] = str(folder / str(example[kind]).strip())


def _answer(example: dict[str, Any], where: str) -> None:
    """Convert SQuAD's forms of answers, and one `answer` with its `start`, to a list of `text` and `start`."""
    example_answers = example.get("answers")
    if isinstance(example_answers, dict) and isinstance(example_answers.get("text"), list):
        starts = example_answers.get("answer_start", example_answers.get("start"))
        if starts is not None and (not isinstance(starts, list) or len(starts) != len(example_answers["text"])):
            raise DataError(
                f"{where}: `answers` has {len(example_answers['text'])} texts and not as many starts; give each one"
            )
        example["answers"] = [
            {"text": text} | ({"start": starts[at]} if starts is not None else {})
            for at, text in enumerate(example_answers["text"])
        ]
    elif isinstance(example_answers, list):
        example["answers"] = [
            {"start" if key == "answer_start" else key: value for key, value in one.items()}
            if isinstance(one, dict)
            else one
            for one in example_answers
        ]
    if "answer" not in example or "answers" in example:
        return
    answer: dict[str, Any] = {"text": str(example.pop("answer"))}
    if "start" in example:
        start = example.pop("start")
        try:
            answer["start"] = int(start)
        except (TypeError, ValueError):
            raise DataError(
                f"{where}: the start {start!r} is not a whole number; write the position of the answer's first character"
            ) from None
    example["answers"] = [answer]


def check(examples: Iterable[Mapping[str, Any]], task: type[Task]) -> None:
    """Refuse examples that lack what a task needs.

    Raises:
        DataError: with place and remedy of the first problems.
    """
    problems: list[str] = []
    lists: bool | None = None
    for example in examples:
        problem = _problem(example, task)
        if problem is None and "label" in example:
            is_list = isinstance(example["label"], list | tuple)
            if lists is not None and is_list is not lists:
                forms = ("a list", "a word") if is_list else ("a word", "a list")
                where = getattr(example, "where", "an example")
                problem = f"{where}: the label is {forms[0]}, those before are {forms[1]} each; write all in one form"
            lists = is_list if lists is None else lists
        if problem is not None and problem not in problems:
            problems.append(problem)
            if len(problems) == MOST:
                break
    if problems:
        raise DataError("\n".join(problems))


def check_features(task: Task, examples: Iterable[Mapping[str, Any]], *, targets: bool = True) -> None:
    """Make the model inputs of every example once, so that a broken file or an unknown label is found before training.

    Args:
        task: to make them.
        examples: with their places.
        targets: whether labels are read, too; a head need not have every label that is measured.

    Raises:
        DataError: with place and reason of the first problems.
    """
    problems: list[str] = []
    for example in examples:
        try:
            task.features(example if targets else without_target(example))
        except DataError as error:
            problems.append(str(located(example, error)))
            if len(problems) == MOST:
                break
    if problems:
        raise DataError("\n".join(problems))


def _problem(example: Mapping[str, Any], task: type[Task]) -> str | None:
    where = getattr(example, "where", "an example")
    for needed in task.declaration().needs:
        name = next((one for one in needed.split("|") if one in example), None)
        if name is None:
            wanted = needed.replace("|", "` or `")
            there = ", ".join(f"`{key}`" for key in example) or "none"
            if header := getattr(example, "header", 0):
                at = f"{where.rpartition(':')[0]}:{header}"
                return f"{at}: no column `{wanted}`, only {there}; add it, or rename the column that holds it"
            return f"{where}: no `{wanted}`, only {there}; add it, or rename the key that holds it"
        if (wrong := _CHECKS[name](example)) is not None:
            return f"{where}: {wrong}"
    return None


def _text(name: str) -> Callable[[Mapping[str, Any]], str | None]:
    def wrong(example: Mapping[str, Any]) -> str | None:
        value = example[name]
        if not isinstance(value, str):
            return f"`{name}` is a {type(value).__name__}; write a text"
        return None if value.strip() else f"`{name}` is empty; write the text or delete the example"

    return wrong


def _label_problem(example: Mapping[str, Any]) -> str | None:
    value = example["label"]
    several = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(one, str) and one.strip() for one in several):
        return "the label is empty; write its class or delete the example"
    return None


def _tokens(example: Mapping[str, Any]) -> str | None:
    value = example["tokens"]
    if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
        return '`tokens` is not a list of words; write ["word", "word"], or the text as one `text`'
    return None if value else "`tokens` is empty; delete the example"


def _tags(example: Mapping[str, Any]) -> str | None:
    tags = example["tags"]
    if not isinstance(tags, list | tuple):
        return '`tags` is not a list; write ["O", "B-x"]'
    if not all(isinstance(tag, str) for tag in tags):
        return "`tags` holds numbers; write the names of the tags (O, B-x, I-x), not their numbers"
    words = example["tokens"] if "tokens" in example else str(example.get("text", "")).split()
    return None if len(words) == len(tags) else f"{len(words)} words but {len(tags)} tags; give each word one tag"


def _answers(example: Mapping[str, Any]) -> str | None:
    answers = example["answers"]
    right = isinstance(answers, list | tuple)  # an empty list: the context holds no answer
    if not right or not all(isinstance(one, dict) and isinstance(one.get("text"), str) for one in answers):
        return '`answers` holds no answer; write [{"text": "...", "start": 0}]'
    if any(type(one.get("start", 0)) is not int for one in answers):
        return "the `start` of an answer is not a whole number; write the position of its first character"
    return None


def _messages(example: Mapping[str, Any]) -> str | None:
    turns = example["messages"]
    if not isinstance(turns, list | tuple) or not turns:
        return '`messages` holds no turn; write [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
    for number, turn in enumerate(turns, 1):
        if (wrong := _turn(turn)) is not None:
            return f"turn {number} of `messages` {wrong}"
    if not any(turn["role"] == "assistant" for turn in turns):
        return "`messages` has no turn of the assistant; only these are trained"
    return None


def _turn(turn: Any) -> str | None:
    if not isinstance(turn, dict):
        return f'is a {type(turn).__name__}; write {{"role": "user", "content": "..."}}'
    for key in ("role", "content"):
        if not isinstance(turn.get(key), str):
            there = ", ".join(f"`{name}`" for name in turn) or "nothing"
            return f"has no `{key}` that is a text, only {there}; add {_EXAMPLES[key]}"
    if turn["role"] not in ROLES:
        return f"has the role {turn['role']!r}; write one of {', '.join(ROLES)}"
    return None


def _file(name: str) -> Callable[[Mapping[str, Any]], str | None]:
    def wrong(example: Mapping[str, Any]) -> str | None:
        value = example[name]
        if not isinstance(value, str | Path):
            return None  # samples or pixels
        path = Path(value)
        if not path.is_file():
            return f"no such {name}: {path}; correct the path, which counts from the table's folder"
        return None if path.stat().st_size else f"the {name} is empty: {path}; delete it or copy it again"

    return wrong


_CHECKS: dict[str, Callable[[Mapping[str, Any]], str | None]] = {
    **{name: _text(name) for name in TEXTS}, **{name: _file(name) for name in MEDIA},
    "label": _label_problem, "tokens": _tokens, "tags": _tags, "answers": _answers, "messages": _messages,
}  # fmt: skip
