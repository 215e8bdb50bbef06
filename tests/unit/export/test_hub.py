"""An export goes to a hub whole, in one commit, and is compared with what the hub then holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from multimodal_gemma import files, manifest
from multimodal_gemma.errors import InputError
from multimodal_gemma.export import publish
from tests.servers.hub_api import HubServer, commit_id
from tests.unit.evaluation import tiny

NAME = "hf://team/model"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as made:
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        monkeypatch.setenv("HF_TOKEN", made.token)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # what the hub itself has beside LFS
        monkeypatch.setattr(publish.verify, "run", lambda _: None)  # tests/unit/export/test_verify.py has it
        yield made


@pytest.fixture
def export(tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    tiny.save(folder / "model")
    files.write_text(folder / "README.md", "---\nlicense: gemma\n---\n# model\n")
    files.write_text(folder / "hub" / "README.md", '# model\nfrom_pretrained("ORG/NAME")\n')
    files.write_text(folder / "adapter" / "README.md", 'from_pretrained("model")\n')
    files.write_text(folder / "references" / "answers.json", "[]")
    files.write_text(folder / "space" / "app.py", "")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    lines = "".join(f"{files.sha256_file(folder / name)}  {name}\n" for name in names)
    files.write_text(folder / "SHA256SUMS", lines)
    manifest.write(folder, "export", config={}, inputs={"registration": "f" * 64})
    return folder


def test_the_model_stands_where_from_pretrained_looks_for_it(server: HubServer, export: Path) -> None:
    place = publish.publish(export, NAME)
    assert place == f"{NAME}@{commit_id('team/model', 1)}"
    (content,) = server.commits["team/model"]
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert content[name] == (export / "model" / name).read_bytes()
    assert {"README.md", "adapter/README.md"} <= set(content)
    assert not [name for name in content if name.startswith(("model/", "references/", "space/", "hub/"))]
    assert content["README.md"] == b'# model\nfrom_pretrained("team/model")\n'
    assert content["adapter/README.md"] == b'from_pretrained("team/model")\n'
    assert server.private == {"team/model": True}


def test_what_is_not_of_this_export_goes_with_the_same_commit(server: HubServer, export: Path) -> None:
    publish.publish(export, NAME, private=False)
    (export / "adapter" / "README.md").unlink()
    manifest.write(export, "export", config={}, inputs={"registration": "f" * 64})
    publish.publish(export, NAME)
    before, after = server.commits["team/model"]
    assert set(before) - set(after) == {"adapter/README.md"}
    assert server.private == {"team/model": False}


def test_publishing_again_sends_no_large_file_again(server: HubServer, export: Path) -> None:
    publish.publish(export, NAME)
    sent = [path for method, path in server.requests if method == "PUT"]
    publish.publish(export, NAME)
    assert sent
    assert [path for method, path in server.requests if method == "PUT"] == sent


def test_other_bytes_on_the_hub_are_noticed(server: HubServer, export: Path) -> None:
    server.spoiled.add("config.json")
    with pytest.raises(InputError, match=r"holds other bytes of config\.json than were sent"):
        publish.publish(export, NAME)
    server.spoiled = {"model.safetensors"}
    with pytest.raises(InputError, match=r"holds other bytes of model\.safetensors"):
        publish.publish(export, NAME)


def test_a_hub_that_refuses_is_one_sentence_without_the_token(
    server: HubServer, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(InputError, match=r"does not take team/model \(it answers 401\)") as caught:
        publish.publish(export, NAME)
    assert "hf_wrong" not in str(caught.value)


def test_without_a_gate_nothing_is_published(server: HubServer, export: Path) -> None:
    manifest.write(export, "export", config={})
    with pytest.raises(InputError, match="no gate vouches for it"):
        publish.publish(export, NAME)
    assert server.requests == []


@pytest.mark.parametrize("place", ["hf://nobody", "hf://a/b/c", "s3://", "ftp://here", "folder"])
def test_what_is_no_place_is_refused_before_anything_is_read(place: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no place to publish to"):
        publish.publish(tmp_path, place)
