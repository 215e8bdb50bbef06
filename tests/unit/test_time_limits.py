"""A test that waits for ever stops everybody's tests: every process that a test starts has a time limit."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).parents[1]
CALLS = {f"subprocess.{name}" for name in ("run", "call", "check_call", "check_output")}


def unlimited(file: Path) -> list[int]:
    """Return the lines that start a process and wait for it, however long it takes."""
    calls = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    return [
        call.lineno
        for call in calls
        if (ast.unparse(call.func) in CALLS and "timeout" not in {keyword.arg for keyword in call.keywords})
        or (ast.unparse(call.func).endswith("process.communicate") and not call.args and not call.keywords)
        or (ast.unparse(call.func).endswith("process.wait") and not call.args and not call.keywords)
    ]


def test_every_process_of_the_tests_has_a_time_limit() -> None:
    found = {str(file.relative_to(TESTS)): lines for file in TESTS.rglob("*.py") if (lines := unlimited(file))}
    assert found == {}
