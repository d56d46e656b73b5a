"""Write the films under `videos/`: 30 frames, each brighter than the one before, in codecs that OpenCV's FFmpeg cannot write.

Needs PyAV (`pip install av`), which no test imports: the films are stored. Usage: python make_videos.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av  # type: ignore[import-not-found]
import numpy as np

FOLDER = Path(__file__).resolve().parent / "videos"
QUIET = {"x265-params": "log-level=none:bframes=3"}
FILMS: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
    "hevc.mp4": ("libx265", QUIET, {}),
    "hevc10bit.mkv": ("libx265", QUIET, {"pix_fmt": "yuv420p10le"}),
    "hevc.ts": ("libx265", QUIET, {}),
    "raw.h265": ("libx265", {"x265-params": "log-level=none"}, {}),
    "h264_b_frames.mp4": ("libx264", {"bf": "3"}, {}),
    "h264_odd_rate.mov": ("libx264", {}, {"rate": 30}),
    "h264.flv": ("libx264", {"bf": "2"}, {}),
    "odd_size.mp4": ("libx264", {}, {"pix_fmt": "yuv444p", "width": 63, "height": 47}),
    "one_frame.mp4": ("libx264", {}, {"frames": 1}),
    "vp9.webm": ("libvpx-vp9", {}, {}),
    "av1.webm": ("libsvtav1", {}, {}),
    "apng.apng": ("apng", {}, {"pix_fmt": "rgb24"}),
}


def make(
    path: Path, codec: str, options: dict[str, str], *, frames: int = 30, width: int = 64, height: int = 48,
    pix_fmt: str = "yuv420p", rate: int = 50,
) -> None:  # fmt: skip
    """Write one film."""
    with av.open(str(path), "w", format="hevc" if path.suffix == ".h265" else None) as film:
        stream = film.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.options = width, height, pix_fmt, options
        for number in range(frames):
            image = np.full((height, width, 3), 8 * number, np.uint8)
            image[:, : number + 2] = 255 - 8 * number
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                film.mux(packet)
        for packet in stream.encode():
            film.mux(packet)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, (codec, options, more) in FILMS.items():
        make(FOLDER / name, codec, options, **more)
