"""A compiled file runs to its end on this machine, and whatever happens is recorded and shown."""

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from multimodal_gemma import locks
from multimodal_gemma.errors import InputError
from multimodal_gemma.local import results, runner
from tests.unit.local.toy import compile_toy


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> Path:
    return compile_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "runs"


def execute(compiled: Path, runs: Path, *overrides: str, **options) -> tuple[int, dict]:
    code = runner.run("sample", overrides, runs, compiled=compiled, **options)
    return code, json.loads((runs / "latest" / "summary.json").read_text())


def statuses(summary: dict) -> dict[str, str]:
    return {stage["name"]: stage["status"] for stage in summary["stages"]}


def test_a_run_leaves_its_summary_report_and_logs(compiled, runs, capfd):
    code, summary = execute(compiled, runs)
    assert code == 0
    assert summary["status"] == "succeeded"
    assert statuses(summary) == dict.fromkeys(["preflight", "fetch", "learn", "ship", "last"], "succeeded")
    assert summary["report"] == str((runs / "latest").resolve() / "report.html")
    assert "preflight" in Path(summary["report"]).read_text()
    assert "learning" in (runs / "latest" / "logs" / "learn.log").read_text()
    out, err = capfd.readouterr()
    assert "succeeded" in out
    assert summary["report"] in out
    assert "learning" in err  # what a stage says is seen while it runs
    assert "KFP Executor" not in out + err  # what the machinery says is not


def test_stages_learn_the_run_the_registry_and_the_pipeline_that_they_belong_to(compiled, runs, capfd):
    execute(compiled, runs)
    seen = (runs / "latest" / "artifacts" / "learn" / "model" / "seen").read_text().splitlines()
    assert seen[0] == (runs / "latest").resolve().name
    assert seen[1] == f"sqlite:///{runs}/mlflow/mlflow.db"
    told = subprocess.run(["sha256sum", compiled], capture_output=True, text=True, check=True, timeout=60)
    digest = told.stdout.split()[0]
    assert seen[2] == digest
    assert "MMGEMMA_PIPELINE_DIGEST" not in os.environ  # nothing is left behind in this process


def test_a_second_run_reuses_what_may_be_cached_and_says_so(compiled, runs, capfd):
    execute(compiled, runs)
    capfd.readouterr()
    code, summary = execute(compiled, runs)
    assert code == 0
    assert statuses(summary)["fetch"] == "reused"
    assert [stage["name"] for stage in summary["stages"] if stage["cached"]] == ["fetch"]
    assert "reused" in capfd.readouterr().out


def test_a_cached_result_that_was_deleted_is_made_again(compiled, runs, capfd):
    execute(compiled, runs)
    first = (runs / "latest").resolve()
    (first / "artifacts" / "fetch" / "raw" / "data").unlink()
    (first / "artifacts" / "fetch" / "raw").rmdir()
    _, summary = execute(compiled, runs)
    assert statuses(summary)["fetch"] == "succeeded"


def test_a_refused_input_ends_with_its_sentence_and_code_2_without_waiting_for_retries(compiled, runs, capfd):
    start = time.monotonic()
    code, summary = execute(compiled, runs, "training.epochs=1")
    assert time.monotonic() - start < 30  # one retry alone would wait for 60 s
    assert code == 2
    assert summary["status"] == "failed"
    assert statuses(summary) == {
        "preflight": "succeeded",
        "fetch": "succeeded",
        "learn": "failed",
        "ship": "skipped",
        "last": "succeeded",
    }
    out = capfd.readouterr().out
    assert "learn: there is nothing to learn from. Give some data." in out
    assert "Traceback" not in out
    assert "there is nothing to learn from" in Path(summary["report"]).read_text()
    assert (runs / "latest" / "artifacts" / "last" / "word").read_text() == "FAILED"


def test_a_crash_shows_its_last_lines_and_its_log_and_ends_with_code_1(compiled, runs, capfd):
    code, summary = execute(compiled, runs, "training.epochs=2")
    assert code == 1
    out = capfd.readouterr().out
    assert "RuntimeError: it broke" in out
    assert str(runs / "latest") not in out  # the real place, which stays when latest moves on
    log = next(stage["log"] for stage in summary["stages"] if stage["name"] == "learn")
    assert log in out
    assert "RuntimeError: it broke" in Path(log).read_text()


def test_a_killed_process_is_a_failure(compiled, runs, capfd):
    code, summary = execute(compiled, runs, "training.epochs=3")
    assert code == 1
    assert statuses(summary)["learn"] == "failed"


def test_stages_leave_nothing_in_the_temporary_folder(compiled, runs, capfd, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr(tempfile, "tempdir", None)  # which remembers an earlier TMPDIR
    assert execute(compiled, runs, "training.epochs=3")[0] == 1  # a stage that was killed cannot tidy up
    assert list(scratch.iterdir()) == []


def test_a_condition_that_does_not_hold_skips_its_stage_and_the_run_succeeds(compiled, runs, capfd):
    code, summary = execute(compiled, runs, "training.epochs=4")
    assert code == 0
    assert statuses(summary)["ship"] == "skipped"


def test_mistakes_in_the_configuration_are_told_before_anything_is_made(compiled, runs):
    with pytest.raises(InputError, match="no key of preset sample"):
        runner.run("sample", ["trainig.epochs=1"], runs, compiled=compiled)
    assert not runs.exists()


def test_a_run_folder_in_use_is_refused(compiled, runs):
    with (
        locks.only_writer(runs / "mine", "test"),
        pytest.raises(InputError, match="run: another process is writing to"),
    ):
        runner.run("sample", [], runs, compiled=compiled, run_dir=runs / "mine")


def test_the_users_own_mlflow_is_used_and_its_password_not_shown(compiled, runs, monkeypatch, capfd):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@localhost:1")
    _, summary = execute(compiled, runs)
    assert summary["mlflow_uri"] == "http://me:***@localhost:1"
    assert "secret" not in capfd.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_however_a_run_ends_its_stage_ends_too_and_the_same_command_continues_it(compiled, runs, number, capfd):
    code = (
        "import sys, pathlib\nfrom multimodal_gemma.local import runner\n"
        "runner.run('sample', ['training.epochs=5'], pathlib.Path(sys.argv[1]), compiled=pathlib.Path(sys.argv[2]))\n"
    )
    hearing = functools.partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)  # under nohup it would ignore SIGHUP
    process = subprocess.Popen(
        [sys.executable, "-c", code, runs, compiled],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        preexec_fn=hearing,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(b"sleeping as "):
            break
    stage = Path(f"/proc/{int(line.split()[-1])}/status")
    first = (runs / "latest").resolve()
    assert results.state(first) == "running"
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode != 0
    deadline = time.monotonic() + 20
    while stage.exists() and "State:\tZ" not in stage.read_text():  # gone, or a corpse that nobody has collected
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert results.state(first) == "interrupted"
    if number != signal.SIGKILL:
        summary = json.loads((first / "summary.json").read_text())
        assert summary["status"] == "interrupted"
        assert statuses(summary)["learn"] == "failed"
    code, summary = execute(compiled, runs, "training.epochs=5")
    assert (code, summary["status"]) == (0, "succeeded")
    assert (runs / "latest").resolve() == first
    assert "continues, as it was interrupted" in capfd.readouterr().err
    execute(compiled, runs, "training.epochs=5")  # what has ended is not continued
    assert (runs / "latest").resolve() != first


def test_two_runs_at_once_on_a_fresh_folder_both_end_well(compiled, runs):
    code = (
        "import sys, pathlib\nfrom multimodal_gemma.local import runner\n"
        "sys.exit(runner.run('sample', [], pathlib.Path(sys.argv[1]), compiled=pathlib.Path(sys.argv[2])))\n"
    )
    begun = [subprocess.Popen([sys.executable, "-c", code, runs, compiled], stderr=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate(timeout=240)[1] for process in begun]
    assert [process.returncode for process in begun] == [0, 0], said
    assert [results.state(folder) for folder in results.newest(runs)] == ["succeeded"] * 2


def test_a_refused_version_is_exit_code_3_and_its_reason_is_told(capsys, tmp_path):
    from multimodal_gemma.local.results import Record, Results
    from multimodal_gemma.local.terminal import Terminal

    rules = [{"name": "floor", "passed": False, "reason": "0.1 is below 0.5"}]
    registered = {"name": "m", "version": "7", "alias": "challenger", "gate": "failed", "rules": rules}
    shown = Results({}, registered, {"model": tmp_path})
    records = {"learn": Record("learn", status="succeeded")}
    assert runner._exit_code(records, shown) == 3
    assert runner._exit_code(records, Results({}, {**registered, "gate": "passed"}, {})) == 0
    Terminal("the command").finished("succeeded", records, shown, tmp_path, "sqlite://")
    out = capsys.readouterr().out
    assert "the gate refused version 7: floor: 0.1 is below 0.5" in out
    assert f"mmgemma ask PICTURE QUESTION --model {tmp_path}" in out


def test_all_runs_stand_side_by_side(compiled, runs, capfd):
    from multimodal_gemma.local import terminal

    execute(compiled, runs)
    execute(compiled, runs, "training.epochs=2")
    assert [terminal.cells(folder)[0] for folder in results.newest(runs)] == ["failed", "succeeded"]
    page = (runs / "index.html").read_text()
    for folder in results.newest(runs):
        assert f'<a href="{folder.name}/report.html">' in page
    assert str(runs / "index.html") in terminal.show(runs)


def test_a_progress_bar_is_logged_in_its_last_state(tmp_path):
    from multimodal_gemma.local import process
    from multimodal_gemma.local.results import Record

    record = Record("bar", log=tmp_path / "bar.log")
    script = r"printf 'bar 1\rbar 2\rbar 3\nnext\n' >&2; echo quiet; exit 3"
    assert process.stream(["sh", "-c", script], dict(os.environ), record) == 3
    assert list(record.said) == ["bar 3", "next"]
    assert set((tmp_path / "bar.log").read_text().splitlines()) == {"bar 3", "next", "quiet"}
