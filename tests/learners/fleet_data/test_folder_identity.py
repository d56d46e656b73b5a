"""A data folder that is not the server's is named, and no ingest stores rows in it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from learners.fleet_data.folder_identity import FILE, folder_id, folder_problem
from runtime.fleet.serve import IngestActor, UnsharedFolder, settings_json
from runtime.fleet.server_settings import FleetServerSettings


def test_the_identity_of_a_folder_stays_and_another_folder_is_named(tmp_path: Path) -> None:
    server, other = tmp_path / "server", tmp_path / "other"
    identity = folder_id(server)
    assert folder_id(server) == identity
    assert folder_problem(server, identity) == ""
    assert "No such file" in folder_problem(other, identity)
    assert folder_id(other) != identity
    assert "it is another folder" in folder_problem(other, identity)
    (other / FILE).write_bytes(b"\xff\xfe")
    assert "share one folder between all machines" in folder_problem(other, identity)


def test_an_ingest_on_a_machine_with_another_folder_stores_nothing(tmp_path: Path) -> None:
    body = {"group": "arms", "data": str(tmp_path / "other")}
    settings = FleetServerSettings.model_validate(body)
    actor = IngestActor(settings_json(settings), "ingest-0", folder_id(tmp_path / "server"))
    assert "is not the folder of the server" in actor.problem()
    with pytest.raises(UnsharedFolder, match=r"on .* is not the folder of the server"):
        asyncio.run(actor.run())
    assert not (tmp_path / "other").exists()
