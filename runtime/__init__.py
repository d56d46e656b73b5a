"""The whole loop, in the order the data flows.

1. sensors/ deliver readings from their own threads; `intake.py` decodes what arrives over MQTT.
2. `inbox.py` keeps the newest reading of each stream: nothing is queued, every drop is counted.
3. `tick.py` wakes on a monotonic deadline (`clock.py`) and observes the inbox.
4. `engine.py` encodes what is new, fuses it, decides, in a thread of its own.
5. The proposal goes through `gatelink.py` to the gate (`gatehost.py`), which lives in another process, the supervisor.
6. The gate (actuators/gate.py) refuses or sends; only it writes actuator topics, through `mqtt.py`.
7. Its verdict comes back, and the tick is remembered in learners/experience.py, off the loop.
8. Rewards and labels arrive later (`feedback.py`) and find their tick.
9. The learner (learners/process.py), the lowest in priority, trains on it and writes checkpoints.
10. A checkpoint that passes the promotion gate is flipped in between two ticks, and flipped back if the world disagrees.
"""
