"""The local stack's commands: `python -m stack up | down | status | restart NAME | environments NAME... | run NAME`.

The Makefile calls it; `run` is supervisord's way to start a program. Ends with status 0, or 1 and a sentence on stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable

from stack import environments, supervisor
from stack.down import take_down
from stack.environments import NotInstalled
from stack.keys import BadKeys, read_keys
from stack.postgres import DatabaseFailed
from stack.services import Service, become, servers, table
from stack.settings import BadSettings, Settings, read_settings
from stack.up import NotUp, addresses, bring_up, trouble, wait_ready
from stack.variables import spare_loopback

KNOWN = (BadSettings, BadKeys, NotUp, NotInstalled, DatabaseFailed, supervisor.NotStarted)
UNKNOWN = {"statename": "UNKNOWN", "description": "supervisord does not know it", "start": 0}


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    spare_loopback(os.environ)
    try:
        settings = read_settings(os.environ)
        done: int = options.act(settings, options)
    except KNOWN as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return done


def up(settings: Settings, _: argparse.Namespace) -> int:
    start = time.monotonic()
    bring_up(settings)
    print(f"the stack is up after {time.monotonic() - start:.1f} s\n{addresses(settings)}")
    return 0


def down(settings: Settings, _: argparse.Namespace) -> int:
    take_down(settings)
    return 0


def status(settings: Settings, _: argparse.Namespace) -> int:
    """0 when every service and every model's server runs and is ready, else 1."""
    if not supervisor.is_alive(settings):
        print("the stack is down")
        return 1
    known, rows, content = {**_services(settings), **servers(settings)}, supervisor.states(settings), True
    for name, service in known.items():
        row = rows.get(name, UNKNOWN)
        why = trouble(service, settings, row)
        content = content and why is None
        print(f"{name:<16} {row['statename']:<9} {row['description']:<28} {why or ''}".rstrip())
    return 0 if content else 1


def restart(settings: Settings, options: argparse.Namespace) -> int:
    if not supervisor.is_alive(settings):
        raise NotUp("the stack is down: `make up` first")
    service = _one(settings, options.name)
    supervisor.stop(settings, service.name, wait=True)
    supervisor.start(settings, service.name)
    wait_ready(service, settings)
    print(f"{service.name} runs again")
    return 0


def run(settings: Settings, options: argparse.Namespace) -> int:
    become(_one(settings, options.name), settings)
    return 1


def install(_: Settings, options: argparse.Namespace) -> int:
    return environments.main(options.names)


def _one(settings: Settings, name: str) -> Service:
    services = _services(settings)
    if name not in services:
        raise NotUp(f"unknown service {name!r}; known: {', '.join(services)}")
    return services[name]


def _services(settings: Settings) -> dict[str, Service]:
    return table(settings, read_keys(settings.state))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m stack", description="Starts and stops the local stack.")
    commands = parser.add_subparsers(required=True)
    acts: dict[str, Callable[[Settings, argparse.Namespace], int]] = {"up": up, "down": down, "status": status}
    for name, act in acts.items():
        commands.add_parser(name).set_defaults(act=act)
    for name, act in (("restart", restart), ("run", run)):
        command = commands.add_parser(name)
        command.add_argument("name")
        command.set_defaults(act=act)
    command = commands.add_parser("environments", help="make virtual environments: names, `running`, or `all`")
    command.add_argument("names", nargs="+")
    command.set_defaults(act=install)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
