"""iotcore as a process of its own: `python -m runtime.supervisor.broker_iotcore CONFIG.toml`. The only importer of iotcore."""

from __future__ import annotations

import logging
import signal
import sys

from runtime.process import child


def main(arguments: list[str]) -> int:
    """Run the broker until a signal stops it."""
    from iotcore import IotCoreBroker  # noqa: PLC0415 - an optional package, needed only here

    child.set_process_title("broker")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("rumqttd").setLevel(logging.CRITICAL)  # it logs every packet as an error
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    IotCoreBroker(config_path=arguments[0]).run_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
