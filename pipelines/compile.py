"""Write every pipeline as the YAML file that is uploaded to Kubeflow: `python -m pipelines.compile [FOLDER]`.

The same sources give the same bytes on every machine: the committed files are checked against a fresh compilation.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

FOLDER = Path(__file__).parent / "compiled"
_HASH_SEED = "0"  # the compiler's header comment follows the order of a set


def main(arguments: list[str]) -> int:
    """Compile into the folder that is given, or into pipelines/compiled."""
    if os.environ.get("PYTHONHASHSEED") != _HASH_SEED:
        os.environ["PYTHONHASHSEED"] = _HASH_SEED
        os.execv(sys.executable, [sys.executable, "-m", "pipelines.compile", *arguments])
    from multimodal_gemma.errors import InputError

    try:
        for path in compile_all(Path(arguments[0]) if arguments else FOLDER):
            sys.stdout.write(f"{path}\n")
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def compile_all(folder: Path) -> list[Path]:
    """Compile every pipeline.

    Args:
        folder: where the YAML files go.

    Returns:
        The files written.

    Raises:
        InputError: the images that were chosen cannot be used.
    """
    from kfp import compiler

    from pipelines.reevaluation import reevaluation
    from pipelines.training import training

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, pipeline in (("training", training), ("reevaluation", reevaluation)):
        path = folder / f"{name}.yaml"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            compiler.Compiler().compile(pipeline, str(path))
        paths.append(path)
    return paths


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
