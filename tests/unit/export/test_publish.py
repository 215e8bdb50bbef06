"""An export goes up whole, is read back, and comes down as the same model."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from multimodal_gemma import cli, files, manifest
from multimodal_gemma.config.schema import Config
from multimodal_gemma.data.sources import buckets
from multimodal_gemma.errors import InputError
from multimodal_gemma.export import publish
from multimodal_gemma.registry.resolve import resolve_model
from tests.unit.evaluation import tiny

pytest.importorskip("moto.server", reason="moto is not installed (extra dev)")
SUMS = "SHA256SUMS"


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(autouse=True)
def environment(store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    values = {"AWS_ENDPOINT_URL": store, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    for name, value in {**values, "AWS_REGION": "us-east-1", "MMGEMMA_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    client = buckets.s3_client()
    if not client.bucket_exists("models"):
        client.make_bucket("models")
    monkeypatch.setattr(publish.verify, "run", lambda _: None)  # tests/unit/export/test_verify.py has it


@pytest.fixture
def export(tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    tiny.save(folder / "model")
    (folder / "NOTICE").write_text(tmp_path.name)  # another digest a test
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    (folder / SUMS).write_text("".join(f"{files.sha256_file(folder / name)}  {name}\n" for name in names))
    manifest.write(folder, "export", config={}, inputs={"registration": "c" * 64})  # which a failed gate never gets
    return folder


def objects() -> dict[str, str]:
    found = buckets.s3_client().list_objects("models", recursive=True)
    return {item.object_name: item.last_modified for item in found}


def test_a_published_export_is_the_same_model_when_fetched_by_its_address(export: Path) -> None:
    place = publish.publish(export, "s3://models/ours/")
    assert place == f"s3://models/ours/{manifest.read(export).digest}"
    fetched = resolve_model(place, Config())
    for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"):
        assert (fetched / name).read_bytes() == (export / "model" / name).read_bytes()
    assert resolve_model(f"{place}/model", Config()).is_dir()


def test_publishing_again_sends_nothing_and_mends_what_was_damaged(export: Path) -> None:
    place = publish.publish(export, "s3://models")
    before = {name: when for name, when in objects().items() if manifest.read(export).digest in name}
    assert publish.publish(export, "s3://models") == place
    assert before.items() <= objects().items()
    key = f"{manifest.read(export).digest}/model/model.safetensors"
    buckets.s3_client().fput_object("models", key, __file__)
    with pytest.raises(InputError, match=r"model/model\.safetensors of s3://\S+ differs from its sha256"):
        resolve_model(place, Config())
    publish.publish(export, "s3://models")
    assert resolve_model(place, Config()).is_dir()


def test_a_half_published_model_is_refused(export: Path) -> None:
    place = publish.publish(export, "s3://models")
    buckets.s3_client().remove_object("models", f"{manifest.read(export).digest}/model/model.safetensors")
    with pytest.raises(InputError, match=r"lacks model/model\.safetensors"):
        resolve_model(place, Config())


def test_what_is_not_a_sound_export_is_not_published(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = objects()
    with monkeypatch.context() as patch:

        def differs(_: Path) -> None:
            raise InputError("export: prompt 1: its logits differ.")

        patch.setattr(publish.verify, "run", differs)
        with pytest.raises(InputError, match="its logits differ"):
            publish.publish(export, "s3://models")
    shutil.copy(__file__, export / "model" / "model.safetensors")
    with pytest.raises(InputError, match="differs from its sha256"):
        publish.publish(export, "s3://models")
    (export / manifest.NAME).unlink()
    with pytest.raises(InputError, match="is not a finished export"):
        publish.publish(export, "s3://models")
    assert objects() == before


@pytest.mark.parametrize("place", ["s3://", "https://models", "s3://no-such-bucket/x"])
def test_a_place_that_takes_nothing_is_one_sentence(
    export: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", "--verify", str(export), "--publish", place]) == 2
    assert "mmgemma: export: " in capsys.readouterr().err


def test_only_what_a_gate_let_pass_is_published(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = objects()
    manifest.write(export, "export", config={})
    assert cli.main(["export", "--verify", str(export), "--publish", "s3://models"]) == 2
    assert "no gate vouches for it" in capsys.readouterr().err
    assert objects() == before
    manifest.write(export, "export", config={}, inputs={"registration": "c" * 64})
    assert cli.main(["export", "--verify", str(export), "--publish", "s3://models"]) == 0
    assert capsys.readouterr().out.strip() == f"s3://models/{manifest.read(export).digest}"


def test_the_cluster_serves_the_model_folder_of_what_was_published(export: Path) -> None:
    manifests = Path(__file__).parents[3] / "manifests" / "serving"
    service = yaml.safe_load((manifests / "inference-service.yaml").read_text())
    served = service["spec"]["predictor"]["model"]["storageUri"]
    prefix, _, inside = served.partition("/DIGEST/")
    client = buckets.s3_client()
    bucket = prefix.removeprefix("s3://").partition("/")[0]
    if not client.bucket_exists(bucket):
        client.make_bucket(bucket)
    place = publish.publish(export, prefix)
    assert f"{place}/{inside}" == served.replace("DIGEST", manifest.read(export).digest)
    names = {item.object_name for item in client.list_objects(bucket, recursive=True)}
    for needed in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"):
        assert f"{place}/{inside}/{needed}".removeprefix(f"s3://{bucket}/") in names
