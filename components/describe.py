"""Write each component's README.md and metadata.yaml from its code: `python -m components.describe`.

What a component takes and gives is in its signature, what it is for in its docstring; what a name means is said here
or in the form, because it means the same in every component. metadata.yaml has the fields that
kubeflow/pipelines-components asks for.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import yaml
from kfp.dsl.base_component import BaseComponent

from pipelines import form

FOLDER = Path(__file__).parent
_WIDTH = 120  # of a line of code
VERIFIED = "2026-11-26T00:00:00Z"  # when every component was last seen to run
KFP = ">=2.17.0"  # what the compiled pipelines need of the platform and of the SDK

_MEANINGS = {
    "plan": "from preflight, JSON: the configuration, as far as the component needs it, and what it depends on; "
    "for a cached component its cache key",
    **{field.name: field.about.rstrip(".") for field in form.TRAINING},
    "needed": "cached stages that the pipeline has: models, dataset, benchmarks, preprocess",
    "run_id": "id of the pipeline run; ties the stages to one MLflow run",
    "run_name": "what people call the pipeline run; MLflow's run is called the same",
    "status": "filled in by KFP",
    "location": "the registered model: models:/NAME@ALIAS, models:/NAME/VERSION or models:/NAME/latest",
    "name": "name of the registered model",
    "digest": "digest of the model's manifest",
    "raw": "from download_dataset",
    "dataset": "conversations and images: in shards as downloaded, or tokenized and split",
    "models": "the base models, in stock folders",
    "benchmarks": "questions, annotations and images of POPE and VQA v2",
    "model": "a stock Llava folder with its adapter, curves and a manifest",
    "evaluation": "metrics.json, predictions.jsonl, report.html and a manifest",
    "registration": "registration.json: version, alias, and the gate's decision rule by rule",
    "export": "the folders that are shipped, with model card, licences and checksums",
    "record": "record.json: the versions and the MLflow run that the scores are in",
    "metrics": "the figures that runs are compared by",
    "report": "a page for the pipelines UI",
    "comparison": "candidate and champion, side by side",
    "curves": "losses and learning rates over the steps",
    "pope_random": "confusion matrix, rows the truth",
    "pope_popular": "likewise",
    "pope_adversarial": "likewise",
    "Output": "the gate's word: passed or failed",
    "preprocess": "plan of preprocess_dataset, JSON, as plan",
    "accelerator": "resource name of the accelerator",
    **{
        f"{task}_{name}": f"of the pod of {task}-model: {what}"
        for task in ("train", "evaluate")
        for name, what in {
            "count": "accelerators, as text",
            "cpu": "cores",
            "memory": "memory",
            "nodes": "labels that its node must have",
            "taints": "taints that it accepts",
        }.items()
    },
}


def main() -> None:
    """Write the files of every component."""
    for folder in folders():
        for name, text in described(folder).items():
            (folder / name).write_text(text, encoding="utf-8")


def folders() -> list[Path]:
    """Return the components' folders."""
    return sorted(path.parent for path in FOLDER.glob("*/component.py"))


def described(folder: Path) -> dict[str, str]:
    """Return what a component's README.md and metadata.yaml have to say."""
    component = getattr(importlib.import_module(f"components.{folder.name}.component"), folder.name)
    return {"README.md": _readme(component), "metadata.yaml": _metadata(component)}


def _readme(component: BaseComponent) -> str:
    spec = component.component_spec
    image = "trainer" if "trainer" in spec.implementation.container.image else "pipeline"
    name = component.name.replace("-", "_")
    arguments = [f"{argument}=..." for argument, item in (spec.inputs or {}).items() if not item.optional]
    call = f"done = {name}({', '.join(arguments)})"
    if len(call) > _WIDTH:
        call = "\n    ".join([f"done = {name}(", *(f"{argument}," for argument in arguments)]) + "\n)"
    lines = [
        f"# {component.name}",
        "",
        str(spec.description),
        "",
        *_table("Inputs", spec.inputs),
        *_table("Outputs", spec.outputs),
        "## Example",
        "",
        "```python",
        f"from components.{name}.component import {name}",
        "",
        call,
        "```",
        "",
        f"Runs in the image `{image}`, on CPU or GPU as its task asks."
        if image == "trainer"
        else f"Runs in the image `{image}`.",
        "",
    ]
    return "\n".join(lines)


def _table(heading: str, items: Any) -> list[str]:
    if not items:
        return []
    rows = [
        f"| `{name}` | {_kind(item.type)} | {_meaning(name, _kind(item.type))}"
        f"{' (may be left out)' if getattr(item, 'optional', False) else ''} |"
        for name, item in items.items()
    ]
    return [f"## {heading}", "", "| name | type | what |", "| --- | --- | --- |", *rows, ""]


def _meaning(name: str, kind: str) -> str:
    if kind == "String" and name in ("train", "evaluate"):
        return f"plan of {name}_model, JSON, as plan: what a later run has to share to take its result over"
    if kind == "String" and name in ("models", "dataset", "benchmarks"):
        return f"plan of download_{name}, JSON, as plan"
    return _MEANINGS[name]


def _kind(schema: Any) -> str:
    return str(schema).partition("@")[0].removeprefix("system.")


def _metadata(component: BaseComponent) -> str:
    value = {
        "name": component.name.replace("-", "_"),
        "stability": "beta",
        "dependencies": {"kubeflow": [{"name": "Pipelines", "version": KFP}]},
        "tags": ["vision-language", component.name.partition("-")[0]],
        "lastVerified": VERIFIED,
    }
    return str(yaml.safe_dump(value, sort_keys=False))


if __name__ == "__main__":
    sys.exit(main())
