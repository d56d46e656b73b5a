"""Write a LeRobotDataset v3.0 folder: parquet data, episodes, tasks, statistics and `meta/info.json`.

Written after the format's own reader (https://github.com/huggingface/lerobot, `src/lerobot/datasets`, codebase version v3.0).
Images are the stored JPEG or PNG bytes (`dtype: image`, embedded in the parquet files), so nothing is encoded
twice. Frames of an episode count as evenly spaced, as the format requires; the true stamps are in
`complementary_info.stamp_s`. Not exported: sound, tokens of encoders and text actuators, for which the format has no place.
The only importer of `pyarrow` and `pandas`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from learners.experience.episodes import Step
from learners.export.dataset_stats import Column, Stats, merged, statistics
from learners.export.lerobot_features import Layout, columns, numbers

VERSION = "v3.0"
FILE_MB = 100
CHUNK_FILES = 1_000
UNEVEN = 0.05
"""Relative error of the steps a second that an export names."""
FILES = "chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"


class ExportNeeds(RuntimeError):  # noqa: N818 - reads as what happened
    """Libraries of the extra `export` are not installed; `str` names the remedy."""


OWN = {
    "timestamp": numbers("float32"),
    "frame_index": numbers("int64"),
    "episode_index": numbers("int64"),
    "index": numbers("int64"),
    "task_index": numbers("int64"),
}
"""Columns that the format itself wants."""


@dataclass(slots=True)
class DatasetWriter:
    """Writes episode after episode; `close` makes the folder whole.

    Args:
        folder: must not exist.
        layout: of a frame.
        fps: ticks a second.
        robot: name of the agent.
        task: description of the task in episodes without a text.

    Raises:
        ExportNeeds: pyarrow or pandas is not installed.
    """

    folder: Path
    layout: Layout
    fps: int
    robot: str
    task: str
    frames: int = 0
    tasks: dict[str, int] = field(default_factory=dict)
    file_mb: float = FILE_MB
    _span_s: float = 0.0
    """From the first to the last step of every episode."""
    _features: dict[str, dict[str, Any]] = field(init=False)
    _episodes: list[dict[str, Any]] = field(default_factory=list)
    _stats: list[Stats] = field(default_factory=list)
    _file: int = -1
    _bytes: int = 0
    _writer: Any = None
    _arrow: Any = field(init=False)
    _parquet: Any = field(init=False)

    def __post_init__(self) -> None:
        try:
            import pandas  # noqa: F401, ICN001, PLC0415 - an extra that only exporting needs; here to fail before anything is written
            import pyarrow  # noqa: ICN001, PLC0415 - the same
            import pyarrow.parquet  # noqa: PLC0415 - the same
        except ModuleNotFoundError as error:
            raise ExportNeeds(f"{error.name} is missing: pip install 'reflexd[export]'") from None
        self._arrow, self._parquet = pyarrow, pyarrow.parquet
        self._features = self.layout.features() | OWN
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def episodes(self) -> int:
        """How many were written."""
        return len(self._episodes)

    @property
    def uneven(self) -> str:
        """The true number of steps a second, for a person, where the format's whole number is off by more than `UNEVEN`; else empty."""
        intervals = self.frames - len(self._episodes)
        if not intervals or abs(self.fps * self._span_s / intervals - 1) <= UNEVEN:
            return ""
        true = f"{intervals / self._span_s:.3g}" if self._span_s > 0 else "unknown"
        return f"; it counts {self.fps} steps a second, in truth {true} (complementary_info.stamp_s)"

    def add(self, steps: Sequence[Step]) -> None:
        """Add one episode."""
        cells = columns(self.layout, steps)
        tasks = [self._task(step) for step in steps]
        index = len(self._episodes)
        cells |= {
            "timestamp": np.arange(len(steps), dtype=np.float32) / np.float32(self.fps),
            "frame_index": np.arange(len(steps)),
            "episode_index": np.full(len(steps), index),
            "index": np.arange(self.frames, self.frames + len(steps)),
            "task_index": np.array([self.tasks.setdefault(task, len(self.tasks)) for task in tasks]),
        }
        self._write(cells)
        stats = {name: statistics(cells[name]) for name in self._features}
        self._stats.append(stats)
        self._episodes.append(
            {
                "episode_index": index,
                "tasks": list(dict.fromkeys(tasks)),
                "length": len(steps),
                "data/chunk_index": self._file // CHUNK_FILES,
                "data/file_index": self._file % CHUNK_FILES,
                "dataset_from_index": self.frames,
                "dataset_to_index": self.frames + len(steps),
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
            }
            | {f"stats/{name}/{what}": x for name, entry in stats.items() for what, x in entry.items()}
        )
        self.frames += len(steps)
        self._span_s += steps[-1].transition.stamp_s - steps[0].transition.stamp_s

    def close(self) -> None:
        """Write everything under `meta/`."""
        import pandas as pd  # noqa: PLC0415 - see __post_init__

        self._end_file()
        meta = self.folder / "meta"
        (meta / "episodes" / "chunk-000").mkdir(parents=True)
        frame = pd.DataFrame({"task_index": list(self.tasks.values())}, index=pd.Index(self.tasks, name="task"))
        frame.to_parquet(meta / "tasks.parquet")
        table = self._arrow.Table.from_pylist(self._episodes)
        self._parquet.write_table(table, meta / "episodes" / FILES.format(chunk_index=0, file_index=0))
        (meta / "stats.json").write_bytes(orjson.dumps(merged(self._stats), option=orjson.OPT_INDENT_2))
        (meta / "info.json").write_bytes(orjson.dumps(self._info(), option=orjson.OPT_INDENT_2))

    def _info(self) -> dict[str, Any]:
        return {
            "codebase_version": VERSION,
            "robot_type": self.robot,
            "total_episodes": len(self._episodes),
            "total_frames": self.frames,
            "total_tasks": len(self.tasks),
            "chunks_size": CHUNK_FILES,
            "data_files_size_in_mb": FILE_MB,
            "video_files_size_in_mb": FILE_MB,
            "fps": self.fps,
            "splits": {"train": f"0:{len(self._episodes)}"},
            "data_path": f"data/{FILES}",
            "video_path": None,
            "features": self._features,
        }

    def _task(self, step: Step) -> str:
        texts = (step.seen.get(name) for name in self.layout.words)
        return next((text.strip() for text in texts if isinstance(text, str) and text.strip()), self.task)

    def _write(self, cells: Mapping[str, Column]) -> None:
        """Write one row group for each episode; start a new file if the last one is large enough."""
        if self._writer is not None and self._bytes >= self.file_mb * 1e6:
            self._end_file()
        schema = self._arrow.schema([(name, self._type(feature)) for name, feature in self._features.items()])
        if self._writer is None:
            self._file += 1
            path = self.folder / "data" / FILES.format(
                chunk_index=self._file // CHUNK_FILES, file_index=self._file % CHUNK_FILES
            )  # fmt: skip
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer, self._bytes = self._parquet.ParquetWriter(path, schema), 0
        arrays = [self._array(cells[name], schema.field(name).type) for name in self._features]
        table = self._arrow.Table.from_arrays(arrays, schema=schema)
        self._writer.write_table(table)
        self._bytes += table.nbytes

    def _end_file(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _type(self, feature: Mapping[str, Any]) -> Any:
        """Return the arrow type that the format's reader gives a feature."""
        pa = self._arrow
        if feature["dtype"] == "image":
            return pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        plain = pa.bool_() if feature["dtype"] == "bool" else getattr(pa, feature["dtype"])()
        return plain if feature["shape"] == [1] else pa.list_(plain, feature["shape"][0])

    def _array(self, column: Column, kind: Any) -> Any:
        if isinstance(column, list):
            return self._arrow.array([{"bytes": data, "path": None} for data in column], kind)
        return self._arrow.array(list(column) if column.ndim > 1 else column, kind)
