"""Devices that can cause harm: their words in nine languages, what two descriptions say together, and `--allow`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from runtime.cli import discover
from runtime.cli.main import main
from runtime.discovery.dangerous_devices import does_harm, is_dangerous
from runtime.discovery.plain_topics import propose
from runtime.discovery.proposals import Proposals
from runtime.discovery.topic_samples import Tree

HARMFUL: dict[str, str] = {
    "English": "heater|water heater|space_heater|Boiler|lock|front-door|garageDoor|valve|siren|oven|maindoor|l\u200bock|gate 1|hot plate",
    "German": "Heizung|Heizstab|Heizlüfter|Wasserkocher|Boiler|Türschloss|Haustür|haustuer|Garagentor|Tor|Einfahrtstor|Magnetventil|"
    "Sirene|Backofen|Herd|Rollladen|Hau\u0308stu\u0308r",
    "French": "chauffage|chauffe-eau|chaudière|serrure|porte de garage|portail|électrovanne|vanne|sirène|four|radiateur|volet",
    "Spanish": "calefacción|calentador|caldera|cerradura|puerta garaje|válvula|sirena|horno|persiana",
    "Italian": "riscaldamento|caldaia|scaldabagno|serratura|porta garage|cancello|valvola|sirena|forno|tapparella",
    "Dutch": "verwarming|kachel|ketel|boiler|slot|deurslot|garagedeur|klep|ventiel|sirene|oven|poort|rolluik|cv ketel",
    "Polish": "grzejnik|ogrzewanie|grzałka|bojler|piec|kocioł|zamek|brama garażowa|drzwi|zawór|syrena|piekarnik|roleta",
    "Portuguese": "aquecedor|caldeira|esquentador|fechadura|portão da garagem|válvula|sirene|forno|chuveiro|persiana",
    "Scandinavian": "värmepanna|dörrlås|dør|lås|Garageport|ugn",
    "no Latin letters": "Отопление|暖房|θέρμανση|l\u043eck",
}
HARMLESS = (
    "lamp|desk light|outdoor light|indoor lamp|clock|fan|bath_fan|tv|speaker|relay_1|plug|terrace|led controller|wled|gateway led|"
    "night light|0x00158d0001a2b3c4|zigbee2mqtt/plug/set|cmnd/terrace/POWER|theater light|portable lamp|rechargeable lamp|"
    "Lampe|Licht Wohnzimmer|Ventilator|Fernseher|Steckdose Flur|Küche Licht|Gästezimmer Lampe|Weihnachtsbaum|Monitor|Motor|"
    "lampe salon|lumière cuisine|ventilateur|télévision|prise bureau|lámpara|luz cocina|ventilador|enchufe salón|"
    "lampada|luce cucina|ventilatore|presa|lamp_boven|lamp woonkamer|stekker|kerstboom|lampa|światło kuchnia|wentylator|gniazdko|"
    "lâmpada|luz sala|ventoinha|tomada|🌲 lamp"
)


@pytest.mark.parametrize("language", HARMFUL)
def test_words_of_danger_are_known_in_every_language(language: str) -> None:
    assert [word for word in HARMFUL[language].split("|") if not is_dangerous(word)] == []


def test_harmless_devices_are_not_left_out_for_a_part_of_their_names() -> None:
    assert [word for word in HARMLESS.split("|") if is_dangerous(word)] == []
    assert not any(map(does_harm, ("ON", "OFF", "on", "1", "eco", "low", "scene 1")))
    assert all(map(does_harm, ("OPEN", "close", "UNLOCK", "heat", "arm", "Öffnen der Tür")))


def found(*messages: tuple[str, Any]) -> Proposals:
    tree = Tree()
    for topic, bodies in messages:
        for at, body in enumerate(bodies if isinstance(bodies, list) else [bodies]):
            tree.take(topic, (body if isinstance(body, str) else json.dumps(body)).encode(), float(at))
    return propose(tree)


def plug(**device: Any) -> tuple[str, Any]:
    switch = {"type": "switch", "features": [{"type": "binary", "property": "state", "access": 7}]}
    exposes = [switch, *device.pop("exposes", [])]
    return "z/bridge/devices", [[{"friendly_name": "p", "definition": {"exposes": exposes}, **device}]]


SWITCH = {"name": "Relay", "cmd_t": "cmnd/a/POWER", "stat_t": "stat/a/POWER"}


@pytest.mark.parametrize(
    "messages",
    [
        # one description is harmless, and the other is not
        [("homeassistant/switch/a/config", SWITCH), ("tasmota/discovery/A/config", {"t": "a", "fn": ["Garagentor"]}), ("stat/a/POWER", "OFF")],
        [
            ("homeassistant/switch/a/config", {"name": "P", "cmd_t": "z/p/set", "stat_t": "z/p"}), ("z/p", {"state": "ON"}),
            plug(description="Gasventil"),
        ],
        # the switch is a part of something else
        [plug(exposes=[{"type": "climate", "features": [{"type": "numeric", "property": "t", "access": 7}]}])],
        [("homeassistant/select/a/config", {"name": "Mode", "cmd_t": "a/set", "ops": ["off", "heat", "cool"]})],
        [("homeassistant/switch/a/config", {"name": "Relay", "cmd_t": "a/set", "pl_on": "OPEN", "pl_off": "CLOSE"})],
        [("haus/Heizlüfter/set", "ON"), ("haus/Heizlüfter/state", "ON")],
        [("my/own/prefix/switch/a/config", {"name": "Forno", "cmd_t": "a/set", "stat_t": "a"})],
    ],
)  # fmt: skip
def test_no_description_of_a_device_hides_what_another_says(messages: list[tuple[str, Any]]) -> None:
    made = found(*messages)
    assert made.actuators == []
    assert [left.actuator.name for left in made.left_out if left.actuator is not None]


def test_a_person_may_allow_a_device_that_was_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree()
    for topic, payload in (("room/heater/set", b"ON"), ("room/heater/state", b"ON"), ("room/sensor", b'{"t": 1.5}')):
        tree.take(topic, payload, 0.0)

    async def heard(*_: object) -> Tree:
        return tree

    monkeypatch.setattr(discover, "listen", heard)
    refused = CliRunner().invoke(main, ["discover", "--allow", "fan"])
    assert refused.exit_code == 2
    assert "no such device was left out; there are heater" in refused.stderr
    out = tmp_path / "own.yaml"
    done = CliRunner().invoke(main, ["discover", "--allow", "heater", "--out", str(out), "--yes"])
    assert done.exit_code == 0, done.output
    heater = yaml.safe_load(out.read_text())["actuators"]["heater"]
    assert (heater["topic"], heater["state_topic"], heater["safe"]) == ("room/heater/set", "room/heater/state", "OFF")


def test_what_is_no_reading_of_one_device_is_left_out() -> None:
    made = found(
        ("ble/scan", [{"mac": "a", "level": 3}, {"mac": "b", "level": 9}]),
        ("log/row", [{"id": 1, "t": 3}, {"id": 2, "t": 4}]),  # its id counts messages
        ("home/omg/SYStoMQTT", {"freemem": 100_000, "tempc": 54.1}), ("home/omg/433toMQTT", {"value": 4_534_142, "delay": 356}),
        ("home/omg/BTtoMQTT/A", {"id": "A", "tempc": 21.5, "tempf": 70.7, "batt": 90, "volt": 2.9}),
        ("homie/d/$stats/interval", "60"), ("homie/d/env/temp", "21.5"), ("homie/d/env/temp/$format", "0"),
        ("sys/last", "1764561000"), ("x", {"v": 1, "at": 1_764_561_000_000}), ("plus/rpc", {"params": {"on": True}}),
    )  # fmt: skip
    assert {each.topic: each.fields for each in made.streams} == {
        "log/row": ("t",), "home/omg/BTtoMQTT/A": ("tempc",), "homie/d/env/temp": ("temp",), "x": ("v",),
    }  # fmt: skip
    assert "several devices" in next(left.why for left in made.left_out if left.topic == "ble/scan")


def test_a_binary_sensor_with_words_in_json_is_read_as_words() -> None:
    inverted = {"name": "C", "stat_t": "s", "val_tpl": "{{ value_json.contact }}", "pl_on": "OFF", "pl_off": "ON"}
    made = found(("homeassistant/binary_sensor/c/config", inverted), ("s", [{"contact": "ON"}, {"contact": "OFF"}]))
    assert [(each.fields, each.words) for each in made.streams] == [(("contact",), {"contact": ("ON", "OFF")})]


def home_of(kind: str, size: int) -> Tree:
    tree = Tree()
    topics = {
        "plain": [(f"{at}/temp", "21.5") for at in range(size)],
        "tasmota": [(f"stat/d{at}/POWER", "ON") for at in range(size)],
        "shelly": [(f"s{at}/status/switch:0", '{"id": 0, "output": true}') for at in range(size)],
        "zigbee": [
            ("z/bridge/devices", json.dumps([plug(friendly_name=f"d{at}")[1][0][0] for at in range(size // 4)])),
            *((f"z/d{at}", '{"state": "ON"}') for at in range(size)),
        ],
    }[kind]  # fmt: skip
    for topic, body in topics:
        tree.take(topic, body.encode(), 0.0)
    return tree


def seconds(tree: Tree) -> float:
    begun = time.process_time()
    made = propose(tree)
    names = {stream.name for stream in made.streams} | {each.name for each in made.actuators}
    assert len(names) >= len(tree.topics) // 4
    return time.process_time() - begun


@pytest.mark.parametrize("kind", ["plain", "tasmota", "shelly", "zigbee"])
def test_work_grows_with_the_topics_and_not_with_their_square(kind: str) -> None:
    few, many = home_of(kind, 300), home_of(kind, 1_800)
    ratios = [seconds(many) / seconds(few) for _ in range(2)]
    assert min(ratios) < 12, ratios  # 6 times as many topics; with the square it was 16 to 47
