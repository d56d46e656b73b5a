"""Start a local Ray, or join a cluster. The only importer of Ray, which is an extra.

Ray listens on loopback unless an address names a cluster, asks each of its processes for a token, and reports nothing to its authors.
Every process that joins a cluster may run code in it, so only machines of one owner do.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONNECT_S = 5.0
"""For the address of a cluster; Ray itself tries for minutes."""
MAX_REASON = 300
"""Characters of why a cluster cannot be joined."""


class RayMissing(ValueError):  # noqa: N818 - reads as what happened
    """Ray is not installed; `str` says how to install it."""


def start_ray(address: str | None, cpus: int, namespace: str, **options: Any) -> Any:
    """Start a local Ray or join a cluster; return the module.

    Args:
        address: of a cluster; None for a local Ray, which ends with this process.
        cpus: cores of a local one.
        namespace: of the actors.
        options: further ones of `ray.init`.

    Raises:
        RayMissing: it is not installed.
        ConnectionError: the cluster does not answer, or refuses the token (`RAY_AUTH_TOKEN`).
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if address is None:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import ray  # noqa: PLC0415 - an extra
    except ImportError:
        raise RayMissing("Ray is not installed; run pip install 'reflexd[fleet]'") from None
    if address is not None:
        _require_listener(address)
        try:
            ray.init(address=address, namespace=namespace, logging_level="ERROR", **options)
        except (ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:MAX_REASON]
            raise ConnectionError(f"Ray at {address} does not accept this process: {reason}") from None
    else:
        ray.init(
            num_cpus=cpus,
            include_dashboard=False,
            namespace=namespace,
            logging_level="ERROR",
            _node_ip_address="127.0.0.1",
            **options,
        )
    return ray


def joined_ray() -> Any:
    """Return the module in a process of Ray, such as that of an actor."""
    import ray  # noqa: PLC0415 - an extra

    return ray


def torch_trainer(
    train: Callable[[dict[str, Any]], None],
    call: dict[str, Any],
    workers: int,
    folder: Path,
    *,
    timeout_s: int,
    use_gpu: bool,
) -> Any:
    """Return a `TorchTrainer` of Ray, where Ray is started; its `fit` trains.

    Args:
        train: called with `call` in each worker, in a process group of torch: NCCL on GPUs, else gloo.
        call: the argument.
        workers: how many; each has a core, or a GPU.
        folder: where Ray writes, on every machine with a worker.
        timeout_s: longest time that workers wait for each other.
        use_gpu: each worker has a GPU.
    """
    os.environ["RAY_TRAIN_V2_ENABLED"], os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "1", "0"
    from ray import train as ray_train  # noqa: PLC0415 - an extra
    from ray.train import torch as ray_torch  # noqa: PLC0415

    return ray_torch.TorchTrainer(
        train,
        train_loop_config=call,
        torch_config=ray_torch.TorchConfig(timeout_s=timeout_s),
        scaling_config=ray_train.ScalingConfig(num_workers=workers, use_gpu=use_gpu),
        run_config=ray_train.RunConfig(name="run", storage_path=str(folder)),
    )


def _require_listener(address: str) -> None:
    """Return where a process listens at HOST:PORT; other forms of an address are left to Ray.

    Raises:
        ConnectionError: none does.
    """
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(f"Ray at {address} does not answer: {error}") from None
