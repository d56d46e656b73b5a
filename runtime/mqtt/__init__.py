"""The MQTT 5 connection, topic names with their payload models, and request/response. The only importer of aiomqtt and paho."""

from __future__ import annotations

from runtime.mqtt.connection import Connection
from runtime.mqtt.connection_types import Address, BrokerRefused, Handler, Limit, Message, MqttLost, Subscription, Will
from runtime.mqtt.publisher import Delivery

__all__ = [
    "Address",
    "BrokerRefused",
    "Connection",
    "Delivery",
    "Handler",
    "Limit",
    "Message",
    "MqttLost",
    "Subscription",
    "Will",
]
