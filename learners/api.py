"""Export the stable names for plug-ins of `reflexd.encoders`; every other module of learners may move."""

from learners.config.policy import EncoderSettings
from learners.model.encoders.base import Encoder

__all__ = ["Encoder", "EncoderSettings"]
