"""Tell whether a data folder is the one of the fleet's server, or another one under the same path of another machine: `folder-id`.

Each ingest stores rows and positions in the data folder. Ingests with folders of their own would answer each agent by their own
positions, and the agent would send its rows again without end. Used by `runtime/fleet/serve.py`.
"""

from __future__ import annotations

import secrets
import socket
from contextlib import suppress
from pathlib import Path

from learners.files import private_folder, write_atomically

FILE = "folder-id"


def folder_id(data: Path) -> str:
    """Return the identity of a data folder, which gets one when it has none.

    Raises:
        OSError: it cannot be read or written.
    """
    private_folder(data)
    with suppress(FileExistsError):
        write_atomically(data / FILE, secrets.token_hex(16).encode(), mode=0o600, overwrite=False)
    return (data / FILE).read_text()


def folder_problem(data: Path, expected: str) -> str:
    """Return why the data folder of this machine is not the one of the server; empty if it is.

    Args:
        data: the folder, as this machine sees it.
        expected: the identity that the server read.
    """
    try:
        found = (data / FILE).read_text()
    except (OSError, UnicodeDecodeError) as error:
        found = ""
        reason = str(error)
    else:
        reason = "it is another folder"
    if found == expected:
        return ""
    return (
        f"data: {data} on {socket.gethostname()} is not the folder of the server ({reason}); share one folder between all "
        "machines of the cluster, such as by NFS, or name this machine's path of it"
    )
