"""`penstock status | pause | resume | promote | approve | abort | undo | retry`: people's orders, from a terminal.

It talks to the director, for a retry also to Airflow; after an undo it has the registry follow, if it can reach it. An undo to a version
that shares the archive's server is a run of the DAG `steer`, whose task may start it one of its own. Who asks is the operating system's
user unless `--who` says otherwise; why is never optional. Nothing is decided here: the director refuses what makes no sense.

| exit status | means                                                                         |
|-------------|-------------------------------------------------------------------------------|
| 0           | done: the director has kept the order, and where it acts itself it has acted  |
| 1           | refused, or the director (or Airflow) does not answer                         |
| 64          | wrong usage, or no address or token is known                                  |
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
import secrets
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NoReturn

from delivery.addresses import Addresses, NoAddress
from delivery.airflow_client import Airflow, AirflowRefused
from delivery.director_client import Director, DirectorUnreachable, ModelView, OrdersView, Refused
from delivery.orders import ABORT, APPROVE, PAUSE, PROMOTE_FULLY, PROMOTE_NOW, RESUME, RETRY, UNDO, Order

EXIT_REFUSED, EXIT_USAGE = 1, 64
SHOWN = 5  # orders of a model that `status` shows
WORDS = {
    "pause": (PAUSE, "hold the delivery where it is: its share stays and is still judged"),
    "resume": (RESUME, "let a paused delivery go on"),
    "promote": (PROMOTE_NOW, "end this step and go on to the next; with --fully also all that follow"),
    "approve": (APPROVE, "give the approval that the policy asks for at this step"),
    "abort": (ABORT, "take the candidate back now and end its delivery"),
    "undo": (UNDO, "make the previous version stable again, at once; with --to an archived one"),
    "retry": (RETRY, "deliver a version again from the beginning"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    try:
        addresses = Addresses.from_env()
        with contextlib.closing(Director(addresses.director_url, addresses.director_token)) as director:
            return _status(director, options.model) if options.word == "status" else _order(director, addresses, options)
    except NoAddress as error:
        return _said(error, EXIT_USAGE)
    except (Refused, DirectorUnreachable, AirflowRefused) as error:
        return _said(error, EXIT_REFUSED)


def _order(director: Director, addresses: Addresses, options: argparse.Namespace) -> int:
    action = PROMOTE_FULLY if options.word == "promote" and options.fully else WORDS[options.word][0]
    order_id = secrets.token_hex(8)
    to = options.to if action == UNDO else None
    if to and any(each.version == to and not each.alone for each in director.model(options.model).archived):
        return _undo_by_a_task(addresses, options, order_id)
    words = {"action": action, "who": options.who, "why": options.why}
    seen = director.order(options.model, order_id=order_id, version=options.version, to=to, **words)
    order = next(each for each in seen.orders if each.id == order_id)
    print(f"{action} of {order.model} v{order.version} is ordered, by {order.said}")
    if action == RETRY:
        run = Airflow(addresses).deliver(order)
        print(f"deliver_{order.model} runs it as {run}")
    if action == UNDO:
        print(_registry_followed(director, addresses, order))
    print(seen.sentence)
    return 0


def _undo_by_a_task(addresses: Addresses, options: argparse.Namespace, order_id: str) -> int:
    why = f"{options.who}: {options.why}"
    run = Airflow(addresses).steer(options.model, UNDO, version=options.version, to=options.to, why=why, order_id=order_id)
    print(f"v{options.to} shares the archive's server: steer starts it one of its own and then makes it stable, as {run}")
    return 0


def _registry_followed(director: Director, addresses: Addresses, order: Order) -> str:
    """The gateway has changed already; what the registry lacks, the next sweep or delivery writes."""
    from delivery.undo import follow

    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # a person waits
    try:
        from delivery.registry import Registry

        return follow(order.model, Registry.from_env({"MLFLOW_TRACKING_URI": addresses.registry_url}), director)
    except ModuleNotFoundError:
        return "the registry follows within a minute: MLflow is not installed here"
    except Exception as error:
        return f"the registry follows when it answers: {error}"[:300]


def _status(director: Director, model: str | None) -> int:
    models = (model,) if model else director.models()
    for each in models:
        print(_report(director.model(each), director.orders(each)))
    if not models:
        print("the director knows no model")
    return 0


def _report(traffic: ModelView, seen: OrdersView) -> str:
    roles = [f"{name} v{getattr(traffic, name).version}" for name in ("stable", "previous", "candidate") if getattr(traffic, name)]
    roles += [f"archived v{each.version}" for each in traffic.archived]
    share = f", {traffic.split.permille} per mille with the candidate" if traffic.split else ""
    mirror = f", {traffic.shadow_permille} per mille mirrored" if traffic.shadow_permille else ""
    lines = [f"{traffic.model}: {', '.join(roles) or 'nothing is served'}{share}{mirror}", f"  {seen.sentence}"]
    lines.append(f"  can be ordered: {', '.join((*seen.allowed, RETRY))}")
    return "\n".join([*lines, *(_line(each) for each in seen.orders[-SHOWN:])])


def _line(order: Order) -> str:
    when = datetime.fromtimestamp(order.unix_s, UTC).isoformat(timespec="seconds")
    return f"  {when} {order.action} v{order.version} at {order.at} by {order.said}"


def _said(error: Exception, status: int) -> int:
    print(f"penstock: {error}", file=sys.stderr)
    return status


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="penstock", description="Shows and steers deliveries. Exit status: 0 done, 1 refused, 64 wrong usage.")
    words = parser.add_subparsers(dest="word", required=True, metavar="word")
    words.add_parser("status", help="what serves, what is under way, what can be ordered").add_argument("model", nargs="?")
    for word, (_, what) in WORDS.items():
        one = words.add_parser(word, help=what, description=what)
        one.add_argument("model")
        one.add_argument("--version", type=int, help="the version that is meant; without it the one that it can be about")
        one.add_argument("--why", required=True, help="one line; it stands in the verdict and in the registry")
        one.add_argument("--who", default=getpass.getuser(), help="who orders it (the user's name)")
        if word == "promote":
            one.add_argument("--fully", action="store_true", help="end all further steps and waits, too")
        if word == "undo":
            one.add_argument("--to", type=int, metavar="VERSION", help="an archived version; without it the previous one")
    return parser


if __name__ == "__main__":
    sys.exit(main())
