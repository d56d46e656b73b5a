"""Names the failed tests of several pytest runs once more, at the end of all output, with the last lines of each failure.

`make test` runs pytest three times and prints a long table of coverage last; without this a failure of the first run has to be
searched for far above. Input: result files of `pytest --junitxml`. A missing or cut file means that the run did not end.
"""

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

LINES_OF_EACH = 25


def summary(results: list[Path]) -> list[str]:
    """Lines of text about failed tests and runs without an end; empty when all passed."""
    lines: list[str] = []
    for path in results:
        try:
            root = ET.parse(path).getroot()
        except (OSError, ET.ParseError) as error:
            lines.append(f"NO RESULT of a whole run of pytest: {path.name}: {error}")
            continue
        for case in root.iter("testcase"):
            for outcome in (*case.findall("failure"), *case.findall("error")):
                lines.append(
                    f"FAILED {case.get('classname')}::{case.get('name')} after {float(case.get('time', 'nan')):.0f} s"
                )
                lines.extend(f"    {line}" for line in (outcome.text or "").strip().splitlines()[-LINES_OF_EACH:])
    return lines


if __name__ == "__main__":
    for line in summary([Path(argument) for argument in sys.argv[1:]]):
        print(line)
