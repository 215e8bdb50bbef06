"""Run inside an image when it is built: what a task imports is there and fits together, and scratch can be written.

An image that lacks a module fails here, in seconds, and not in the ninth task of a run.
"""

import importlib
import importlib.metadata
import os
import subprocess
import sys
import tempfile

MODULES = (
    "kfp.dsl.executor_main",  # what starts a task
    "kfp.kubernetes",
    "torch",
    "transformers.models.llava.modeling_llava",
    "transformers.models.gemma3.modeling_gemma3",
    "peft",
    "accelerate",
    "mlflow",
    "minio",
    "PIL.Image",
    "matplotlib.pyplot",
    "multimodal_gemma.cli",
    *(
        f"multimodal_gemma.stages.{stage}"
        for stage in ("download", "preprocess", "train", "evaluate", "register", "export")
    ),
)


def main() -> None:
    """Fail with the first thing that is wrong."""
    assert os.getuid() != 0, "the image runs as root"
    for module in MODULES:
        importlib.import_module(module)
    for folder in (os.environ["HOME"], tempfile.gettempdir()):
        tempfile.TemporaryFile(dir=folder).close()
    subprocess.run([sys.executable, "-m", "pip", "check"], check=True)
    subprocess.run(["mmgemma", "config", "--preset", "sample"], check=True, stdout=subprocess.DEVNULL)
    versions = {name: importlib.metadata.version(name) for name in ("multimodal-gemma", "kfp", "torch", "transformers")}
    sys.stdout.write(", ".join(f"{name} {version}" for name, version in versions.items()) + "\n")


if __name__ == "__main__":
    main()
