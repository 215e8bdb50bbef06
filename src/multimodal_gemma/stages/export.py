"""Export: the deployable folder of a registered model, loadable by stock transformers and laid out for vLLM."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multimodal_gemma import files, locks, logs, manifest
from multimodal_gemma.errors import InputError
from multimodal_gemma.export import card, publish, space, verify, weights
from multimodal_gemma.stages.summary import Summary

if TYPE_CHECKING:
    from multimodal_gemma.config.schema import Config

KIND = "export"
FORMAT = 5  # raised when the same inputs make other files
_MODEL, _ADAPTER = "model", "adapter"
_CHECKSUMS, _SETTINGS = "SHA256SUMS", "run_config.json"
# What training leaves beside the stock files; a server has no use for it.
_TRAINING_ONLY = ("curves.jsonl", "curves.html", _SETTINGS, "training_images.txt", manifest.NAME)
_log = logs.get("export")


def run(
    config: Config,
    model: Path,
    evaluation: Path,
    registration: Path | None,
    output: Path,
    *,
    benchmarks: Path | None = None,
) -> Summary:
    """Export a model, and publish it where the configuration names a place.

    Args:
        config: sections export, evaluation and registry (the model's name).
        model: the model artifact.
        evaluation: the evaluation artifact of that very model; its scores go into the model card.
        registration: the registration artifact, whose gate must have passed; None exports without asking.
        output: folder for model/, adapter/, int8/, references/, verify.py, README.md, NOTICE and SHA256SUMS.
        benchmarks: the benchmarks that the model was scored on, to score its 8-bit weights on them too; None: not done.

    Raises:
        InputError: an artifact is unfinished, damaged or of another model, the gate failed, another export is at work
            in the folder, or what was written does not answer as the trained model.
    """
    options = config.export
    if weights.INT8 in options.formats:
        weights.require_torchao()
    publish.check(options.publish)
    made = manifest.read(model, "model")
    scored = manifest.read(evaluation, "evaluation")
    scores = files.read_json(evaluation / "metrics.json", "evaluation")
    if scores.get("model_digest") != made.digest:
        raise InputError(f"export: {evaluation} scored another model than {model}. Give the evaluation of this model.")
    inputs = {"model": made.digest, "evaluation": scored.digest}
    registered = _registered(registration, inputs)
    if registration is not None:
        inputs["registration"] = manifest.read(registration).digest
    if benchmarks is not None and weights.INT8 in options.formats:
        inputs["benchmarks"] = manifest.read(benchmarks, "benchmarks").digest
    shaping = dataclasses.asdict(options)
    shaping["terms"] = files.sha256_file(Path(options.terms)) if Path(options.terms).is_file() else ""
    del shaping["private"]
    if space.FOLDER not in options.formats:  # a Space names what it shows; the other formats know no place
        del shaping["publish"]
    section = {"export": shaping, "name": registered.get("name", config.registry.name), "format": FORMAT}
    if (written := manifest.finished(output, KIND, config=section, inputs=inputs)) is not None:
        _log.info(f"{output} is finished already; nothing to do")
        return _summary(config, output, written, cached=True)

    manifest.verify(model, "model")
    with locks.only_writer(output, "export"):
        _clear(output)
        parameters = weights.convert(model, output / _MODEL, options.dtype)
        files.write_json(output / _MODEL / "config.json", weights.config(model, options.dtype))
        settings = files.read_json(model / _SETTINGS, "model") if (model / _SETTINGS).is_file() else {}
        _copy(made, model, output, settings, with_adapter=_ADAPTER in options.formats)
        verify.record(model, output, options.dtype)
        in_8_bits = _write_int8(config, output, benchmarks, evaluation) if weights.INT8 in options.formats else {}
        story = card.Story(
            name=section["name"],
            version=str(registered.get("version", "")),
            settings=settings,
            text_config=files.read_json(model / "config.json", "export").get("text_config", {}),
            model=made,
            evaluation=scored,
            scores=scores,
            dtype=options.dtype,
            parameters=parameters,
            formats=tuple(options.formats),
            in_8_bits=in_8_bits,
        )
        terms = _terms(config, story)
        files.write_text(output / "README.md", card.write(story))
        files.write_text(output / publish.HUB_CARD, card.write(story, hub=publish.HUB_NAME))
        if space.FOLDER in options.formats:
            licence = card.identifier(story.language, story.gemma)
            space.write(output / space.FOLDER, name=story.name, published=options.publish, licence=licence)
        if terms:
            files.write_text(output / card.TERMS, terms)
        notice = card.notice(story.language, story.vision, story.data, story.gemma, enclosed=bool(terms))
        files.write_text(output / "NOTICE", notice)
        _checksums(output)
        verify.run(output)
        for folder in (output, *(path for path in output.rglob("*") if path.is_dir())):
            folder.chmod(0o755)  # a server runs as another user than the one who exported
        counts, facts = {"parameters": parameters}, {weights.INT8: in_8_bits} if in_8_bits else {}
        written = manifest.write(output, KIND, config=section, inputs=inputs, counts=counts, facts=facts)
    summary = _summary(config, output, written)
    _log.info(f"{output}: {parameters:,} parameters in {options.dtype}, {summary.numbers['megabytes']:.0f} MB")
    return summary


def _summary(config: Config, output: Path, made: manifest.Manifest, *, cached: bool = False) -> Summary:
    """Publish a finished export where the configuration names a place, and tell what it is."""
    size = sum(entry["bytes"] for entry in made.files.values())
    numbers = {"parameters": float(made.counts["parameters"]), "megabytes": size / 1e6}
    facts = {}
    if place := config.export.publish:
        facts["published"] = publish.publish(output, place, private=config.export.private)
    return Summary("export", output, made.digest, numbers, facts, cached=cached)


def _terms(config: Config, story: card.Story) -> str:
    """Return the copy of Gemma's terms that goes with a Gemma; "" for others, or where none is given.

    Raises:
        InputError: what is given is no such copy, or a Gemma is to be published without one.
    """
    place = config.export.terms
    text = Path(place).read_text("utf-8", "replace") if Path(place).is_file() else ""
    if place and "Gemma Terms of Use" not in text:
        raise InputError(f"export: export.terms={place} is no copy of the Gemma Terms of Use. Save {card.GEMMA_TERMS}.")
    if story.gemma and config.export.publish and not place:
        raise InputError(
            f"export: a Gemma may be passed on only with a copy of its terms. Save {card.GEMMA_TERMS} as a text file "
            "and name it in export.terms."
        )
    return text if story.gemma else ""


def _write_int8(config: Config, output: Path, benchmarks: Path | None, evaluation: Path) -> dict[str, Any]:
    """Write int8/, and say how it differs from the trained model: in logits, answers and, with benchmarks, scores."""
    weights.write_int8(output / _MODEL, output / weights.INT8)
    found = verify.record_int8(output)
    if benchmarks is None:
        return found
    from multimodal_gemma.evaluation import questions
    from multimodal_gemma.stages import evaluate

    with tempfile.TemporaryDirectory() as scratch:
        own = dataclasses.replace(config.evaluation, lmms=[])  # lmms-eval has scored the weights that are shipped
        evaluate.run(dataclasses.replace(config, evaluation=own), output / weights.INT8, benchmarks, Path(scratch))
        rows = questions.read_rows(Path(scratch)), questions.read_rows(evaluation)
    return {**found, "scores": questions.compare(*rows, confidence=config.evaluation.confidence)}


def _registered(registration: Path | None, inputs: dict[str, str]) -> dict[str, Any]:
    """Read a registration, and refuse one whose gate failed or that is of another model."""
    if registration is None:
        return {}
    stated = manifest.read(registration, "registration")
    value = files.read_json(registration / "registration.json", "registration")
    if any(stated.inputs.get(name) != digest for name, digest in inputs.items()):
        raise InputError(f"export: {registration} registered another model. Give the registration of this one.")
    if value.get("gate") != "passed":
        failed = [f"{rule['name']}: {rule['reason']}" for rule in value.get("rules", []) if not rule.get("passed")]
        raise InputError(
            f"export: version {value.get('version')} of {value.get('name')} did not pass the gate "
            f"({'; '.join(failed)}), so nothing is "
            "exported. Improve the model, or change registry.floors and register it again."
        )
    return dict(value)


def _clear(output: Path) -> None:
    """Remove an earlier or unfinished export, its manifest first."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / manifest.NAME).unlink(missing_ok=True)
        for name in (_MODEL, _ADAPTER, weights.INT8, space.FOLDER, verify.REFERENCES, Path(publish.HUB_CARD).parts[0]):
            if (output / name).is_dir():
                shutil.rmtree(output / name)
    except OSError as error:
        raise files.unwritable(output, error) from error


def _copy(made: manifest.Manifest, model: Path, output: Path, settings: dict[str, Any], *, with_adapter: bool) -> None:
    """Copy the processor, the chat template and the generation configuration, and the adapter as it is."""
    for name in made.files:
        if name.startswith(f"{_ADAPTER}/"):
            if not with_adapter:
                continue
            destination = output / name
        elif "/" in name or name in _TRAINING_ONLY or name == "config.json" or weights.is_weights(name):
            continue
        else:
            destination = output / _MODEL / name
        with files.atomic_path(destination) as temporary:
            shutil.copyfile(model / name, temporary)
    if with_adapter:
        folder, bases = output / _ADAPTER, card.bases(settings)
        files.write_json(folder / "bases.json", bases)
        has_adapter = (folder / "adapter_model.safetensors").is_file()
        files.write_text(folder / "README.md", card.render("adapter", bases, has_adapter))


def _checksums(output: Path) -> None:
    """Write what `sha256sum -c` reads, for every file but itself and the manifest."""
    names = sorted(path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file())
    lines = [
        f"{files.sha256_file(output / name)}  {name}\n" for name in names if name not in (_CHECKSUMS, manifest.NAME)
    ]
    files.write_text(output / _CHECKSUMS, "".join(lines))
