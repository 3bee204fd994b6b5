"""A failed task is told to people: who, what, why; and telling never fails a task."""

from __future__ import annotations

from types import SimpleNamespace

import httpx
import pytest

from operators import notice

CONTEXT = {
    "ti": SimpleNamespace(dag_id="deliver_digits", run_id="deliver__digits__v3", task_id="golden_set"),
    "exception": ValueError("too low"),
}


def test_the_message_names_delivery_task_and_reason() -> None:
    """One line says which delivery failed at which task and why."""
    assert notice.failure_text(CONTEXT) == "deliver_digits deliver__digits__v3: golden_set failed: too low"


def test_an_unreachable_address_does_not_raise(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A notice that cannot be sent is logged, and that is all."""
    monkeypatch.setenv("PENSTOCK_NOTICE_URL", "http://127.0.0.1:1/")
    notice.tell_failure(CONTEXT)
    assert "could not be sent" in caplog.text


def test_the_message_is_posted_where_the_setting_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an address set, the line goes there as JSON."""
    sent = []
    monkeypatch.setattr(
        httpx, "post", lambda url, **kwargs: sent.append((url, kwargs["json"])) or SimpleNamespace(raise_for_status=lambda: None)
    )
    monkeypatch.setenv("PENSTOCK_NOTICE_URL", "http://chat.example/hook")
    notice.tell_failure(CONTEXT)
    assert sent == [("http://chat.example/hook", {"text": notice.failure_text(CONTEXT)})]
