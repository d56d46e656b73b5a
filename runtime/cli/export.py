"""Define the verb `reflexd export`: its options, its progress bar and its errors. `runtime/recording/export.py` does the work."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from runtime.cli.options import ANY, load_or_demo, refusing, show, takes_settings, with_json

FORMATS = ("mcap", "lerobot", "onnx")
OPTIONS_OF = {
    "mcap": {"recording", "experience", "since", "until"},
    "lerobot": {"since", "until", "pictures", "task"},
    "onnx": {"version"},
}
"""Options that have a meaning for a format."""


class Time(click.ParamType):  # type: ignore[type-arg] # generic only in the newest click
    """A moment in ISO 8601, as Unix seconds; local time where it names no offset."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the moment; anything else ends the program with exit code 2."""
        try:
            return datetime.fromisoformat(str(value).strip()).timestamp()
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is no time; write 2026-11-24, '2026-11-24 09:00' or 2026-11-24T09:00:00Z", param, ctx)


def _refuse_others(form: str) -> None:
    """Refuse options that are of another format: they would change nothing.

    Raises:
        click.UsageError: one is given.
    """
    ctx = click.get_current_context()
    for name in sorted(set().union(*OPTIONS_OF.values()) - OPTIONS_OF[form]):
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            formats = " and ".join(one for one, names in OPTIONS_OF.items() if name in names)
            raise click.UsageError(f"--{name} belongs to --format {formats}, not to {form}; leave it out")


@click.command()
@takes_settings()
@click.option("--format", "form", type=click.Choice(FORMATS), required=True, help="Format, as above.")
@click.option("--out", type=ANY, required=True, help="A file (mcap, onnx) or a new folder (lerobot).")
@click.option("--version", help="onnx: policy version; default: the live one.")
@click.option("--recording", help="mcap: name of the recording; required if there are several.")
@click.option("--experience", is_flag=True, help="mcap: export experience even if there are recordings.")
@click.option("--since", type=Time(), help="mcap, lerobot: from this local time on, as 2026-11-24 09:00.")
@click.option("--until", type=Time(), help="mcap, lerobot: before this local time.")
@click.option(
    "--pictures/--no-pictures", default=True, show_default=True, help="lerobot: export only ticks with stored images."
)
@click.option("--task", help="lerobot: the task description for ticks without a stored text.")
@with_json("format, path and summary")
@refusing
def export(
    config: Path | None,
    form: str,
    out: Path,
    version: str | None,
    recording: str | None,
    since: float | None,
    until: float | None,
    task: str | None,
    *,
    experience: bool,
    pictures: bool,
    as_json: bool,
) -> None:
    """Export the recordings, the experience or the policy of the daemon of CONFIG (default: the demo); it may be running.

    \b
    - mcap: a recording or a part of it, else the experience, for Foxglove.
    - lerobot: episodes as a LeRobotDataset v3.0, with images and texts where they are stored.
    - onnx: the live policy without its encoders, and a .json file that names inputs and outputs.

    \b
    Examples:
      reflexd export --format mcap --out demo.mcap
      reflexd export robot.yaml --format lerobot --out dataset --since "2026-11-24 09:00"
      reflexd export robot.yaml --format onnx --out policy.onnx --version 000012-1f3a9c0e
    """  # noqa: D301 - click's mark for lines that stay as they are
    from rich.console import Console
    from rich.progress import Progress

    from runtime.recording.export import ExportOptions
    from runtime.recording.export import export as write
    from runtime.recording.export_mcap import TimeWindow

    _refuse_others(form)
    window = TimeWindow(0.0 if since is None else since, float("inf") if until is None else until)
    if window.start_s >= window.stop_s:
        raise click.UsageError("--since is not before --until: no time is between them")
    options = ExportOptions(out, version, recording, experience, window, pictures, task)
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        job = bar.add_task(f"exporting {form}", total=None)
        summary = write(
            load_or_demo(config).config,
            form,
            options,
            lambda done, total: bar.update(job, completed=done, total=total),
        )
    show({"format": form, "out": out, "summary": summary}, summary, as_json=as_json)
