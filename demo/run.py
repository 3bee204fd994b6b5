"""`make demo`: the main job from beginning to end on the real stack, watched, judged and reported.

Runs in the environment `stack` (`python -m demo`). Starts the local stack on data of its own, starts the client, registers v1 to v4 by the
demo's training, triggers the retraining that makes v5, and waits for each one's outcome in the registry. It delivers nothing itself: every
delivery is started by the registry's event. Ends with a table, `report.html`, `result.json`, and exit status 1 if anything went otherwise.
With KEEP=1 in the environment the stack stays up.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import TypeVar

from demo import report
from demo.display import Display, console, display_for, story_table
from demo.expected import STORY, Ending, Expected, Record, as_said, deviations
from demo.services import Airflow, Director, NotNow, Registry, Version
from demo.stage import DemoFailed, Stage, stage_for
from demo.watch import Watch
from stack.keys import BadKeys, keys_file, read_keys
from stack.settings import BadSettings
from stack.variables import spare_loopback

MODEL = "digits"
DELIVER, RETRAIN = f"deliver_{MODEL}", f"retrain_{MODEL}"
LOOK_EVERY_S = 0.5
TRAINING_LIMIT_S = 120.0
DAGS_LIMIT_S = 90.0
START_LIMIT_S = 120.0  # an event that got lost is found by the sweep within a minute
DELIVERY_LIMIT_S = 420.0
RETRAINING_LIMIT_S = 180.0
ANSWER_LIMIT_S = 60.0
NEW_SCANNER_PERMILLE = 200  # of the requests
NEW_SCANNER_FROM_PERMILLE = 100  # the candidate's share at which it comes into use
ENDED_STATES = ("success", "failed")
INTERRUPTED = 130  # what shells say of a program that Ctrl-C ended

Found = TypeVar("Found")


class Demo:
    """The story on a stack that is up. Raises `DemoFailed` when it cannot go on."""

    def __init__(self, stage: Stage, record: Record, display: Display) -> None:
        settings, keys = stage.settings, read_keys(stage.state)
        self._stage = stage
        self._record = record
        self._display = display
        self._registry = Registry(settings.mlflow_url)
        self._airflow = Airflow(settings.airflow_url, keys.airflow_admin_password)
        director = Director(settings.director_url, keys.director_token)
        self._watch = Watch(record, model=MODEL, director=director, airflow=self._airflow, client_lines=stage.client_lines)
        self._client = stage.client(MODEL)

    def play(self) -> None:
        """From the client's first second to the last outcome."""
        self._until(lambda: self._record.lines or None, ANSWER_LIMIT_S, "the client's first second")
        self._until(lambda: self._airflow.knows(DELIVER) or None, DAGS_LIMIT_S, f"Airflow to load the DAG {DELIVER}")
        for expected in STORY:
            self._tell(expected)

    def close(self) -> None:
        """Ends the client with everything counted, and reads what it counted."""
        self._client.stop()
        self._watch.look()

    def _tell(self, expected: Expected) -> None:
        """One version, from its making to its outcome."""
        self._display.say(f"v{expected.version}: {expected.story}")
        number = self._retrain(expected) if expected.recipe == "retrain" else self._train(expected)
        if number != expected.version:
            raise DemoFailed(f"the registry made it version {number} and not {expected.version}: its data are not fresh")
        ending = self._record.endings[number] = self._ending(expected)
        self._display.say(f"v{number} {ending.outcome} at {ending.ended_at} after {ending.registration_to_outcome_s:.0f} s: {ending.why}")
        if not as_said(expected, ending):
            raise DemoFailed(f"v{number} did not end as said, so the rest was not run")

    def _train(self, expected: Expected) -> int:
        training = self._stage.train(f"train-{expected.recipe}", "--recipe", expected.recipe, "--model", MODEL)
        what = f"training of v{expected.version}"
        self._until(lambda: training.succeeded() or None, TRAINING_LIMIT_S, what, doing=what)
        return int(json.loads(training.out.read_text().splitlines()[-1])["version"])

    def _retrain(self, expected: Expected) -> int:
        """As a user would in Airflow's UI; the version appears in the registry while the run goes on."""
        run = self._airflow.trigger(RETRAIN)
        self._display.say(f"triggered {RETRAIN}: run {run}")

        def registered() -> Version | None:
            if self._airflow.run_state(RETRAIN, run) == "failed":
                raise DemoFailed(f"run {run} has failed; its log: {self._stage.settings.airflow_url}/dags/{RETRAIN}/runs/{run}")
            return self._registry.version(MODEL, expected.version)

        return self._until(registered, RETRAINING_LIMIT_S, f"{RETRAIN} to register v{expected.version}").number

    def _ending(self, expected: Expected) -> Ending:
        """Follows the delivery that the registry's event has started, until the registry names its outcome and the run is over."""
        run, name = f"deliver__{MODEL}__v{expected.version}", f"v{expected.version}"
        self._until(lambda: self._airflow.run_state(DELIVER, run) or None, START_LIMIT_S, f"{name}'s delivery to begin (run {run})")
        self._watch.follow(run)
        version, ended_unix_s = self._until(lambda: self._outcome(expected), DELIVERY_LIMIT_S, f"{name}'s outcome", doing=name)
        over = self._until(lambda: self._over(run), ANSWER_LIMIT_S, f"the end of run {run}", doing=name)
        self._display.say(f"{name}'s run has ended: {over}")
        ending = Ending(
            version=expected.version,
            registered_unix_s=version.registered_unix_s,
            ended_unix_s=ended_unix_s,
            outcome=version.outcome,
            ended_at=version.tags.get("penstock.ended_at", ""),
            why=version.tags.get("penstock.why", ""),
            production=self._until(self._production, ANSWER_LIMIT_S, "the alias production")[0],
            tasks=self._until(lambda: self._airflow.tasks(DELIVER, run) or None, ANSWER_LIMIT_S, f"the tasks of run {run}"),
        )
        self._watch.follow("")
        return ending

    def _outcome(self, expected: Expected) -> tuple[Version, float] | None:
        self._bring_new_scanner(expected)
        version = self._registry.version(MODEL, expected.version)
        return (version, time.time()) if version is not None and version.outcome else None

    def _over(self, run: str) -> str | None:
        state = self._airflow.run_state(DELIVER, run)
        return state if state in ENDED_STATES else None

    def _production(self) -> tuple[int]:
        return (self._registry.alias(MODEL, "production"),)

    def _bring_new_scanner(self, expected: Expected) -> None:
        """Once the version that has to be rolled back has its second share, images come that the golden set does not know."""
        if expected.outcome != "rolled_back" or self._stage.switch.exists() or not self._record.shares:
            return
        share = self._record.shares[-1]
        if share.candidate == expected.version and share.permille >= NEW_SCANNER_FROM_PERMILLE:
            self._stage.use_new_scanner(NEW_SCANNER_PERMILLE)
            self._record.marks.append((time.time(), "new scanner"))
            self._display.say(f"a new scanner sends {NEW_SCANNER_PERMILLE / 10:g} % of the images from now on")

    def _until(self, look: Callable[[], Found | None], limit_s: float, what: str, doing: str = "") -> Found:
        """Looks until there is something, showing what goes on. A service that does not answer just now is asked again."""
        deadline, trouble = time.monotonic() + limit_s, ""
        while time.monotonic() < deadline:
            self._tick(doing or f"waiting for {what}")
            try:
                if (found := look()) is not None:
                    return found
            except NotNow as error:
                trouble = f" Last trouble: {error}."
            time.sleep(LOOK_EVERY_S)
        raise DemoFailed(f"waited {limit_s:.0f} s for {what} in vain.{trouble} Logs: {self._stage.logs}")

    def _tick(self, doing: str) -> None:
        if self._client.process.poll() is not None:
            raise DemoFailed(f"the client ended by itself; see {self._client.errors}")
        self._watch.look()
        self._display.show(doing, self._watch)


def main(environ: Mapping[str, str]) -> int:
    """The exit status: 0 when everything went as said, 1 when not, 130 after Ctrl-C."""
    signal.signal(signal.SIGTERM, _as_interrupt)
    spare_loopback(os.environ)
    try:
        stage = stage_for(environ)
        print(f"logs of everything that the demo starts: {stage.logs}", flush=True)
        stage.fresh()
        return _with_stack(stage, keep=environ.get("KEEP") == "1")
    except KeyboardInterrupt:
        print("interrupted")
        return INTERRUPTED
    except (BadSettings, DemoFailed) as error:
        print(f"error: {error}")
        return 1


def _with_stack(stage: Stage, *, keep: bool) -> int:
    """The stack goes down whatever happened, unless it was to be kept and nobody interrupted."""
    kept = False
    try:
        status = _play(stage)
        kept = keep
    finally:
        if not kept:
            stage.down()
    if kept:
        _say_what_stays(stage)
    return status


def _play(stage: Stage) -> int:
    record = Record(started_unix_s=time.time())
    display = display_for(record)
    try:
        _raise_stack(stage, record, display)
        _tell_story(Demo(stage, record, display))
    except (DemoFailed, NotNow, BadKeys) as error:
        record.trouble.append(str(error))
    finally:
        stage.stop_programs()
        display.close()
    record.ended_unix_s = time.time()
    return _report(stage, record)


def _raise_stack(stage: Stage, record: Record, display: Display) -> None:
    display.say("starting the stack: PostgreSQL, MLflow, Airflow, director, Envoy")
    rows = stage.train("rows", "--rows", str(stage.rows))
    stage.up()
    rows.finish(TRAINING_LIMIT_S)
    record.stack_up_s = time.time() - record.started_unix_s


def _tell_story(demo: Demo) -> None:
    try:
        demo.play()
    finally:
        demo.close()


def _report(stage: Stage, record: Record) -> int:
    report.write(record, stage.state)
    console().print(story_table(record, STORY))
    wrong = deviations(record)
    print(f"{record.sum('requests'):,} requests in {record.total_s:.0f} s, {record.sum('errors')} client errors.")
    print(f"Report: {stage.state / 'report.html'}   figures: {stage.state / 'result.json'}")
    for sentence in wrong:
        print(f"NOT AS SAID: {sentence}")
    return 1 if wrong else 0


def _say_what_stays(stage: Stage) -> None:
    settings = stage.settings
    print(f"Still up: Airflow {settings.airflow_url} (user admin, password `airflow_admin_password` in {keys_file(stage.state)}),")
    print(f"MLflow {settings.mlflow_url}, models at {settings.gateway_address}. Stop it: PENSTOCK_STATE={stage.state} make down")


def _as_interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
