"""A stand-in for Triton's launcher: takes its flags, speaks its gRPC, and misbehaves as `--behaviour` says. Run as a program by tests."""

import argparse
import os
import signal
import subprocess
import sys
import time
from concurrent import futures

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

CHILD = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"


class Service(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, behaviour):
        self.behaviour = behaviour
        self.answered = 0

    def ModelReady(self, request, context):  # noqa: N802 - the protocol's name
        return service_pb2.ModelReadyResponse(ready=self.behaviour not in {"deaf", "refusing"})

    def ModelInfer(self, request, context):  # noqa: N802 - the protocol's name
        self.answered += 1
        if self.behaviour == "killed_under_load" and self.answered == 50:  # after the warm-up
            os.kill(os.getpid(), signal.SIGKILL)
        if self.behaviour == "slow":
            time.sleep(0.03)
        if self.behaviour == "failing" and self.answered % 20 == 0:
            context.abort(grpc.StatusCode.INTERNAL, "onnxruntime: index out of range")
        return service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1")


def serve(options):
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Service(options.behaviour), server)
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
