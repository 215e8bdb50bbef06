"""The command `mmgemma`: parses and dispatches, nothing else."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from multimodal_gemma import __version__, environment, files, logs
from multimodal_gemma.cluster import commands as cluster
from multimodal_gemma.cluster.commands import LOCKED
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
    try:
        environment.prepare()
        if getattr(args, "locked", None):
            from multimodal_gemma.data import downloads

            args.overrides = [*rest, *downloads.locked_overrides(args.locked)]
        result: int = args.command(args)
    except InputError as error:
        print(f"mmgemma: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"mmgemma: {files.unwritable(Path(error.filename or 'a file'), error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mmgemma: interrupted; the same command continues.", file=sys.stderr)
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
    run.add_argument("--locked", **LOCKED)
    run.add_argument("--runner", choices=["subprocess", "docker"], default="subprocess", help="how components run")

    runs = _add(commands, "runs", _runs, "show all runs of this machine side by side")
    runs.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs (default: runs)")

    download = _add(commands, "download", _download, "fetch the dataset, the benchmarks or the base models")
    download.add_argument("what", choices=["dataset", "benchmarks", "models"])
    download.add_argument("output", type=Path)
    download.add_argument("--locked", **LOCKED)

    mirror = _add(commands, "mirror", _mirror, "copy data and base models into S3, for clusters without internet")
    mirror.add_argument("destination", help="s3://BUCKET/PREFIX")
    mirror.add_argument("--work", type=Path, default=Path("mirror"), help="folder to download into (default: mirror)")
    mirror.add_argument("--only", choices=["dataset", "benchmarks", "models"], action="append", help="copy only this")
    mirror.add_argument("--locked", **LOCKED)
    mirror.add_argument("--read-back", action="store_true", help="read every object again and compare its sha256")

    preprocess = _add(commands, "preprocess", _preprocess, "turn a raw dataset into token and pixel arrays")
    _folders(preprocess, "raw", "models", "output")
    preprocess.add_argument("--benchmarks", type=Path, help="check the training split against these")

    show = _add(commands, "show", _show, "print a conversation of a processed dataset, with what is learnt of it")
    show.add_argument("dataset", type=Path, metavar="DATASET")
    show.add_argument("row", type=int, nargs="?", default=0, metavar="ROW", help="from 0 (default: 0)")
    show.add_argument("--split", choices=["train", "val"], default="train", help="default: train")

    train = _add(commands, "train", _train, "train projector and adapters on a processed dataset")
    _folders(train, "dataset", "models", "output")

    evaluate = _add(commands, "evaluate", _evaluate, "score a model on POPE and VQA")
    evaluate.add_argument(
        "model", metavar="MODEL", help="a folder, models:/NAME@champion, s3://BUCKET/PREFIX or ORG/NAME"
    )
    _folders(evaluate, "benchmarks", "output")
    evaluate.add_argument("--dataset", type=Path, help="the processed dataset that it learnt from, for validation loss")

    register = _add(commands, "register", _register, "record a model in MLflow and decide whether it is champion")
    _folders(register, "model", "evaluation", "output")
    register.add_argument("--dataset", type=Path, help="the processed dataset, to record its digest and report")
    register.add_argument("--benchmarks", type=Path, help="what it was scored on, to show pictures of won and lost")

    export = _add(commands, "export", _export, "write the deployable folders of a trained model")
    for folder in ("model", "evaluation", "output"):
        export.add_argument(folder, type=Path, metavar=folder.upper(), nargs="?")
    export.add_argument("--registration", type=Path, help="refuse to export unless this registration passed the gate")
    export.add_argument("--verify", type=Path, metavar="DIR", help="check a finished export instead of writing one")
    export.add_argument("--benchmarks", type=Path, help="score the 8-bit weights on them too (export.formats=[int8])")
    export.add_argument(
        "--publish", metavar="PLACE", help="with --verify: upload it to s3://BUCKET/PREFIX or hf://ORG/NAME"
    )

    ask = _add(commands, "ask", _ask, "ask a model about a picture")
    ask.add_argument("image", metavar="IMAGE", help="a file, or an https:// address on one of data.allowed_hosts")
    ask.add_argument("question", metavar="QUESTION")
    describe = _add(commands, "describe", _describe, "describe a folder of pictures, as a page and as JSON lines")
    describe.add_argument("folder", type=Path, metavar="FOLDER")
    describe.add_argument("--output", type=Path, default=Path("descriptions"), help="default: descriptions")
    describe.add_argument("--question", default="Describe the image concisely.", help="what each picture is asked")
    demo = _add(commands, "demo", _demo, "chat about pictures in the browser")
    demo.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    demo.add_argument("--port", type=int, default=7860, help="0 takes a free one (default: 7860)")
    demo.add_argument("--examples", type=Path, metavar="FOLDER", help="pictures to offer (default: drawn scenes)")
    for command in (ask, describe, demo):
        _model(command)

    promote = _add(commands, "promote", _promote, "make a registered version the champion")
    promote.add_argument("version")
    promote.add_argument("--dry-run", action="store_true", help="say what would change, and change nothing")
    rollback = _add(commands, "rollback", _rollback, "give the champion alias back to the previous champion")
    rollback.add_argument("--dry-run", action="store_true", help="say what would change, and change nothing")

    plan = _add(commands, "plan", _plan, "estimate time, memory and cost of a training on each kind of GPU")
    plan.add_argument("--models", type=Path, help="base models, where they are none that is known")
    plan.add_argument("--dataset", type=Path, help="a processed dataset, for its lengths")
    plan.add_argument("--benchmark", type=Path, help="a result of benchmarks/train_step.py --device cuda --out")

    cluster.add(commands, _add)
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


def _model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="./runs/latest",  # by its dot no name of a hub
        help="folder of a model, an export or a run; models:/NAME@champion; s3://BUCKET/PREFIX; ORG/NAME of a hub "
        "(default: runs/latest)",
    )


def _compose(args: argparse.Namespace) -> Config:
    return compose(args.preset or args.preset_default, args.overrides)


def _run(args: argparse.Namespace) -> int:
    from multimodal_gemma.local import runner

    preset = args.preset or args.preset_default
    return runner.run(preset, args.overrides, args.runs, runner=args.runner, run_dir=args.run_dir)


def _runs(args: argparse.Namespace) -> int:
    from multimodal_gemma.local import terminal

    print(terminal.show(args.runs.expanduser().absolute()))
    return 0


def _download(args: argparse.Namespace) -> int:
    from multimodal_gemma.stages import download

    download.run(_compose(args), args.what, args.output)
    return 0


def _mirror(args: argparse.Namespace) -> int:
    from multimodal_gemma.stages import mirror

    parts = args.only or mirror.PARTS
    summary = mirror.run(_compose(args), parts, args.work, args.destination, read_back=args.read_back)
    print("\n".join(summary.facts.values()))
    return 0


def _preprocess(args: argparse.Namespace) -> int:
    from multimodal_gemma.stages import preprocess

    preprocess.run(_compose(args), args.raw, args.models, args.benchmarks, args.output)
    return 0


def _show(args: argparse.Namespace) -> int:
    from multimodal_gemma.data import processed, report

    report.show(processed.ProcessedDataset(args.dataset), args.split, args.row)
    return 0


def _train(args: argparse.Namespace) -> int:
    from multimodal_gemma.stages import train

    train.run(_compose(args), args.dataset, args.models, args.output)
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from multimodal_gemma.registry import resolve
    from multimodal_gemma.stages import evaluate

    config = _compose(args)
    model = resolve.resolve_model(args.model, config)
    evaluate.run(config, model, args.benchmarks, args.output, dataset=args.dataset)
    return 0


def _register(args: argparse.Namespace) -> int:
    from multimodal_gemma.stages import register

    beside = {"dataset": args.dataset, "benchmarks": args.benchmarks}
    register.run(_compose(args), args.model, args.evaluation, args.output, **beside)
    return 0


def _export(args: argparse.Namespace) -> int:
    if args.verify is not None:
        from multimodal_gemma.export import publish, verify

        if args.publish is None:
            verify.run(args.verify)
        else:
            print(publish.publish(args.verify, args.publish, private=_compose(args).export.private))
        return 0
    if args.output is None:
        raise InputError("export: give MODEL, EVALUATION and OUTPUT, or --verify DIR to check a finished export.")
    from multimodal_gemma.stages import export

    inputs = (args.model, args.evaluation, args.registration, args.output)
    export.run(_compose(args), *inputs, benchmarks=args.benchmarks)
    return 0


def _ask(args: argparse.Namespace) -> int:
    from multimodal_gemma.serving import ask

    ask.run(_compose(args), args.model, args.image, args.question)
    return 0


def _describe(args: argparse.Namespace) -> int:
    from multimodal_gemma.serving import ask

    ask.describe(_compose(args), args.model, args.folder, args.output, question=args.question)
    return 0


def _demo(args: argparse.Namespace) -> int:
    from multimodal_gemma.serving import demo

    demo.run(_compose(args), args.model, host=args.host, port=args.port, examples=args.examples)
    return 0


def _promote(args: argparse.Namespace) -> int:
    from multimodal_gemma.registry import versions

    print(versions.promote(_compose(args).registry, args.version, dry_run=args.dry_run))
    return 0


def _rollback(args: argparse.Namespace) -> int:
    from multimodal_gemma.registry import versions

    print(versions.rollback(_compose(args).registry, dry_run=args.dry_run))
    return 0


def _plan(args: argparse.Namespace) -> int:
    from multimodal_gemma.planning import estimate

    print(estimate.text(_compose(args), models=args.models, dataset=args.dataset, benchmark=args.benchmark))
    return 0


def _config(args: argparse.Namespace) -> int:
    import json

    print(json.dumps(json.loads(to_json(_compose(args))), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
