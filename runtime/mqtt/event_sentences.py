"""Say an event as one English sentence, for the console and the page.

The table has one template for each event type. A template names fields of the event's data. Events come over the broker, so
a field may be absent or of any type: the sentence is then shorter, and nothing is raised. It does not decide who sees what.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from runtime.mqtt.events import EVENTS

Tone = Literal["good", "bad", "plain"]
MAX_VALUE = 160
"""Characters of one value in a sentence."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """An event in words."""

    text: str
    tone: Tone
    notable: bool
    """Whether it is worth the attention of a person who did not request it."""


Row = tuple[Tone, bool, str]
TABLE: dict[str, Row] = {
    "action_refused": ("plain", False, "The gate refused an action of {actuator}: {reason}."),
    "agent_lost": ("bad", True, "The agent's heartbeat is lost ({cause}). The gate sent the safe actions."),
    "armed": ("good", True, "The gate is armed: the policy may act."),
    "broker_lost": ("bad", True, "The connection to the broker is lost: {reason}. Check the broker and the network."),
    "broker_recovered": ("good", True, "The broker responds again."),
    "checkpoint_refused": ("bad", True, "Version {version} was refused: {reason}."),
    "child_restart_limit": ("bad", True, "The daemon exits: {reason}."),
    "child_restarted": ("bad", True, "The process {child} ended (exit code {code}). The supervisor restarts it."),
    "clock_offset": ("bad", True, "The clock of {of} is off by {offset_s} s: {reason}."),
    "clock_offset_ended": ("good", True, "The clock of {of} agrees again."),
    "daemon_stopping": ("plain", False, "The daemon shuts down: {reason}."),
    "deliberation_failed": ("bad", True, "The deliberator has no answer: {reason}. The goal {goal} goes on for now."),
    "deliberation_recovered": ("good", True, "The deliberator's model answers again."),
    "device_responsive": ("good", True, "The device of {of} follows its commands again."),
    "device_unresponsive": (
        "bad",
        True,
        "The device of {of} follows no command. Check its power, its connection and its clock.",
    ),
    "disarmed": ("plain", True, "The policy may not act until someone arms it."),
    "encoder_refused": ("bad", True, "Encoder {encoder} cannot use version {task_version}: {reason}."),
    "drift_accepted": ("plain", True, "The present readings of {stream} are its new reference."),
    "drift_ended": ("good", True, "Stream {stream} matches its reference again."),
    "drift_noticed": ("bad", True, "Stream {stream} drifted from its reference: {words}."),
    "drift_state_unreadable": ("bad", True, "The drift references cannot be read: {reason}."),
    "encoder_swapped": ("good", True, "Encoder {encoder} uses the weights of version {version}."),
    "encoder_without_task": ("bad", True, "Encoder {encoder} has no task to follow: {reason}."),
    "encoder_on_trial": ("plain", False, "Encoder {encoder} is on trial with version {version}."),
    "experience_corrupt": ("bad", True, "The experience store was damaged. The daemon moved it aside."),
    "experience_recovered": ("good", True, "Experience is stored again."),
    "experience_write_failed": ("bad", True, "Experience cannot be stored: {reason}. Free or repair the disk."),
    "experiment_ended": ("plain", True, "The experiment with policy {version} ended: {result}."),
    "experiment_started": ("plain", True, "An experiment compares policy {challenger} with {champion}."),
    "experiment_state_unreadable": ("bad", True, "The state of the experiments cannot be read: {reason}."),
    "feedback_rejected": ("bad", True, "A reward or label was refused: {reason}."),
    "finetune_skipped": ("plain", False, "Task {task} was not fine-tuned: {reason}."),
    "fleet_stop": ("bad", True, "The fleet ({source}) asked this agent to stop: {outcome}."),
    "fleet_stop_heard": ("good", True, "This agent hears a stop of the fleet again."),
    "fleet_stop_not_heard": (
        "bad",
        True,
        "The fleet's broker may keep a stop of the fleet from this agent ({reason}). Correct the ACL of that broker.",
    ),
    "goal_changed": ("plain", True, "The goal is {goal} now ({why})."),
    "goal_requested": (
        "plain",
        True,
        "The deliberator is unsure whether {goal} is still right. Set a goal on the page.",
    ),
    "goal_state_unreadable": ("bad", True, "The stored goal cannot be read: {reason}."),
    "goal_set": ("plain", True, "A person ({source}) set the goal: {goal}."),
    "graph_compiled": ("plain", False, "A graph was compiled within {seconds} s: {reason}."),
    "graph_refused": ("bad", False, "The graph in {folder} is not used: {reason}."),
    "engine_in_torch": ("bad", False, "The agent uses torch instead of compiled graphs: {reason}."),
    "graph_missing": ("plain", False, "Version {version} has no graph: {reason}."),
    "label_requested": ("plain", True, "A label is requested for {task}: answer on the page."),
    "latches_not_saved": ("bad", True, "The change “{change}” could not be written to disk: {reason}."),
    "learner_resumed": ("plain", False, "The learner continues at update {update}."),
    "learner_waiting_for_spec": ("plain", False, "The learner waits for the agent."),
    "left_moving": ("bad", True, "The run before left devices moving. The gate sends safe actions to: {actuators}."),
    "live_pointer_damaged": ("bad", True, "The pointer to the live policy was damaged: {reason}."),
    "machine_suspended": (
        "bad",
        True,
        "The machine was suspended for {suspended_s} s. The gate sent the safe actions.",
    ),
    "mode_changed": ("plain", True, "The mode is now {mode}."),
    "mode_restricted": ("plain", True, "A requested mode stays in force; the settings allow {configured}."),
    "override": ("plain", False, "A person set {actuator} to {value}."),
    "payload_refused": ("bad", True, "Stream {stream} refused a payload: {reason}."),
    "policy_promoted": ("good", True, "Policy {version} is live: {why}."),
    "policy_proposed": ("plain", False, "No step rejected policy {version}; it waits for its experiment."),
    "policy_rejected": ("plain", True, "Policy {version} was not promoted: {step} failed, {reason}."),
    "policy_rolled_back": ("bad", True, "Policy {version} was rolled back to {to} because of {why}."),
    "policy_swapped": ("plain", False, "The engine acts with policy {version}."),
    "policy_unusable": (
        "bad",
        True,
        "No earlier policy can be loaded ({reason}). The mode is shadow. {remedy}.",
    ),
    "policy_suspected": ("bad", True, "Policy {version} looks worse than before: {figure}."),
    "policy_trusted": ("good", True, "Policy {version} is trusted: {result}."),
    "policy_untrained": ("plain", True, "There is no trained policy yet; random weights act."),
    "quarantine_state_unreadable": ("bad", True, "The state of the quarantine cannot be read: {reason}."),
    "recording_continued": ("good", True, "The recording continues in {path}: {reason}."),
    "recording_ended": ("plain", True, "The recording ended: {path}."),
    "recording_failed": ("bad", True, "The recording cannot be written: {reason}. The daemon retries."),
    "recording_full": ("bad", True, "The recording ended at its size limit."),
    "recording_gap": ("bad", True, "Records are missing in the recording."),
    "recording_recovered": ("good", False, "The recording stores every record again."),
    "recording_started": ("plain", True, "A recording started: {path}."),
    "recordings_deleted": ("plain", False, "The {deleted} oldest recordings were deleted, as record.when_full says."),
    "reload_refused": ("bad", True, "The new settings were refused: {problems}."),
    "reloaded": ("good", True, "The new settings are in force."),
    "report_refused": ("bad", True, "The gate cannot read the reports of {of}: {reason}."),
    "reward_clipped": ("plain", True, "A reward of {value} from {source} was clipped to {limit}."),
    "reward_failed": ("bad", True, "Reward {name} cannot be computed and counts as 0: {reason}."),
    "rollback_failed": ("bad", True, "Policy {version} could not be rolled back: {reason}."),
    "sensor_lost": ("bad", True, "Stream {stream} stopped: {reason}."),
    "sensor_recovered": ("good", True, "Stream {stream} delivers again."),
    "source_quarantined": ("bad", True, "Feedback of {source} is in quarantine: it contradicts the other sources."),
    "source_released": ("good", True, "An operator released {source}: its feedback trains again."),
    "sources_disagree": ("bad", True, "Two sources of rewards contradict each other: {source} and another one."),
    "state_read_failed": ("bad", True, "The agent cannot read {what}: {reason}. It acts as before and tries again."),
    "state_write_failed": ("bad", True, "The state file {file} cannot be written: {reason}."),
    "storage_degraded": (
        "bad",
        True,
        "A file cannot be written: {reason}. Free or repair the disk. The policy continues to act.",
    ),
    "storage_over_budget": (
        "bad",
        True,
        "The state folder exceeds storage.max_gb, and the remaining files are never deleted automatically.",
    ),
    "storage_recovered": ("good", True, "Every folder can be written again."),
    "storage_trimmed": ("plain", False, "The daemon deleted old files to stay below storage.max_gb."),
    "stop_heard": ("good", True, "The gate hears a stop again."),
    "stop_not_heard": (
        "bad",
        True,
        "The broker may keep a stop from the gate ({reason}), so nothing is armed. Correct the broker's ACL and QoS.",
    ),
    "stop_release_refused": ("bad", False, "A release of the software stop was refused: {reason}."),
    "stop_released": ("good", True, "The software stop was released. Arm to let the policy act."),
    "stopped": ("bad", True, "The software stop is engaged. Every actuator has its safe value."),
    "stream_frozen": ("bad", True, "Stream {stream} is frozen: its last {equal} readings are equal."),
    "stream_unfrozen": ("good", True, "Stream {stream} delivers different readings again."),
    "task_adapted": ("plain", True, "The encoder of task {task} was adapted to its stream: {reason}."),
    "task_awaiting_approval": ("plain", True, "Task {task} has a new version {version} that waits for a person."),
    "task_failed": ("bad", True, "The model of task {task} cannot be loaded or run: {reason}."),
    "task_promoted": ("good", True, "Task {task} uses its new version {version}."),
    "task_reading_failed": ("bad", True, "Task {task} failed on a reading: {reason}."),
    "task_rejected": ("plain", True, "Task {task} rejected a new version: {reason}."),
    "task_rolled_back": ("bad", True, "An operator rolled task {task} back to version {version}."),
    "transition_rejected": ("plain", False, "One item of experience was incomplete and was not stored: {reason}."),
    "unknown_decision": ("plain", False, "A reward names a decision that is not stored."),
}
"""Event type -> tone, whether it is notable, template."""
STEPS = {
    "integrity": "the check of its files",
    "latency": "the check of its speed",
    "sanity": "the check of its actions",
    "held_out": "the held-out file",
    "ope": "off-policy evaluation",
    "shadow": "the shadow run",
}
"""Step of a promotion -> its name in a sentence."""
WHY = {
    "rewards": "lower rewards",
    "returns": "lower returns",
    "refusals": "more refusals by the gate",
    "crashes": "crashes of the agent",
}


def sentence(kind: str, data: Mapping[str, Any]) -> Sentence:
    """Return the event in words; a type without a template has its meaning, an unknown one is named as it is.

    Args:
        kind: type of the event.
        data: its fields, untrusted.
    """
    row = TABLE.get(kind)
    if row is None:
        return Sentence(EVENTS.get(kind, f"{kind.replace('_', ' ').capitalize()[:MAX_VALUE]}."), "plain", notable=True)
    tone, notable, template = row
    special = SPECIAL.get(kind)
    fields = special(data) if special is not None else data
    if isinstance(fields, str):
        return Sentence(fields, tone, notable)
    return Sentence(_filled(template, fields), tone, notable)


def _filled(template: str, data: Mapping[str, Any]) -> str:
    text = template.format_map(_Fields(data))
    for empty, instead in ((" (" + ABSENT + ")", ""), (": " + ABSENT + ".", "."), (", " + ABSENT + ".", ".")):
        text = text.replace(empty, instead)
    return text.replace(ABSENT, "one")


ABSENT = "\N{NULL}"


class _Fields(dict[str, Any]):
    """Values as texts; an absent one becomes a mark that `_filled` removes."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        super().__init__({name: words(value) for name, value in data.items()})

    def __missing__(self, _name: str) -> str:
        return ABSENT


def words(value: object) -> str:
    """Return a value as a short text without control characters."""
    if value is None or value == "":
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        text = "; ".join(words(item) for item in value[:8]).replace(ABSENT, "")
    else:
        text = str(value)
    shown = "".join(character if character.isprintable() else " " for character in text[:MAX_VALUE]).rstrip(". ")
    return shown + ("…" if len(text) > MAX_VALUE else "") or ABSENT


def _rejected(data: Mapping[str, Any]) -> dict[str, Any] | str:
    step = str(data.get("step") or "")
    if not step:
        return _filled("Policy {version} was not promoted: {reason}.", data)
    return {**data, "step": STEPS.get(step, step)}


def _rolled_back(data: Mapping[str, Any]) -> dict[str, Any] | str:
    if data.get("by") == "request":
        return _filled("A person rolled policy {version} back to {to}.", data)
    why = str(data.get("why") or "")
    to = data.get("to") or "the untrained policy"
    return {**data, "to": to, "why": WHY.get(why, why or None)}


def _promoted(data: Mapping[str, Any]) -> dict[str, Any] | str:
    if data.get("by") == "request":
        return _filled("A person made policy {version} live.", data)
    return dict(data)


def _override(data: Mapping[str, Any]) -> dict[str, Any] | str:
    if data.get("rule"):
        return _filled("The gate refused to set {actuator} to {value}: {rule}.", data)
    return dict(data)


def _mode(data: Mapping[str, Any]) -> dict[str, Any]:
    modes = data.get("modes")
    mode = data.get("mode")
    if mode is None and isinstance(modes, Mapping):
        mode = " and ".join(sorted({words(value) for value in list(modes.values())[:8]}))
    return {**data, "mode": mode}


def _reloaded(data: Mapping[str, Any]) -> dict[str, Any] | str:
    pending = data.get("restart_required")
    if pending:
        return f"The new settings are in force. Restart the daemon to apply {words(pending)}."
    return dict(data)


def _learner(data: Mapping[str, Any]) -> dict[str, Any] | str:
    return dict(data) if data.get("resumed") else "The learner starts without an earlier state."


def _left_moving(data: Mapping[str, Any]) -> dict[str, Any] | str:
    if data.get("unreachable"):
        return _filled("The run before left devices moving. Bring to rest by hand: {unreachable}.", data)
    return dict(data)


SPECIAL = {
    "left_moving": _left_moving,
    "policy_rejected": _rejected,
    "policy_rolled_back": _rolled_back,
    "policy_promoted": _promoted,
    "override": _override,
    "mode_changed": _mode,
    "reloaded": _reloaded,
    "learner_resumed": _learner,
}
"""Event types with fields of their own, or with another sentence in some cases."""
