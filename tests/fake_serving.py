"""Stands in for Triton inside a tiny serving image: speaks its HTTP, answers golden rows from a file, and misbehaves as BEHAVIOUR says.

gRPC it does not speak: what needs that is tested with the real serving image. Standard library only.
"""

import http.server
import json
import os
import signal
import sys
import time

BEHAVIOUR = os.environ.get("BEHAVIOUR", "fine")


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(503 if BEHAVIOUR == "never_ready" else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def main():
    if BEHAVIOUR == "ends":
        print("| irises | 1 | UNAVAILABLE: Internal: the file is no ONNX model | ", flush=True)
        sys.exit("error: creating server: failed to load all models")
    if BEHAVIOUR == "hungry":
        held = [bytes(1 << 20) * 1 for _ in range(100_000)]
        print(len(held))
    if BEHAVIOUR == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif BEHAVIOUR == "rude":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(json.dumps({"behaviour": BEHAVIOUR, "at": time.time()}), flush=True)
    http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()


if __name__ == "__main__":
    main()
