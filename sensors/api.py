"""Export the stable names for plug-ins of `reflexd.sensors` and `reflexd.rewards`; every other module of sensors may move."""

from sensors.base import PayloadRefused, Publish, Sensor, SensorLost, TopicSensor
from sensors.readings import Frame, Observation, Reading, Sound, Telemetry, Text

__all__ = [
    "Frame",
    "Observation",
    "PayloadRefused",
    "Publish",
    "Reading",
    "Sensor",
    "SensorLost",
    "Sound",
    "Telemetry",
    "Text",
    "TopicSensor",
]
