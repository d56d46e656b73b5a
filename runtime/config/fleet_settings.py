"""Settings of a device that belongs to a fleet."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator

from runtime.config.field_types import GivenPath
from runtime.config.mqtt_settings import MqttSettings, broker_url
from sensors.config import Name, Settings


class FleetSettings(Settings):
    """Settings of the uplink to a fleet."""

    group: Name = Field(description="name of the fleet's group: agents with equal streams, actuators and policy")
    url: str = Field(description="the fleet's broker, `mqtts://HOST:PORT`, or `mqtt://HOST:PORT` in a trusted network")
    username: str | None = Field(None, description="user at the fleet's broker; `reflexd fleet enroll` makes one")
    password: SecretStr | None = Field(None, description="password of that user")
    ca: GivenPath | None = Field(
        None, description="file of the authority that signed the certificate of the fleet's broker"
    )
    cert: GivenPath | None = Field(None, description="file of the client certificate")
    cert_key: GivenPath | None = Field(None, description="file of the client certificate's key")
    upload_kib_per_hour: int = Field(
        10_000,
        ge=64,
        le=100_000_000,
        description="experience that may leave the device, in KiB an hour. Corrections, failures and ends of episodes go first; where the "
        "budget is too small for the rest, blocks of it are drawn, and their probability is stored with them",
    )
    backlog_h: float = Field(
        72.0,
        gt=0,
        le=8_760,
        description="rows older than this are not sent any more; `experience.max_gb` limits their size",
    )
    key: GivenPath | None = Field(
        None,
        description="file of the public key that signs the policies of the fleet. Default: policies of the fleet are not accepted",
    )

    local: Literal["all", "head", "none"] = Field(
        "all",
        description="what this device trains itself, with `key`: `all` of its own policy, beside the fleet's; `head`, only the heads of the "
        "fleet's live version, until the next one is live; `none`, nothing. See [fleet.md](fleet.md#what-a-device-trains-itself)",
    )
    stop: bool = Field(
        True,
        description="obey a stop of the fleet: the uplink passes it on to `stop` of this agent. Nothing of the fleet releases it",
    )

    @field_validator("url")
    @classmethod
    def _url(cls, url: str) -> str:
        return broker_url(url)

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if self.url.startswith("embedded:"):
            raise ValueError("fleet.url: a device does not start the fleet's broker; write mqtt:// or mqtts://")
        if self.local != "all" and self.key is None:
            raise ValueError(
                f"fleet.local: {self.local} builds on policies of the fleet, and without fleet.key none is accepted; add fleet.key"
            )
        try:
            self.mqtt()
        except ValidationError as error:  # its text repeats the input, which may hold a password
            raise ValueError(
                error.errors()[0]["msg"].removeprefix("Value error, ").replace("mqtt.", "fleet.")
            ) from None
        return self

    def mqtt(self) -> MqttSettings:
        """Return the connection to the fleet's broker.

        Raises:
            ValueError: the address cannot be used.
        """
        return MqttSettings(
            url=self.url,
            username=self.username,
            password=self.password,
            ca=self.ca,
            cert=self.cert,
            key=self.cert_key,
            keepalive_s=30,
        )
