"""What the checks found, for a person, a machine and a run that must not begin."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Literal

from multimodal_gemma import logs
from multimodal_gemma.errors import InputError

State = Literal["ok", "failed", "unknown"]

_MARKS = {"ok": "✓", "failed": "✗", "unknown": "?"}
_log = logs.get("preflight")


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        check: what was looked at, e.g. "quota".
        state: "unknown" where it could not be found out; a run is not stopped for that.
        told: what is so, in words.
        remedy: what to do where it failed, as a sentence.
    """

    check: str
    state: State
    told: str
    remedy: str = ""


def ok(check: str, told: str) -> Finding:
    """Everything is as a run needs it."""
    return Finding(check, "ok", told)


def failed(check: str, told: str, remedy: str) -> Finding:
    """A run would fail or wait for ever."""
    return Finding(check, "failed", told, remedy)


def unknown(check: str, told: str, remedy: str = "") -> Finding:
    """It could not be found out."""
    return Finding(check, "unknown", told, remedy)


def require(findings: Sequence[Finding]) -> None:
    """Log what was found.

    Raises:
        InputError: something failed; the sentences of all of it.
    """
    for finding in findings:
        _log.info(f"{finding.check}: {finding.told}")
    wrong = [f"{finding.told}. {finding.remedy}" for finding in findings if finding.state == "failed"]
    if wrong:
        raise InputError("preflight: " + " ".join(wrong))


def table(findings: Sequence[Finding]) -> str:
    """Return what was found for a person to read, a remedy under what failed."""
    width = max(len(finding.check) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{_MARKS[finding.state]} {finding.check:<{width}}  {finding.told}")
        if finding.remedy:
            lines.append(f"  {'':<{width}}  → {finding.remedy}")
    failed = sum(finding.state == "failed" for finding in findings)
    unknown = sum(finding.state == "unknown" for finding in findings)
    rest = f", {unknown} could not be found out" if unknown else ""
    last = (
        f"{failed} of {len(findings)} checks failed{rest}" if failed else f"{len(findings)} checks, none failed{rest}"
    )
    return "\n".join([*lines, last])


def as_json(findings: Sequence[Finding]) -> str:
    """Return what was found for a machine to read."""
    failed = any(finding.state == "failed" for finding in findings)
    return json.dumps({"passed": not failed, "checks": [dataclasses.asdict(finding) for finding in findings]})
