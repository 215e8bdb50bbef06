"""What a person fills in to start a run: every parameter of every pipeline, defined here and nowhere else.

KFP's form shows names and types alone, sorted by the alphabet. So a parameter's name begins with its place in the order
of reading, a choice is a list to choose from (`literals`, which the form shows as one and the SDK cannot write), and
the descriptions stand once more in the pipeline's own description, which the UI does show.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from multimodal_gemma.config.flat import AS_PRESET
from multimodal_gemma.config.schema import HARDWARE

PRESETS = ("sample", "llava-150k", "llava-1.5-align", "llava-1.5")  # in the order in which people try them
MLFLOW = "http://mlflow.mlflow:5000"  # where manifests/ put it


@dataclasses.dataclass(frozen=True)
class Field:
    """One parameter.

    Attributes:
        name: without its number; the graph knows it by this name.
        about: one sentence, ended by a full stop.
        example: a value that somebody would type.
        default: of the form; its type is the parameter's type.
        choices: the only values, if there are only some.
    """

    name: str
    about: str
    example: str
    default: Any = ""
    choices: tuple[str, ...] = ()


_PRESET = Field("preset", "Where to start; sample takes minutes on a CPU.", "llava-150k", "sample", PRESETS)
_HARDWARE = Field(
    "hardware", "Where training and evaluation run; custom: what resources.* says.", "a100-spot", "cpu", HARDWARE
)
_OVERRIDES = Field("overrides", "Configuration keys; they win over all else.", '["training.max_steps=500"]', [])
_REGISTRY = Field("registry_tracking_uri", "The MLflow server, unless the platform names its own.", MLFLOW, MLFLOW)
_SECRETS = tuple(
    Field(f"secret_{kind}", f"The Secret whose {keys}; it may be absent.", name, name)
    for kind, name, keys in (
        ("hub", "huggingface", "key token opens gated models"),
        ("store", "object-store", "keys accesskey, secretkey, endpoint open s3://"),
        ("registry", "mlflow", "keys username, password open MLflow"),
    )
)
TRAINING = (
    _PRESET,
    _HARDWARE,
    Field("data_conversations", "LLaVA JSON to train on; empty: the preset's.", "s3://bucket/conversations.json"),
    Field("data_images", "Where their images are; empty: the preset's.", "s3://bucket/images/"),
    Field(
        "contamination",
        "What becomes of training images that a benchmark asks about.",
        "drop",
        AS_PRESET,
        (AS_PRESET, "fail", "drop", "allow"),
    ),
    _OVERRIDES,
    _REGISTRY,
    *_SECRETS,
)
REEVALUATION = (
    Field(
        "model",
        "The registered model: an alias or a version of it.",
        "models:/multimodal-gemma/3",
        "models:/multimodal-gemma@champion",
    ),
    dataclasses.replace(_PRESET, about="Whose benchmarks and evaluation settings to use."),
    dataclasses.replace(_HARDWARE, about="Where the evaluation runs; custom: what resources.* says."),
    dataclasses.replace(_OVERRIDES, example='["benchmarks.vqa_questions=1000"]'),
    _REGISTRY,
    *_SECRETS,
)


def pipeline(fields: Sequence[Field], **settings: Any) -> Callable[[Callable[..., None]], GraphComponent]:
    """Return the decorator that makes a graph into a pipeline with these parameters.

    Args:
        fields: in the order of reading; the graph takes them by name.
        settings: of `dsl.pipeline`.
    """

    def made(graph: Callable[..., None]) -> GraphComponent:
        numbered = {f"p{place:02d}_{field.name}": field for place, field in enumerate(fields, 1)}

        @functools.wraps(graph)
        def filled_in(*channels: Any) -> None:
            graph(**{field.name: channel for field, channel in zip(fields, channels, strict=True)})

        kinds = {name: list if isinstance(field.default, list) else str for name, field in numbered.items()}
        filled_in.__annotations__ = kinds
        filled_in.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=field.default, annotation=kind)
                for (name, field), kind in zip(numbered.items(), kinds.values(), strict=True)
            ]
        )
        told = {name: f"{field.about} E.g. {field.example}" for name, field in numbered.items()}
        listed = [f"- `{name}`: {text}" for name, text in told.items()]
        about = "\n".join([inspect.cleandoc(graph.__doc__ or ""), "", *listed])  # Markdown: the UI renders it
        component = dsl.pipeline(filled_in, description=about, **settings)
        inputs = _spec(component).root.input_definitions.parameters
        for name, field in numbered.items():
            inputs[name].description = told[name]
            for choice in field.choices:
                inputs[name].literals.add().string_value = choice
        return component

    return made


def only_if(pipeline: GraphComponent, conditions: Mapping[str, tuple[str, str]]) -> None:
    """Let tasks run only if another task's `Output` has a value; else they are skipped.

    The SDK writes a condition for a group of tasks alone, which is one more level of the graph and two more pods.
    Backend and kfp.local judge it wherever it stands.

    Args:
        pipeline: gets the conditions.
        conditions: by the name of the task: the producer of the output, and the value.
    """
    spec = _spec(pipeline)
    for name, (producer, value) in conditions.items():
        group = next(one.dag for one in spec.components.values() if name in one.dag.tasks)
        task, channel = group.tasks[name], f"pipelinechannel--{producer}-Output"
        source = task.inputs.parameters[channel].task_output_parameter
        source.producer_task, source.output_parameter_key = producer, "Output"
        kind = spec.components[group.tasks[producer].component_ref.name].output_definitions.parameters["Output"]
        inputs = spec.components[task.component_ref.name].input_definitions.parameters
        inputs[channel].parameter_type = kind.parameter_type
        task.trigger_policy.condition = f"inputs.parameter_values['{channel}'] == '{value}'"


def _spec(pipeline: GraphComponent) -> Any:
    """Return the specification that a pipeline is compiled from, to be changed in place."""
    return pipeline.component_spec.implementation.graph
