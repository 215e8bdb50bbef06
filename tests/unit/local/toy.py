"""A small pipeline of the same shape as the real one, whose stages take no time and fail on demand."""

from pathlib import Path

from kfp import compiler, dsl
from kfp.dsl import Artifact, Input, Output

IMAGE = "python:3.11"


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def preflight(preset: str, overrides: list) -> str:
    import sys

    sys.stderr.write(f"preset {preset}\n")
    return ",".join(overrides)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def fetch(plan: str, raw: Output[Artifact]):
    from pathlib import Path

    Path(raw.path).mkdir(parents=True)
    Path(raw.path, "data").write_text(plan)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def learn(plan: str, run_id: str, raw: Input[Artifact], model: Output[Artifact]) -> str:
    import os
    import sys
    from pathlib import Path

    sys.stderr.write("learning\n")
    sys.stderr.flush()
    if "training.epochs=1" in plan:
        sys.stderr.write("error: learn: there is nothing to learn from. Give some data.\n")
        raise SystemExit(2)
    if "training.epochs=2" in plan:
        raise RuntimeError("it broke")
    if "training.epochs=3" in plan:
        os.kill(os.getpid(), 9)
    begun = Path(model.path).parent / "begun"
    if "training.epochs=5" in plan and not begun.exists():
        import time

        begun.parent.mkdir(parents=True, exist_ok=True)
        begun.touch()

        sys.stderr.write(f"sleeping as {os.getpid()}\n")
        sys.stderr.flush()
        time.sleep(60)
    Path(model.path).mkdir(parents=True, exist_ok=True)
    lines = [run_id, os.environ["MLFLOW_TRACKING_URI"], os.environ["MMGEMMA_PIPELINE_DIGEST"]]
    Path(model.path, "seen").write_text("\n".join(lines))
    return "failed" if "training.epochs=4" in plan else "passed"


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def ship(model: Input[Artifact], export: Output[Artifact]):
    from pathlib import Path

    Path(export.path).mkdir(parents=True)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def last(status: dsl.PipelineTaskFinalStatus, word: Output[Artifact]):
    from pathlib import Path

    Path(word.path).write_text(status.state)


@dsl.pipeline(name="inner")
def inner(preset: str, overrides: list, memory: str):
    checked = preflight(preset=preset, overrides=overrides).set_caching_options(False)
    raw = fetch(plan=checked.output)
    raw.set_caching_options(True).set_retry(num_retries=3, backoff_duration="60s")
    learned = learn(plan=checked.output, run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER, raw=raw.outputs["raw"])
    learned.set_caching_options(False).set_retry(num_retries=3, backoff_duration="60s").set_memory_limit(memory)
    with dsl.If(learned.outputs["Output"] == "passed"):
        ship(model=learned.outputs["model"]).set_caching_options(False)


@dsl.pipeline(name="toy")
def toy(preset: str = "sample", overrides: list = [], memory: str = "1Gi"):  # noqa: B006
    ended = last().set_caching_options(False)
    with dsl.ExitHandler(ended):
        inner(preset=preset, overrides=overrides, memory=memory)


def compile_toy(folder: Path) -> Path:
    compiler.Compiler().compile(toy, str(folder / "toy.yaml"))
    return folder / "toy.yaml"
