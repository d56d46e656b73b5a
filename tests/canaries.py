"""The passwords and tokens of the whole test suite, all from here, and how they are recognised wherever they turn up.

Every one contains `MARK`, which occurs nowhere else: output of a test or of its processes that contains it
discloses a secret. `canary_watch.py` listens to the whole run.
"""

from __future__ import annotations

import base64
from urllib.parse import quote

MARK = "c4nary"
MQTT = "c4nary-mqtt-7d1f"
RTSP = "c4nary-rtsp-90ab"
INLINE = "c4nary-inline-55e2"
QUERY = "c4nary-query-12cd"
OPERATOR = "c4nary-operator-token-3f3f"
VIEWER = "c4nary-viewer-token-8a8a"
LOGIN = {"username": "tester", "password": MQTT}
"""What daemons and clients of the tests give the broker; an open one takes any."""
LOGIN_YAML = f"username: tester, password: {MQTT}"
PLUGIN = "c4nary-plugin-0b1c"
ENVIRONMENT = "c4nary-environment-4e77"
FILE = "c4nary-file-d210"
ODD = 'c4nary c4nary@c4nary/c4nary"c4nary\\c4nary?c4nary#c4nary:c4nary[c4nary'
"""With everything in it that has to be escaped somewhere, and the mark in each part that a parser of addresses could repeat."""


def _as_base64(mark: bytes) -> list[bytes]:
    """What of a word is always there in base64, at each of the three places it may begin: as in HTTP's basic login."""
    found = []
    for before in range(3):
        text = base64.b64encode(b"\0" * before + mark)
        found.append(text[-(-before * 8 // 6) : (before + len(mark)) * 8 // 6])
    return found


SPELLINGS = [MARK.encode(), *_as_base64(MARK.encode())]
SPELLED = [spelling.decode() for spelling in SPELLINGS]
IN_A_URL = quote(ODD, safe="")


def received(data: bytes | str | None, around: int = 30) -> str | None:
    """The first secret in `data`, with the text around it; None if there is none."""
    if not data:
        return None
    if isinstance(data, str):
        where = next((at for at in map(data.find, SPELLED) if at >= 0), -1)
        return None if where < 0 else data[max(0, where - around) : where + 2 * around]
    where = next((at for at in map(data.find, SPELLINGS) if at >= 0), -1)
    return None if where < 0 else data[max(0, where - around) : where + 2 * around].decode(errors="replace")
