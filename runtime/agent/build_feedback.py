"""Build what receives rewards and labels, and what judges versions, sources and streams by them."""

from __future__ import annotations

from dataclasses import dataclass

from learners.checkpoints.store import Checkpoints, open_checkpoints
from learners.config.rewards import TopicReward
from learners.experience.store import Store
from learners.rewards.tick_rewards import TickRewards, build_rewards
from learners.safeguards.reward_ledger import Ledger
from learners.safeguards.source_consistency import Quarantine, source_rules
from runtime.agent.build_context import AgentContext
from runtime.agent.build_publishing import Publishing
from runtime.config.schema import Config
from runtime.deploy.experiments.controller import ExperimentController
from runtime.deploy.experiments.plan_from_settings import ExperimentRules
from runtime.drift.watch import DriftWatch
from runtime.feedback.outcomes import OutcomeTracker
from runtime.feedback.queries import UncertaintyQueries
from runtime.feedback.receiver import Feedback
from runtime.feedback.source_quarantine import SourceQuarantine


@dataclass(frozen=True, slots=True)
class FeedbackChain:
    """Rewards and labels: their receiver, the store, and everything that judges by them."""

    store: Store
    checkpoints: Checkpoints
    rewards: TickRewards
    sources: SourceQuarantine
    experiments: ExperimentController
    outcomes: OutcomeTracker
    queries: UncertaintyQueries
    receiver: Feedback


def build_feedback(context: AgentContext, publishing: Publishing) -> FeedbackChain:
    """Build the store, the sources of feedback with their quarantine, the live experiments, and the receiver of rewards and labels."""
    config, emit, wall, state_dir = context.config, publishing.emit, context.wall, context.state_dir
    store = Store(state_dir / "experience", config.experience, on_event=emit)
    checkpoints = open_checkpoints(state_dir, config.promotion)
    ledger, quarantine = Ledger(config.learner.reward_delay_s), Quarantine(source_rules(config.rewards))
    sources = SourceQuarantine(quarantine, store, ledger, state_dir, emit, wall)
    sources.start()
    experiments = ExperimentController(_experiment_rules(config), checkpoints, state_dir, emit, wall, quarantine)
    outcomes = OutcomeTracker(ledger, sources, experiments, wall)
    queries = UncertaintyQueries(config.policy.query_margin, emit)
    receiver = Feedback(
        store=store,
        outcomes=outcomes,
        sources=sources,
        queries=queries,
        emit=emit,
        rewards=config.rewards,
        tasks={
            name: tuple(stream for stream in (task.stream, task.context) if stream is not None)
            for name, task in config.tasks.items()
        },
        now=context.clock.now,
        wall=wall,
    )
    rewards = build_rewards(config.rewards, config.streams, config.actuators)
    return FeedbackChain(store, checkpoints, rewards, sources, experiments, outcomes, queries, receiver)


def build_drift_watch(context: AgentContext, publishing: Publishing, feedback: FeedbackChain) -> DriftWatch:
    """Build what watches the streams and the policy for drift."""
    config, experiments = context.config, feedback.experiments
    return DriftWatch(
        config.drift,
        tuple(config.streams),
        lambda: experiments.live,
        context.state_dir,
        publishing.emit,
        context.wall,
        feedback.checkpoints,
    )


def _experiment_rules(config: Config) -> ExperimentRules:
    """Return what the settings say about experiments."""
    promotion = config.promotion
    topic = next((one for one in config.rewards if isinstance(one, TopicReward)), None)
    return ExperimentRules(
        period_s=config.tick.period_s,
        gamma=config.policy.gamma,
        settle_s=config.learner.reward_delay_s,
        silence="zero" if topic is None else topic.silence,
        anchor_share=promotion.anchor_share,
        cap_pairs=promotion.max_pairs,
        false_alarms_per_month=promotion.false_alarms_per_month,
        alternate=promotion.alternate,
        enabled=promotion.experiments,
    )
