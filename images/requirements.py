"""What an image installs before the package itself: its dependencies alone, so that a change of code is a thin layer.

Prints the requirements of the package, of the extras named on the command line, and of the build, one a line.
"""

import re
import sys
import tomllib
from pathlib import Path


def requirements(project: dict, extras: list[str]) -> list[str]:
    """Return the requirements of a project and some of its extras, its own name resolved.

    Args:
        project: table `project` of a pyproject.toml.
        extras: names of extras.
    """
    name = project["name"]
    found: list[str] = []
    for line in [
        *project["dependencies"],
        *(one for extra in extras for one in project["optional-dependencies"][extra]),
    ]:
        own = re.fullmatch(rf"{re.escape(name)}\[([^]]+)]", line)
        found += requirements({**project, "dependencies": []}, own[1].split(",")) if own else [line]
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    pyproject = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    sys.stdout.write(
        "".join(
            f"{line}\n"
            for line in [*requirements(pyproject["project"], sys.argv[1:]), *pyproject["build-system"]["requires"]]
        )
    )
