"""Write the model card of a fine-tuned folder: origin, data, trained parameters, metrics, forgetting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

UNKNOWN_TO_THE_HUB = frozenset({"relation-extraction", "text-pair-classification"})
"""Kinds that are no `pipeline_tag`."""
NOTES = {
    "text-pair-classification": 'The two texts are read together, as a pair: `pipeline({"text": first, "text_pair": second})` with '
    "`pipeline_tag: text-classification`.",
    "relation-extraction": "Class scores are read at the first token, at `$` before the first span and at `#` before the second: the "
    "three blocks of the token head's outputs, added.",
    "token-classification": "Tags are those of each word's first piece. Token types say how a word is written: 0 lower, 1 Capitalised, 2 ALL "
    "CAPITALS, 3 mixed (where the tokenizer drops capitals).",
}
POOLED = (
    "The last layer was added before fine-tuning and began as the mean of all tokens, by which this sentence encoder was trained; "
    "`num_hidden_layers` minus one opens the encoder without it."
)


def write(path: Path, report: Mapping[str, Any], *, data: Mapping[str, str], settings: Mapping[str, Any]) -> None:
    """Write `README.md` from the report; `data` names each split and its size."""
    task = report["task"]
    front = ["---", "library_name: transformers"]
    front += [] if task in UNKNOWN_TO_THE_HUB else [f"pipeline_tag: {task}"]
    front += [f"base_model: {report['model']}", "---"]
    share = report["trained_parameters"] / max(report["total_parameters"], 1)
    body = [
        f"# {report['model']} for {task}",
        (
            f"Fine-tuned with reflexd, `train: {report['train']}`: {report['trained_parameters']:,} of "
            f"{report['total_parameters']:,} parameters ({share:.2%}), {report['epochs']} epochs, {report['wall_s']:.0f} s. "
            f"The weights are those of epoch {report['best_epoch']}, chosen on validation."
        ),
        "## Data",
        _table(("split", "examples from"), data.items()),
        "## Metrics",
        _metrics(report["metrics"]),
        *_slices(report.get("slices", {})),
        *_transfer(report.get("transfer")),
        "## What was forgotten",
        _forgotten(report.get("forgotten")),
        "## Settings",
        _table(("setting", "value"), ((key, str(value)) for key, value in settings.items())),
        "![curves](curves.png)",
    ]
    notes = [NOTES[task]] if task in NOTES else []
    if report.get("mean_pooling_layer"):
        notes.append(POOLED)
    if notes:
        body += ["## Use", *notes]
    path.write_text("\n".join(front) + "\n\n" + "\n\n".join(body) + "\n", encoding="utf-8")


def _metrics(metrics: Mapping[str, Mapping[str, float]]) -> str:
    names = list(dict.fromkeys(name for split in metrics.values() for name in split))
    rows = (
        (split, *(f"{values[n]:.4f}" if n in values else "" for n in names))
        for split, values in metrics.items()
        if values
    )
    return _table(("split", *names), rows)


def _slices(slices: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Return a section with the metric of each slice; nothing without slices."""
    rows = [
        (
            split,
            f"{one['rule']}={one['value']}",
            str(one["examples"]),
            f"{one['metric']:.4f}",
            f"{one['low']:.3f} to {one['high']:.3f}",
        )
        for split, some in slices.items()
        for one in sorted(some, key=lambda one: (one["rule"], one["metric"]))
    ]
    return ["## Slices", _table(("split", "slice", "examples", "metric", "interval at 95 %"), rows)] if rows else []


def _transfer(transfer: Mapping[str, Any] | None) -> list[str]:
    """Return a section about the task that training started from; nothing if it was the pretrained model."""
    if not transfer:
        return []
    rows = [
        (
            split,
            *(
                f"{values[name]:+.4f}" if name == "gain" else f"{values[name]:.4f}"
                for name in ("from", "pretrained", "gain")
            ),
        )
        for split, values in transfer.items()
        if isinstance(values, dict)
    ]
    text = (
        f"The encoder is that of `{transfer['from']}` ({transfer['copied_share']:.0%} of its tensors). The same labels trained the "
        f"pretrained model, too; the metric is {transfer['metric']}."
    )
    return ["## Start", text, _table(("split", "from this task", "from the pretrained model", "gain"), rows)]


def _forgotten(forgotten: Mapping[str, Any] | None) -> str:
    if not forgotten:
        return "Not measured: no earlier task was named."
    among = ""
    if "confused_with_new" in forgotten:
        among = (
            f" Among the earlier classes alone it is {forgotten['known_among_after']:.4f}; {forgotten['confused_with_new']:.1%} are "
            "taken for new classes."
        )
    return _loss(forgotten) + among


def _loss(forgotten: Mapping[str, Any]) -> str:
    return (
        f"{forgotten['metric']} of the earlier task ({forgotten['task']}, {forgotten['examples']} examples): "
        f"{forgotten['before']:.4f} before, {forgotten['after']:.4f} after; {forgotten['lost']:+.4f} lost."
    )


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)
