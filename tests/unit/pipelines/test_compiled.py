"""Policy of the compiled pipelines: what must hold of every file that is uploaded to a cluster."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

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


def test_every_task_is_retried_with_growing_waits(spec):
    for name, task in tasks(spec).items():
        policy = task["retryPolicy"]
        assert policy["maxRetryCount"] >= 1, name
        assert policy["backoffFactor"] == 2.0, name
        assert int(policy["backoffDuration"].rstrip("s")) >= 30, name


def test_only_downloads_and_preprocessing_are_cached(spec):
    cached = {name for name, task in tasks(spec).items() if task["cachingOptions"].get("enableCache")}
    expected = {name for name in tasks(spec) if name.startswith("download-") or name == "preprocess-dataset"}
    assert cached == expected


def test_cached_tasks_have_no_output_without_a_file(spec):
    """kfp.local reuses a result only if every artifact of it exists, and a Metrics artifact has no file."""
    for task in tasks(spec).values():
        if task["cachingOptions"].get("enableCache"):
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
    assert not [name for name in parameters if re.search(r"token|password|key", name)]
    assert not re.search(r"hf_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{16}|BEGIN [A-Z ]*PRIVATE KEY", text)


def test_every_parameter_is_described_and_has_a_default(spec):
    for name, parameter in spec["root"]["inputDefinitions"]["parameters"].items():
        assert parameter["description"].rstrip().endswith("."), name
        assert parameter["isOptional"] is True, name
        assert "defaultValue" in parameter, name


def test_training_and_evaluation_are_placed_by_parameters(spec, platform):
    """Evaluation directly; train-model by what preflight makes of them, as it may only submit a TrainJob."""
    executors = platform["deploymentSpec"]["executors"]
    for name, container in containers(spec).items():
        if "trainer:" not in container["image"]:
            assert "accelerator" not in container["resources"]
            continue
        decided = name == "exec-train-model"
        count = "preflight-train_accelerator_count" if decided else "resources_accelerator_count"
        assert container["resources"]["accelerator"] == {
            "resourceCount": f"{{{{$.inputs.parameters['pipelinechannel--{count}']}}}}",
            "resourceType": "{{$.inputs.parameters['pipelinechannel--resources_accelerator']}}",
        }
        place = executors[name]
        assert place["nodeSelector"]["nodeSelectorJson"] == _given("node_selector", decided)
        assert place["tolerations"] == [{"tolerationJson": _given("tolerations", decided)}]
        assert place["emptyDirMounts"][0]["mountPath"] == "/dev/shm"
        assert place["emptyDirMounts"][0]["medium"] == "Memory"


def _given(name: str, decided: bool) -> dict:
    """Return the source of a resource parameter: preflight's decision, or the run's own parameter."""
    if not decided:
        return {"componentInputParameter": f"resources_{name}"}
    return {"taskOutputParameter": {"outputParameterKey": f"train_{name}", "producerTask": "preflight"}}


def test_resource_parameters_are_texts_because_the_backend_reads_nothing_else(spec):
    """The driver resolves them by the string value alone: the number 1 would become no accelerator, silently."""
    for name in ("resources_accelerator", "resources_accelerator_count", "resources_cpu", "resources_memory"):
        assert spec["root"]["inputDefinitions"]["parameters"][name]["parameterType"] == "STRING"


def test_resource_parameters_reach_their_tasks(spec):
    """The compiler drops them on the way into an exit handler's group; a nested pipeline keeps them."""
    for name, decided in (("train-model", True), ("evaluate-model", False)):
        for task, value in ((task, value) for task, value in tasks(spec).items() if task == name):
            inputs = value["inputs"]["parameters"]
            channel = "preflight-train_memory" if decided else "resources_memory"
            assert inputs[f"pipelinechannel--{channel}"] == _given("memory", decided), task


def test_conditions_rest_on_an_output_called_output(text):
    """kfp.local resolves no other, and then skips the branch with no more than a warning."""
    for condition in re.findall(r"inputs\.parameter_values\['+pipelinechannel--([\w-]+?)'+\]", text):
        assert condition.endswith("-Output")


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
