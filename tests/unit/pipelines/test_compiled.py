"""Policy of the compiled pipelines: what must hold of every file that is uploaded to a cluster."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from multimodal_gemma.config import presets
from multimodal_gemma.config.flat import AS_PRESET, bare
from multimodal_gemma.config.schema import DataConfig, ResourcesConfig
from multimodal_gemma.stages import tries
from pipelines import form

ROOT = Path(__file__).parents[3]
COMPILED = ROOT / "pipelines" / "compiled"
NAMES = ("training", "reevaluation")


def compile_fresh(folder: Path, seed: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("IMAGE_")}
    return subprocess.run(
        [sys.executable, "-m", "pipelines.compile", str(folder)],
        cwd=ROOT,
        env={**kept, "PYTHONHASHSEED": seed, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def fresh(tmp_path_factory) -> dict[str, Path]:
    folders = {seed: tmp_path_factory.mktemp(f"seed{seed}") for seed in ("0", "4711")}
    for seed, folder in folders.items():
        assert compile_fresh(folder, seed).returncode == 0
    return folders


@pytest.mark.parametrize("name", NAMES)
def test_committed_files_are_what_the_code_compiles_to(fresh, name):
    assert (COMPILED / f"{name}.yaml").read_bytes() == (fresh["0"] / f"{name}.yaml").read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_compiling_gives_the_same_bytes_whatever_the_hash_seed(fresh, name):
    assert (fresh["0"] / f"{name}.yaml").read_bytes() == (fresh["4711"] / f"{name}.yaml").read_bytes()


@pytest.fixture(params=NAMES)
def text(request) -> str:
    return (COMPILED / f"{request.param}.yaml").read_text(encoding="utf-8")


@pytest.fixture
def spec(text) -> dict:
    return next(iter(yaml.safe_load_all(text)))


@pytest.fixture
def platform(text) -> dict:
    return list(yaml.safe_load_all(text))[1]["platforms"]["kubernetes"]


def containers(spec: dict) -> dict[str, dict]:
    return {name: executor["container"] for name, executor in spec["deploymentSpec"]["executors"].items()}


def tasks(spec: dict) -> dict[str, dict]:
    """Every task that runs a container, by name."""
    found = {}
    for dag in [spec["root"], *spec["components"].values()]:
        for name, task in dag.get("dag", {}).get("tasks", {}).items():
            if "executorLabel" in spec["components"][task["componentRef"]["name"]]:
                found[name] = task
    return found


def test_text_is_ascii(text):
    assert text.isascii()


def test_nothing_is_installed_when_a_task_starts(text):
    assert "pip install" not in text
    assert "-m pip" not in text
    assert "packages_to_install" not in text


def test_nothing_in_it_tells_when_or_where_it_was_compiled(text):
    assert not re.search(r"\d{4}-\d\d-\d\dT\d\d:", text)
    assert str(ROOT) not in text
    assert not re.search(r"/(home|root|Users|tmp)/", text)


def test_every_task_requests_and_limits_cpu_and_memory(spec):
    for name, container in containers(spec).items():
        wanted = {"resourceCpuRequest", "resourceCpuLimit", "resourceMemoryRequest", "resourceMemoryLimit"}
        assert wanted <= container["resources"].keys(), name


def test_every_image_is_named_by_a_version(spec):
    for name, container in containers(spec).items():
        assert re.fullmatch(r"ghcr\.io/multimodal-gemma/(pipeline|trainer):\d+\.\d+\.\d+", container["image"]), name


def test_every_task_has_a_deadline_and_so_has_the_run(spec, platform):
    executors = platform["deploymentSpec"]["executors"]
    assert executors.keys() == spec["deploymentSpec"]["executors"].keys()
    assert all(int(executor["activeDeadlineSeconds"]) > 0 for executor in executors.values())
    run = platform["pipelineConfig"]
    assert run["activeDeadlineSeconds"] > 0
    assert run["resourceTtlOnSuccess"] > 0
    assert run["resourceTtlOnFailure"] > 0


def test_no_task_runs_as_root_or_with_privileges(spec, platform):
    executors = platform["deploymentSpec"]["executors"]
    assert executors.keys() == spec["deploymentSpec"]["executors"].keys()
    for name, executor in executors.items():
        assert executor["securityContext"] == {"runAsNonRoot": True}, name
    assert "privileged" not in json.dumps(platform)


def test_a_lost_pod_is_replaced_after_growing_waits_and_has_the_time_for_it(spec, platform):
    """Argo counts from the first attempt's start the time in which another may start and run."""
    for name, task in tasks(spec).items():
        policy = task["retryPolicy"]
        label = spec["components"][task["componentRef"]["name"]]["executorLabel"]
        deadline = int(platform["deploymentSpec"]["executors"][label]["activeDeadlineSeconds"])
        assert policy["maxRetryCount"] >= 1, name
        assert policy["backoffFactor"] == 2.0, name
        assert int(policy["backoffDuration"].rstrip("s")) >= 30, name
        room = int(policy["backoffMaxDuration"].rstrip("s"))
        assert room >= min(
            (policy["maxRetryCount"] + 1) * deadline, platform["pipelineConfig"]["activeDeadlineSeconds"]
        )


def test_every_pod_has_the_label_by_which_policies_and_quota_know_it(platform):
    for name, executor in platform["deploymentSpec"]["executors"].items():
        assert executor["podMetadata"]["labels"] == {"app.kubernetes.io/part-of": "multimodal-gemma"}, name


def test_no_task_lies_deeper_than_one_level_below_the_root(spec):
    (group,) = (name for name, task in spec["root"]["dag"]["tasks"].items() if name.startswith("exit-handler"))
    shown = spec["root"]["dag"]["tasks"][group]["taskInfo"]["name"]
    assert shown in ("train-evaluate-register", "fetch-evaluate-record")
    inside = spec["components"][spec["root"]["dag"]["tasks"][group]["componentRef"]["name"]]["dag"]["tasks"]
    assert all("executorLabel" in spec["components"][task["componentRef"]["name"]] for task in inside.values())
    assert len(tasks(spec)) == len(inside) + 1  # and report-run


def test_only_the_export_waits_for_the_gates_word(spec):
    held = {name: task["triggerPolicy"]["condition"] for name, task in tasks(spec).items() if _condition(task)}
    if "export-model" not in tasks(spec):
        assert held == {}
        return
    channel = "pipelinechannel--register-model-Output"  # kfp.local resolves no other name
    assert held == {"export-model": f"inputs.parameter_values['{channel}'] == 'passed'"}
    assert tasks(spec)["export-model"]["inputs"]["parameters"][channel] == {
        "taskOutputParameter": {"outputParameterKey": "Output", "producerTask": "register-model"}
    }
    assert "register-model" in tasks(spec)["export-model"]["dependentTasks"]


def _condition(task: dict) -> str:
    return task.get("triggerPolicy", {}).get("condition", "")


# Only a cluster's cache takes these over: elsewhere their plan names the run.
TAKEN_OVER = {"train-model", "evaluate-model"}


def test_what_costs_hours_is_cached_and_what_decides_is_not(spec, platform):
    cached = {name for name, task in tasks(spec).items() if task["cachingOptions"].get("enableCache")}
    expected = {name for name in tasks(spec) if name.startswith("download-") or name == "preprocess-dataset"}
    taken_over = TAKEN_OVER if "train-model" in tasks(spec) else set()
    assert cached == expected | taken_over
    for name in taken_over:  # what they are told is no run's own, so they read it from their pod
        executor = spec["components"][tasks(spec)[name]["componentRef"]["name"]]["executorLabel"]
        (field,) = platform["deploymentSpec"]["executors"][executor]["fieldPathAsEnv"]
        assert field == {"name": tries.RUN_ID, "fieldPath": "metadata.labels['pipeline/runid']"}


def test_cached_tasks_have_no_output_without_a_file(spec):
    """kfp.local reuses a result only if every artifact of it exists, and a Metrics artifact has no file."""
    for name, task in tasks(spec).items():
        if task["cachingOptions"].get("enableCache") and name not in TAKEN_OVER:
            outputs = spec["components"][task["componentRef"]["name"]]["outputDefinitions"]["artifacts"]
            assert not [key for key, value in outputs.items() if "Metrics" in value["artifactType"]["schemaTitle"]]


def test_secrets_are_named_and_optional_and_never_values(text, spec, platform):
    for executor in platform["deploymentSpec"]["executors"].values():
        for secret in executor.get("secretAsEnv", []):
            assert secret["optional"] is True
            assert "componentInputParameter" in secret["secretNameParameter"]
    for container in containers(spec).values():
        assert {variable["name"] for variable in container.get("env", [])} <= {"MMGEMMA_IMAGE"}
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert not [name for name in parameters if re.search(r"token|password|key", bare(name))]
    assert not re.search(r"hf_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{16}|BEGIN [A-Z ]*PRIVATE KEY", text)


def test_the_form_is_read_from_top_to_bottom_and_can_be_left_as_it_is(spec):
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert 0 < len(parameters) <= 12
    assert [int(name[1:3]) for name in sorted(parameters)] == list(range(1, len(parameters) + 1))
    for name, parameter in parameters.items():
        assert parameter["isOptional"] is True, name
        assert parameter["parameterType"] in ("STRING", "LIST"), name
        assert f"- `{name}`: {parameter['description']}" in spec["pipelineInfo"]["description"]
        assert "E.g. " in parameter["description"], name
        assert parameter["defaultValue"] in parameter.get("literals", [parameter["defaultValue"]]), name


def test_choices_are_the_configurations_own(spec):
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    choices = {bare(name): set(value["literals"]) for name, value in parameters.items() if "literals" in value}
    assert choices["preset"] == set(presets())
    assert choices["hardware"] == set(_options(ResourcesConfig, "hardware"))
    if "contamination" in choices:
        assert choices["contamination"] == {*_options(DataConfig, "contamination"), AS_PRESET}


def _options(section: type, key: str) -> tuple[str, ...]:
    return next(field.metadata["options"] for field in dataclasses.fields(section) if field.name == key)


def test_a_parameters_name_stands_in_three_places_at_most():
    """Where it is defined, where preflight takes it, and, of three of them, where report-run does."""
    sources = [path.read_text() for folder in ("pipelines", "components") for path in (ROOT / folder).rglob("*.py")]
    assert len(form.TRAINING) == 10
    for name in (field.name for field in form.TRAINING):
        written = rf"""["']{name}["']|^ *{name}: |\b{name}="""  # as a text, as a parameter, as an argument
        places = sum(len(re.findall(written, text, re.MULTILINE)) for text in sources)
        assert 1 <= places <= 3, name


def test_training_and_evaluation_are_placed_by_preflight(spec, platform):
    executors = platform["deploymentSpec"]["executors"]
    for name, container in containers(spec).items():
        if "trainer:" not in container["image"]:
            assert "accelerator" not in container["resources"]
            continue
        kind = name.removeprefix("exec-").partition("-")[0]
        assert container["resources"]["accelerator"] == {
            "resourceCount": f"{{{{$.inputs.parameters['pipelinechannel--preflight-{kind}_count']}}}}",
            "resourceType": "{{$.inputs.parameters['pipelinechannel--preflight-accelerator']}}",
        }
        place = executors[name]
        assert place["nodeSelector"]["nodeSelectorJson"] == _decided(f"{kind}_nodes")
        assert place["tolerations"] == [{"tolerationJson": _decided(f"{kind}_taints")}]
        assert place["emptyDirMounts"][0]["mountPath"] == "/dev/shm"
        assert place["emptyDirMounts"][0]["medium"] == "Memory"
        inputs = tasks(spec)[name.removeprefix("exec-")]["inputs"]["parameters"]
        for value in ("count", "cpu", "memory"):  # the driver resolves them among the task's own inputs
            assert inputs[f"pipelinechannel--preflight-{kind}_{value}"] == _decided(f"{kind}_{value}")


def _decided(name: str) -> dict:
    return {"taskOutputParameter": {"outputParameterKey": name, "producerTask": "preflight"}}


def test_amounts_are_texts_because_the_backend_reads_nothing_else(spec):
    """The driver resolves them by the string value alone: the number 1 would become no accelerator, silently."""
    outputs = spec["components"]["comp-preflight"]["outputDefinitions"]["parameters"]
    for name in ("accelerator", "train_count", "train_cpu", "train_memory", "evaluate_count", "evaluate_cpu"):
        assert outputs[name]["parameterType"] == "STRING"


def test_what_every_node_of_the_workflow_repeats_is_small(text, spec):
    """KFP shows no tasks of a run whose status exceeds 1 MiB, and the status repeats specification and inputs."""
    assert len(json.dumps(spec)) < 45_000
    for name, container in containers(spec).items():
        assert len(json.dumps(container)) < 4_000, name


def test_images_can_be_chosen_by_registry_tag_and_digest(tmp_path):
    digest = "sha256:" + "0123456789abcdef" * 4
    chosen = {"IMAGE_REGISTRY": "registry.example/team", "IMAGE_TAG": "1.2.3-rc1", "IMAGE_DIGEST_TRAINER": digest}
    assert compile_fresh(tmp_path, "0", **chosen).returncode == 0
    images = {
        container["image"]
        for name in NAMES
        for container in containers(next(iter(yaml.safe_load_all((tmp_path / f"{name}.yaml").read_text())))).values()
    }
    assert images == {"registry.example/team/pipeline:1.2.3-rc1", f"registry.example/team/trainer@{digest}"}


@pytest.mark.parametrize(
    ("name", "value"),
    [("IMAGE_TAG", "latest"), ("IMAGE_DIGEST_PIPELINE", "sha256:short"), ("IMAGE_DIGEST_TRAINER", "v1")],
)
def test_images_that_move_or_do_not_exist_are_refused(tmp_path, name, value):
    result = compile_fresh(tmp_path, "0", **{name: value})
    assert result.returncode == 2
    assert result.stderr.startswith("compile: ")
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())
