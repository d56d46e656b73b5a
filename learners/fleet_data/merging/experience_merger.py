"""Merge the Parquet shards of a group into the one experience store that its learner reads.

The learner of a fleet is the learner of a daemon. It reads an experience store, and this module writes that store: rows of each
agent in their order, under sessions that name the agent. An agent's turn ends after `RUN_ROWS` rows, so that a run of
neighbours is long and no agent holds up the others. Lanes are merged as they are on disk: the successor of a block's last row is
unknown where the next block is in the other lane and came later. `learners/rl` draws no transition without a successor.

An agent has at most its share of the newest rows (`trust/agent_shares.py`); further ones wait, and the oldest beyond `MOST_WAITING` are passed
over. `lane_reader.py` reads the files.

Late rewards and corrections (lane `amendments`) replace those of a merged row, and wait for one that is not merged yet. What has the newest
number counts, so a repeated amendment changes nothing. Row or amendment and read position are one transaction.

Only rows with the group's spec and encoder versions are merged (`reference.json`). Rows of excluded agents are not.
The Parquet files are the source: a broken store is set aside and merged again. Boots are those that the names of the files have, also
such as the positions of an agent have forgotten. An agent with a file that cannot be read now waits, and the others go on. Knows no MQTT.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import orjson

from learners.config.learner import ExperienceSettings
from learners.experience.reader import Reader
from learners.experience.recovery import damaged
from learners.experience.transition import Transition
from learners.files import private_folder
from learners.fleet_data.merging.lane_reader import EVERY_ROW, RUN_ROWS, Files, LaneReader, UnreadLane, unread_files
from learners.fleet_data.merging.merged_database import MOST_AWAITING, MergedDatabase, session_name
from learners.fleet_data.parquet_log import FleetReference, read_positions
from learners.fleet_data.segment import AMENDMENTS, LANES, ROW_LIMITS, RowLimits
from learners.fleet_data.trust.agent_shares import WINDOW, AgentShares
from learners.fleet_data.trust.agent_trust import AgentTrust

_LOG = logging.getLogger(__name__)

MAX_ROWS = 8_192
"""Of all agents in one call of `merge`: training goes on in between."""
TRIM_S = 5.0
ABSENT_S = 3_600.0
"""An agent that brought no rows for so long does not count when shares are computed."""
PROTECTED_S = 7 * 86_400.0
"""So long after it brought rows last, an agent has a part of the store that the others do not displace."""
LEAST_TURN = 128
"""Rows below which an agent with a full share waits for a longer run."""
MOST_WAITING = 262_144
"""Rows of a boot that wait for room; older ones are passed over, so that an agent that sends too much does not train on its past alone."""
OVER_SHARE = "it has its share of the newest rows; further ones wait for those of the other agents"
LISTINGS = 3
"""Times that the files of an agent are listed where one was merged into a larger one while they were read."""


class ExperienceMerger:
    """Merges one group; one process at a time.

    Args:
        group: folder of the group, as `ParquetLog` writes it.
        store: folder of the merged experience store.
        settings: limits of the store.
        trust: judges the rows of each agent; None merges those of all.
        rows: limits of each row; others are `unreadable`.
        shapes: by stream of the spec, the tokens and their width; rows with other ones are `other`.
        wall: Unix seconds.

    Raises:
        OSError, sqlite3.Error: the store cannot be opened.
    """

    def __init__(
        self,
        group: Path,
        store: Path,
        settings: ExperienceSettings | None = None,
        *,
        trust: AgentTrust | None = None,
        rows: RowLimits = ROW_LIMITS,
        shapes: Mapping[str, tuple[int, int]] = MappingProxyType({}),
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.group, self.folder, self.trust, self._wall = group, store, trust, wall
        self.counts: Counter[str] = Counter()
        """Amendments: `amended`, `amended_again` without effect, `awaiting_rows`, `amendments_dropped`. Rows by what became of them: `merged`, `repeated` by a restored device, `other` spec or encoders, `unreadable`, `excluded`, `passed_over` beyond its share; `unreadable_files`, and `waits` of an agent."""
        self._reader = LaneReader(group, rows, shapes, self.counts)
        self.waiting: dict[str, str] = {}
        """Agents with rows that wait, with the reason: files that cannot be read now, or a full share. The next call tries again."""
        self.newly_excluded: list[tuple[str, str]] = []
        """Agents that were excluded since the caller last emptied this list, with the reasons."""
        limits = settings or ExperienceSettings.model_validate({})
        private_folder(store)
        self._set_aside_broken()
        self.database = MergedDatabase(store, max_bytes=int(limits.max_gb * 1e9), reserve=limits.reserved_fraction)
        self.shares = AgentShares(self.database.newest_runs(WINDOW))
        """Of each agent in the newest rows."""
        self._unchanged: dict[str, int] = {}
        """By agent, the time of its position file when all of its rows were merged."""
        self._forgotten: set[tuple[str, str]] = set()
        """Agents and boots without a position, of which every row is merged."""
        self._last_agent = ""
        self._trimmed_s = -float("inf")

    def close(self) -> None:
        """Close the store."""
        self.database.close()

    def merge(self) -> int:
        """Merge what is new, at most about `MAX_ROWS` rows; return how many rows are new to the learner.

        An agent with a file that cannot be read now is named in `waiting`; the others go on.

        Raises:
            OSError, ValueError: `reference.json` cannot be read.
            sqlite3.Error: the store cannot be written; what was merged before is on disk.
        """
        reference = self._reference()
        if reference is None:
            return 0
        excluded, merged = self.database.excluded(), 0
        agents = [agent for agent in self._agents() if agent not in excluded]
        present = self._present(agents)
        for agent in agents:
            try:
                came, is_held_back = self._merge_newest(agent, reference, self.shares.room(agent, present))
                merged += came
                self.waiting.pop(agent, None)
                if is_held_back:
                    self.waiting[agent] = OVER_SHARE
            except OSError as error:
                self._wait(agent, str(error))
            self._last_agent = agent
            if merged >= MAX_ROWS:
                break
        self._exclude_liars()
        if time.monotonic() - self._trimmed_s > TRIM_S:
            self.database.protected = self._present(agents, PROTECTED_S)
            with self.database:
                gone = self.database.trim(self._wall())
            if gone:
                self.database.compact()
            self._trimmed_s = time.monotonic()
        return merged

    def exclude(self, agent: str, reason: str) -> None:
        """Take the rows of an agent out of training, past and future ones; they stay in the Parquet files.

        Raises:
            OSError, sqlite3.Error: the store cannot be written.
        """
        with self.database:
            self.counts["excluded"] += self.database.exclude(agent, reason)
        self.shares.forget(agent)
        self.newly_excluded.append((agent, reason))

    def readmit(self, agent: str) -> None:
        """Merge the rows of an excluded agent again.

        Raises:
            OSError, sqlite3.Error: the store cannot be written.
        """
        with self.database:
            self.database.readmit(agent)
        self._unchanged.pop(agent, None)
        self._forgotten = {each for each in self._forgotten if each[0] != agent}
        if self.trust is not None:
            self.trust.forget(agent)

    def _wait(self, agent: str, reason: str) -> None:
        """Note that an agent's rows cannot be read now."""
        self.counts["waits"] += 1
        if self.waiting.get(agent) != reason:
            _LOG.warning("fleet.agent_waits: %s: %s; its rows are tried again", agent, reason)
        self.waiting[agent] = reason

    def _exclude_liars(self) -> None:
        if self.trust is None:
            return
        known = self.database.excluded()
        for agent, reason in self.trust.untrusted(known).items():
            if agent not in known:
                self.exclude(agent, reason)

    def _agents(self) -> list[str]:
        """Return the agents of the group, the one after the last first."""
        folder = self.group / "agents"
        names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
        return [name for name in names if name > self._last_agent] + [n for n in names if n <= self._last_agent]

    def _present(self, agents: Iterable[str], within_s: float = ABSENT_S) -> list[str]:
        """Return the agents that brought rows within a time, by the server's clock."""
        present = []
        for agent in agents:
            try:
                changed_s = (self.group / "agents" / agent / "position.json").stat().st_mtime
            except OSError:
                continue
            if self._wall() - changed_s < within_s:
                present.append(agent)
        return present

    def _reference(self) -> FleetReference | None:
        try:
            return FleetReference.model_validate_json((self.group / "reference.json").read_bytes())
        except FileNotFoundError:
            return None

    def _merge_newest(self, agent: str, reference: FleetReference, room: int) -> tuple[int, bool]:
        """Merge rows of an agent; list its files again where one was merged into a larger one in the meantime.

        Raises:
            OSError: a file cannot be read now.
        """
        for _ in range(LISTINGS - 1):
            with suppress(FileNotFoundError):
                return self._merge_agent(agent, reference, room)
        return self._merge_agent(agent, reference, room)

    def _merge_agent(self, agent: str, reference: FleetReference, room: int) -> tuple[int, bool]:
        """Merge at most `RUN_ROWS` rows of an agent and at most `room`; return how many, and whether some wait for room."""
        path = self.group / "agents" / agent / "position.json"
        try:
            changed_ns = path.stat().st_mtime_ns
        except FileNotFoundError:
            return 0, False
        if self._unchanged.get(agent) == changed_ns:
            return 0, False
        try:
            positions = read_positions(path)
        except ValueError as error:
            raise OSError(str(error)) from None
        files = self._reader.files(agent)
        boots = {boot for boot, _ in files}
        with self.database:
            self.database.forget_boots(agent, boots.union(positions))
        every = dict.fromkeys(map(str, (*LANES, AMENDMENTS)), EVERY_ROW)
        forgotten = dict.fromkeys(sorted(boots.difference(positions)), every)
        merged, is_complete = 0, True
        for boot, stored in {**forgotten, **positions}.items():
            if (agent, boot) in self._forgotten:
                continue
            limit = min(RUN_ROWS, room) - merged
            if limit <= 0 or limit < LEAST_TURN <= RUN_ROWS - merged:
                self._amend_boot(agent, boot, stored, files, reference, is_whole=False)
                return merged, room < RUN_ROWS and self._pass_over(agent, boot, stored)
            rows, is_whole = self._merge_boot(agent, boot, stored, files, reference, limit)
            is_whole = self._amend_boot(agent, boot, stored, files, reference, is_whole=is_whole) and is_whole
            merged, is_complete = merged + rows, is_complete and is_whole
            if is_whole and boot in forgotten:
                self._forgotten.add((agent, boot))
        if is_complete:
            self._unchanged[agent] = changed_ns
        return merged, False

    def _pass_over(self, agent: str, boot: str, stored: Mapping[str, int]) -> bool:
        """Pass over the oldest rows beyond `MOST_WAITING`; return whether rows wait."""
        read, last = self.database.positions(agent, boot), stored.get("rest", 0)
        passed = last - MOST_WAITING - read["rest"]
        if passed > 0 and last < EVERY_ROW:
            with self.database:
                self.database.set_position(agent, boot, "rest", last - MOST_WAITING)
            self.counts["passed_over"] += passed
        return any(stored.get(lane, 0) > read[lane] for lane in LANES)

    def _merge_boot(
        self, agent: str, boot: str, stored: Mapping[str, int], files: Files, reference: FleetReference, limit: int
    ) -> tuple[int, bool]:
        """Merge at most `limit` rows of a boot; return how many, and whether nothing is left."""
        read = self.database.positions(agent, boot)
        lanes = {
            lane: UnreadLane(read[lane], stored.get(lane, 0)) for lane in LANES if stored.get(lane, 0) > read[lane]
        }
        for lane, found in lanes.items():
            found.files = unread_files(files.get((boot, lane), []), found)
        if not lanes:
            return 0, True
        rows, is_whole = self._reader.rows(lanes, reference)
        rows.sort(key=lambda each: each[0])
        is_whole = is_whole and len(rows) <= limit
        taken = rows[:limit]
        transitions = [_of_group(agent, transition) for _, _, transition in taken if transition is not None]
        with self.database:
            new = [each for each in transitions if not self.database.has(each)]
            for transition in new:
                self.database.add(transition)
            for lane, found in lanes.items():
                passed = max((row for row, its_lane, _ in taken if its_lane == lane), default=found.read)
                is_passed = is_whole and found.stored < EVERY_ROW
                self.database.set_position(agent, boot, lane, found.stored if is_passed else passed)
        self.shares.add(agent, len(new))
        self.counts["merged"] += len(new)
        self.counts["repeated"] += len(transitions) - len(new)
        if self.trust is not None:
            self.trust.add(agent, new)
        return len(new), is_whole

    def _amend_boot(
        self,
        agent: str,
        boot: str,
        stored: Mapping[str, int],
        files: Files,
        reference: FleetReference,
        *,
        is_whole: bool,
    ) -> bool:
        """Give merged rows of a boot their late rewards and corrections; return whether nothing is left.

        Args:
            agent: its name.
            boot: one of it.
            stored: by lane, the last number that is on disk.
            files: of the agent.
            reference: what rows must agree in.
            is_whole: every row of the boot is merged; otherwise an amendment may wait for a row that comes.
        """
        read = self.database.positions(agent, boot).get(AMENDMENTS, 0)
        wanted = UnreadLane(read, stored.get(AMENDMENTS, 0))
        if wanted.stored <= read:
            return True
        wanted.files = unread_files(files.get((boot, AMENDMENTS), []), wanted)
        found: list[tuple[int, Transition | None]] = []
        is_complete = True
        for rows in self._reader.groups(wanted, reference):
            if len(found) >= RUN_ROWS:
                is_complete = False
                break
            inside = (fields for fields in rows if read < fields["row"] <= wanted.stored)
            found += [(fields["row"], self._reader.transition(fields, reference)) for fields in inside]
        changed: list[Transition] = []
        with self.database:
            for number, each in found:
                if each is not None and not self._amend(agent, _of_group(agent, each), changed, is_whole=is_whole):
                    is_complete = False
                    break
                read = number
            is_passed = is_complete and wanted.stored < EVERY_ROW
            self.database.set_position(agent, boot, AMENDMENTS, wanted.stored if is_passed else read)
        if self.trust is not None and changed:
            with Reader(self.folder) as reader:  # with the tokens that the amendments do not have
                rows_of = [row for each in changed if (row := reader.decision(each.decision)) is not None]
            self.trust.add(agent, [row.transition for row in rows_of], are_amended=True)
        return is_complete

    def _amend(self, agent: str, amended: Transition, changed: list[Transition], *, is_whole: bool) -> bool:
        """Amend a row, or let the amendment wait for it; False where there is no room for that and the row may come."""
        has_changed = self.database.amend(amended)
        if has_changed is None:
            if not is_whole and self.database.awaiting(agent) >= MOST_AWAITING:
                return False
            self.counts["awaiting_rows"] += 1
            self.counts["amendments_dropped"] += self.database.await_row(agent, amended)
            return True
        self.counts["amended" if has_changed else "amended_again"] += 1
        if has_changed:
            changed.append(amended)
        return True

    def _set_aside_broken(self) -> None:
        """Move a broken store away: every row of it is in the Parquet files."""
        reason = next((why for name in ("experience.db", "raw.db") if (why := damaged(self.folder / name))), None)
        if reason is None:
            return
        aside = self.folder.with_name(f"{self.folder.name}.broken-{time.time_ns()}")
        self.folder.rename(aside)
        private_folder(self.folder)
        self.counts["set_aside"] += 1


def _of_group(agent: str, transition: Transition) -> Transition:
    """Return a transition under names that no other agent has."""
    session = session_name(agent, transition.session)
    return replace(transition, session=session, decision=f"{agent}/{transition.decision}")


def spec_digest(group: Path) -> str | None:
    """Return the digest of the group's spec; None before the first segment.

    Raises:
        OSError, ValueError: `reference.json` cannot be read.
    """
    try:
        return str(orjson.loads((group / "reference.json").read_bytes())["spec"])
    except FileNotFoundError:
        return None
