"""The command `mmgemma`: parses and dispatches, nothing else."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from multimodal_gemma import __version__, environment, logs
from multimodal_gemma.config import compose, presets, to_json
from multimodal_gemma.config.schema import Config
from multimodal_gemma.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code (0 done, 1 failed, 2 a mistake in what was given)."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    stray = [word for word in rest if word.startswith("-") or "=" not in word]
    if stray:
        parser.error(f"unrecognized arguments: {' '.join(stray)}")
    args.overrides = rest
    logs.setup(quiet=args.quiet)
    environment.prepare()
    try:
        result: int = args.command(args)
    except InputError as error:
        print(f"mmgemma: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mmgemma: interrupted; run the same command again to continue.", file=sys.stderr)
        return 130
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mmgemma",
        description="Train, evaluate and ship small vision-language models. Any configuration key can be overridden "
        "with section.key=value, e.g. training.epochs=1; `mmgemma config` prints them all.",
    )
    parser.add_argument("--version", action="version", version=f"mmgemma {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = _add(commands, "run", _run, "run the whole pipeline on this machine")
    run.set_defaults(preset_default="sample")
    run.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs (default: runs)")
    run.add_argument("--run-dir", type=Path, help="folder of this run (default: RUNS/<time>-<preset>)")

    download = _add(commands, "download", _download, "fetch the dataset, the benchmarks or the base models")
    download.add_argument("what", choices=["dataset", "benchmarks", "models"])
    download.add_argument("output", type=Path)

    preprocess = _add(commands, "preprocess", _preprocess, "turn a raw dataset into token and pixel arrays")
    _folders(preprocess, "raw", "models", "output")
    preprocess.add_argument("--benchmarks", type=Path, help="check the training split against these")

    train = _add(commands, "train", _train, "train projector and adapters on a processed dataset")
    _folders(train, "dataset", "models", "output")

    evaluate = _add(commands, "evaluate", _evaluate, "score a model on POPE and VQA")
    _folders(evaluate, "model", "benchmarks", "output")

    register = _add(commands, "register", _register, "record a model in MLflow and decide whether it is champion")
    _folders(register, "model", "evaluation", "output")
    register.add_argument("--dataset", type=Path, help="the processed dataset, to record its digest and report")

    export = _add(commands, "export", _export, "write the deployable folders of a trained model")
    _folders(export, "model", "evaluation", "output")
    export.add_argument("--registration", type=Path, help="refuse to export unless this registration passed the gate")

    promote = _add(commands, "promote", _promote, "make a registered version the champion")
    promote.add_argument("version")
    promote.add_argument("--dry-run", action="store_true", help="say what would change, and change nothing")
    rollback = _add(commands, "rollback", _rollback, "give the champion alias back to the previous champion")
    rollback.add_argument("--dry-run", action="store_true", help="say what would change, and change nothing")

    _add(commands, "config", _config, "print the whole configuration of a preset and overrides, as JSON")
    return parser


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    command: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", usage=f"mmgemma {name} … [key=value …]"
    )
    parser.add_argument("--preset", help=f"one of {', '.join(presets())}")
    parser.add_argument("--quiet", action="store_true", help="only warnings")
    parser.set_defaults(command=command, preset_default="llava-150k")
    return parser


def _folders(parser: argparse.ArgumentParser, *names: str) -> None:
    for name in names:
        parser.add_argument(name, type=Path, metavar=name.upper())


def _compose(args: argparse.Namespace) -> Config:
    return compose(args.preset or args.preset_default, args.overrides)


def _run(args: argparse.Namespace) -> int:
    from multimodal_gemma.local import runner

    return runner.run(args.preset or args.preset_default, args.overrides, args.runs, run_dir=args.run_dir)


def _download(args: argparse.Namespace) -> int:
    from multimodal_gemma.stages import download

    download.run(_compose(args), args.what, args.output)
    return 0


def _preprocess(args: argparse.Namespace) -> int:
    from multimodal_gemma.stages import preprocess

    preprocess.run(_compose(args), args.raw, args.models, args.benchmarks, args.output)
    return 0


def _train(args: argparse.Namespace) -> int:
    from multimodal_gemma.stages import train

    train.run(_compose(args), args.dataset, args.models, args.output)
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from multimodal_gemma.stages import evaluate

    evaluate.run(_compose(args), args.model, args.benchmarks, args.output)
    return 0


def _register(args: argparse.Namespace) -> int:
    from multimodal_gemma.stages import register

    register.run(_compose(args), args.model, args.evaluation, args.output, dataset=args.dataset)
    return 0


def _export(args: argparse.Namespace) -> int:
    from multimodal_gemma.stages import export

    export.run(_compose(args), args.model, args.evaluation, args.registration, args.output)
    return 0


def _promote(args: argparse.Namespace) -> int:
    from multimodal_gemma.registry import promote

    print(promote.promote(_compose(args).registry, args.version, dry_run=args.dry_run))
    return 0


def _rollback(args: argparse.Namespace) -> int:
    from multimodal_gemma.registry import promote

    print(promote.rollback(_compose(args).registry, dry_run=args.dry_run))
    return 0


def _config(args: argparse.Namespace) -> int:
    import json

    print(json.dumps(json.loads(to_json(_compose(args))), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
