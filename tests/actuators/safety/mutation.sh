#!/usr/bin/env bash
# Mutation score of the gate and of what carries its commands: mutmut changes one place at a time in actuators/safety (all but
# decisions), in actuators/wire.py, and in publisher.py and packets.py of runtime/mqtt, and the tests must notice. Works in a copy, so
# that the tree stays clean. Prints the survivors and the score of each; fails below 97 % for the gate and 95 % for the carriers.
# PART=gate or PART=carriers does one of them.
# ONLY="*Gate*judge* *pace*" runs the mutants of these names alone, and SHOW=1 prints the change that each survivor makes.
set -euo pipefail
root="$(cd "$(dirname "$0")/../../.." && pwd)"
bin="${BIN:-$root/.venv/bin}"
gate='"actuators/safety/gate.py", "actuators/safety/judge.py", "actuators/safety/allowed_choices.py", "actuators/safety/actuator_state.py", "actuators/safety/arming.py",
"actuators/safety/forbidden_combinations.py", "actuators/safety/limits.py", "actuators/safety/refusal_counts.py",
"actuators/safety/forbid_rules.py", "actuators/safety/safe_actions.py"'
carriers='"actuators/wire.py", "runtime/mqtt/publisher.py", "runtime/mqtt/packets.py"'

# score NAME LEAST FILES TESTS...
score() (
name="$1"; least="$2"; files="$3"; shift 3
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/tests"
cp -r "$root"/{actuators,runtime,sensors,learners} "$work/"
for test in "$@"; do cp "$root/tests/$test" "$work/tests/"; done
cat > "$work/pyproject.toml" <<TOML
[tool.mutmut]
source_paths = ["actuators", "runtime"]
only_mutate = [$files]
also_copy = ["actuators", "runtime", "sensors", "learners"]
pytest_add_cli_args_test_selection = ["tests"]
pytest_add_cli_args = ["-q", "-x", "-p", "no:cacheprovider"]
use_git_change_detection = false
timeout_multiplier = 60.0

[tool.pytest.ini_options]
pythonpath = [".", "tests"]
asyncio_mode = "auto"
TOML
cd "$work"
set -f
"$bin/mutmut" run --max-children "${JOBS:-2}" ${ONLY:-} > run.log 2>&1 || { tail -30 run.log; exit 1; }
"$bin/mutmut" results --all true > results.txt
"$bin/python" - results.txt "$name" "$least" <<'PY'
import collections, pathlib, sys

states = collections.Counter()
for line in pathlib.Path(sys.argv[1]).read_text().splitlines():
    name, _, state = line.strip().rpartition(": ")
    if name and state != "not checked":  # those that ONLY leaves out
        states[state] += 1
        if state not in ("killed", "timeout"):
            print(f"{state:12} {name}")
caught = states["killed"] + states["timeout"]
total = sum(states.values())
print(f"{sys.argv[2]}: mutants {total}, caught {caught}, score {100 * caught / total:.1f} % {dict(states)}")
sys.exit(100 * caught < float(sys.argv[3]) * total)
PY
status=$?
if [ -n "${SHOW:-}" ]; then grep -v -e ': killed' -e ': timeout' -e ': not checked' results.txt | sed 's/: .*//' | xargs -rn1 "$bin/mutmut" show; fi
exit "$status"
)

failed=0
[ "${PART:-gate}" != gate ] || score gate 97 "$gate" \
  actuators/safety/test_gate.py actuators/safety/test_forbid_rules.py actuators/safety/test_actuator_state.py actuators/safety/test_allowed_choices.py || failed=1
[ "${PART:-carriers}" != carriers ] || score carriers 95 "$carriers" actuators/test_wire.py runtime/mqtt/test_publisher.py runtime/mqtt/test_packets.py \
  wire_helpers.py fakes.py free_ports.py canaries.py || failed=1
exit $failed
