"""`mmgemma schedule` against a server that speaks KFP's API: one name is one schedule."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from typing import Any

import pytest

from multimodal_gemma import cli
from multimodal_gemma.cluster.kfp.schedule import coming, normal
from multimodal_gemma.errors import InputError
from tests.servers.kfp_api import KfpServer

CREATE = ["create", "nightly", "--cron", "0 3 * * *"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[KfpServer]:
    with KfpServer() as running:
        monkeypatch.setenv("KFP_HOST", running.url)
        yield running


def scheduled(*argv: str) -> int:
    return cli.main(["schedule", *argv, "--patience", "0.2"])


def only(server: KfpServer) -> dict[str, Any]:
    (record,) = server.recurring.values()
    return record


def test_a_schedule_is_created_with_what_a_run_would_get(server: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--param", "contamination=drop", "--service-account", "runner", "training.seed=3"]
    assert scheduled(*CREATE, *argv) == 0
    made = only(server)
    assert made["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * *"}}
    assert made["runtime_config"]["parameters"] == {
        "p01_preset": "sample",
        "p06_overrides": ["training.seed=3"],
        "p05_contamination": "drop",
    }
    assert (made["service_account"], made["mode"], made["no_catchup"]) == ("runner", "ENABLE", True)
    assert made["pipeline_version_reference"]["pipeline_version_id"] in server.versions
    said = capsys.readouterr().out
    assert "0 0 3 * * *" in said
    assert "UTC unless its CRON_SCHEDULE_TIMEZONE is set" in said


def test_creating_it_again_changes_nothing(server: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert scheduled(*CREATE) == 0
    before = only(server)
    assert scheduled(*CREATE) == 0
    assert "nothing was changed" in capsys.readouterr().out
    assert only(server) is before
    assert server.count("POST", "/upload_version") == 1


@pytest.mark.parametrize("changed", [["--cron", "0 4 * * *"], ["training.epochs=9"], ["--no-cache"]])
def test_other_settings_replace_it(server: KfpServer, capsys: pytest.CaptureFixture[str], changed: list[str]) -> None:
    assert scheduled(*CREATE) == 0
    before = only(server)["recurring_run_id"]
    assert scheduled(*CREATE, *changed) == 0
    assert "is changed" in capsys.readouterr().out
    assert only(server)["recurring_run_id"] != before
    assert server.killed == []  # its runs go on


def test_the_old_one_stays_when_the_new_one_cannot_be_made(
    server: KfpServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scheduled(*CREATE) == 0
    before = only(server)
    server.misbehave(400, method="POST", contains="/recurringruns", body='{"error": "no", "code": 3}')
    assert scheduled(*CREATE, "training.epochs=9") == 2
    assert only(server) is before


def test_a_change_that_was_interrupted_leaves_one_in_the_end(
    server: KfpServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scheduled(*CREATE) == 0
    server.misbehave(404, method="DELETE", body='{"error": "gone", "code": 5}')
    assert scheduled(*CREATE, "training.epochs=9") == 2
    assert len(server.recurring) == 2
    assert scheduled(*CREATE, "training.epochs=9") == 0
    assert only(server)["runtime_config"]["parameters"]["p06_overrides"] == ["training.epochs=9"]


def test_a_connection_that_breaks_while_it_is_made_does_not_leave_two(
    server: KfpServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.misbehave(cut="after", method="POST", contains="/recurringruns")
    assert scheduled(*CREATE) == 0
    only(server)


def test_pausing_survives_a_change(server: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert scheduled(*CREATE) == 0
    assert scheduled("pause", "nightly") == 0
    assert only(server)["status"] == "DISABLED"
    assert scheduled(*CREATE, "--cron", "0 5 * * *") == 0
    assert only(server)["status"] == "DISABLED"
    assert "It is paused, as it was" in capsys.readouterr().out
    assert scheduled("resume", "nightly") == 0
    assert only(server)["status"] == "ENABLED"


def test_the_list_says_when_each_comes(server: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert scheduled("list") == 0
    assert "no schedule" in capsys.readouterr().out
    for number in range(3):
        assert scheduled("create", f"weekly-{number}", "--cron", f"0 3 * * {number}") == 0
    assert scheduled("pause", "weekly-1") == 0
    capsys.readouterr()
    assert scheduled("list") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[:2] for row in rows] == [["weekly-0", "active"], ["weekly-1", "paused"], ["weekly-2", "active"]]
    assert [row[8] for row in (rows[0], rows[2])] == ["Sun", "Tue"]
    assert all(row[-1] == "multimodal-gemma" for row in rows)
    assert scheduled("list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)["schedules"]
    assert [item["cron"] for item in listed] == ["0 0 3 * * 0", "0 0 3 * * 1", "0 0 3 * * 2"]


def test_deleting_keeps_the_others(server: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert scheduled(*CREATE) == 0
    assert scheduled("create", "weekly", "--cron", "0 3 * * 1") == 0
    assert scheduled("delete", "nightly") == 0
    assert only(server)["display_name"] == "weekly"
    assert server.killed == []


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["create", "nightly", "--cron", "tomorrow"], "'tomorrow' is no cron expression"),
        (["create", "nightly"], "when? Give --cron"),
        (["create", "--cron", "0 3 * * *"], "create which? Give a name"),
        (["create", "nightly", "--cron", "0 3 * * *", "--param", "epochs=1"], "no parameter 'epochs'"),
        (["create", "nightly", "--cron", "0 3 * * *", "--experiment", "none"], "no experiment 'none'"),
        (["pause", "nightli"], "no schedule 'nightli'. Did you mean 'nightly'?"),
        (["delete"], "delete which?"),
    ],
)
def test_a_mistake_is_one_sentence(
    server: KfpServer, capsys: pytest.CaptureFixture[str], argv: list[str], said: str
) -> None:
    if argv[0] == "pause":
        assert scheduled(*CREATE) == 0
    assert scheduled(*argv) == 2
    assert said in capsys.readouterr().err
    assert len(server.recurring) == (argv[0] == "pause")


def test_a_dry_run_sends_nothing(server: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert scheduled(*CREATE, "--dry-run") == 0
    assert json.loads(capsys.readouterr().out)["cron"] == "0 0 3 * * *"
    assert server.requests == []


# Cron expressions: five fields and six, what never comes, and when the others do.

MONDAY = datetime.datetime(2026, 11, 23, 12, 0, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("0 3 * * 1", "0 0 3 * * 1"),
        ("30 0 3 * * 1", "30 0 3 * * 1"),
        ("  */15   * * * * ", "0 */15 * * * *"),
        ("@daily", "0 0 0 * * *"),
        ("0 3 ? JAN-MAR mon,fri", "0 0 3 ? JAN-MAR mon,fri"),
        ("0 0 29 2 *", "0 0 0 29 2 *"),
    ],
)
def test_five_fields_get_a_second(given: str, sent: str) -> None:
    assert normal(given) == sent


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "is no cron expression"),
        ("every monday", "is no cron expression"),
        ("0 3 * *", "Give five fields"),
        ("0 0 3 * * 1 2026", "Give five fields"),
        ("60 3 * * 1", "out of range"),
        ("0 24 * * *", "out of range"),
        ("0 3 0 * *", "out of range"),
        ("0 3 * 13 *", "out of range"),
        ("0 3 * * 7", "days of the week are 0 (Sunday) to 6"),
        ("0 3 * * L5", "days of the week are 0 (Sunday) to 6"),
        ("0 3 * * mo", "is no cron expression"),
        ("5-1 * * * *", "KFP does not read '5-1'"),
        ("*/0 * * * *", "step '0'"),
        ("*/x * * * *", "KFP does not read '*/x'"),
        ("1,,2 * * * *", "KFP does not read '1,,2'"),
        ("0 0 30 2 *", "never comes"),
    ],
)
def test_what_is_none_is_refused_with_the_field_that_is_wrong(given: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        normal(given)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("cron", "moments"),
    [
        ("0 0 3 * * 1", ["2026-11-30 03:00:00", "2026-12-07 03:00:00"]),
        ("0 */20 * * * *", ["2026-11-23 12:20:00", "2026-11-23 12:40:00"]),
        ("10 59 23 31 * *", ["2026-12-31 23:59:10", "2027-01-31 23:59:10"]),
        ("0 0 0 29 2 *", ["2028-02-29 00:00:00"]),
        ("0 0 9 1 * MON", ["2026-11-30 09:00:00", "2026-12-01 09:00:00"]),  # two restrictions: either
        ("0 0 6-8/2 * * *", ["2026-11-24 06:00:00", "2026-11-24 08:00:00"]),
    ],
)
def test_the_coming_moments_are_those_of_the_calendar(cron: str, moments: list[str]) -> None:
    found = coming(cron, MONDAY, len(moments))
    assert [f"{moment:%Y-%m-%d %H:%M:%S}" for moment in found] == moments
