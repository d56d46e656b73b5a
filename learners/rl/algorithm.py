"""One learner for all actuators of a policy: encodes a batch once and lets a part for each kind of actuator learn from it.

Used in lock-step by `reflexd train` and by the learner process; neither gathers experience here. The same state,
generator and batches give the same weights bit for bit on the same machine.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from learners.model.features import Features, concat
from learners.model.heads import DuelingCategorical, Heads
from learners.model.networks import BatchRenorm, Tracker, UnitBatchNorm, UnitLinear
from learners.rl.adam import Adam, Group
from learners.rl.bandit import Bandit
from learners.rl.categorical_critics import C51, CategoricalSettings, Xqc, XqcSettings
from learners.rl.crossq import Crossq, CrossqSettings
from learners.rl.dqn import Dqn, DqnSettings
from learners.rl.head_algorithm import Contexts, HeadAlgorithm, add_prefix, strip_prefix
from learners.rl.sac import ActorCritic, Sac, SacSettings
from learners.rl.starting_policy import Prior
from learners.rl.transition_batch import Batch
from learners.torch_device import restore_generator

MODAL = (BatchRenorm, UnitBatchNorm, nn.Dropout)
"""Layers of heads that differ between training and acting."""
MODELESS = (nn.Linear, UnitLinear, nn.ReLU, nn.GELU, nn.LayerNorm, nn.Sequential, nn.ModuleList)
"""Layers that do not; setting the mode of every layer took longer than a small network's forward pass."""
RESCALE_EVERY = 250
"""Updates between two measurements of the deviation of returns; early ones follow each doubling."""
RESCALE_FROM = 0.2
"""Relative change of the deviation of returns that changes the divisor of rewards."""
ENCODER_RATE = 3e-4
ENCODER_TRACK = 0.005
WARMUP, CHOICE_WARMUP = 1_000, 256
"""Transitions before the first update, without and with choice actuators; a continuous policy that is led by its first few hundred
steps is led for long."""


def parts(heads: Heads, generator: torch.Generator) -> list[HeadAlgorithm]:
    """Build the parts that the heads require."""
    choices = tuple(a.name for a in heads.actions.choices)
    continuous = tuple(a.name for a in heads.actions.continuous)
    decisions, built = heads.exploration.updates, list[HeadAlgorithm]()
    if heads.choice is not None:
        if isinstance(heads.choice, DuelingCategorical):
            built.append(C51(heads.choice, choices, CategoricalSettings(epsilon_decisions=decisions)))
        else:
            built.append(Dqn(heads.choice, choices, DqnSettings(epsilon_decisions=decisions)))
    if heads.bandit is not None:
        built.append(Bandit(heads.bandit, choices))
    if heads.continuous is not None:
        if heads.kinds.continuous == "xqc":
            built.append(Xqc(heads.continuous, continuous, generator, XqcSettings(epsilon_decisions=decisions)))
        elif heads.kinds.continuous == "crossq":
            settings = CrossqSettings(epsilon_decisions=decisions)
            built.append(Crossq(heads.continuous, continuous, generator, settings))
        else:
            built.append(Sac(heads.continuous, continuous, generator, SacSettings(epsilon_decisions=decisions)))
    return built


def target_encoder(policy: nn.Module) -> nn.Module:
    """Copy the policy without its heads, not to be trained."""
    heads, policy.heads = policy.heads, nn.Identity()
    try:
        copied = copy.deepcopy(policy)
    finally:
        policy.heads = heads
    return copied.requires_grad_(False).eval()


class Algorithm:
    """Learns a policy from batches.

    Args:
        policy: what acts (`learners.model.policy.Policy`, or anything with its `encode`, `observe` and `heads`);
            trained in place.
        generator: the only source of chance.
        updates: number of updates so far.
        decisions: number of decisions so far that training has counted; exploration fades with it, and does not restart if only the
            weights change. None: as many as updates.
        prior_strength: updates of experience that an adopted policy counts as; None as `starting_policy.py` says.
    """

    def __init__(
        self,
        policy: Any,
        generator: torch.Generator,
        updates: int = 0,
        *,
        decisions: float | None = None,
        prior_strength: float | None = None,
    ) -> None:
        self.policy, self.generator, self.updates = policy, generator, updates
        self.decisions = float(updates) if decisions is None else decisions
        self.prior_strength = prior_strength
        self.parts = parts(policy.heads, generator)
        self.prior: Prior | None = None
        encoder = [p for name, p in policy.named_parameters() if not name.startswith("heads.") and p.requires_grad]
        if policy.heads.bandit is not None:  # its posterior holds only for features that stay as they are
            encoder = []
        # With nothing to train before the heads, a slow copy of the encoder would be the encoder itself.
        self.target: Any = target_encoder(policy) if encoder else None
        self._follow = Tracker(self.target, policy) if self.target is not None else None
        trained = [group for part in self.parts for group in part.groups()]
        self.optimiser = Adam([*trained, Group(encoder, ENCODER_RATE)])
        policy.eval()
        # Switching modules between training and acting takes time; plain networks behave the same in both.
        self._needs_modes = bool(encoder) or any(isinstance(m, MODAL) for m in policy.modules())
        self._modal = [m for m in policy.modules() if not isinstance(m, MODELESS)]

    def adopt(self, updates: int = 0) -> None:
        """Take the policy's present weights as a prior (`starting_policy.py`) that has served `updates` updates; a bandit has none."""
        if any(not isinstance(part, Bandit) for part in self.parts):
            self.prior = Prior(self.policy, updates, self.prior_strength)

    def normalise(self, features: Features) -> None:
        """Merge the features of new ticks into the statistics of the inputs; a bandit's features must stay as they were."""
        if self.policy.heads.bandit is None:
            self.policy.observe(features)

    def forget_statistics(self, streams: Sequence[str]) -> None:
        """Start the statistics of these streams over: their encoders changed; a bandit's features must stay as they were."""
        if self.policy.heads.bandit is None:
            for name in streams:
                self.policy.normalisers()[name].reset()

    def observe(self, batch: Batch, numbers: Sequence[int] = ()) -> None:
        """Take in every transition once, in the order it was made; only a bandit learns from this."""
        self.policy.eval()
        for part in self.parts:
            if isinstance(part, Bandit):
                part.observe(self.policy, batch, numbers)

    def correct(self, batch: Batch, number: int, change: float) -> None:
        """Add a late reward to a transition that `observe` took in; see `Bandit.correct`."""
        self.policy.eval()
        for part in self.parts:
            if isinstance(part, Bandit):
                with torch.no_grad():
                    part.correct(self.policy, batch, number, change)

    @property
    def needs_return_scale(self) -> bool:
        """Whether the next update should follow `rescale` with the present deviation of returns."""
        n = self.updates
        is_due = n % RESCALE_EVERY == 0 or (n < RESCALE_EVERY and n & (n - 1) == 0)
        return is_due and any(isinstance(part, (C51, Xqc)) for part in self.parts)

    def rescale(self, deviation: float) -> None:
        """Divide rewards by this deviation of returns (`ReplayBuffer.return_scale`) if it is the first, or has moved by `RESCALE_FROM`.

        Learned values are multiples of the deviation, so each change makes all of them wrong by its factor.
        """
        for part in self.parts:
            if isinstance(part, (C51, Xqc)) and (
                self.updates == 0 or abs(deviation / part.deviation - 1) > RESCALE_FROM
            ):
                part.rescale(deviation)

    def update(self, batch: Batch, decisions: float = 1.0) -> dict[str, float]:
        """Train on one batch; return the metrics, named `part.metric`.

        Args:
            batch: the transitions.
            decisions: that came since the update before; exploration fades by these.

        Raises:
            FloatingPointError: a feature, an action or a loss is not finite; the weights have not changed.
        """
        if self._follow is not None:
            self._follow.copy_buffers()
        self._mode(training=True)
        try:
            return self._update(batch, decisions)
        finally:
            self._mode(training=False)

    def _update(self, batch: Batch, decisions: float) -> dict[str, float]:
        """Train on one batch in the mode of training; return the metrics."""
        contexts = self._contexts(batch)
        self._refuse_inputs(contexts, batch)
        losses, metrics = [], {}
        for part in self.parts:
            loss, figures = part.loss(contexts, batch)
            losses.append(loss)
            metrics.update(figures)
        if self.optimiser.groups:
            total = sum(losses[1:], losses[0])
            if not bool(total.isfinite()):
                raise FloatingPointError(
                    f"update {self.updates}: the loss is {float(total.detach())}; the batch was skipped"
                )
            self.optimiser.zero_grad()
            total.backward()  # type: ignore[no-untyped-call] # torch ships it so
            self.optimiser.step()
        self.updates += 1
        self.decisions += decisions
        for part in self.parts:
            part.fade(batch, self.decisions, decisions)
            metrics.update(part.improve(contexts, batch, self.updates))
        if self.prior is not None:
            self.prior.updates += 1
            self.prior = None if self.prior.outweighed else self.prior
        if self._follow is not None:
            self._follow(ENCODER_TRACK)
        return {name: float(value) for name, value in metrics.items()}

    def _refuse_inputs(self, contexts: Contexts, batch: Batch) -> None:
        """Raise FloatingPointError if an input of the heads is not finite: batch normalisation would store it in its statistics."""
        inputs = [contexts.now, contexts.upcoming, *(a for a in batch.actions.values() if a.is_floating_point())]
        if not all(bool(tensor.isfinite().all()) for tensor in inputs):
            raise FloatingPointError(
                f"update {self.updates}: a feature or an action is not finite; the batch was skipped"
            )

    def _mode(self, *, training: bool) -> None:
        """Switch what behaves differently in training."""
        if self._needs_modes:
            for module in self._modal:
                module.training = training

    def _contexts(self, batch: Batch) -> Contexts:
        """Encode the batch; the next states by the slow copy, where there is one."""
        prior = self.prior.opinion(batch) if self.prior is not None else None
        if self.target is None:
            with torch.no_grad():
                now, upcoming = self.policy.encode(concat((batch.features, batch.next_features))).chunk(2)
            return Contexts(now, upcoming, prior)
        with torch.no_grad():
            slow = self.target.encode(batch.next_features)
        with torch.set_grad_enabled(prior is None or not prior.fitting):
            now = self.policy.encode(batch.features, generator=self.generator)
        return Contexts(now, slow, prior)

    def exploration(self) -> dict[str, float]:
        """Return what the amount of exploration depends on beside the weights: `updates`, `decisions`, and a temperature.

        The temperature is `sac_temperature`, `crossq_temperature` or `xqc_temperature`. An earlier program wrote no `decisions`.
        """
        found: dict[str, float] = {"updates": self.updates, "decisions": self.decisions}
        for part in self.parts:
            if isinstance(part, ActorCritic):
                found[f"{part.prefix}_temperature"] = float(part.log_temperature.detach().exp())
        return found

    def continue_exploration(self, found: Mapping[str, float]) -> None:
        """Explore as little as `found` (see `exploration`) and the weights' own epsilon say; names that are absent change nothing."""
        updates = [self.updates, int(found.get("updates", 0))]
        decisions = [self.decisions, found.get("decisions", found.get("updates", 0.0))]
        for part in self.parts:
            if isinstance(part, (Dqn, C51)):
                updates.append(part.decisions_so_far())
                decisions.append(part.decisions_so_far())
            if isinstance(part, ActorCritic):
                part.set_temperature(found.get(f"{part.prefix}_temperature"))
        self.updates = max(updates)
        self.decisions = max(decisions)

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that an exact resume needs beside the policy's own weights, as flat tensors."""
        state = {
            "updates": torch.tensor(self.updates),
            "decisions": torch.tensor(self.decisions, dtype=torch.float64),
            "generator": self.generator.get_state(),
        }
        for index, part in enumerate(self.parts):
            state |= add_prefix(f"part{index}", part.state_dict())
        state |= add_prefix("optimiser", self.optimiser.state_dict())
        if self.target is not None:
            state |= add_prefix("encoder", self.target.state_dict())
        if self.prior is not None:
            state |= add_prefix("prior", self.prior.policy.state_dict())
            state["prior_updates"] = torch.tensor(self.prior.updates)
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up what `state_dict` gave; the policy's weights must be loaded by then."""
        self.updates = int(state["updates"])
        self.decisions = float(state.get("decisions", state["updates"]))  # an earlier program counted updates
        restore_generator(self.generator, state["generator"])
        for index, part in enumerate(self.parts):
            part.load_state_dict(strip_prefix(f"part{index}", state))
        self.optimiser.load_state_dict(strip_prefix("optimiser", state))
        if self.target is not None:
            self.target.load_state_dict(strip_prefix("encoder", state))
        self.prior = None
        if "prior_updates" in state:
            self.prior = Prior(self.policy, int(state["prior_updates"]), self.prior_strength)
            self.prior.policy.load_state_dict(strip_prefix("prior", state))
