"""MQTT 5: the only package that imports aiomqtt.

`wire.py` says what goes over a connection, `client.py` makes and opens aiomqtt's client, `sending.py` and `receiving.py`
are the two directions, and `connection.py` keeps it all up.
"""

from __future__ import annotations

from runtime.mqtt.connection import Connection
from runtime.mqtt.wire import Address, Handler, Message, MqttLost, Subscription, Will

__all__ = ["Address", "Connection", "Handler", "Message", "MqttLost", "Subscription", "Will"]
