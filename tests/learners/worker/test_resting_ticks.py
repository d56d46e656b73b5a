"""A tick at rest that the learner holds has all that is reported of it later."""

from __future__ import annotations

from pathlib import Path

from learners.experience.database import Database
from learners.experience.reader import Reader
from learners.experience.records import Credit, Mark
from learners.experience.transition import Transition
from learners.worker.resting_ticks import RestingTicks


def test_a_held_tick_is_what_the_store_has_of_it(tmp_path: Path) -> None:
    """Otherwise a learner that was killed in between would go on with other rows than one that was not."""
    database, rest = Database(tmp_path, max_bytes=1 << 20, reserve=0.2, raw_retention_s=1.0), RestingTicks(2)
    with database:
        for n in range(3):
            database.add(Transition("s", n, f"s-{n}", n / 10, "p", by={"arm": "gate"}, armed=False))
    reader = Reader(tmp_path)
    for row in reader.rows(0, 4):
        rest.append(row)
    with database:
        database.credit(Credit(2.5, decision="s-1", truncated=True, outcome="success"), 0.0)
        database.credit(Credit(-1.0, decision="s-2", done=True, outcome="failure"), 0.0)
        database.mark(Mark("s-2", demonstration=True, intervention=True))
    for change in reader.changes(0):
        rest.change(change.row, change.after)
    found = rest.take()
    assert [row.transition.outcome for row in found] == ["success", "failure"]
    assert found == list(reader.rows(2, 4))
    reader.close()
    database.close()
