"""Files as people and programs write them: read as they were meant, or refused with the line and a remedy."""

from __future__ import annotations

import io
import os
from pathlib import Path

import cv2
import numpy as np
import orjson
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from learners.data_error import DataError
from learners.finetune.labelled_files import datasets
from learners.finetune.labelled_files.example_fields import check
from learners.tasks.inputs.pictures import read_picture
from learners.tasks.task_classes import known
from sensors.codecs.images import decode_image

ROWS = [{"text": "good film", "label": "pos"}, {"text": "bad film", "label": "neg"}]
CSV = "text,label\ngood film,pos\nbad film,neg\n"


def write(tmp_path: Path, content: str | bytes, name: str = "a.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(path: Path | str, modality: str = "text", needs: tuple[str, ...] = ("text", "label")) -> str:
    task = next(
        cls for cls in known().values() if (cls.declaration().needs, cls.declaration().modality) == (needs, modality)
    )
    with pytest.raises(DataError) as refused:
        datasets.read(path, task)
    return str(refused.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bom.csv", b"\xef\xbb\xbf" + CSV.encode()),
        ("utf16.csv", CSV.encode("utf-16")),
        ("utf32.csv", CSV.encode("utf-32")),
        ("crlf.csv", CSV.replace("\n", "\r\n")),
        ("cr.csv", CSV.replace("\n", "\r")),
        ("semicolon.csv", CSV.replace(",", ";")),
        ("tab.csv", CSV.replace(",", "\t")),
        ("pipe.csv", CSV.replace(",", "|")),
        ("comma.tsv", CSV),
        ("excel.csv", "sep=;\n" + CSV.replace(",", ";").replace("\n", ";1\n").replace("label;1", "label;n")),
        ("caps.csv", CSV.replace("text,label", " Text , LABEL ")),
        ("space.csv", CSV.replace(",", ", ").replace("\n", " \n")),
        ("alias.csv", CSV.replace("text,label", "Sentence,Category")),
        ("index.csv", ",text,label\n0,good film,pos\n1,bad film,neg\n"),
        ("blank.csv", "\n" + CSV.replace("\nbad", "\n\n,\nbad")),
        ("quoted.csv", '"text","label"\n"good film","pos"\n"bad film","neg"\n'),
        ("more.csv", "id,text,label,note\n1,good film,pos,x\n2,bad film,neg,\n"),
        ("unnamed.csv", "text,label,,\ngood film,pos,,\nbad film,neg,,\n"),
        ("bom.jsonl", b"\xef\xbb\xbf" + b"\n".join(map(orjson.dumps, ROWS))),
        ("mixed.jsonl", b'{"text": "good film", "label": "pos"}\r\n\r\n{"Sentence": "bad film", "INTENT": " neg "}\r\n'),
    ],
)  # fmt: skip
def test_tables_of_every_program_give_the_same_examples(tmp_path: Path, name: str, content: str | bytes) -> None:
    found = datasets.read(write(tmp_path, content, name))
    assert [{key: row[key] for key in ("text", "label")} for row in found] == ROWS


def test_quoted_cells_keep_delimiters_quotes_and_line_ends(tmp_path: Path) -> None:
    path = write(tmp_path, 'text,label\n"I like it, really ""so""",pos\n"two\nlines, here",neg\n')
    assert [row["text"] for row in datasets.read(path)] == ['I like it, really "so"', "two\nlines, here"]
    path = write(tmp_path, 'text\tlabel\n"he said\tpos\nyes "no"\tneg\n"whole"\tneg\n', "a.tsv")
    assert [row["text"] for row in datasets.read(path)] == ['"he said', 'yes "no"', '"whole"']
    path = write(tmp_path, 'text\tlabel\n"two\nlines"\tpos\n', "a.tsv")
    assert [row["text"] for row in datasets.read(path)] == ["two\nlines"]


def test_a_huge_cell_is_read(tmp_path: Path) -> None:
    long = "x " * 100_000
    assert datasets.read(write(tmp_path, f'{CSV}"{long}",pos\n'))[2]["text"] == long


@pytest.mark.parametrize(
    ("name", "content", "line", "reason"),
    [
        ("latin1.csv", "text,label\ngood,pos\nschöner Film,pos\n".encode("latin-1"), 3, "byte 0xf6 is not UTF-8"),
        ("zero.csv", b"text,label\ngo\0od,pos\n", 2, "a zero byte"),
        ("long.csv", CSV + "I like it, really,pos\n", 4, "3 columns where the header has 2; put a text"),
        ("short.csv", CSV + "lonely row\n", 4, "1 columns where the header has 2; add"),
        ("twohead.csv", "text,label,label\nx,a,b\n", 1, "`label` and `label` both mean `label`"),
        ("twolabels.csv", "text,label,Category\nx,a,b\n", 1, "`label` and `Category` both mean `label`"),
        ("emptylabel.csv", CSV + "no idea,\n", 4, "the label is empty"),
        ("emptytext.csv", CSV + " ,pos\n", 4, "`text` is empty"),
        ("nolabel.csv", "text,sentiment\nx,pos\ny,neg\n", 1, "no column `label`, only `text`, `sentiment`; add"),
        ("notext.csv", "review,label\nx,pos\n", 1, "no column `text`"),
        ("unclosed.csv", CSV + '"he said it was,neg\nfine film,pos\n', 4, "a double quote is not closed"),
        ("swallowed.csv", CSV + '"he said,neg\nfine film,pos\nhe said",neg\n', 4, "this line ends as a row does"),
        ("inside.csv", CSV + '"he" said,neg\n', 4, "is inside a quoted cell"),
        ("unnamed.csv", "text,label,\ngood,pos,\nbad,neg,x\n", 1, "column 3 has no name but line 3"),
        ("null.jsonl", b'{"text": "x", "label": "a"}\n{"text": "x", "label": null}', 2, "no `label`"),
        ("object.jsonl", b'{"text": "x", "label": {"a": 1}}', 1, "is a dict"),
        ("fraction.jsonl", b'{"text": "x", "label": 0.5}', 1, "0.5 is a float"),
        ("list.jsonl", b'{"text": ["x"], "label": "a"}', 1, "`text` is a list"),
        ("twice.jsonl", b'{"text": "x", "text": "y", "label": "a"}', 1, "appears twice"),
        ("twokeys.jsonl", b'{"text": "x", "intent": "y", "label": "a"}', 1, "`intent` and `label` both mean"),
        ("nan.jsonl", b'{"text": "x", "label": NaN}', 1, "JSON has no such number"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_meant_are_refused_by_line(
    tmp_path: Path, name: str, content: str | bytes, line: int, reason: str
) -> None:
    path = write(tmp_path, content, name)
    reported = refusal(path)
    assert reported.startswith(f"{path}:{line}: ")
    assert reason in reported
    assert ";" in reported


def test_numbers_and_truth_values_are_names_of_classes(tmp_path: Path) -> None:
    path = write(
        tmp_path, "".join(f'{{"text": "x", "label": {label}}}\n' for label in ("true", "false", "1", "2.0")), "a.jsonl"
    )
    assert [row["label"] for row in datasets.read(path)] == ["true", "false", "1", "2"]


def test_every_problem_is_named_up_to_five(tmp_path: Path) -> None:
    reported = refusal(write(tmp_path, CSV + "x,\n" * 7)).splitlines()
    assert [line.rpartition(".csv:")[2][:1] for line in reported] == ["4", "5", "6", "7", "8"]


def test_json_lines_named_json_say_so(tmp_path: Path) -> None:
    path = write(tmp_path, b'{"text": "x", "label": "a"}\n{"text": "y", "label": "b"}\n', "a.json")
    assert "name it a.jsonl" in refusal(path)
    path = write(tmp_path, b'{"train": [{"text": "x"}]}', "a.json")
    assert "a.json#train: example 1: no `label`" in refusal(f"{path}#train")


IOB2 = ["B-PER", "I-PER", "O", "B-LOC", "B-LOC", "B-PER"]
SCHEMES = {
    "IOB2": IOB2,
    "IOB1": ["I-PER", "I-PER", "O", "I-LOC", "B-LOC", "I-PER"],
    "BIOES": ["B-PER", "E-PER", "O", "S-LOC", "S-LOC", "S-PER"],
    "BILOU": ["B-PER", "L-PER", "O", "U-LOC", "U-LOC", "U-PER"],
    "BMEWO": ["b-PER", "e-PER", "O", "w_LOC", "w_LOC", "w-PER"],
}
WORDS = ["Anna", "Berg", "saw", "Rome", "Paris", "Tom"]


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_every_scheme_of_tags_is_read_as_iob2(tmp_path: Path, scheme: str) -> None:
    lines = "".join(f"{word} {tag}\n" for word, tag in zip(WORDS, SCHEMES[scheme], strict=True))
    found = datasets.read(write(tmp_path, lines, "a.conll"))
    assert found == [{"tokens": WORDS, "tags": IOB2}]
    assert ([] if scheme == "IOB2" else [scheme]) == [note.split()[3].strip(",") for note in found.notes]
    body = orjson.dumps({"tokens": WORDS, "ner_tags": SCHEMES[scheme]})
    assert datasets.read(write(tmp_path, body, "a.jsonl"))[0]["tags"] == IOB2


def test_types_without_prefix_are_runs(tmp_path: Path) -> None:
    path = write(tmp_path, "Anna PER\nBerg PER\nRome LOC\nis O\n", "a.conll")
    found = datasets.read(path)
    assert found[0]["tags"] == ["B-PER", "I-PER", "B-LOC", "O"]
    assert "IO without prefix" in found.notes[0]


def test_comments_documents_and_white_space(tmp_path: Path) -> None:
    text = "\ufeff# sent_id = 1\n-DOCSTART- -X- O O\n \t\nfoo\u00a0bar\tB-x\n# text\n#\tO\n\u2028y\u0085z\tO\n \u3000\r\n#tag\tI-x\n"
    found = datasets.read(write(tmp_path, text, "a.conll"))
    assert [row["tokens"] for row in found] == [["foo\u00a0bar", "#", "\u2028y\u0085z"], ["#tag"]]
    assert [row["tags"] for row in found] == [["B-x", "O", "O"], ["B-x"]]


def test_numbered_words_are_not_the_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, "# id\thttp://x\n1\tAnna\tB-x\n2\tgoes\tO\n\n1\tstop\tO\n", "a.conll")
    assert [row["tokens"] for row in datasets.read(path)] == [["Anna", "goes"], ["stop"]]


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        ("a O\nb X O\nc O\n", 2, "3 columns where the other lines have 2"),
        ("a O\n\nb\nc O\nd O\n", 3, "1 columns where the other lines have 2"),
        ("lonely\n", 1, "a word and its tag are wanted"),
        ("a\tO\nb\t\n", 2, "the word or its tag is empty"),
        ("a B-x\nb O\nc PER\n", 3, "'PER' has no prefix"),
        ("a NN\nb VB\n", 1, "no word in the file has the tag O"),
        ("a PER-B\nb O\n", 1, "'PER-B' has no prefix"),
    ],
)
def test_columns_that_cannot_be_meant_are_refused_by_line(tmp_path: Path, content: str, line: int, reason: str) -> None:
    path = write(tmp_path, content, "a.conll")
    reported = refusal(path, needs=("tokens|text", "tags"))
    assert reported.startswith(f"{path}:{line}: ")
    assert reason in reported
    assert ";" in reported


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"tokens": ["a", "b"], "ner_tags": [1, 0]}, "holds numbers"),
        ({"tokens": ["a", "b"], "tags": ["O"]}, "2 words but 1 tags"),
        ({"tokens": "a b", "tags": ["O", "O"]}, "`tokens` is not a list"),
        ({"tokens": ["a"], "tags": "O"}, "`tags` is not a list"),
        ({"tokens": [], "tags": []}, "`tokens` is empty"),
    ],
)
def test_tags_that_fit_no_words_are_refused(tmp_path: Path, body: dict[str, object], reason: str) -> None:
    assert reason in refusal(write(tmp_path, orjson.dumps(body), "a.jsonl"), needs=("tokens|text", "tags"))


@pytest.mark.parametrize(
    ("needs", "body", "reason"),
    [
        (("messages",), {"messages": []}, "holds no turn"),
        (("messages",), {"messages": [{"role": "user"}]}, "turn 1"),
        (("messages",), {"messages": [{"role": "user", "content": "x"}]}, "no turn of the assistant"),
        (("question", "context", "answers"), {"question": "q", "context": "c", "answers": "a"}, "holds no answer"),
        (("question", "context", "answers"), {"question": "q", "context": "c", "answer": "c", "start": "?"}, "not a whole number"),
        (("question", "context", "answers"), {"question": "q", "context": "c", "answers": [{"text": "c", "start": 0.5}]}, "not a whole number"),
        (("source", "target"), {"source": "x"}, "no `target`"),
    ],
)  # fmt: skip
def test_other_tasks_name_what_they_miss(
    tmp_path: Path, needs: tuple[str, ...], body: dict[str, object], reason: str
) -> None:
    path = write(tmp_path, orjson.dumps(body), "a.jsonl")
    reported = refusal(path, needs=needs)
    assert reported.startswith(f"{path}:1: ")
    assert reason in reported


def test_semeval_without_a_relation_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, '1\t"The <e1>a</e1> of <e2>b</e2>."\n2\t"x"\n', "a.txt")
    assert refusal(path).startswith(f"{path}:1: no relation")


def test_a_folder_counts_what_it_leaves_out(tmp_path: Path) -> None:
    root = tmp_path / "p"
    for file in ("cat/1.png", "cat/.ipynb_checkpoints/1-checkpoint.png", "cat/._1.png", "dog/1.png", ".git/x.png"):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(root / file)
    for file in ("cat/1.heic", "dog/Thumbs.db", "notes.txt", "empty/x.txt"):
        (root / file).parent.mkdir(exist_ok=True)
        (root / file).write_bytes(b"x")
    found = datasets.read(root)
    assert [row["label"] for row in found] == ["cat", "dog"]
    assert found.notes == [
        f"no picture and no sound in {root}/empty: the class empty is left out",
        f"{root}: 7 files left out: 1 .heic, 1 .txt, 4 hidden, 1 outside the class folders",
    ]


def test_sounds_without_an_end_are_named(tmp_path: Path) -> None:
    """They are read as far as they go, which may be without the word that they are labelled with."""
    for name, share in (("a/1.wav", 1.0), ("a/2.wav", 0.5), ("b/1.flac", 1.0), ("b/2.wav", 0.9)):
        path = tmp_path / "s" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.zeros(1_000), 16_000)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    found = datasets.read(tmp_path / "s")
    assert [row["label"] for row in found] == ["a", "a", "b", "b"]
    assert found.notes == [f"2 of 4 sounds are cut: their end is missing, first {tmp_path}/s/a/2.wav"]


def test_a_split_is_read_or_refused_and_never_left_out_of_a_name(tmp_path: Path) -> None:
    table = write(tmp_path, "text,label,split\na,x,train\nb,y,test\nc,x,train\n")
    assert [row["text"] for row in datasets.read(f"{table}#train")] == ["a", "c"]
    assert "all splits are read (test, train)" in datasets.read(table).notes[0]
    assert "its splits are test, train" in refusal(f"{table}#dev")
    for name, content in (("b.csv", "text,label\na,x\n"), ("b.json", '[{"text": "a", "label": "x"}]')):
        plain = write(tmp_path, content, name)
        assert "no split `test`" in refusal(f"{plain}#test")
    (tmp_path / "f" / "x").mkdir(parents=True)
    (tmp_path / "f" / "x" / "a.png").write_bytes(b"0")
    assert "no split `test`" in refusal(f"{tmp_path / 'f'}#test")
    numbered = write(tmp_path, "text,label\na,x\n", "part#1.csv")
    assert len(datasets.read(numbered)) == 1


def test_folders_of_a_data_set_are_not_its_classes(tmp_path: Path) -> None:
    for name in ("train/cat", "train/dog", "test/cat"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "a.png").write_bytes(b"0")
    assert f"test, train are the parts of a data set, not classes; name one: {tmp_path}/set/test" in refusal(
        tmp_path / "set"
    )
    assert [row["label"] for row in datasets.read(tmp_path / "set" / "train")] == ["cat", "dog"]


def test_a_folder_is_the_class_that_a_table_names(tmp_path: Path) -> None:
    for number, name in enumerate(("cafe\u0301", "caf\u00e9", " tea ")):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / f"{number}.png").write_bytes(b"0")
    assert {row["label"] for row in datasets.read(tmp_path / "set")} == {"caf\u00e9", "tea"}
    (tmp_path / "set" / os.fsdecode(b"\xe9t\xe9")).mkdir()
    (tmp_path / "set" / os.fsdecode(b"\xe9t\xe9") / "a.png").write_bytes(b"0")
    assert "is named by no text" in refusal(tmp_path / "set")


def test_labels_that_people_see_alike_are_named(tmp_path: Path) -> None:
    notes = datasets.read(write(tmp_path, "text,label\na,turn left\nb,turn\u00a0left\nc,Turn  left\nd,stop\n")).notes
    assert len(notes) == 1
    assert "differ only in case, white space" in notes[0]
    assert datasets.read(write(tmp_path, "a B-PER\nb I-per\nc O\n", "a.conll")).notes[-1].startswith("the labels 'PER'")


def test_broken_pictures_and_sounds_are_named(tmp_path: Path) -> None:
    (tmp_path / "p" / "cat").mkdir(parents=True)
    (tmp_path / "p" / "cat" / "1.jpg").write_bytes(b"")
    assert "1.jpg: the picture is empty" in refusal(tmp_path / "p", "picture", ("picture", "label"))
    table = write(tmp_path, "file,label\nnowhere.wav,a\n")
    assert refusal(table, "sound", ("sound", "label")).startswith(f"{table}:2: no such sound: {tmp_path}/nowhere.wav")
    whole = tmp_path / "whole.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(whole)
    exif = Image.Exif()
    exif[0x0112] = 6
    thumbnail = b"\xff\xd8 a thumbnail \xff\xd9"
    Image.fromarray(noise).save(whole, exif=exif.tobytes() + thumbnail)
    read_picture(whole)
    for name, data in {"cut.jpg": whole.read_bytes()[:-900], "other.jpg": b"<html>", "a.webp": b"RIFF....WEBP"}.items():
        with pytest.raises(DataError, match=rf"{name}: .*; delete it or copy it again"):
            read_picture(write(tmp_path, data, name))


def pictures() -> dict[str, bytes]:
    """One picture of each kind that live streams accept, made with two libraries."""
    made = {}
    grey = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    colour = np.random.default_rng(1).integers(0, 256, (8, 6, 4), np.uint8)
    for name, array in {"gray16": grey, "rgba16": colour.astype(np.uint16) * 257, "rgba": colour}.items():
        made[f"{name}.png"] = cv2.imencode(".png", array)[1].tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, mode in {"la": "LA", "p": "P", "1": "1", "l": "L", "rgb": "RGB"}.items():
        made[f"{name}.png"] = _saved(Image.fromarray(colour, "RGBA").convert(mode), "PNG")
    made["transparent-p.png"] = _saved(Image.fromarray(colour[..., :3]).quantize(4), "PNG", transparency=0)
    made["turned-rgba.png"] = _saved(Image.fromarray(colour, "RGBA"), "PNG", exif=exif)
    for name, mode in {"cmyk": "CMYK", "grey": "L", "rgb": "RGB"}.items():
        made[f"{name}.jpg"] = _saved(Image.fromarray(colour[..., :3]).convert(mode), "JPEG")
        made[f"turned-{name}.jpg"] = _saved(Image.fromarray(colour[..., :3]).convert(mode), "JPEG", exif=exif)
    return made


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("name", list(pictures()))
def test_training_sees_a_picture_as_a_live_stream_does(tmp_path: Path, name: str) -> None:
    data = pictures()[name]
    seen = read_picture(write(tmp_path, data, name))
    np.testing.assert_array_equal(seen, decode_image(data, 1 << 20))
    assert seen.shape == ((6, 8, 3) if "turned" in name else (8, 8, 3) if name == "gray16.png" else (8, 6, 3))


def test_sixteen_bits_and_transparency_mean_what_people_see(tmp_path: Path) -> None:
    grey = read_picture(write(tmp_path, pictures()["gray16.png"], "a.png"))
    assert grey[:, :, 0].ravel().tolist() == [value * 4 for value in range(64)]
    pgm = b"P5 8 8 65535\n" + np.arange(0, 65536, 1024, dtype=">u2").tobytes()
    assert read_picture(write(tmp_path, pgm, "a.pgm"))[:, :, 0].ravel().tolist() == [value * 4 for value in range(64)]
    clear = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    for name, kind in {"a.png": "PNG", "a.webp": "WEBP"}.items():
        assert read_picture(write(tmp_path, _saved(clear, kind), name)).tolist() == [[[255] * 3] * 2] * 2


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode), st.sampled_from(sorted(datasets.READERS)))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes, suffix: str) -> None:
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_bytes(data)
    for task in known().values():
        try:
            check(datasets.read(path, task), task)
        except DataError as error:
            assert str(error).startswith(str(path))  # noqa: PT017 - most inputs are refused, some are read


@pytest.mark.parametrize("value", [1, None, True, 1.5, "x", [1], [None], [[1]], [{}], {}, {"a": 1}, [], ["a", 1]])
@pytest.mark.parametrize("field", ["text", "label", "tokens", "tags", "answers", "messages", "source"])
def test_a_field_of_any_type_is_read_while_no_task_says_which_it_has(tmp_path: Path, field: str, value: object) -> None:
    """A verb reads the files before it knows the task; the task then refuses the field by its line."""
    row = {"text": "a", "label": "b", "tokens": ["a"], "tags": ["O"], field: value}
    path = write(tmp_path, orjson.dumps(row) + b"\n", "a.jsonl")
    try:
        found = f"{path}:1: {len(datasets.read(path))} example"
    except DataError as error:
        found = str(error)
    assert found.startswith(f"{path}:1: ")
