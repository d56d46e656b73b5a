"""The image, the compose file and the Debian package are whole, as far as this can be seen where Docker cannot run."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from runtime.config.loader import load

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "configs" / "docker"
INSTRUCTIONS = frozenset(
    "FROM ARG ENV WORKDIR COPY RUN VOLUME USER EXPOSE STOPSIGNAL HEALTHCHECK ENTRYPOINT CMD".split()  # noqa: SIM905
)
SERVICE_KEYS = frozenset(
    "image build depends_on ports volumes secrets cap_drop security_opt stop_grace_period restart command user healthcheck".split()  # noqa: SIM905
)
"""Keys of a service in the compose specification that this file uses."""


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as pairs of instruction and arguments, lines joined, without comments."""
    lines = [line for line in (DOCKER / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    pairs = (line.strip().partition(" ") for line in joined.splitlines() if line.strip())
    return [(name, rest.strip()) for name, _, rest in pairs]


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((DOCKER / "compose.yaml").read_text()))


def is_sent(path: str) -> bool:
    """Whether a path of the repository is part of the build's context."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line]
    sent = True
    for rule in rules:
        pattern = rule.removeprefix("!")
        if fnmatch.fnmatch(path, pattern) or path.startswith(f"{pattern}/"):
            sent = rule.startswith("!")
    return sent


def test_the_image_is_built_in_two_stages_runs_as_no_root_and_says_when_it_is_ready() -> None:
    steps = instructions()
    assert {name for name, _ in steps} <= INSTRUCTIONS
    stages = [rest for name, rest in steps if name == "FROM"]
    assert [rest.partition(" ")[2] for rest in stages] == ["AS build", ""]
    assert all(re.fullmatch(r"[a-z]+:[\w.-]+", rest.split()[0]) for rest in stages), "each image has a tag"
    last = steps[max(i for i, (name, _) in enumerate(steps) if name == "FROM") :]
    received = dict(last)
    assert received["USER"] not in {"root", "0"}
    assert "/readyz" in received["HEALTHCHECK"]
    assert received["ENTRYPOINT"] == '["reflexd"]'
    assert all("rm -rf /var/lib/apt/lists/*" in rest for name, rest in last if name == "RUN")
    assert not [rest for _, rest in steps if "http://" in rest.replace("http://127.0.0.1", "") or "https://" in rest]


def test_what_the_image_copies_is_in_the_repository_and_in_the_context() -> None:
    for name, rest in instructions():
        if name == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert is_sent(source), source
    assert not is_sent(".git")
    assert not is_sent("configs/docker/secrets/mqtt")
    assert not is_sent("tests")


def test_every_installation_in_the_image_has_hashes() -> None:
    (build,) = (rest for name, rest in instructions() if name == "RUN" and "constraints-build" in rest)
    files = re.findall(r"(--require-hashes )?-r (constraints[\w-]*\.txt)", build)
    assert [name for _, name in files] == [f"constraints{end}.txt" for end in ("-build", "-cpu", "", "-cuda")]
    assert all(hashed for hashed, _ in files)


def test_the_compose_file_names_only_what_exists_and_listens_on_this_machine_alone() -> None:
    made = compose()
    assert set(made) == {"name", "services", "volumes", "secrets"}
    assert set(made["services"]) == {"reflexd", "mosquitto", "prometheus", "grafana"}
    for name, service in made["services"].items():
        assert set(service) <= SERVICE_KEYS, name
        assert service["cap_drop"] == ["ALL"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        assert set(service.get("secrets", ())) <= set(made["secrets"])
        assert set(service.get("depends_on", ())) <= set(made["services"])
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert (DOCKER / source).exists() if source.startswith(".") else source in made["volumes"], volume
    assert not made["services"]["grafana"]["image"].endswith("latest")
    build = made["services"]["reflexd"]["build"]
    assert (DOCKER / build["context"] / build["dockerfile"]).resolve() == DOCKER / "Dockerfile"
    text = (DOCKER / "compose.yaml").read_text()
    assert not re.findall(r"(?<!\$)\$\((?!cat /run)", re.sub(r"(?m)^#.*", "", text)), "a dollar is written twice"


@pytest.mark.parametrize("path", ["configs/docker/reflexd.yaml", "configs/deb/reflexd.yaml"])
def test_the_settings_of_container_and_package_are_good_and_move_nothing(path: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a secret of thirty characters.")
    text = re.sub(r"/run/secrets/\w+", str(secret), (ROOT / path).read_text())
    (tmp_path / "reflexd.yaml").write_text(text)
    config = load(tmp_path / "reflexd.yaml").config
    assert config.mode == "shadow"
    assert config.metrics is not None
    assert config.dashboard is not None


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is missing: apt-get install prometheus")
def test_prometheus_reads_its_file(tmp_path: Path) -> None:
    shutil.copy(DOCKER / "prometheus.yml", tmp_path)
    shutil.copy(ROOT / "configs" / "prometheus" / "reflexd.rules.yml", tmp_path)
    checked = subprocess.run(
        ["promtool", "check", "config", tmp_path / "prometheus.yml"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is part of Debian")
def test_the_debian_package_installs_the_unit_and_asks_nothing(tmp_path: Path) -> None:
    wheel = tmp_path / "reflexd-1.2.3-py3-none-any.whl"
    wheel.write_bytes(b"a wheel")
    subprocess.run(["bash", ROOT / "configs" / "deb.sh", wheel, tmp_path / "dist"], check=True, capture_output=True)
    package = tmp_path / "dist" / "reflexd_1.2.3_all.deb"
    subprocess.run(["dpkg-deb", "--raw-extract", package, tmp_path / "root"], check=True)
    root = tmp_path / "root"
    unit = (root / "usr/lib/systemd/system/reflexd.service").read_text()
    assert "ExecStart=/opt/reflexd/bin/reflexd run /etc/reflexd/reflexd.yaml" in unit
    assert not re.search(r"@[A-Z]+@", unit)
    control = root / "DEBIAN"
    assert {path.name for path in control.iterdir()} == {"control", "conffiles", "postinst", "prerm", "postrm"}
    assert "Version: 1.2.3\n" in (control / "control").read_text()
    assert (root / "usr/share/reflexd" / wheel.name).read_bytes() == b"a wheel"
    for script in (
        control / "postinst",
        control / "prerm",
        control / "postrm",
        root / "usr/lib/reflexd/install-environment",
    ):
        assert script.stat().st_mode & 0o111
        assert subprocess.run(["sh", "-n", script], check=False).returncode == 0
        assert not re.search(r"\bread\b|debconf|db_input", script.read_text())
