"""Save the state of a fine-tune, so that an interrupted run continues: tensors as safetensors, the rest as JSON.

The JSON names the tensor files and is replaced last, by one rename: a kill at any moment leaves the state before or the
state after. Nothing is pickled.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from learners.files import DRAFT, new_file, private_folder, write_atomically

FORMAT = 1
STATE = "state.json"
OWN = ("now-*.safetensors", "best-*.safetensors", STATE, f"{DRAFT}*")
"""Files of a state, and drafts that a kill left."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was saved."""

    facts: dict[str, Any]
    tensors: dict[str, Tensor]
    best: dict[str, Tensor]


class State:
    """The folder of one run's state; `fingerprint` says which run it belongs to."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder, self.fingerprint = folder, fingerprint
        self._number = 0
        self._best_file = ""

    def of_part(self, name: str) -> State:
        """Return the state of one of several trainings of the run, in a folder of its own."""
        return State(self.folder.with_name(f"{self.folder.name}-{name}"), f"{self.fingerprint} {name}")

    def save(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor], best: Mapping[str, Tensor] | None) -> None:
        """Write a new state and remove the one before; `best` is None where the best weights are as they were."""
        private_folder(self.folder)
        self._number += 1
        now = f"now-{self._number}.safetensors"
        with new_file(self.folder / now, durable=False) as draft:
            save_file(_own(tensors), draft)
        if best is not None:
            self._best_file = f"best-{self._number}.safetensors"
            with new_file(self.folder / self._best_file, durable=False) as draft:
                save_file(_own(best), draft)
        body = {"format": FORMAT, "fingerprint": self.fingerprint, "number": self._number, "now": now}
        body |= {"best": self._best_file, "facts": dict(facts)}
        write_atomically(self.folder / STATE, orjson.dumps(body), durable=False)
        for path in self.folder.glob("*.safetensors"):
            if path.name not in (now, self._best_file):
                path.unlink()

    def load(self) -> Loaded | None:
        """Load the saved state; None if there is none, it belongs to another run, or it is unreadable."""
        try:
            body = orjson.loads((self.folder / STATE).read_bytes())
            if body["format"] != FORMAT or body["fingerprint"] != self.fingerprint:
                return None
            tensors = load_file(self.folder / body["now"])
            best = load_file(self.folder / body["best"]) if body["best"] else {}
        except (FileNotFoundError, orjson.JSONDecodeError, SafetensorError, KeyError, TypeError):
            return None
        self._number, self._best_file = body["number"], body["best"]
        return Loaded(body["facts"], tensors, best)

    def clear_parts(self) -> None:
        """Remove this state and those of `of_part`, whichever run they belong to; folders of others stay."""
        for folder in self.folder.parent.glob(f"{self.folder.name}-*"):
            if folder.is_dir() and (names := [path.name for path in folder.iterdir()]):
                is_own = all(any(fnmatch(name, pattern) for pattern in OWN) for name in names)
                if is_own or STATE in names:
                    State(folder, self.fingerprint).clear()
        self.clear()

    def clear(self) -> None:
        """Remove the state: the run is over. Files that it did not write stay."""
        if not self.folder.is_dir():
            return
        for path in (path for pattern in OWN for path in self.folder.glob(pattern)):
            path.unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()


def _own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def seed_generators(seed: int) -> None:
    """Seed every generator that a model may draw from; wav2vec2 masks with numpy's global one."""
    torch.manual_seed(seed)  # of every device
    np.random.seed(seed % 2**32)  # noqa: NPY002 - transformers draws from the global generator
    random.seed(seed)


def generators(device: torch.device) -> dict[str, Tensor]:
    """Return the states of all generators."""
    _, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 - as above
    _, words, spare = random.getstate()
    found = {
        "rng": torch.get_rng_state(),
        "rng_numpy": torch.tensor([*map(float, keys), position, has_gauss, gauss], dtype=torch.float64),
        "rng_python": torch.tensor([*map(float, words), math.nan if spare is None else spare], dtype=torch.float64),
    }
    return found | ({"rng_cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def restore_generators(tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """Put the states back; a state of an older program has torch's alone."""
    torch.set_rng_state(tensors["rng"])
    if "rng_numpy" in tensors:
        *keys, position, has_gauss, gauss = tensors["rng_numpy"].tolist()
        np.random.set_state(("MT19937", np.array(keys, np.uint32), int(position), int(has_gauss), gauss))  # noqa: NPY002 - as above
        *words, spare = tensors["rng_python"].tolist()
        random.setstate((3, tuple(map(int, words)), None if math.isnan(spare) else spare))
    if "rng_cuda" in tensors and device.type == "cuda":
        torch.cuda.set_rng_state(tensors["rng_cuda"], device)


def trained_of(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the trained parameters."""
    return {name: p.detach().cpu().clone() for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def restore(model: nn.Module, tensors: Mapping[str, Tensor], prefix: str = "") -> None:
    """Put `trained_of`'s copies back."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.copy_(tensors[prefix + name])


def optimizer_tensors(made: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's moments by parameter number and name."""
    states = made.state_dict()["state"]
    return {
        f"optimizer/{i}/{name}": torch.as_tensor(value)
        for i, entries in states.items()
        for name, value in entries.items()
        if value is not None
    }


def restore_optimizer(made: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put the moments back, laid out in memory as their parameters are: fused optimisers walk both side by side."""
    parameters = [parameter for group in made.param_groups for parameter in group["params"]]
    states: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer/"):
            _, number, name = key.split("/")
            own = parameters[int(number)]
            laid = torch.empty_like(own, dtype=tensor.dtype).copy_(tensor) if tensor.shape == own.shape else tensor
            states.setdefault(int(number), {})[name] = laid
    made.load_state_dict({"state": states, "param_groups": made.state_dict()["param_groups"]})
