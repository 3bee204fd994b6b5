"""Kills and freezes every part of the system at every stage of a delivery, under live traffic, and says what came of each.

A blow is SIGKILL or SIGSTOP of one part at one stage. Each delivery takes several, one after the other; a part that is frozen is thawed
after `HELD_S`, or after longer than a lease where it holds one. After each blow: nobody but those who ask a dead gateway or the only
dead server of stable met an error, the candidate's share was never above what the director had acknowledged, and it was taken up again or
taken back within the lease. After each delivery: an outcome, the same stable version in registry and gateway, no share, no mirror, no
server and no job left.

`make chaos` gives all blows and prints the matrix; `tests/e2e` gives one to each part.
"""

from __future__ import annotations

import itertools
import re
import signal
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

from bench.figures import Figure
from bench.sentry import Sentry, exceeded, served_beyond, settled_after
from bench.world import DELIVER, MODEL, Unexpected, World
from delivery.triton import server_name
from stack import processes
from stack.settings import ROOT

PARTS = ("director", "envoy", "recorder", "mlflow", "scheduler", "triggerer", "api-server", "stable", "task", "candidate")
STAGES = ("gates", "shadow", "first step", "half", "promoted")
SIGNALS = (signal.SIGKILL, signal.SIGSTOP)
ENDS = frozenset({"promoted", "refused", "inconclusive", "rolled_back", "superseded", "error"})

DOCUMENT = ROOT / "docs" / "chaos.md"
HEAD = """# What dies, and what comes of it

Written by `make chaos`: each part of the system was killed (SIGKILL) and frozen (SIGSTOP, for some seconds) at each stage of a delivery,
under steady traffic. A cell says how that delivery ended, after how many seconds the candidate's share was taken up again or given back,
and how many requests failed because the gateway itself was dead: no other request did. Several parts die in each delivery, one after the
other, so an end may have another cell's cause. `task` is the task that was at work: a gate, the watch of a step, the bake.

"""

LEASE_S = 10.0
HELD_S: Mapping[str, float] = {"director": LEASE_S + 2, "task": LEASE_S + 4, "candidate": 6.0}
USUALLY_HELD_S = 4.0
SETTLED_S, ALONE_S = LEASE_S + 2.0, 5.0  # the policy's lease and some looks; what a split lives on in the gateway without its director
BACK_S = 90.0
STAGE_S = 240.0
QUIET_S = 6.0  # longer than the gateway lets a request wait
LEFT_S = 60.0
A_STAGE, TRIES = 2, 3
GATES = frozenset({"export", "golden_set", "distribution", "package", "container_check", "latency_benchmark"})


@dataclass(frozen=True, order=True)
class Blow:
    """What is hit when, and how."""

    stage: str
    part: str
    signal: signal.Signals

    def __str__(self) -> str:
        return f"{self.signal.name} {self.part} at {self.stage}"


@dataclass
class Struck:
    """What came of a blow; `faults` names each promise that was not kept."""

    blow: Blow
    version: int
    began_s: float = 0.0
    errors: int = 0
    excused: int = 0
    settled_s: float | None = None
    outcome: str = ""
    why: str = ""
    faults: list[str] = field(default_factory=list)


def every_blow() -> list[Blow]:
    return [Blow(stage, part, each) for stage in STAGES for part in PARTS for each in SIGNALS]


def rounds(blows: Iterable[Blow], a_stage: int = A_STAGE) -> Iterator[list[Blow]]:
    """Deliveries: so many blows a stage, in the stages' order, at different parts as far as there are some.

    A blow at a candidate that is not promoted yet ends its delivery, so these have deliveries of their own.
    """
    waiting = {stage: deque(each for each in blows if each.stage == stage and not _ends_delivery(each)) for stage in STAGES}
    for shift, stage in enumerate(STAGES):
        waiting[stage].rotate(-2 * a_stage * shift)
    while any(waiting.values()):
        yield [waiting[stage].popleft() for stage in STAGES for _ in range(min(a_stage, len(waiting[stage])))]
    yield from ([each] for each in blows if _ends_delivery(each))


def _ends_delivery(blow: Blow) -> bool:
    return blow.part == "candidate" and blow.stage != "promoted"


class Chaos:
    """Deliveries under blows on one world whose client runs. `struck` grows with each, and `errors`, what the client met unexcused."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.struck: list[Struck] = []
        self.errors = 0

    def deliver(self, blows: Sequence[Blow]) -> list[Struck]:
        """One delivery of the stable model once more, hit by these blows in order; returns those whose stage came."""
        world = self._world
        errors, number = world.client_errors(), world.register_again(world.share().stable)
        run = world.airflow.trigger(DELIVER, version=number)
        with Sentry(world, number) as sentry:
            found = [self._strike(blow, victims, number) for blow in blows if (victims := self._reached(blow, number, run, sentry))]
            outcome = world.ended(number, run, 600)
            faults = [*self._undefined(number, outcome), exceeded(sentry.looks), served_beyond(world.client_lines(), number, sentry.looks)]
            lost = world.client_errors() - errors
        if late := lost - sum(each.errors for each in found):
            faults.append(f"{late} more client errors in its delivery: {world.error_samples()[-1]}")
        self.errors += lost
        for each in found:
            each.outcome, each.why = outcome, world.why(number)
            each.settled_s = settled_after(sentry.looks, each.began_s)
            each.faults += [fault for fault in (*faults, _unsettled(each)) if fault]
        self.struck += found
        print(*map(described, found), sep="\n", flush=True)
        return found

    def _reached(self, blow: Blow, number: int, run: str, sentry: Sentry) -> list[psutil.Process]:
        """Waits for the stage and for the part to be there at it; none when the delivery is beyond it or ended."""
        wanted = STAGES.index(blow.stage)

        def look() -> list[psutil.Process] | None:
            if (here := self._stage(number, run, sentry)) > wanted:
                return []
            if here == wanted and (victims := self._victims(blow, number)):
                return victims
            return [] if self._world.airflow.run_state(DELIVER, run) in {"success", "failed"} else None

        return self._world.until(look, f"{blow.part} at the stage {blow.stage}", STAGE_S)

    def _stage(self, number: int, run: str, sentry: Sentry) -> float:
        """Where the delivery is, as a place in `STAGES`; between two of them, or before the first, no whole one."""
        share = self._world.share()
        sentry.note(share.permille)
        if share.stable == number:
            return STAGES.index("promoted")
        shares = {10: STAGES.index("first step"), 500: STAGES.index("half"), 1000: STAGES.index("half") + 0.5}
        if share.permille in shares:
            return shares[share.permille]
        if share.shadow_permille:
            return STAGES.index("shadow")
        at_gates = any(each.task in GATES and each.state in {"running", "deferred"} for each in self._world.airflow.tasks(DELIVER, run))
        return STAGES.index("gates") if at_gates else -1

    def _strike(self, blow: Blow, victims: Sequence[psutil.Process], number: int) -> Struck:
        world = self._world
        program = world.until(lambda: self._program(blow, number), "the director", BACK_S)
        excused = blow.part == "envoy" or (self._is_stable(blow) and not self._previous())
        struck, errors = Struck(blow=blow, version=number), world.client_errors()
        struck.began_s = _hit(victims, blow)
        self._wait_back(blow, program, {each.pid for each in victims})
        if excused:
            self._wait_quiet()
        lost = world.client_errors() - errors
        struck.excused, struck.errors = (lost, 0) if excused else (0, lost)
        world.excused_errors += struck.excused
        if struck.errors:
            struck.faults.append(f"{struck.errors} client errors: {world.error_samples()[-1]}")
        return struck

    def _is_stable(self, blow: Blow) -> bool:
        """Whether the blow hits the server of the stable version, which the candidate is once promoted."""
        return blow.part == "stable" or (blow.part, blow.stage) == ("candidate", "promoted")

    def _victims(self, blow: Blow, number: int) -> list[psutil.Process]:
        """The processes of the part; a service's workers and a server's children are of it."""
        world = self._world
        if blow.part == "task":
            return [each for each in processes.ours(world.state) if _environ(each).get("TASK_OUT", "").startswith(f"{world.state}/jobs/")]
        if (blow.part, blow.stage) == ("candidate", "gates"):  # its private server in the latency benchmark
            return [each for each in processes.ours(world.state) if f"benchmark--{MODEL}--v{number}" in " ".join(_command(each))]
        if blow.part in {"candidate", "stable"}:
            program = self._program(blow, number)
            return _family(world.pid(program)) if program in world.programs() else []
        return processes.leftovers(world.state, blow.part)

    def _program(self, blow: Blow, number: int) -> str:
        """What supervisord calls the part."""
        if blow.part == "stable":
            return server_name(MODEL, self._world.share().stable)
        return server_name(MODEL, number) if blow.part == "candidate" else blow.part

    def _wait_back(self, blow: Blow, program: str, victims: set[int]) -> None:
        """Until a killed program runs again, as another process. Tasks and candidates come back by their own rules, or not."""
        world = self._world
        if blow.part == "task" or (blow.part == "candidate" and not self._is_stable(blow)):
            return
        anew = blow.signal is signal.SIGKILL

        def back() -> bool | None:
            return ((not anew or world.pid(program) not in {0, *victims}) and world.is_ready(program)) or None

        world.until(back, f"{program} to be back", BACK_S)

    def _wait_quiet(self) -> None:
        """Until no error of the blow can come any more: the client was well for longer than a request may take."""
        world = self._world
        seen = {"errors": -1, "since_s": 0.0}

        def quiet() -> bool | None:
            if world.client_errors() != seen["errors"]:
                seen.update(errors=world.client_errors(), since_s=time.monotonic())
            return time.monotonic() - seen["since_s"] > QUIET_S or None

        world.until(quiet, "the client to be well", BACK_S)

    def _undefined(self, number: int, outcome: str) -> list[str]:
        """What is not as a delivery must leave it."""
        world, found = self._world, []
        if outcome not in ENDS:
            found.append(f"its outcome is {outcome!r}")
        share = world.until(world.share, "the director", BACK_S)
        stable, alias = share.stable, world.until(lambda: world.registry.alias(MODEL, "production"), "the registry", BACK_S)
        if stable != alias or (stable == number) != (outcome == "promoted"):
            found.append(f"{outcome}, and stable is v{stable} at the gateway, v{alias} in the registry")
        if share.candidate or share.permille or share.shadow_permille:
            found.append(
                f"the gateway still has candidate v{share.candidate} with {share.permille} and a mirror of {share.shadow_permille}"
            )
        with suppress(Unexpected):
            world.until(lambda: not self._left(number, stable) or None, "nothing to be left", LEFT_S)
        return found + self._left(number, stable)

    def _left(self, number: int, stable: int) -> list[str]:
        world = self._world
        found = [f"its job runs on: {_command(each)[-1]}" for each in self._victims(Blow("", "task", signal.SIGKILL), number)]
        kept = {stable, self._previous()}
        serves_on = number not in kept and server_name(MODEL, number) in world.programs()
        return found + ([f"the server of v{number} runs on"] if serves_on else [])

    def _previous(self) -> int:
        return self._world.until(lambda: self._world.director.previous(MODEL), "the director", BACK_S)


def quick_policy(text: str) -> str:
    """The demo's policy without its second step, and with a mirror and steps long enough for two blows."""
    text = re.sub(r"\[\[rollout\.steps\]\]\npermille = 100\n.*?(?=\n\[)", "", text, count=1, flags=re.DOTALL)
    return re.sub(r"(?<=\nmin_seconds = )[568](?=\n)", "20", text, count=3)


def measure(world: World) -> list[Figure]:
    """Every blow once; a blow whose stage did not come for an earlier one's sake has its turn in a later delivery."""
    world.write_policy(MODEL, quick_policy(world.policy()))
    chaos, began_s = Chaos(world), time.monotonic()
    waiting = deque(rounds(every_blow()))
    tries: dict[Blow, int] = defaultdict(int)
    while waiting:
        blows = waiting.popleft()
        given = {each.blow for each in chaos.deliver(blows)}
        for each in blows:
            tries[each] += each not in given
        again = [each for each in blows if each not in given and tries[each] < TRIES]
        waiting.extend([again] if given and again else [[each] for each in again])
    minutes = (time.monotonic() - began_s) / 60
    print(matrix(chaos.struck))
    DOCUMENT.write_text(HEAD + matrix(chaos.struck) + "\n")
    return figures(chaos.struck, chaos.errors, minutes)


def figures(struck: Sequence[Struck], errors: int, minutes: float) -> list[Figure]:
    ends = ", ".join(f"{outcome} {len(list(group))}" for outcome, group in itertools.groupby(sorted(each.outcome for each in struck)))
    excused = sum(each.excused for each in struck)
    undefined = [each for each in struck if each.faults]
    how = f"SIGKILL and SIGSTOP of {len(PARTS)} parts at {len(STAGES)} stages in {minutes:.0f} minutes; ends: {ends}"
    names = "; ".join(f"{each.blow}: {each.faults[0]}" for each in undefined[:5])
    return [
        Figure(name="chaos_kills", value=len(struck), unit="kills", goal=">= 100", how=how),
        Figure(name="chaos_minutes", value=round(minutes, 1), unit="minutes", goal="<= 45", how="the same"),
        Figure(
            name="chaos_client_errors",
            value=errors,
            unit="errors",
            goal="= 0",
            how=f"and {excused:,} while the gateway or the only server of stable was itself dead",
        ),
        Figure(name="chaos_undefined", value=len(undefined), unit="kills", goal="= 0", how=names or "each end as defined, each share kept"),
    ]


def matrix(struck: Sequence[Struck]) -> str:
    """Parts by stages: how each delivery ended that was hit so, with a mark where a promise was broken."""
    cells = {(each.blow.part, each.blow.stage, each.blow.signal): each for each in struck}
    lines = [f"| part | signal | {' | '.join(STAGES)} |", f"|---|---|{'---|' * len(STAGES)}"]
    for part, number in itertools.product(PARTS, SIGNALS):
        row = [_cell(cells.get((part, stage, number))) for stage in STAGES]
        lines.append(f"| {part} | {number.name} | {' | '.join(row)} |")
    return "\n".join(lines)


def _cell(struck: Struck | None) -> str:
    if struck is None:
        return "-"
    settled = "" if struck.settled_s is None else f" {struck.settled_s:.1f} s"
    return (
        f"{struck.outcome}{settled}" + (f", {struck.excused} excused" if struck.excused else "") + (" **broken**" if struck.faults else "")
    )


def described(struck: Struck) -> str:
    """One line: the blow, the delivery's end, what was not kept."""
    faults = f"; NOT KEPT: {'; '.join(struck.faults)}" if struck.faults else ""
    errors = f", {struck.excused} excused errors" if struck.excused else ""
    settled = "never" if struck.settled_s is None else f"{struck.settled_s:.1f} s"
    why = "" if struck.outcome == "promoted" else f" ({struck.why})"
    return f"{struck.blow}: v{struck.version} {struck.outcome}{why}, settled after {settled}{errors}{faults}"


def _unsettled(struck: Struck) -> str:
    limit_s = SETTLED_S + (ALONE_S if struck.blow.part in {"director", "envoy"} else 0)
    if struck.settled_s is not None and struck.settled_s <= limit_s:
        return ""
    return f"neither resumed nor reverted within {limit_s:g} s ({struck.settled_s})"


def _hit(victims: Sequence[psutil.Process], blow: Blow) -> float:
    """The blow, and the thaw after it; returns when it fell, in Unix seconds."""
    _send(victims, blow.signal)
    began_s = time.time()
    if blow.signal is signal.SIGSTOP:
        try:
            time.sleep(HELD_S.get(blow.part, USUALLY_HELD_S))  # how long the part is frozen
        finally:
            _send(victims, signal.SIGCONT)
    return began_s


def _send(victims: Sequence[psutil.Process], number: signal.Signals) -> None:
    """Whoever is killed is gone when this returns: the next blow must not hit its remains."""
    for victim in victims:
        with suppress(psutil.NoSuchProcess):
            victim.send_signal(number)
    if number is signal.SIGKILL:
        psutil.wait_procs(victims, timeout=10)


def _family(pid: int) -> list[psutil.Process]:
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def _environ(process: psutil.Process) -> Mapping[str, str]:
    with suppress(psutil.Error, OSError):
        return dict(process.environ())
    return {}


def _command(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return list(process.cmdline()) or ["?"]
    return ["?"]
