"""Read, check and write the settings file for an operator's browser.

A text is checked by `reflexd check` in a process of its own, in a draft next to the file, so that relative paths hold. Only a
text that passes is written: atomically, with the previous version beside it as `NAME.previous.yaml`. A symbolic link stays one:
the file that it names is replaced. A file with the line ends of Windows gets them again. Secrets in the file are replaced by marks
before the text leaves this process, and put back when it returns.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import secrets
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from learners.files import write_atomically
from runtime.config.loader import ConfigError, load
from runtime.config.schema import Config
from runtime.dashboard.task_settings import TaskNotAdded
from runtime.process.child import with_parent_death

CHECK_S = 200.0
"""The check of a model in a folder imports transformers, which takes a minute on a busy machine."""
MAX_TEXT = 90_000
"""Characters of a settings file that can be edited here."""
SHORTEST_SECRET = 4
_MARK = re.compile(r"<hidden (\d{1,3})>")


class SettingsRefused(Exception):  # noqa: N818 - reads as what happened
    """The file cannot be shown, checked or written; `str` says why and what to do."""


class SettingsProblem(BaseModel):
    """One error or warning of `reflexd check --json`."""

    model_config = ConfigDict(extra="ignore")
    line: int = 1
    path: str = ""
    message: str
    remedy: str = ""


class Findings(BaseModel):
    """The output of `reflexd check --json`."""

    model_config = ConfigDict(extra="ignore")
    problems: list[SettingsProblem] = Field(max_length=1_000)
    warnings: list[SettingsProblem] = Field([], max_length=1_000)


@dataclass(slots=True)
class SettingsFile:
    """The settings file of the daemon.

    Args:
        path: the file.
        editable: whether operators may see and edit it here.
    """

    path: Path
    editable: bool
    _secrets: list[str] = field(default_factory=list)
    """By number of their mark; a mark never changes its meaning while this process runs."""

    async def read(self) -> dict[str, Any]:
        """Return the text without secrets, its digest, and the path.

        Raises:
            SettingsRefused: editing is switched off, or the file cannot be read.
        """
        self._refuse_if_not_editable()
        text = await asyncio.to_thread(self._content)
        try:
            loaded = await asyncio.to_thread(load, self.path)
        except ConfigError as error:  # the secrets in it are then unknown
            raise SettingsRefused(f"the file has an error and is not shown; edit it there: {error}") from None
        for secret in sorted(loaded.secrets - set(self._secrets), key=len, reverse=True):
            if len(secret) >= SHORTEST_SECRET and secret in text:
                self._secrets.append(secret)
        for secret in sorted(self._secrets, key=len, reverse=True):
            text = text.replace(secret, f"<hidden {self._secrets.index(secret)}>")
        return {"text": text, "digest": self._digest(), "path": str(self.path.absolute())}

    async def check(self, text: str) -> dict[str, Any]:
        """Return the problems and warnings of a text, each with its line.

        Raises:
            SettingsRefused: editing is switched off, or the check cannot run.
        """
        self._refuse_if_not_editable()
        draft = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.draft")
        try:
            mode = self.path.stat().st_mode & 0o777
            content = self._with_secrets(text).encode()
            await asyncio.to_thread(write_atomically, draft, content, durable=False, mode=mode)
            found = await _check(draft)
        except OSError as error:
            raise SettingsRefused(f"{error.filename or draft.parent}: {error.strerror}; edit the file there") from None
        finally:
            with suppress(OSError):
                draft.unlink()
        return found.model_dump()

    async def save(self, text: str, digest: str) -> dict[str, Any]:
        """Write a text that passes the check; the previous version is stored beside the file.

        Raises:
            SettingsRefused: the text has problems, the file has changed since it was read, or it cannot be written.
        """
        found = await self.check(text)
        if found["problems"]:
            first = found["problems"][0]
            raise SettingsRefused(f"not saved: line {first['line']}: {first['path']}: {first['message']}")
        if digest != self._digest():
            raise SettingsRefused("not saved: the file was changed by someone else; read it again")
        try:
            await asyncio.to_thread(self._write, self._with_secrets(text))
        except OSError as error:
            raise SettingsRefused(
                f"not saved: {error.filename or self.path}: {error.strerror}; edit the file on the machine, or let the daemon's "
                "user write it"
            ) from None
        return {"digest": self._digest(), "previous": str(self._previous)}

    async def edit_task(self, edit: Callable[[str, Config], str]) -> dict[str, Any]:
        """Write a change of the tasks that passes the check.

        Args:
            edit: returns the changed text of the file, of which it gets the text and the settings (`task_settings.py`).

        Raises:
            SettingsRefused: editing is switched off, the change is refused, or the file cannot be written.
        """
        self._refuse_if_not_editable()
        text, digest = await asyncio.to_thread(self._content), self._digest()
        try:
            loaded = await asyncio.to_thread(load, self.path)
            changed = edit(text, loaded.config)
        except (ConfigError, TaskNotAdded) as error:
            raise SettingsRefused(f"not saved: {error}") from None
        return await self.save(changed, digest)

    @property
    def _previous(self) -> Path:
        target = self.path.resolve()
        return target.with_name(f"{target.stem}.previous{target.suffix}")

    def _refuse_if_not_editable(self) -> None:
        if not self.editable:
            raise SettingsRefused("dashboard.edit_settings is off: edit the file on the machine, then reload")

    def _content(self) -> str:
        try:
            text = self.path.read_text(encoding="utf-8")  # with "\n" for every line end, as a browser has it
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsRefused(f"{self.path} cannot be read: {error}") from None
        if len(text) > MAX_TEXT:
            raise SettingsRefused(f"the file has more than {MAX_TEXT} characters; edit it on the machine")
        return text

    def _digest(self) -> str:
        try:
            return hashlib.sha256(self.path.read_bytes()).hexdigest()
        except OSError as error:
            raise SettingsRefused(
                f"{self.path} cannot be read: {error.strerror}; let the daemon's user read it"
            ) from None

    def _with_secrets(self, text: str) -> str:
        def one(mark: re.Match[str]) -> str:
            number = int(mark[1])
            return self._secrets[number] if number < len(self._secrets) else mark[0]

        return _MARK.sub(one, text)

    def _write(self, text: str) -> None:
        target = self.path.resolve()
        before, mode = target.read_bytes(), target.stat().st_mode & 0o777
        lines = text.replace("\r\n", "\n")
        write_atomically(self._previous, before, mode=mode)
        write_atomically(target, (lines.replace("\n", "\r\n") if _has_crlf(before) else lines).encode(), mode=mode)


def _has_crlf(content: bytes) -> bool:
    """Return whether most lines of a file end as on Windows."""
    return content.count(b"\r\n") * 2 > content.count(b"\n")


async def _check(draft: Path) -> Findings:
    """Run `reflexd check --json` on the draft.

    Raises:
        SettingsRefused: it does not answer in time, or not as expected.
    """
    check = [sys.executable, "-m", "runtime.cli", "check", str(draft), "--json", "--no-ports"]
    command = with_parent_death(
        check, priority="background"
    )  # a check of models is long, and the page's own priority is high
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, env=os.environ
    )
    try:
        async with asyncio.timeout(CHECK_S):
            output, _ = await process.communicate()
        return Findings.model_validate(orjson.loads(output))
    except TimeoutError:
        raise SettingsRefused(f"the check took longer than {CHECK_S:.0f} s") from None
    except (orjson.JSONDecodeError, ValidationError):
        raise SettingsRefused("the check returned no result; run `reflexd check` on the machine") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
