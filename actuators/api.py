"""Export the stable names for plug-ins of `reflexd.actuators` and `reflexd.rewards`; every other module of actuators may move."""

from actuators.actions import Value
from actuators.sim.plant import Device, Plant, message
from actuators.wire import DeviceMessage

__all__ = ["Device", "DeviceMessage", "Plant", "Value", "message"]
