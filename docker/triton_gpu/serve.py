"""Starts NVIDIA's Triton with the words that the CPU serving image takes too, so that `package` puts the same layer on either.

Its C++ backend `onnxruntime` serves the same model directory; on a GPU where config.pbtxt or Triton's default says so. Becomes the server
(exec), so that its process id is Triton's and SIGTERM reaches it. Standard library only.
"""

from __future__ import annotations

import argparse
import os

SERVER = "/opt/tritonserver/bin/tritonserver"
EXIT_TIMEOUT_S = 5
PORTS = ("http", "grpc", "metrics")


def main(argv: list[str] | None = None) -> None:
    """Never returns."""
    parser = argparse.ArgumentParser(description="Start one Triton server.")
    parser.add_argument("--name", required=True)
    parser.add_argument("--repository", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    for port in PORTS:
        parser.add_argument(f"--{port}", required=True, type=int)
    options = parser.parse_args(argv)
    command = server_command(options)
    print(f"starting Triton {options.name}", flush=True)
    os.execv(command[0], command)  # noqa: S606 - no shell is wanted


def server_command(options: argparse.Namespace) -> list[str]:
    addresses = [flag for name in PORTS for flag in (f"--{name}-address={options.host}", f"--{name}-port={getattr(options, name)}")]
    return [
        SERVER,
        f"--id={options.name}",
        f"--model-repository={options.repository}",
        "--model-control-mode=explicit",
        "--load-model=*",
        "--disable-auto-complete-config",
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        *addresses,
    ]


if __name__ == "__main__":
    main()
