"""Other benchmarks, asked and scored by lmms-eval, a program that needs an environment of its own.

It loads a folder by stock transformers (its adapter `llava_hf`) and fetches what a task asks from the Hugging Face Hub.
Some of its habits are met here. It ends with code 0 when it failed: only a results file counts. It prints the hub's
token and writes it into that file: neither is kept. It stops an answer at the tokenizer's end-of-text token alone, and
lets the tokenizer put a second BOS before the one of the chat template: the folder that it is given names the end of a
turn as the end of text, and has a template without BOS.

Held against lmms-eval 0.7.3.
"""

from __future__ import annotations

import ctypes
import difflib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multimodal_gemma import files, logs
from multimodal_gemma.errors import InputError

if TYPE_CHECKING:
    from multimodal_gemma.config.schema import EvaluationConfig

FOLDER = "lmms"  # of an evaluation: a file of scores and one of answers by task
Found = dict[str, dict[str, Any]]
_ADAPTER = "llava_hf"
_PRECISIONS = {"fp32": "float32", "bf16": "bfloat16"}
_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASS|CREDENTIAL", re.IGNORECASE)
_SHORTEST_SECRET = 6  # characters; a shorter value may be a word like "true"
_LINES = 12  # of a failed program
_PR_SET_PDEATHSIG = 1  # linux/prctl.h; stays set in the program that takes the process over
_DIE_WITH_PARENT = (
    f"import ctypes, os, sys; ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, {signal.SIGKILL:d}); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)
_log = logs.get("lmms-eval")


def require(settings: EvaluationConfig) -> tuple[str, str]:
    """Return the program's path and its version, if it is there and knows every task.

    Args:
        settings: names the program, the tasks and the folder of further tasks.

    Raises:
        InputError: it is not there, does not run, or a task is unknown to it.
    """
    found = shutil.which(os.path.expanduser(settings.lmms_command))  # noqa: PTH111 - of a Path, which makes a Path
    if found is None:
        raise InputError(
            f"evaluate: evaluation.lmms asks for {', '.join(settings.lmms)}, but there is no program "
            f"{settings.lmms_command!r} on this machine. Install lmms-eval in an environment of its own and name its "
            "program in evaluation.lmms_command (docs/evaluation.md), or leave evaluation.lmms empty."
        )
    program = str(Path(found).absolute())
    more = _more_tasks(settings)
    with tempfile.TemporaryDirectory(prefix="mmgemma-lmms-") as name:
        said = Path(name) / "tasks.txt"
        code = _call(program, ["tasks", "list", *(["--include-path", more] if more else [])], Path(name), said)
        text = said.read_text(encoding="utf-8", errors="replace")
        known = re.findall(r"^  (\S+)$", text, re.MULTILINE)
        if code or not known:
            raise _failed(program, text, "could not list its tasks")
        _call(program, ["version"], Path(name), said)
        stated = re.search(r"^lmms-eval (\S+)$", said.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    for task in settings.lmms:
        if task not in known:
            near = difflib.get_close_matches(task, known, n=3)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise InputError(
                f"evaluate: evaluation.lmms holds {task!r}, which {program} does not know.{hint} "
                "`lmms-eval tasks list` prints what it knows."
            )
    return program, stated[1] if stated else "unknown"


def run(program: str, settings: EvaluationConfig, model: Path, output: Path, identity: str) -> Found:
    """Have every task asked and scored; one that was finished earlier is not asked again.

    Args:
        program: its path.
        settings: tasks, device and precision.
        model: stock Llava folder.
        output: the evaluation, in whose folder lmms/ scores and answers are kept.
        identity: digest of what scores depend on.

    Returns:
        By task `questions`, `scores` (by metric) and `tasks` (the parts of a group, likewise).

    Raises:
        InputError: the program failed.
    """
    from multimodal_gemma.training.device import choose_device, choose_precision

    device = choose_device(settings.device, "evaluation.device")
    dtype = _PRECISIONS[choose_precision(settings.precision, device, "evaluation.precision")]
    loading = ["--model", _ADAPTER, "--model_args", f"pretrained=model,dtype={dtype},device_map={device}"]
    asking = ["--device", device, "--batch_size", "1", "--log_samples", "--verbosity", "WARNING"]
    more = _more_tasks(settings)
    asking += ["--include_path", more] if more else []
    found = _finished(output / FOLDER, settings.lmms, identity)
    for task in settings.lmms:
        if task in found:
            continue
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="mmgemma-lmms-") as name:
            place, said = Path(name), Path(name) / "said.txt"
            stage(model, place / "model")
            _log.info(f"{task}: begins; what the program says is in {said} meanwhile")
            _call(program, [*loading, "--tasks", task, *asking, "--output_path", "out"], place, said)
            text = said.read_text(encoding="utf-8", errors="replace")
            results = sorted(place.glob("out/*/*_results.json"))
            if not results:
                raise _failed(program, text, f"failed in task {task}")
            if broken := re.search(r"Error .* in generating", text):  # it scores such a question as answered by ""
                raise _failed(program, text[: broken.end()], f"could not have every question of {task} answered")
            found[task] = read(files.read_json(results[-1], "lmms-eval"), task)
            for samples in sorted(place.glob("out/*/*_samples_*.jsonl")):
                part = samples.stem.partition("_samples_")[2]
                files.write_jsonl(output / FOLDER / f"{part}.answers.jsonl", _answers(samples))
        files.write_json(output / FOLDER / f"{task}.json", {"identity": identity, "found": found[task]})
        _log.info(f"{task}: {_spoken(found[task])}, in {time.monotonic() - began:.0f} s")
    return {task: found[task] for task in settings.lmms}


def read(results: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Return what a results file of lmms-eval says of a task; of a group, what it says of each part too.

    A value that is no finite number (a metric that no question of the task has, the score of a hidden test split) is
    left out: it is stated as `[]`, "N/A" or null.

    Raises:
        InputError: it says nothing of the task.
    """
    stated, sizes = results.get("results", {}), results.get("n-samples", {})
    parts = {}
    for name, values in stated.items():
        scores = {}
        for key, value in values.items():
            metric, comma, kind = key.partition(",")
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if comma and number and "_stderr" not in metric:
                scores[metric if kind == "none" else f"{metric} ({kind})"] = float(value)
        parts[name] = {"questions": int(sizes.get(name, {}).get("effective", 0)), "scores": scores}
    own = parts.pop(task, {"questions": 0, "scores": {}})
    if not own["scores"] and not any(part["scores"] for part in parts.values()):
        raise InputError(
            f"evaluate: lmms-eval scored nothing in task {task}: its questions may have no published answers. "
            "Take it out of evaluation.lmms."
        )
    return {**own, "tasks": parts}


def stage(model: Path, folder: Path) -> None:
    """Lay out a model by links, so that the adapter asks it as we do.

    Args:
        model: stock Llava folder.
        folder: to be made; its name must have no comma, at which the program cuts its arguments.
    """
    from multimodal_gemma.evaluation import loading, prompts

    folder.mkdir()
    for path in model.resolve().iterdir():
        if path.is_file():
            (folder / path.name).symlink_to(path)
    processor = loading.check(model)
    tokenizer, end = processor.tokenizer, prompts.end_of_turn(processor)
    config = folder / "tokenizer_config.json"
    if end is not None and config.is_file():
        stated = files.read_json(config, "lmms-eval")
        files.write_json(config, {**stated, "eos_token": str(tokenizer.convert_ids_to_tokens(end))})
    prompter = prompts.Prompter(processor)
    begins = tokenizer("?")["input_ids"][:1] == [tokenizer.bos_token_id]
    if begins and not prompter.adds_special_tokens(prompter.render("?")):
        for name in ("chat_template.json", "chat_template.jinja"):
            (folder / name).unlink(missing_ok=True)
        files.write_text(folder / "chat_template.jinja", f"{{%- set bos_token = '' -%}}{processor.chat_template}")


def rows(found: Mapping[str, Any]) -> list[tuple[str, str, float, int]]:
    """Return (task, metric, value, questions), the parts of a group after it."""
    table = []
    for task, stated in found.items():
        for name, part in ((task, stated), *stated["tasks"].items()):
            table += [(name, metric, value, part["questions"]) for metric, value in part["scores"].items()]
    return table


def flat(found: Mapping[str, Any]) -> dict[str, float]:
    """Return the scores by flat name, e.g. `lmms_gqa_exact_match`, in letters that MLflow takes."""
    return {"_".join(["lmms", task, *re.findall(r"[\w.-]+", metric)]): value for task, metric, value, _ in rows(found)}


def _more_tasks(settings: EvaluationConfig) -> str:
    """Return the folder of further tasks, absolute; "" for none."""
    if not settings.lmms_include:
        return ""
    folder = Path(settings.lmms_include).expanduser().resolve()
    if not any(folder.rglob("*.yaml")):
        raise InputError(f"evaluate: evaluation.lmms_include={settings.lmms_include} holds no task (a .yaml file).")
    return str(folder)


def _finished(folder: Path, tasks: Sequence[str], identity: str) -> Found:
    """Return what an unfinished evaluation has already; a folder with anything else in it is emptied."""
    kept = {path.stem: files.read_json(path, "lmms-eval") for path in folder.glob("*.json")}
    if any(task not in tasks or earlier.get("identity") != identity for task, earlier in kept.items()):
        shutil.rmtree(folder)
        return {}
    return {task: earlier["found"] for task, earlier in kept.items()}


def _call(program: str, arguments: Sequence[str], folder: Path, said: Path) -> int:
    """Run the program in a folder, all that it says into a file; it ends when this process does, however that ends."""
    command = [program, *arguments]
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "prctl"):
        command = [sys.executable, "-I", "-c", _DIE_WITH_PARENT, *command]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    try:
        with said.open("wb") as sink:
            done = subprocess.run(
                command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, check=False
            )
    except OSError as error:
        raise InputError(f"evaluate: {program} cannot be started ({error.strerror}).") from None
    return done.returncode


def _failed(program: str, text: str, what: str) -> InputError:
    """Return the sentence for a program that failed, and log the last that it said, without secrets."""
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, f"({name})")
    text = re.sub(r"(://)[^/\s@]+@", r"\1", re.sub(r"\x1b\[[0-9;]*m", "", text))
    last = [line.rpartition("\r")[2].strip() for line in text.splitlines()]
    last = [line for line in last if line][-_LINES:]
    for line in last:
        _log.warning(line)
    reason = next((line for line in reversed(last) if re.match(r"[\w.]*(Error|Exception)\b", line)), (last or [""])[-1])
    return InputError(
        f"evaluate: {program} {what} ({reason[:300].rstrip('.') or 'it said nothing'}). Mend that, or leave the task "
        "out of evaluation.lmms; what was answered before is kept."
    )


def _answers(samples: Path) -> list[dict[str, Any]]:
    """Return the answers of a file of samples: number of the question in its task, what was asked, said and true."""
    kept = []
    for line in samples.read_text(encoding="utf-8").split("\n"):
        if line:
            row = json.loads(line)
            kept.append(
                {
                    "number": row["doc_id"],
                    "question": row["input"],
                    "answer": row["filtered_resps"],
                    "truth": row["target"],
                }
            )
    return kept


def _spoken(found: Mapping[str, Any]) -> str:
    return ", ".join(f"{metric} {value:.4g}" for _, metric, value, _ in rows({"": found})[:4]) or "no score"
