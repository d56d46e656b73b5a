"""An HTTP server that sends the same few JPEG files as a multipart stream, as network cameras do.

mjpeg_server.py PORT FPS FILE...: http://127.0.0.1:PORT/. Says `ready` once it listens. Needs only Python.
"""

import itertools
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PICTURES = [Path(name).read_bytes() for name in sys.argv[3:]]
FPS = float(sys.argv[2])


class Camera(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        try:
            for picture in itertools.cycle(PICTURES):
                self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\n")
                self.wfile.write(b"Content-Length: %d\r\n\r\n%s\r\n" % (len(picture), picture))
                time.sleep(1 / FPS)
        except OSError:
            return

    def log_message(self, *_: object) -> None:
        return


server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Camera)
print("ready", flush=True)
server.serve_forever()
