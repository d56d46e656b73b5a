"""One example payload for each topic, for the reference page; a test checks them against the payload models."""

from __future__ import annotations

EXAMPLES: dict[str, str] = {
    "status": '{"state": "degraded", "reasons": ["front: no recent data"]}',
    "info": '{"agent": "demo", "version": "0.1.0", "mode": "autonomous", "policy": "000042-1f3a9c0e"}',
    "health": '{"tick": {"p50_ms": 11.2, "p99_ms": 24.9, "overruns": 0}, "policy": "000042-1f3a9c0e", "armed": true, "stopped": false}',
    "decision": '{"id": "3f9c1a2b7d4e-1042", "tick": 1042, "stamp": 1750000000.1, "policy": "000042-1f3a9c0e", "mode": "autonomous", '
    '"actions": {"head": {"value": "left", "probability": 0.94}}, "value": 1.3, "reward": null, "ages_ms": {"front": 41}, "skew_ms": 0.0, "missing": [], "latency_ms": 11.4}',
    "event": '{"type": "sensor_lost", "stamp": 1750000000.1, "data": {"stream": "front", "reason": "no frame for 2 s"}}',
    "proposal/<actuator>": '{"value": "left", "decision": "3f9c1a2b7d4e-1042"}',
    "in/<stream>": '{"text": "find the red door"}',
    "reward": '{"value": 1.0, "decision": "3f9c1a2b7d4e-1042", "source": "button-3"}',
    "label": '{"task": "intents", "label": "find", "text": "where is the door"}',
    "override/<actuator>": '{"value": "left", "hold_s": 2.0}',
    "hold/<actuator>": '{"value": "left", "until": 1750000002.1}',
    "stop": '{"engaged": true}',
    "request/<verb>": '{"version": "000042-1f3a9c0e"}',
    "response/<verb>": '{"status": "error", "error": "the software stop is engaged; release it first"}',
    "act/<actuator>/set": '{"value": "left", "decision": "3f9c1a2b7d4e-1042", "boot": "9a1c", "seq": 17, "stamp": 1750000000.1, '
    '"ttl_ms": 500, "policy": "000042-1f3a9c0e"}',
    "act/<actuator>/state": '{"value": "left", "seq": 17, "boot": "9a1c"}',
    "task/<name>": '{"value": "find", "confidence": 0.97, "probabilities": {"find": 0.97, "show": 0.03}, "stream": "orders", '
    '"version": "3-1f3a9c0e", "decision": "3f9c1a2b7d4e-1042", "took_ms": 8.1}',
    "goal": '{"goal": "greet", "goals": ["greet", "idle"], "why": "changed", "confidence": 0.81, "probabilities": {"greet": 0.81, "idle": 0.19}, "still": 0.2, '
    '"model": "bundled:smollm2-135m@3f9c1a2b7d4e", "id": "1042", "since": 1750000000.1, "stamp": 1750000000.1, "ttl_s": 300.0, '
    '"held_s": 0.0, "step": {"number": 2, "of": 3, "text": "the bedroom"}, '
    '"state_sha256": "1f3a9c0e", "took_ms": 310.5}',
    "override/goal": '{"value": "greet", "hold_s": 60.0}',
    "preview/subscribe": '{"streams": ["front", "room"]}',
    "preview/<stream>": '{"level_db": -32.5, "peak_db": -18.0}',
    "homeassistant/state": '{"mode": "autonomous", "policy": "000042-1f3a9c0e", "reward": 0.4}',
}
"""Topic, as the table of topics names it -> payload."""
