"""A backup of a state folder that is being written to, its restoration, and backups that are damaged or hostile."""

from __future__ import annotations

import errno
import fcntl
import gzip
import hashlib
import io
import os
import shutil
import sqlite3
import tarfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from disks import SmallDisk, small_disk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from learners.checkpoints.store import open_checkpoints
from learners.config.learner import PromotionSettings
from learners.files import BusyError, exclusive_lock
from runtime.backup.contents import HEAD, LINKS, TAIL, BackupError, BackupHead, Checksum, Checksums
from runtime.backup.create import create
from runtime.backup.restore import restore
from runtime.cli.main import main

ROWS = 400


def content(folder: Path) -> dict[str, bytes]:
    """Everything in a folder but locks; databases by their rows."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in ("lock", ".lock"):
            found[path.relative_to(folder).as_posix()] = rows(path) if path.suffix == ".db" else path.read_bytes()
    return found


def rows(path: Path) -> bytes:
    with closing(sqlite3.connect(path)) as database:
        return repr(database.execute("SELECT * FROM row ORDER BY id").fetchall()).encode()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A small state folder: a policy version, a database, pointers, and what no backup needs."""
    folder = tmp_path / "state"
    for name in ("experience", "keys", "checkpoints/000001-aa", "learner/tasks/t", "log", "recordings", "openvino"):
        (folder / name).mkdir(parents=True)
    with closing(sqlite3.connect(folder / "experience/experience.db")) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE row (id INTEGER PRIMARY KEY, other INTEGER)")
        database.executemany("INSERT INTO row VALUES (?, ?)", [(i, -i) for i in range(ROWS)])
        database.commit()
    for name, body in {
        "keys/checkpoint-key.pem": b"key",
        "checkpoints/LIVE": b"000001-aa",
        "checkpoints/000001-aa/policy.safetensors": os.urandom(200_000),
        "learner/tasks/t/labels.jsonl": b"{}\n" * 10,
        "latches.json": b'{"stopped": true}',
        "lock": b"",
        "experience/closed-cleanly": b"",
        "experience/experience.db.broken-1": b"junk",
        "learner/.draft-1": b"half",
    }.items():
        (folder / name).write_bytes(body)
    for name in ("log/reflexd.log", "recordings/one.mcap", "openvino/graph.bin", "engine.json"):
        (folder / name).write_bytes(b"made again")
    return folder


@pytest.fixture
def backup(state: Path, tmp_path: Path) -> Path:
    return create(state, "a", tmp_path / "one.backup").path


def test_what_is_needed_comes_back_and_nothing_else(state: Path, backup: Path, tmp_path: Path) -> None:
    done = restore(backup, tmp_path / "new")
    stored = content(state)
    for name in list(stored):
        if name.startswith(("log/", "recordings/", "openvino/")) or name in (
            "engine.json", "experience/closed-cleanly", "experience/experience.db.broken-1", "learner/.draft-1",
        ):  # fmt: skip
            del stored[name]
    assert content(tmp_path / "new") == stored
    assert (done.head.agent, done.files, done.set_aside) == ("a", 6, None)
    assert not (state / LINKS).exists()


def test_a_backup_has_no_position_at_the_fleet(state: Path, tmp_path: Path) -> None:
    """The fleet has rows of the life after the backup: a restored device must begin another boot."""
    for name in ("uplink/position.json", "uplink/segment", "uplink/policies/counter.json"):
        (state / name).parent.mkdir(parents=True, exist_ok=True)
        (state / name).write_bytes(b"{}")
    create(state, "a", tmp_path / "one.backup")
    restore(tmp_path / "one.backup", tmp_path / "new")
    assert [path.name for path in (tmp_path / "new/uplink").rglob("*") if path.is_file()] == ["counter.json"]


def test_recordings_are_contained_on_request(state: Path, tmp_path: Path) -> None:
    create(state, "a", tmp_path / "one.backup", recordings=True)
    restore(tmp_path / "one.backup", tmp_path / "new")
    assert (tmp_path / "new/recordings/one.mcap").read_bytes() == b"made again"


def test_no_one_else_can_read_a_backup_or_what_it_restores(backup: Path, tmp_path: Path) -> None:
    restore(backup, tmp_path / "new")
    for path in (backup, tmp_path / "new", *(tmp_path / "new").rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_folder_that_is_written_to_gives_whole_files_and_whole_transactions(state: Path, tmp_path: Path) -> None:
    """A writer adds rows in pairs, replaces a file by renames and makes and deletes versions, all the while."""
    stop = threading.Event()

    def write() -> None:
        with closing(sqlite3.connect(state / "experience/experience.db")) as database:
            count = ROWS
            while not stop.is_set():
                database.executemany("INSERT INTO row VALUES (?, ?)", [(count, 0), (count + 1, 0)])
                database.commit()
                draft = state / f".latches-{count}"
                draft.write_bytes(b"%d" % count * 1000)
                draft.rename(state / "latches.json")
                version, making = state / f"checkpoints/{count}", state / f"checkpoints/.draft-{count}"
                making.mkdir()
                for part in range(4):
                    (making / f"{part}").write_bytes(b"x")
                making.rename(version)
                gone = state / f"checkpoints/.gone-{count}"
                version.rename(gone)
                for part in range(4):
                    (gone / f"{part}").unlink()
                gone.rmdir()
                count += 2

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for index in range(8):
            create(state, "a", tmp_path / f"{index}.backup")
    finally:
        stop.set()
        writer.join()
    for index in range(8):
        folder = tmp_path / f"new{index}"
        restore(tmp_path / f"{index}.backup", folder)
        with closing(sqlite3.connect(folder / "experience/experience.db")) as database:
            assert database.execute("SELECT COUNT(*) FROM row").fetchone()[0] % 2 == 0
        text = (folder / "latches.json").read_bytes()
        assert text == b'{"stopped": true}' or text == text[: len(text) // 1000] * 1000
        for version in (folder / "checkpoints").iterdir():
            assert version.name in ("LIVE", "000001-aa") or len(list(version.iterdir())) == 4


def test_a_damaged_database_is_left_out_by_name_and_the_rest_is_retained(state: Path, tmp_path: Path) -> None:
    (state / "experience/raw.db").write_bytes(b"this is no database" * 100)
    done = create(state, "a", tmp_path / "one.backup")
    assert [reason.split(":")[0] for reason in done.left_out] == ["experience/raw.db"]
    restore(tmp_path / "one.backup", tmp_path / "new")
    assert (tmp_path / "new/keys/checkpoint-key.pem").read_bytes() == b"key"


@pytest.mark.parametrize("fault", ["full", "ro", "no links"])
def test_a_disk_that_takes_nothing_more_is_backed_up_whole(
    state: Path, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a disk fails, a backup is needed most: nothing is written on it, and nothing is left out."""
    before = content(state)
    with small_disk(tmp_path / "disk", "size=4m") as disk:
        shutil.copytree(state, disk.folder / "state")
        refuse(disk, fault, monkeypatch)
        done = create(disk.folder / "state", "a", tmp_path / "one.backup")
    assert done.left_out == []
    restore(tmp_path / "one.backup", tmp_path / "new")
    assert content(tmp_path / "new").items() <= before.items()
    assert rows(tmp_path / "new/experience/experience.db") == before["experience/experience.db"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def refuse(disk: SmallDisk, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the disk take nothing more; with `no links` it is like one with FAT."""

    def no_link(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if fault == "full":
        disk.fill()
    elif fault == "ro":
        disk.remount("ro")
    else:
        monkeypatch.setattr(os, "link", no_link)


def test_a_database_in_the_log_of_sqlite_is_read_from_a_read_only_disk(state: Path, tmp_path: Path) -> None:
    """The newest rows of a killed daemon are in the file beside the database, which nothing can merge there."""
    with small_disk(tmp_path / "disk", "size=4m") as disk:
        folder = disk.folder / "state/experience"
        folder.mkdir(parents=True)
        with closing(sqlite3.connect(state / "experience/experience.db")) as database:
            database.execute("INSERT INTO row VALUES (9999, 1)")
            database.commit()
            for name in ("experience.db", "experience.db-wal"):
                shutil.copyfile(state / "experience" / name, folder / name)
        disk.remount("ro")
        create(disk.folder / "state", "a", tmp_path / "one.backup")
    restore(tmp_path / "one.backup", tmp_path / "new")
    assert b"(9999, 1)" in rows(tmp_path / "new/experience/experience.db")


def test_no_room_for_a_copy_of_a_database_is_an_error_and_leaves_nothing(state: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=8k") as disk:
        with pytest.raises((BackupError, OSError), match=r"full|No space|disk I/O"):
            create(state, "a", disk.folder / "one.backup")
        assert list(disk.folder.iterdir()) == []


def test_what_a_backup_leaves_out_is_named_and_it_lies_elsewhere(state: Path, tmp_path: Path) -> None:
    (tmp_path / "ssd").mkdir()
    (state / "learner/notes").symlink_to(tmp_path / "ssd")
    done = create(state, "a", tmp_path / "one.backup")
    assert [reason.split(";")[0] for reason in done.left_out] == ["learner/notes: a link"]
    (state / "sub").mkdir()
    for target in (state / "one.backup", state / "sub/one.backup"):
        with pytest.raises(BackupError, match="lies in state_dir"):
            create(state, "a", target)


def test_a_file_that_no_backup_can_name_spoils_no_backup(state: Path, tmp_path: Path) -> None:
    """A name that is not UTF-8, or that of the backup's own lists: a backup with them could not be restored."""
    odd = os.fsdecode(b"caf\xe9.txt")
    for name in (odd, HEAD, TAIL, "a\nb", "caf\u00e9", "cafe\u0301"):
        (state / name).write_bytes(name.encode("utf-8", "surrogateescape"))
    done = create(state, "a", tmp_path / "one.backup")
    assert sorted(done.left_out) == sorted([
        f"{odd!r}: a name that is not UTF-8; rename it",
        f"{HEAD!r}: a name of the backup's own lists; rename it",
        f"{TAIL!r}: a name of the backup's own lists; rename it",
    ])  # fmt: skip
    restore(done.path, tmp_path / "new")
    assert {"a\nb", "caf\u00e9", "cafe\u0301"} <= {path.name for path in (tmp_path / "new").iterdir()}
    assert not (tmp_path / "new" / odd).exists()


def test_what_is_restored_has_its_date(state: Path, tmp_path: Path) -> None:
    """The oldest recordings go first where room is needed, and a fine-tuned version is shown with the date of its folder."""
    old, new = state / "checkpoints" / "000001-aa" / "policy.safetensors", state / "checkpoints" / "LIVE"
    os.utime(old, (1e9, 1e9))
    os.utime(new, (1.2e9, 1.2e9))
    os.utime(state / "latches.json", (4e9, 4e9))  # a clock that was ahead
    restore(create(state, "a", tmp_path / "one.backup").path, tmp_path / "new")
    dates = {path.name: path.stat().st_mtime for path in (tmp_path / "new").rglob("*")}
    assert (dates[old.name], dates["000001-aa"], dates["LIVE"]) == (1e9, 1e9, 1.2e9)
    assert dates["latches.json"] <= time.time()


def test_a_header_of_any_size_is_not_read_into_memory(tmp_path: Path) -> None:
    """600 MB of zeros are 3 MB in a gzip file."""
    path = tmp_path / "bad"
    head = tarfile.TarInfo("x")
    head.type, head.size = tarfile.XHDTYPE, 600 << 20
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(head.tobuf(tarfile.USTAR_FORMAT) + bytes(1 << 20))
    with pytest.raises(BackupError, match="a header of 629145600 bytes"):
        restore(path, tmp_path / "new")
    record = b"99999999999999999999 path=a\n"
    head.size = len(record)
    path.write_bytes(gzip.compress(head.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0") + bytes(1_024)))
    with pytest.raises(BackupError, match="damaged after"):
        restore(path, tmp_path / "new")


def test_a_state_folder_that_is_a_mount_point_is_restored_in_place(backup: Path, tmp_path: Path) -> None:
    """As with a volume of a container: it cannot be renamed."""
    with small_disk(tmp_path / "disk", "size=100m") as disk:
        restore(backup, disk.folder)
        assert (disk.folder / "keys/checkpoint-key.pem").read_bytes() == b"key"
        (disk.folder / "latches.json").write_bytes(b"newer")
        with pytest.raises(BackupError, match="--replace"):
            restore(backup, disk.folder)
        done = restore(backup, disk.folder, replace=True)
        assert (disk.folder / "latches.json").read_bytes() == b'{"stopped": true}'
        assert done.set_aside is not None
        assert (done.set_aside / "latches.json").read_bytes() == b"newer"
        again = create(disk.folder, "a", tmp_path / "two.backup")
        assert again.left_out == []
    restore(tmp_path / "two.backup", tmp_path / "new")
    assert not list((tmp_path / "new").glob("before-*"))


def test_a_mount_point_that_refuses_midway_has_what_it_had(
    backup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_second(_folder: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("runtime.backup.restore.sync_directory", refuse_second)
    with small_disk(tmp_path / "disk", "size=100m") as disk:
        (disk.folder / "latches.json").write_bytes(b"newer")
        with pytest.raises(OSError, match="Input/output"):
            restore(backup, disk.folder, replace=True)
        assert content(disk.folder) == {"latches.json": b"newer"}
        assert sorted(path.name for path in disk.folder.iterdir()) == ["latches.json", "lock"]


def test_a_link_to_the_state_folder_stays_one(backup: Path, tmp_path: Path) -> None:
    (tmp_path / "ssd").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "ssd")
    restore(backup, tmp_path / "link")
    restore(backup, tmp_path / "link", replace=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "ssd/keys/checkpoint-key.pem").read_bytes() == b"key"


def test_links_of_a_killed_backup_are_removed(state: Path, tmp_path: Path) -> None:
    (state / LINKS / "state").mkdir(parents=True)
    (state / LINKS / "state/left").write_bytes(b"x")
    create(state, "a", tmp_path / "one.backup")
    assert not (state / LINKS).exists()


def test_two_backups_at_once_and_a_target_that_exists_are_refused(state: Path, backup: Path, tmp_path: Path) -> None:
    (state / LINKS).mkdir()
    handle = os.open(state / LINKS, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(BackupError, match="another backup is being written"):
        create(state, "a", tmp_path / "two.backup")
    os.close(handle)
    with pytest.raises(BackupError, match="exists already"):
        create(state, "a", backup)
    with pytest.raises(BackupError, match="does not exist"):
        create(state, "a", tmp_path / "nowhere/two.backup")
    with pytest.raises(BackupError, match="nothing to back up"):
        create(tmp_path / "no state", "a", tmp_path / "two.backup")


def test_restoring_needs_an_empty_folder_or_replace(state: Path, backup: Path, tmp_path: Path) -> None:
    (state / "latches.json").write_bytes(b"newer")
    with pytest.raises(BackupError, match=r"is not empty .*--replace"):
        restore(backup, state)
    done = restore(backup, state, replace=True)
    assert (state / "latches.json").read_bytes() == b'{"stopped": true}'
    assert done.set_aside is not None
    assert (done.set_aside / "latches.json").read_bytes() == b"newer"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.backup", "state", done.set_aside.name]


@pytest.mark.parametrize("stored", [True, False])
def test_a_disk_that_refuses_the_last_step_changes_nothing(
    state: Path, backup: Path, monkeypatch: pytest.MonkeyPatch, *, stored: bool
) -> None:
    def refuse(_folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("runtime.backup.restore.sync_directory", refuse)
    if not stored:
        shutil.rmtree(state)
    before = content(state) if stored else {}
    with pytest.raises(OSError, match="No space left"):
        restore(backup, state, replace=True)
    assert (content(state) if stored else {}) == before
    assert sorted(path.name for path in backup.parent.iterdir()) == ["one.backup", *(["state"] if stored else [])]


def test_a_running_daemon_is_not_replaced(state: Path, backup: Path) -> None:
    before = content(state)
    with exclusive_lock(state), pytest.raises(BusyError, match="another daemon uses"):
        restore(backup, state, replace=True)
    assert content(state) == before


def hostile(
    path: Path, change: Callable[[tarfile.TarFile], None], *, tail: bool = True, head: bytes | None = None
) -> Path:
    """A backup with one good file, and what `change` adds."""

    def add(archive: tarfile.TarFile, name: str, body: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(body)
        archive.addfile(member, io.BytesIO(body))

    with tarfile.open(path, "w:gz") as archive:
        add(archive, HEAD, head or BackupHead(agent="a", version="1", created="now").model_dump_json().encode())
        add(archive, "good", b"good")
        change(archive)
        if tail:
            good = Checksum(bytes=4, sha256=hashlib.sha256(b"good").hexdigest())
            add(archive, TAIL, Checksums(files={"good": good}).model_dump_json().encode())
    return path


def member(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", body: bytes = b"evil"
) -> Callable[[tarfile.TarFile], None]:
    def change(archive: tarfile.TarFile) -> None:
        one = tarfile.TarInfo(name)
        one.type, one.linkname = kind, link
        one.size = len(body) if kind == tarfile.REGTYPE else 0
        archive.addfile(one, io.BytesIO(body))

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (member("../evil"), "does not name a file in the state folder"),
        (member("/tmp/evil"), "does not name a file in the state folder"),
        (member("a/../../evil"), "does not name a file in the state folder"),
        (member("a//evil"), "does not name a file in the state folder"),
        (member("link", tarfile.SYMTYPE, "/etc"), "not a plain file"),
        (member("link", tarfile.LNKTYPE, "good"), "not a plain file"),
        (member("pipe", tarfile.FIFOTYPE), "not a plain file"),
        (member("device", tarfile.CHRTYPE), "not a plain file"),
        (member("folder", tarfile.DIRTYPE), "not a plain file"),
        (member("good"), "contained twice"),
        (member("good/evil"), "a file and a folder at once"),
        (member("extra"), "'extra' differs from its checksum"),
    ],
)  # fmt: skip
def test_a_hostile_backup_is_refused_and_nothing_is_left(
    change: Callable[[tarfile.TarFile], None], reason: str, tmp_path: Path
) -> None:
    file = hostile(tmp_path / "bad", change)
    with pytest.raises(BackupError, match=reason):
        restore(file, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


@pytest.mark.parametrize(
    ("head", "reason"),
    [(b"{}", "agent"), (b"[", "JSON"), (b'{"format":2,"agent":"a","version":"1","created":"now"}', "format")],
)
def test_an_unknown_head_is_refused(head: bytes, reason: str, tmp_path: Path) -> None:
    with pytest.raises(BackupError, match=reason):
        restore(hostile(tmp_path / "bad", lambda _: None, head=head), tmp_path / "new")


def test_other_archives_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "other", "w:gz") as archive:
        member("holiday.jpg")(archive)
    with pytest.raises(BackupError, match="not a backup of reflexd"):
        restore(tmp_path / "other", tmp_path / "new")
    with pytest.raises(BackupError, match=r"without checksums\.json"):
        restore(hostile(tmp_path / "cut", lambda _: None, tail=False), tmp_path / "new")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(BackupError):
        restore(tmp_path / "empty", tmp_path / "new")


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(place=st.floats(0, 1), bit=st.integers(0, 7), cut=st.booleans())
def test_a_damaged_backup_changes_nothing(backup: Path, state: Path, place: float, bit: int, *, cut: bool) -> None:
    """One bit of the file or of what it unpacks to is another one, or the end is missing."""
    before = content(state)
    data = bytearray(backup.read_bytes())
    at = min(int(place * len(data)), len(data) - 1)
    if cut:
        del data[at:]
    else:
        plain = bytearray(gzip.decompress(bytes(data)))
        plain[min(int(place * len(plain)), len(plain) - 1)] ^= 1 << bit
        data = bytearray(gzip.compress(bytes(plain), 1))
    bad = backup.with_name("bad")
    bad.write_bytes(data)
    try:
        done = restore(bad, state, replace=True)
    except (BackupError, OSError):
        assert content(state) == before
    else:  # a bit that means nothing, such as padding or a time
        assert done.set_aside is not None
        assert content(state).items() <= before.items()
        shutil.rmtree(state)
        done.set_aside.rename(state)
    assert sorted(path.name for path in backup.parent.iterdir()) == ["bad", "one.backup", "state"]


def test_the_verbs_back_up_and_restore_signed_policies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = Path("home.yaml")
    config.write_text(
        "agent: home\nstate_dir: state\nmqtt: {url: 'mqtt://127.0.0.1:9'}\n"
        "streams: {t: {kind: telemetry, fields: [x]}}\nactuators: {lamp: {kind: choice, choices: ['off', 'on'], safe: 'off'}}\n"
    )
    open_checkpoints(Path("state"), PromotionSettings.model_validate({}))
    run = CliRunner().invoke
    done = run(main, ["backup", "one.backup", "home.yaml"])
    assert done.exit_code == 0, done.output
    key = Path("state/keys/checkpoint-key.pem").read_bytes()
    assert run(main, ["restore", "one.backup", "home.yaml"]).exit_code == 2
    restored = run(main, ["restore", "one.backup", "home.yaml", "--replace"])
    assert restored.exit_code == 0, restored.output
    assert "the earlier state" in restored.output
    assert Path("state/keys/checkpoint-key.pem").read_bytes() == key
    Path("state/experience").mkdir(exist_ok=True)
    Path("state/experience/raw.db").write_bytes(b"this is no database" * 100)
    partial = run(main, ["backup", "two.backup", "home.yaml"])
    assert (partial.exit_code, "not complete" in partial.output) == (1, True)
    os.mkfifo("pipe")
    pipe = run(main, ["restore", "pipe", "home.yaml", "--replace"])
    assert (pipe.exit_code, "a pipe, not a file" in pipe.output) == (2, True)
    missing = run(main, ["restore", "nothing", "home.yaml", "--replace"])
    assert (missing.exit_code, missing.output.strip()) == (2, "nothing: No such file or directory")


@pytest.mark.parametrize("call", ["open", "mkdir", "fsync", "rename", "utime"])
@pytest.mark.parametrize("mounted", [False, True])
def test_a_disk_that_refuses_any_step_of_a_restoration_changes_nothing(
    state: Path, backup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, *, mounted: bool
) -> None:
    """The quota ends at each call in turn; what was there stays, and nothing half-written is left."""
    monkeypatch.setattr("os.path.ismount", lambda _path: mounted)
    (state / "latches.json").write_bytes(b"newer")
    original = tmp_path / "original"
    shutil.move(state, original)
    before, real, refused = content(original), getattr(os, call), 0
    for number in range(200):
        place = tmp_path / str(number)
        shutil.copytree(original, place / "state")
        left = [number]

        def refuse(*given: Any, left: list[int] = left, **more: Any) -> Any:
            left[0] -= 1
            if left[0] == -1:
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(given[0]))
            return real(*given, **more)

        try:
            with monkeypatch.context() as patched:
                patched.setattr(os, call, refuse)
                restore(backup, place / "state", replace=True)
        except OSError as error:
            assert error.errno == errno.EDQUOT, number  # noqa: PT017 - the last round restores
            assert content(place / "state") == before, number
            assert [path.name for path in place.iterdir()] == ["state"], number
            refused += 1
        else:
            assert (place / "state" / "latches.json").read_bytes() == b'{"stopped": true}'
            if left[0] >= 0:
                break
    assert left[0] >= 0, "the last round met no refusal"
    assert refused > 0
