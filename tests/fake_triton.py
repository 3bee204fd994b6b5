"""A stand-in for Triton's launcher: takes its flags, speaks its gRPC, and misbehaves as `--behaviour` says. Run as a program by tests."""

import argparse
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

CHILD = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"


class Service(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, behaviour, instances):
        self.behaviour = behaviour
        self.answered = 0
        self.instances = threading.Semaphore(instances)

    def ModelReady(self, request, context):  # noqa: N802 - the protocol's name
        return service_pb2.ModelReadyResponse(ready=self.behaviour not in {"deaf", "refusing"})

    def trouble(self):
        """Whether the next answer is a failure; takes its time."""
        self.answered += 1
        if self.behaviour == "killed_under_load" and self.answered == 50:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.behaviour == "slow":
            time.sleep(0.03)
        if self.behaviour == "instances":
            with self.instances:
                time.sleep(0.01)
        return self.behaviour == "failing" and self.answered % 20 == 0

    def ModelInfer(self, request, context):  # noqa: N802 - the protocol's name
        if self.trouble():
            context.abort(grpc.StatusCode.INTERNAL, "onnxruntime: index out of range")
        return service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1")


def http_service(service):
    """The same over HTTP, as far as a load needs it."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            trouble = service.trouble()
            body = b"onnxruntime: index out of range" if trouble else b"{}"
            self.send_response(500 if trouble else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    return Handler


def instances(repository):
    """As many as the model's configuration says."""
    (config,) = Path(repository).glob("*/config.pbtxt")
    return int((re.search(r"count: (\d+)", config.read_text()) or ["", "1"])[1])


def serve(options):
    service = Service(options.behaviour, instances(options.repository))
    http = ThreadingHTTPServer(("127.0.0.1", int(options.http)), http_service(service))
    threading.Thread(target=http.serve_forever, daemon=True).start()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, server)
    server.add_insecure_port(f"127.0.0.1:{options.grpc}")
    server.start()
    server.wait_for_termination()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--behaviour", default="fine")
    for name in ("name", "repository", "http", "grpc", "metrics"):
        parser.add_argument(f"--{name}", required=True)
    options = parser.parse_args()
    if options.behaviour in {"unloadable", "refusing"}:
        print("| irises | 1 | UNAVAILABLE: Internal: the file is no ONNX model | ", flush=True)
    if options.behaviour == "unloadable":
        sys.exit("error: creating server: failed to load all models")
    if options.behaviour == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if options.behaviour == "not_installed":
        print("cannot start Triton: there is no wheel", file=sys.stderr)
        sys.exit(78)
    if options.behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen([sys.executable, "-c", CHILD])
    serve(options)


if __name__ == "__main__":
    main()
