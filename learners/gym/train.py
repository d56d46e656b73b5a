"""Train a policy on a gymnasium environment (`reflexd train`), and write the results.

`results.json` contains the settings, the curve, and the returns of the delivered policy on a hundred separate episodes, with the
step at which the policy was saved. The folder also contains the curve as an image, and a signed checkpoint.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import orjson
import torch
from matplotlib import pyplot as plt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from actuators.sim.call_limit import CALL_S
from actuators.sim.gym_env import CheckedEnv, EnvironmentFault, find, make
from learners.checkpoints.signing import load_key
from learners.checkpoints.store import Checkpoints
from learners.checkpoints.trusted_keys import fingerprint
from learners.gym.demonstrations import episodes_of
from learners.gym.environment_pool import EnvironmentPool
from learners.gym.greedy_episodes import ReturnSummary
from learners.gym.lock_step import GymTrainer, TrainSettings
from learners.gym.results_file import settings_values, write_failed, write_not_ended, write_results
from learners.gym.saved_training import SavedState, SavedTraining, named
from learners.gym.torch_settings import guard_torch
from learners.model.spec import Algorithm as Name


def train(
    environment: str,
    steps: int,
    seed: int,
    out: Path,
    *,
    algorithm: Name = "auto",
    demonstrations: int | Path = 0,
    progress: bool = True,
    settings: TrainSettings | None = None,
    resume: bool = False,
    call_limit_s: float = CALL_S,
    pool: EnvironmentPool | None = None,
) -> dict[str, Any]:
    """Train, and write `results.json`, `curve.png` and a signed checkpoint below `out`.

    Args:
        environment: a gymnasium id.
        steps: of the environment.
        seed: of everything random.
        out: a folder; made if it is missing. Its `checkpoints` can be imported, or run as a `state_dir`.
        algorithm: as `policy.algorithm`.
        demonstrations: number of episodes of the scripted expert, or a file of episodes (see `learners.gym.demonstrations`).
        progress: show a bar on stderr; where that is no terminal, a line for every evaluation.
        settings: hyperparameters.
        resume: continue the training that was saved below `out`, or begin where none was saved; return the results where it has ended.
        call_limit_s: seconds that one call of the environment may take; 0 for any time.
        pool: several environments that are stepped at once; such a training is not saved for a resume.

    Raises:
        EnvironmentFault: the environment failed or returned what it may not; what was learned until then is written.
        ValueError: no such environment, actions or observations nothing here can handle, no script for demonstrations; or what is
            below `out` cannot be resumed.
    """
    guard_torch()
    torch.set_flush_denormal(True)
    used = with_algorithm(settings or TrainSettings(), algorithm)
    torch.set_num_threads(used.threads)
    given = named(demonstrations)
    saved = SavedTraining(
        out, {"environment": environment, "seed": seed, "settings": settings_values(used), "demonstrations": given}
    )
    saved.check_folder()
    if resume and (finished := saved.finished(steps)) is not None:
        saved.discard()  # a kill may have come before that
        return finished
    state = saved.load() if resume else None
    trainer = GymTrainer(_maker(environment, call_limit_s), seed=seed, settings=used)
    demonstrated = _begin(trainer, saved, state, environment, demonstrations)
    resumed_at = trainer.step if state is not None else None
    began_s = time.monotonic() - (state.elapsed_s if state is not None else 0.0)
    if steps < trainer.step:
        raise ValueError(f"{saved.folder} was saved after {trainer.step} steps; train at least as many, not {steps}")
    count = 1 if pool is None else pool.count
    write_not_ended(out, environment, steps, seed, trainer.settings, trainer.algorithm_name, environments=count)

    def save() -> None:
        try:
            saved.save(SavedState(*trainer.snapshot(), time.monotonic() - began_s, demonstrated))
        except OSError as error:  # as on a full disk: the training itself needs no saved state
            warnings.warn(f"{saved.folder}: not saved for --resume, the training goes on: {error}", stacklevel=1)

    ended = _run(trainer, environment, steps, out, save, began_s, pool, progress=progress)
    results = _results(trainer, ended, time.monotonic() - began_s) | {
        "environment": environment,
        "steps": steps,
        "seed": seed,
        "demonstrations": given,
        "resumed_at": resumed_at,
        "settings": settings_values(trainer.settings, count),
        "delivered": {"step": ended.step, "chosen_by": SELECTION, "demonstrated_transitions": demonstrated},
    }
    _write(out, trainer, results)
    if ended.fault is not None:
        reason = f"{ended.fault}. The policy as it was after {ended.step} steps is in {out}"
        raise EnvironmentFault(reason) from ended.fault
    saved.discard()
    return results


def _begin(
    trainer: GymTrainer, saved: SavedTraining, state: SavedState | None, environment: str, demonstrations: int | Path
) -> int:
    """Continue from a saved state, or begin with the demonstrations; return how many transitions are demonstrated."""
    if state is not None:
        trainer.restore(state.tensors, state.trainer)
        return state.demonstrated
    saved.discard()
    return trainer.load_demonstrations(episodes_of(environment, trainer.env, demonstrations)) if demonstrations else 0


@dataclass(frozen=True, slots=True)
class TrainingEnd:
    """How a training ended."""

    step: int
    """The step of the policy that is delivered."""
    final: ReturnSummary | None
    """Its returns in the final episodes; None where the environment failed before them."""
    trained_s: float
    fault: EnvironmentFault | None = None


def _results(trainer: GymTrainer, ended: TrainingEnd, wall_s: float) -> dict[str, Any]:
    """Return what `results.json` says of the training itself."""
    step_count = trainer.step if ended.fault is None else ended.step
    return {
        "algorithm": trainer.algorithm_name,
        "updates": trainer.algorithm.updates,
        "wall_s": wall_s,
        "env_steps_per_s": step_count / ended.trained_s,
        "updates_per_s": trainer.algorithm.updates / ended.trained_s,
        "evaluations": trainer.evaluations,
        "final": ended.final.as_dict() if ended.final is not None else None,
        "cut_episodes": trainer.cut_episodes,
        "stopped": str(ended.fault) if ended.fault is not None else None,
    }


def _run(
    trainer: GymTrainer,
    environment: str,
    steps: int,
    out: Path,
    save: Callable[[], None],
    began_s: float,
    pool: EnvironmentPool | None,
    *,
    progress: bool,
) -> TrainingEnd:
    """Train, and choose the policy to deliver; where the environment fails, the best one until then.

    Raises:
        EnvironmentFault: the environment failed before anything was learned.
    """
    try:
        with _bar(progress, environment, steps, trainer) as bar:
            trainer.report, tick = bar
            if pool is None:
                trainer.run(steps, tick, save)
            else:
                trainer.run_pool(steps, pool, tick)
        trained_s = time.monotonic() - began_s
        return TrainingEnd(*trainer.deliver(), trained_s)
    except EnvironmentFault as fault:
        trained_s = time.monotonic() - began_s
        step, final = trainer.salvage()
        if not step:  # nothing was learned
            write_failed(out, str(fault))
            raise
        return TrainingEnd(step, final, trained_s, fault)


def with_algorithm(settings: TrainSettings, algorithm: Name) -> TrainSettings:
    """Return the settings with a named algorithm; `auto` leaves the one that they have."""
    return settings if algorithm == "auto" else replace(settings, algorithm=algorithm)


SELECTION = "highest mean on 30 further episodes among the four best evaluations; the final episodes took no part"


def _maker(environment: str, limit_s: float) -> Callable[[], CheckedEnv]:
    if "mujoco" in str(find(environment, limit_s).entry_point):
        _warn_once()
    return lambda: make(environment, limit_s)


def _warn_once() -> None:
    """MuJoCo says a warning for every environment that is made, ten of them an evaluation; here once."""
    import mujoco  # noqa: PLC0415 - only some environments need it

    warned: set[str] = set()

    def warn(text: str) -> None:
        if text not in warned:
            warned.add(text)
            warnings.warn(f"MuJoCo: {text}", stacklevel=1)

    mujoco.set_mju_user_warning(warn)


def _write(out: Path, trainer: GymTrainer, results: dict[str, Any]) -> None:
    """Write everything a run leaves."""
    final = results["final"]
    out.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(out / "checkpoints", load_key(out))
    version = checkpoints.save(
        {"policy": trainer.policy.state_dict()},
        {"spec": orjson.loads(trainer.spec.to_json())},
        encoder_versions=trainer.observation_encoder.encoder_versions,
        metrics={"steps": results["steps"], **trainer.algorithm.exploration()}
        | ({"final_mean": final["mean"]} if final is not None else {}),
    )
    checkpoints.promote(version)
    results["checkpoint"] = version
    results["key"] = fingerprint(checkpoints.public)
    write_results(out, results)
    title = f"{results['environment']}, {results['algorithm']}, seed {results['seed']}"
    if final is not None:
        plot(out / "curve.png", title, trainer.evaluations, final)


RATE_S = 2.0
"""Seconds over which the bar's updates a second are counted."""


@contextmanager
def _bar(
    show: bool,  # noqa: FBT001 - passed on from a keyword
    environment: str,
    steps: int,
    trainer: GymTrainer,
) -> Iterator[tuple[Callable[[int, ReturnSummary], None], Callable[[int], None]]]:
    """Give what to call after an evaluation and after a step; the bar shows steps, updates a second, and the last return."""
    console = Console(stderr=True)
    rate = TextColumn("{task.fields[updates_per_s]:.0f} updates/s")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not show or not console.is_terminal) as bar:
        task = bar.add_task(environment, total=steps, completed=trainer.step, updates_per_s=0.0)
        before, since_s = trainer.algorithm.updates, time.monotonic()

        def report(step: int, score: ReturnSummary) -> None:
            line = f"{environment} {score.mean:.1f} ± {score.std:.1f}"
            bar.update(task, completed=step, description=line)
            if show and not console.is_terminal:
                console.print(f"{line} after {step} of {steps} steps", soft_wrap=True, highlight=False)

        def tick(step: int) -> None:
            nonlocal before, since_s
            now_s = time.monotonic()
            if now_s - since_s >= RATE_S:
                updates = trainer.algorithm.updates
                bar.update(task, updates_per_s=(updates - before) / (now_s - since_s))
                before, since_s = updates, now_s
            bar.update(task, completed=step)

        yield report, tick


mpl.use("Agg")


def plot(path: Path, title: str, evaluations: Sequence[Mapping[str, float]], final: Mapping[str, float]) -> None:
    """Write a PNG: mean, one standard deviation, lowest and highest, and the delivered policy's mean as a line."""
    steps = [e["step"] for e in evaluations]
    mean = [e["mean"] for e in evaluations]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.fill_between(
        steps, [e["min"] for e in evaluations], [e["max"] for e in evaluations], alpha=0.12, label="min to max"
    )
    axes.fill_between(
        steps,
        [e["mean"] - e["std"] for e in evaluations],
        [e["mean"] + e["std"] for e in evaluations],
        alpha=0.25,
        label="one deviation",
    )
    axes.plot(steps, mean, label="mean of the evaluation episodes")
    axes.axhline(final["mean"], linestyle="--", color="black", linewidth=1, label=f"delivered: {final['mean']:.1f}")
    axes.set(title=title, xlabel="environment steps", ylabel="return")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
