"""Train the policy: read experience, make updates, save the state, and resume exactly.

Everything it does is decided by the saved state, the journal and the store: which rows were known after which update, the
random states, the rings of the replay. Two runs over the same store and journal, interrupted or not, give the same weights
bit for bit on the same machine. When it cannot keep up it forgets updates it owes rather than fall behind the present.

Knows nothing of processes, priorities and promotion: `process.py` does.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import orjson
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from learners.checkpoints.manifest import CheckpointRefused
from learners.checkpoints.safetensors_torch import shapes_of
from learners.checkpoints.store import Checkpoints
from learners.config.learner import LearnerSettings
from learners.experience.reader import Change, Row
from learners.experience.snapshots import ExperienceSnapshots, SnapshotId
from learners.experience.transition import Transition
from learners.model.features import recorded
from learners.model.spec import PolicySpec
from learners.reencoding.token_store import TokenStore
from learners.rl import starting_policy
from learners.rl.algorithm import CHOICE_WARMUP, WARMUP, Algorithm
from learners.rl.mirror_augmentation import MirrorAugmentation
from learners.rl.replay_buffer import MAX_ROWS, BufferIndex, ReplayBuffer
from learners.rl.tokens.local import LocalTokens
from learners.rl.tokens.sharded import ShardedTokens, Shards
from learners.worker.journal import Journal, JournalEntry, Position, document, load_position
from learners.worker.resting_ticks import RestingTicks

MAX_BACKLOG_S = 60.0
"""Updates for this much experience may be pending; more are dropped."""
REST_ROWS, REST_SHARE = 64, 0.25
"""Ticks at rest that enter the statistics of the inputs: the first number, and this share of the ticks at which somebody acted.
A machine that waits for hours then does not make its inputs look constant."""
SEEN_AT_ONCE = 256
"""Ticks that enter the statistics of the inputs at once."""
MAX_SHARDED_ROWS = 100_000_000
"""Transitions of a replay buffer with shards: what decides a draw is still in this process."""
RECENT = 1_000
"""Rewards that `reward_mean` is taken over."""


class Learner:
    """Trains one policy.

    Args:
        spec: of the policy.
        settings: how much and how often.
        source: the store.
        state: where the training state is saved (a folder of its own beside the versions that may go live).
        journal: what was taken in since.
        build: makes the policy, an nn.Module as `Algorithm` requires.
        rate_hz: ticks a second, which says how many updates may be pending and which transitions are settled.
        device: of the training.
        batch: transitions of an update; default: the settings'.
        recoded: the re-encoded tokens after an encoder's swap.
        heads_only: train the heads alone; everything before them, and the statistics of the inputs, stay as loaded.
        shards: where the tokens of the replay buffer are; None for this process.
    """

    def __init__(
        self,
        spec: PolicySpec,
        settings: LearnerSettings,
        source: ExperienceSnapshots,
        state: Checkpoints,
        journal: Journal,
        build: Callable[[PolicySpec], nn.Module],
        *,
        rate_hz: float = 10.0,
        device: torch.device | str = "cpu",
        batch: int | None = None,
        recoded: TokenStore | None = None,
        heads_only: bool = False,
        shards: Shards | None = None,
    ) -> None:
        self.recoded, self.heads_only, self._shards = recoded, heads_only, shards
        self.started_from: str | None = None
        """The version that training began from, or was set back to last. It survives restarts where only heads are trained."""
        self.spec, self.settings, self.source, self.state, self.journal = spec, settings, source, state, journal
        self.device, self.rate_hz, self.build = torch.device(device), rate_hz, build
        self.batch = batch or settings.batch
        self.warmup = settings.warmup or (CHOICE_WARMUP if spec.actions.choices else WARMUP)
        torch.manual_seed(settings.seed)
        self.policy: Any = build(spec).to(self.device).eval()
        if heads_only:
            for name, parameter in self.policy.named_parameters():
                parameter.requires_grad_(name.startswith("heads."))
        self.algorithm = self._algorithm(torch.Generator(self.device).manual_seed(settings.seed))
        self.draw = torch.Generator().manual_seed(settings.seed)
        self.mirror = MirrorAugmentation(spec, settings.mirror_augmentation) if settings.mirror_augmentation else None
        self.replay = self._empty()
        self._rest = RestingTicks(spec.history - 1)
        self._seen: list[Transition] = []
        """Ticks to merge into the statistics of the inputs."""
        self._seen_rows: list[int] = []
        """Their numbers, without those that were encoded again."""
        self._gathers = False
        """Whether the statistics of the inputs contain ticks."""
        self.position = Position()
        self.metrics: dict[str, float] = {}
        self.refused: list[CheckpointRefused] = []
        """Saved states and versions that had to be passed over."""
        self.skipped = 0
        """Updates left out because their loss was not finite."""
        self.dropped_updates = 0.0
        """Pending updates that the learner dropped to keep up with new experience."""
        self._rewards: deque[float] = deque(maxlen=RECENT)

    def _algorithm(self, generator: torch.Generator, updates: int = 0, decisions: float | None = None) -> Algorithm:
        strength = starting_policy.HEAD_STRENGTH if self.heads_only else None
        return Algorithm(self.policy, generator, updates, decisions=decisions, prior_strength=strength)

    @property
    def reward_mean(self) -> float | None:
        """Of the last transitions taken in."""
        return sum(self._rewards) / len(self._rewards) if self._rewards else None

    def shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Those a version must have to fit this policy."""
        return {"policy": shapes_of(self.policy.state_dict())}

    def load_weights(self, weights: dict[str, Tensor], exploration: Mapping[str, float] | None = None) -> None:
        """Load a policy's weights as a prior, and forget what belonged to the old ones (targets, moments of the optimiser).

        A trained policy goes on exploring as it did: exploration never restarts. See `Algorithm.exploration` and `Algorithm.adopt`.
        """
        self.policy.load_state_dict(weights)
        before = self.algorithm.exploration()
        self.algorithm = self._algorithm(self.algorithm.generator, self.algorithm.updates, self.algorithm.decisions)
        self.algorithm.continue_exploration({**before, **(exploration or {})})
        self.algorithm.adopt()
        self.policy.eval()
        self._gathers = True

    def ingest(self, until: SnapshotId | None = None) -> int:
        """Take in everything up to a moment (default: now); returns how many transitions came."""
        known = until is not None
        until = until or self.source.now()
        if until.row < self.position.row:  # the store was quarantined and recreated
            self.replay.detach()
            self._rest.clear()
            self._normalise()  # row numbers of the former store mean nothing any more
            if self.recoded is not None:
                self.recoded.clear()
            self.position.row = self.position.change = 0
        if until == self.position.moment:
            return 0
        if not known:
            self._note(row=until.row, change=until.change)
        came = acting = 0
        before = self.replay.added
        for change in self.source.changes(self.position.moment, until):
            self._change(change)
        for row in self.source.rows(self.position.moment, until):
            came, acting = came + 1, acting + (not row.transition.at_rest)
            self._take(row)
        if self._gathers or len(self._seen) >= SEEN_AT_ONCE or self.replay.acting >= self.warmup:
            self._normalise()  # the first ticks come together: a few cannot tell a faulty reading
        self.position.row, self.position.change = until.row, until.change
        self._schedule_updates(acting)
        self._observe(self.replay.added - before)
        return came

    def _change(self, change: Change) -> None:
        """Apply a late reward or mark; a bandit that has taken the transition in learns the difference."""
        if not self.replay.change(change.row, change.after):
            self._rest.change(change.row, change.after)
            return
        earned = change.after["reward"] - change.before["reward"]
        if earned and self.policy.heads.bandit is not None:
            batch = self.replay.single(change.row, newest=self.position.unobserved)
            if batch is not None:
                self.algorithm.correct(batch.to(self.device), change.row, earned)

    def _take(self, row: Row) -> None:
        """Take one tick: to learn from where somebody acted, else for the statistics of the inputs and as context."""
        transition, position = row.transition, self.position
        followed = position.encoders
        acting = {stream: one for stream, one in transition.encoder_versions.items() if stream not in followed}
        self._take_encoders(acting)
        if transition.at_rest:
            if position.resting < REST_ROWS + position.acting * REST_SHARE:
                position.resting += 1
                self._see(row)
            if self.replay.ends_with_action:
                self.replay.append(transition, row.row)
            else:
                self._rest.append(row)
        else:
            position.acting += 1
            self._see(row)
            for each in (*self._rest.take(), row):
                self.replay.append(each.transition, each.row)
            self._rewards.append(transition.reward)
        if len(self._seen) >= SEEN_AT_ONCE:
            self._normalise()

    def _see(self, row: Row) -> None:
        self._seen.append(row.transition)
        self._seen_rows.append(row.row)

    def _take_encoders(self, versions: Mapping[str, str]) -> None:
        """Take the present versions of encoders and fields; the statistics of a stream with a new one start over."""
        known = self.replay.versions
        versions = {
            name: version for name, version in versions.items() if name in self.spec.names
        }  # others have been removed
        changed = [name for name, version in versions.items() if known.get(name, version) != version]
        if changed:
            self._normalise()
            if not self.heads_only:
                self.algorithm.forget_statistics(changed)
        known.update(versions)

    def _normalise(self) -> None:
        """Merge the ticks just taken in into the statistics of the inputs, which are no part of the heads."""
        self._seen_rows.clear()
        if self.heads_only:
            self._seen.clear()
            return
        shapes = {s.name: (s.tokens, s.width) for s in self.spec.streams}
        tokens = [
            {name: x for name, x in each.tokens.items() if x.shape == shapes.get(name) and self._is_present(each, name)}
            for each in self._seen
        ]
        if self._seen:
            present, ages = [each.present for each in self._seen], [each.ages_s for each in self._seen]
            self.algorithm.normalise(
                recorded(self.spec, tokens, present, ages).map(lambda x: x[:, None]).to(self.device)
            )
            self._seen.clear()
            self._gathers = True

    def _is_present(self, transition: Transition, stream: str) -> bool:
        """Return whether a tick's tokens of a stream are of the encoder version that training uses."""
        version = transition.encoder_versions.get(stream)
        return version is None or version == self.replay.versions.get(stream, version)

    def take_reencoded(self, until: int | None = None) -> int:
        """Load re-encoded tokens into the replay buffer, up to an entry (default: all); return the number of matching rows."""
        if self.recoded is None:
            return 0
        last = self.recoded.last() if until is None else until
        if last == self.position.recoded:
            return 0
        if until is None:
            self._note(recoded=last)
        came = self._retoken(self.position.recoded, last, new=True)
        self._normalise()
        self.position.recoded = last
        return came

    def _retoken(self, since: int, until: int, *, new: bool = False) -> int:
        """Give rows their re-encoded tokens; `new` ones enter the statistics of the inputs. Return the number of rows."""
        came = 0
        for one in self.recoded.between(since, until) if self.recoded is not None else ():
            if not self.replay.retoken(one.row, one.stream, one.version, one.tokens_TW):
                continue
            came += 1
            if new and one.version == self.replay.versions.get(one.stream):
                tokens = {one.stream: one.tokens_TW}
                self._seen.append(
                    Transition("", 0, "", 0.0, "", tokens=tokens, present={one.stream: True}, ages_s={one.stream: 0.0})
                )
            if len(self._seen) >= SEEN_AT_ONCE:
                self._normalise()
        return came

    def follow_encoders(self, versions: Mapping[str, str]) -> None:
        """Train with the tokens of these encoder versions from now on; the other streams follow what acts.

        Args:
            versions: by stream, the version that the live version of its task makes.
        """
        if versions != self.position.encoders:
            self._note(encoders=dict(versions))
            self._follow(versions)

    def _follow(self, versions: Mapping[str, str]) -> None:
        self._take_encoders(versions)
        self.position.encoders = dict(versions)

    def train(self, deadline_s: float, *, until: int | None = None, clock: Callable[[], float] = time.monotonic) -> int:
        """Do the pending updates until a moment of `clock`, or up to update number `until`; returns how many were done.

        None are done while every transition waits for the tokens of an encoder's new version.
        """
        done = 0
        if until is None and self.position.pending_updates >= 1 and not self.replay.strata().sampleable:
            return done
        while clock() < deadline_s and (
            self.position.pending_updates >= 1 if until is None else self.position.update < until
        ):
            self._update()
            done += 1
        return done

    def save(self) -> str:
        """Save all that an exact resume needs."""
        held = self.replay.held()
        tensors = {
            "policy": self.policy.state_dict(),
            "learner": self.algorithm.state_dict(),
            "random": {"draw": self.draw.get_state(), "torch": torch.get_rng_state()},
            "held": {
                name: torch.tensor(getattr(held, name), dtype=torch.int64)
                for name in ("main", "reserve", "linked", "tries", "passed")
            }
            | {"seen": torch.tensor(self._seen_rows, dtype=torch.int64)},
        }
        position = document(self.position, held.since_reserved, self.replay.versions)
        documents = {"position": position, "spec": orjson.loads(self.spec.to_json())}
        if self.heads_only:
            documents["heads"] = {"started_from": self.started_from}
        version = self.state.save(tensors, documents)
        self.state.promote(version)
        self.journal.restart([])
        if self.recoded is not None:
            numbers = [number for number in (*held.main, *held.reserve) if number >= 0]
            self.recoded.tidy(min(numbers, default=0), self.replay.versions)
        return version

    def resume(self, load: Callable[[str], dict[str, Tensor]]) -> bool:
        """Continue from the saved state and the journal; False when there is none that fits.

        `load` gives the policy weights of a version named in the journal.
        """
        refused = len(self.refused)
        loaded = self.state.load_live(self.refused.append, self.shapes(), self.spec.meaning())
        if loaded is None and len(self.refused) > refused:
            self.journal.restart([])  # it continues a state that cannot be loaded
            return False
        entries = self.journal.entries()
        if loaded is not None and ("heads" in loaded.documents) != self.heads_only:
            self.journal.restart([])  # other parameters were trained: their moments do not fit
            return False
        if loaded is not None:
            self.started_from = loaded.documents.get("heads", {}).get("started_from")
            try:
                self.position, trail, self.replay.versions = load_position(loaded.documents["position"])
            except (KeyError, TypeError, ValueError) as error:
                detail = f"saved training state unreadable ({error!r}); starting over from the live policy"
                self.refused.append(CheckpointRefused(loaded.manifest.version, "unknown_format", detail))
                self.journal.restart([])  # of a state that is not taken up
                return False
            self.policy.load_state_dict(loaded.tensors["policy"])
            self.algorithm.load_state_dict(loaded.tensors["learner"])
            self.draw.set_state(loaded.tensors["random"]["draw"])
            held = {name: tuple(tensor.tolist()) for name, tensor in loaded.tensors["held"].items()}
            linked = tuple(map(bool, held["linked"])) if "linked" in held else None
            tries, fits = held.get("tries", (0, 0))
            rows, endings = held.get("passed", (0, 0))
            self._refill(BufferIndex(held["main"], held["reserve"], trail, linked, (tries, fits), (rows, endings)))
            seen = self.source.pick(sorted(held.get("seen", ())), self.position.moment)
            for number in sorted(seen):
                self._see(Row(number, seen[number]))
            self._gathers = self.position.row > 0 and not seen
            torch.set_rng_state(loaded.tensors["random"]["torch"])
        self._repeat([entry for entry in entries if entry.number > self.position.entry], load)
        return loaded is not None

    def reset_to_version(
        self, version: str, weights: dict[str, Tensor], metrics: Mapping[str, Any] | None = None
    ) -> None:
        """Continue from the weights of a version, as after a rollback; `metrics` are those of its manifest."""
        known = self.algorithm.exploration()
        exploration = {
            name: float(value) for name, value in (metrics or {}).items() if name in known and value is not None
        }
        self._note(version=version, exploration=exploration)
        self.load_weights(weights, exploration)
        self.started_from = version

    def _note(self, **what: Any) -> None:
        self.journal.note(JournalEntry(self.position.entry + 1, self.position.update, **what))
        self.position.entry += 1

    def _repeat(self, entries: list[JournalEntry], load: Callable[[str], dict[str, Tensor]]) -> None:
        for entry in entries:
            self.train(float("inf"), until=entry.update)
            self.position.entry = entry.number
            if entry.version is not None:
                self.load_weights(load(entry.version), entry.exploration)
                self.started_from = entry.version
            elif entry.encoders is not None:
                self._follow(entry.encoders)
            elif entry.recoded is not None:
                self.take_reencoded(entry.recoded)
            else:
                self.ingest(entry.moment)

    def _refill(self, held: BufferIndex) -> None:
        rows = self.source.pick(sorted({*held.main, *held.reserve}), self.position.moment)
        self.replay.refill(held, rows)
        last = max(held.main, default=0)
        context = range(max(last + 1, self.position.row - self.spec.history + 2), self.position.row + 1)
        for number, transition in sorted(self.source.pick(list(context), self.position.moment).items()):
            self._rest.append(Row(number, transition))
        self._retoken(0, self.position.recoded)
        found = (rows[number] for number in held.main[-RECENT:] if number in rows)
        self._rewards.extend(each.reward for each in found if not each.at_rest)

    def _empty(self) -> ReplayBuffer:
        s = self.settings
        return ReplayBuffer(
            self.spec,
            max_bytes=int(s.replay_gb * 1e9),
            steps=s.n_step,
            demonstration_fraction=s.demonstration_fraction,
            settle=round(s.reward_delay_s * self.rate_hz),
            centre=s.center_rewards,
            max_rows=MAX_ROWS if self._shards is None else MAX_SHARDED_ROWS,
            tokens=LocalTokens if self._shards is None else self._sharded_tokens,
        )

    def _sharded_tokens(self, spec: PolicySpec, rows: int) -> ShardedTokens:
        assert self._shards is not None
        return ShardedTokens(spec, rows, self._shards, self._refill_shard)

    def _refill_shard(self, positions: NDArray[np.int64]) -> None:
        """Write the tokens again that a lost shard had: those of the store, and then the re-encoded ones."""
        self.replay.rewrite_tokens(positions, lambda numbers: self.source.pick(numbers, self.position.moment))
        self._retoken(0, self.position.recoded)

    def _schedule_updates(self, came: int) -> None:
        position, settings = self.position, self.settings
        if self.replay.acting < self.warmup or not self.replay.strata().sampleable:
            return
        pending = position.pending_updates + came * settings.updates_per_step
        limit = max(64.0, MAX_BACKLOG_S * self.rate_hz * settings.updates_per_step)
        position.pending_updates = min(pending, limit)
        self.dropped_updates += pending - position.pending_updates
        # a store that was full before training began teaches nothing at once, so exploration must not end at once
        position.new_decisions = min(position.new_decisions + came, limit / settings.updates_per_step)

    def _observe(self, came: int) -> None:
        """Show settled transitions, each once and in order, to a part that learns from that."""
        self.position.unobserved += came
        settled = max(0, self.position.unobserved - self.replay.settle - 1)
        start = self.replay.added - self.position.unobserved
        self.position.unobserved -= settled
        if settled and self.policy.heads.bandit is not None:
            batch = self.replay.ordered(start, start + settled, steps=1)
            if batch is not None:
                self.algorithm.observe(batch.to(self.device), self.replay.numbers(start, start + settled, steps=1))

    def _update(self) -> None:
        if self.algorithm.needs_return_scale:
            self.algorithm.rescale(self.replay.return_scale())
        batch = self.replay.sample(self.batch, self.draw)
        if self.mirror is not None:
            batch = self.mirror(batch, self.draw)
        if self._shards is not None:
            self.replay.prefetch(self.batch, self.draw)
        position = self.position
        try:
            self.metrics = self.algorithm.update(batch.to(self.device), position.new_decisions)
            position.new_decisions = 0.0
        except FloatingPointError:
            self.skipped += 1
        position.update += 1
        position.pending_updates -= 1
