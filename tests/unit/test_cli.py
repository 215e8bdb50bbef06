"""The command line: quick, and honest about what it was given."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from multimodal_gemma import cli

HEAVY = {"torch", "transformers", "mlflow", "kfp", "datasets", "pyarrow", "matplotlib", "hydra", "PIL", "numpy"}


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from multimodal_gemma import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(','.join(name for name in sys.modules if '.' not in name), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert not HEAVY & set(done.stderr.strip().split(","))
    assert "run the whole pipeline" in done.stdout


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["config", "--preset", "smaple"], "there is no preset 'smaple'"),
        (["config", "trainig.lr=1"], "'trainig.lr' is no key"),
        (["train", "nowhere", "nothing", "out"], "nowhere does not exist"),
        (["evaluate", "nowhere", "nothing", "out"], "nowhere"),
        (["export", "nowhere", "nothing", "out"], "nowhere"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(argv) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["config", "--presett", "sample"])
    assert caught.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err


def test_overrides_may_stand_after_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "training.epochs=7", "--preset", "sample", "training.seed=1"]) == 0
    out = capsys.readouterr().out
    assert '"epochs": 7' in out
    assert '"seed": 1' in out
