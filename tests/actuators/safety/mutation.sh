#!/usr/bin/env bash
# Mutation score of the gate: mutmut changes actuators/safety/gate.py, actuator_state.py, limits.py and rules.py one place at a time and the tests must
# notice. Works in a copy, so that the tree stays clean. Prints the survivors and the score; fails below 97 %.
set -euo pipefail
root="$(cd "$(dirname "$0")/../../.." && pwd)"
bin="${BIN:-$root/.venv/bin}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/tests"
cp -r "$root/actuators" "$work/actuators"
cp "$root"/tests/actuators/safety/test_gate.py "$root"/tests/actuators/safety/test_rules.py \
  "$root"/tests/actuators/safety/test_actuator_state.py "$work/tests/"
cat > "$work/pyproject.toml" <<'TOML'
[tool.mutmut]
source_paths = ["actuators"]
only_mutate = ["actuators/safety/gate.py", "actuators/safety/actuator_state.py", "actuators/safety/limits.py", "actuators/safety/rules.py"]
also_copy = ["actuators"]
pytest_add_cli_args_test_selection = ["tests"]
pytest_add_cli_args = ["-q", "-x", "-p", "no:cacheprovider"]
use_git_change_detection = false

[tool.pytest.ini_options]
pythonpath = ["."]
TOML
cd "$work"
"$bin/mutmut" run --max-children "${JOBS:-2}" > run.log 2>&1 || { tail -30 run.log; exit 1; }
"$bin/mutmut" results --all true > results.txt
"$bin/python" - results.txt <<'PY'
import collections, pathlib, sys

states = collections.Counter()
for line in pathlib.Path(sys.argv[1]).read_text().splitlines():
    name, _, state = line.strip().rpartition(": ")
    if name:
        states[state] += 1
        if state not in ("killed", "timeout"):
            print(f"{state:12} {name}")
caught = states["killed"] + states["timeout"]
total = sum(states.values())
print(f"mutants {total}, caught {caught}, score {100 * caught / total:.1f} % {dict(states)}")
sys.exit(caught < 0.97 * total)
PY
if [ -n "${SHOW:-}" ]; then grep -v -e ': killed' -e ': timeout' results.txt | sed 's/: .*//' | xargs -rn1 "$bin/mutmut" show; fi
