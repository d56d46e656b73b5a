"""An RTSP server with a picture that turns white once a second, for bench_capture_time.py. Needs Debian's python3-gi.

rtsp_flashes.py PORT: rtsp://127.0.0.1:PORT/test. Prints `ready` once it listens, then the monotonic time of each white frame.
"""

import argparse
import sys
import time

PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("port", help="port on the loopback address")
ARGUMENTS = PARSER.parse_args()  # before gi, which only Debian's python has

import gi  # noqa: E402

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402 - the versions must be chosen first

WIDTH, HEIGHT, FPS = 160, 120, 30


class Factory(GstRtspServer.RTSPMediaFactory):
    """Pushes a frame when its time has come, stamped by the pipeline's clock."""

    def __init__(self) -> None:
        super().__init__()
        self.set_launch(
            f"( appsrc name=source is-live=true format=time do-timestamp=true "
            f"caps=video/x-raw,format=I420,width={WIDTH},height={HEIGHT},framerate={FPS}/1 "
            f"! x264enc tune=zerolatency speed-preset=ultrafast key-int-max={FPS} ! rtph264pay name=pay0 pt=96 "
            "config-interval=1 )"
        )
        self.set_shared(True)

    def do_configure(self, media: GstRtspServer.RTSPMedia) -> None:
        """Start to push."""
        source = media.get_element().get_child_by_name("source")
        number = 0

        def push() -> bool:
            nonlocal number
            white = number % FPS == 0
            luma = (235 if white else 16).to_bytes(1, "big") * (WIDTH * HEIGHT)
            source.emit("push-buffer", Gst.Buffer.new_wrapped(luma + b"\x80" * (WIDTH * HEIGHT // 2)))
            if white:
                print(time.monotonic(), flush=True)
            number += 1
            return True

        GLib.timeout_add(1_000 // FPS, push)


def main() -> None:
    """Serve until killed."""
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(ARGUMENTS.port)
    factory = Factory()
    factory.connect("media-configure", lambda one, media: one.do_configure(media))
    server.get_mount_points().add_factory("/test", factory)
    if not server.attach(None):
        sys.exit(f"port {ARGUMENTS.port} is taken")
    print("ready", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
