"""A program that stands for lmms-eval, and results as version 0.7.3 wrote them here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# As lmms-eval 0.7.3 wrote them, shortened to what is read: a group of two tasks, of which only one metric has values.
NO_VALUES = {f"pope_{name}{kind},none": [] for name in ("precision", "recall") for kind in ("", "_stderr")}
POPE = {
    "alias": " - local_pope",
    "pope_accuracy,none": 0.9,
    "pope_accuracy_stderr,none": "N/A",
    "pope_accuracy_stderr_clt,none": 0.039056673294247155,
    "pope_accuracy_stderr_clustered,none": "N/A",
    **NO_VALUES,
}
RESULTS: dict[str, Any] = {
    "results": {"local_group": {" ": " ", "alias": "local_group"}, "local_pope": POPE, "again": {**POPE}},
    "group_subtasks": {"local_group": ["local_pope", "again"]},
    "n-samples": {
        "local_pope": {"original": 60, "effective": 60},
        "again": {"original": 60, "effective": 60},
    },
    "lmms_eval_version": "unknown@unknown",
}
SAMPLE = {
    "doc_id": 0,
    "target": "yes",
    "filtered_resps": "yes",
    "input": "Is there an umbrella in the image?\nAnswer the question using a single word or phrase.",
    "input_media": ["/a/folder/of/this/machine.jpg"],
}
# Stands for the program: what it was called with goes into its own folder, and it ends with 0 whatever happened.
PROGRAM = """#!{python}
import json, os, pathlib, sys
given, here = sys.argv[1:], pathlib.Path({folder!r})
if given[0] == "tasks":
    sys.exit(print("Available tasks (3):\\n\\n  gqa\\n  local_group\\n  mme"))
if given[0] == "version":
    sys.exit(print("lmms-eval 0.7.3\\nPython     3.11.7"))
with (here / "calls.jsonl").open("a") as calls:
    print(json.dumps([given, json.load(open("model/tokenizer_config.json"))]), file=calls)
{act}
out = pathlib.Path("out/model")
out.mkdir(parents=True)
(out / "20261127_014830_results.json").write_text((here / "results.json").read_text())
(out / "20261127_014830_samples_local_pope.jsonl").write_text((here / "sample.json").read_text() + "\\n")
"""


def write(folder: Path, *tasks: str, act: str = "") -> list[str]:
    """Write a program that does `act` before it writes results; return the overrides that have it asked."""
    path = folder / "lmms-eval"
    path.write_text(PROGRAM.format(python=sys.executable, folder=str(folder), act=act))
    path.chmod(0o755)
    (folder / "results.json").write_text(json.dumps(RESULTS))
    (folder / "sample.json").write_text(json.dumps(SAMPLE))
    return [f"evaluation.lmms=[{','.join(tasks or ('local_group',))}]", f"evaluation.lmms_command={path}"]
