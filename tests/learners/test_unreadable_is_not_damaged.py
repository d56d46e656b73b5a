"""Files that cannot be opened now, because too many others are open, are not taken for damaged ones: nothing is deleted or moved."""

from __future__ import annotations

import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from disks import no_free_descriptor, small_disk

from learners.checkpoints.sealed_folder import SEAL, SealBroken, SealedFolder, check_seal, write_seal
from learners.config.learner import ExperienceSettings
from learners.experience.reader import Reader
from learners.experience.recovery import damaged
from learners.experience.schema import connect
from learners.experience.writer import Writer
from learners.files import read_only
from learners.model.backends import openvino
from learners.reencoding.token_store import StoredTokens, TokenStore
from learners.task_serving.versions import KEEP, TaskVersionStore, encoders_of_policies
from runtime.inference.graph_store import Preparation

EMFILE = "Too many open files"


def test_experience_is_not_set_aside(tmp_path: Path) -> None:
    connect(tmp_path / "experience.db").close()
    with no_free_descriptor(), pytest.raises(sqlite3.OperationalError, match="unable to open"):
        damaged(tmp_path / "experience.db")
    assert damaged(tmp_path / "experience.db") is None
    (tmp_path / "experience.db").write_bytes(b"no database at all" * 100)
    assert damaged(tmp_path / "experience.db") == "file is not a database"


def killed_writer(source: Path, target: Path) -> None:
    """Copy a database as a killed writer leaves it: with a log, and without the memory that is shared by its readers."""
    for end in ("", "-wal"):
        shutil.copy(source.with_name(source.name + end), target.with_name(target.name + end))


def test_nothing_is_set_aside_or_deleted_where_a_daemon_was_killed_on_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=16m") as disk:
        written = connect(tmp_path / "experience.db")
        written.execute("INSERT INTO labels(stamp_s, task, label, source) VALUES (1, 't', 'a', 'me')")
        killed_writer(tmp_path / "experience.db", disk.folder / "experience.db")
        tokens = TokenStore(tmp_path / "reencoded.db")
        assert tokens.add([StoredTokens(1, "orders", "a", np.ones((1, 4), np.float16))])
        killed_writer(tmp_path / "reencoded.db", disk.folder / "reencoded.db")
        written.close()
        tokens.close()
        disk.fill()
        with pytest.raises(sqlite3.OperationalError, match="disk"):
            damaged(disk.folder / "experience.db")
        with pytest.raises(sqlite3.OperationalError, match="disk"):
            TokenStore(disk.folder / "reencoded.db")
        events: list[str] = []
        settings = ExperienceSettings()
        writer = Writer(
            disk.folder, settings, Counter(), lambda kind, _: events.append(kind), lambda: 2.0, lambda _: None
        )
        assert not writer.open()
        assert events == ["experience_write_failed"]
        disk.free()
        assert damaged(disk.folder / "experience.db") is None
        again = TokenStore(disk.folder / "reencoded.db")
        assert again.last() == 1
        again.close()
        with closing(connect(disk.folder / "experience.db")) as read:
            assert read.execute("SELECT label FROM labels").fetchall() == [("a",)]
        assert not list(disk.folder.glob("*.broken*"))


@pytest.mark.parametrize("name", ["a#b", "what?", "100%25", "%41", "a b", "gr\u00fcn", "a?mode=rw&x#"])
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    """In the address by which SQLite opens a file for reading, some characters mean something else."""
    folder = tmp_path / name
    folder.mkdir()
    with closing(connect(folder / "experience.db")) as written:
        written.execute("INSERT INTO labels(stamp_s, task, label, source) VALUES (1, 't', '\"a\"', 'me')")
    assert damaged(folder / "experience.db") is None
    with Reader(folder) as reader:
        assert [label.label for label in reader.labels("t")] == ["a"]
    with (
        closing(sqlite3.connect(read_only(folder / "experience.db"), uri=True)) as read,
        pytest.raises(sqlite3.OperationalError, match="readonly"),
    ):
        read.execute("DELETE FROM labels")
    assert sorted(path.name for path in tmp_path.iterdir()) == [name], "no other file was made"


def test_tokens_that_were_made_again_are_not_deleted(tmp_path: Path) -> None:
    path = tmp_path / "reencoded.db"
    first = TokenStore(path)
    assert first.add([StoredTokens(1, "orders", "a", np.ones((1, 4), np.float16))])
    first.close()
    with no_free_descriptor(), pytest.raises(sqlite3.OperationalError, match="unable to open"):
        TokenStore(path)
    second = TokenStore(path)
    assert second.last() == 1
    second.close()
    path.write_bytes(b"no database at all" * 100)
    third = TokenStore(path)
    assert third.last() == 0, "a damaged one is replaced"
    third.close()


def test_a_sealed_folder_is_not_removed(tmp_path: Path) -> None:
    refused: list[str] = []
    place = SealedFolder(tmp_path, None, lambda _folder, reason: refused.append(reason))
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "graph.xml").write_bytes(b"<net/>")
    write_seal(folder, "one")

    def read(_folder: Path) -> str:
        return "whole"

    preparation: Any = object()  # `_sealed` needs nothing of it
    with no_free_descriptor():
        assert openvino.OpenVino()._read(place, "one") is None
        assert Preparation._sealed(preparation, place, "one", read) is None
    assert [EMFILE in reason for reason in refused] == [True, True]
    assert Preparation._sealed(preparation, place, "one", read) == "whole"

    def fails(_folder: Path) -> str:
        raise MemoryError

    assert Preparation._sealed(preparation, place, "one", fails) is None
    check_seal(folder, "one")
    (folder / SEAL).unlink()
    with pytest.raises(SealBroken, match="no readable"):
        check_seal(folder, "one")
    assert Preparation._sealed(preparation, place, "one", read) is None
    assert not folder.exists(), "a folder without its seal is damaged"


def test_no_version_of_a_task_is_deleted_while_a_policy_may_need_it(tmp_path: Path) -> None:
    store = TaskVersionStore(tmp_path / "learner" / "tasks" / "orders")
    manifest = tmp_path / "checkpoints" / "000001-00000000" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_bytes(orjson.dumps({"encoder_versions": {"orders": "of-the-policy"}}))
    for number in range(KEEP + 2):
        (store.folder / f"{number:06d}-{number:08x}").mkdir(parents=True)
    needed = store.all()[0]
    (needed.path / "report.json").write_bytes(orjson.dumps({"encoder_version": "of-the-policy"}))
    assert encoders_of_policies(tmp_path / "checkpoints") == {"of-the-policy"}
    manifest.rename(manifest.with_name("elsewhere"))
    manifest.mkdir()  # what cannot be read now: opening a folder is an error of the system, too
    store._tidy()
    assert len(store.all()) == KEEP + 2
    manifest.rmdir()
    manifest.with_name("elsewhere").rename(manifest)
    store._tidy()
    assert [one.name for one in store.all()] == [needed.name, *[one.name for one in store.all()[-KEEP:]]]
