"""An RTSP server with a moving test picture in H.264, for the tests. Needs Debian's python3-gi, so the system's Python.

rtsp_server.py PORT [FPS [PASSWORD]]: rtsp://127.0.0.1:PORT/test, for the user `cam` where a password is given. Says `ready` once it listens.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402 - the versions must be chosen first


def guard(server: GstRtspServer.RTSPServer, factory: GstRtspServer.RTSPMediaFactory, password: str) -> None:
    """Let in who logs in as `cam`, and no other user."""
    auth, cam = GstRtspServer.RTSPAuth.new(), GstRtspServer.RTSPToken()
    cam.set_string(GstRtspServer.RTSP_TOKEN_MEDIA_FACTORY_ROLE, "cam")
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic("cam", password), cam)
    server.set_auth(auth)
    factory.add_role_from_structure(
        Gst.Structure.from_string("cam, media.factory.access=(boolean)true, media.factory.construct=(boolean)true")[0]
    )


def main() -> None:
    port, fps = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 15
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(
        f"( videotestsrc is-live=true pattern=ball ! video/x-raw,width=320,height=240,framerate={fps}/1 "
        f"! x264enc tune=zerolatency speed-preset=ultrafast key-int-max={fps} ! rtph264pay name=pay0 pt=96 "
        "config-interval=1 )"
    )
    factory.set_shared(True)
    if len(sys.argv) > 3:
        guard(server, factory, sys.argv[3])
    server.get_mount_points().add_factory("/test", factory)
    if not server.attach(None):
        sys.exit(f"port {port} is taken")
    print("ready", flush=True)
    GLib.MainLoop().run()


main()
