"""Each place that data comes from, asked over real connections; what is hostile or wrong is refused in a sentence."""

from __future__ import annotations

import os
import re
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from multimodal_gemma import config
from multimodal_gemma.config.schema import DataConfig
from multimodal_gemma.data import places, sources
from multimodal_gemma.data.collect import fetch_all
from multimodal_gemma.data.downloads import KINDS
from multimodal_gemma.data.sources import Source, Unavailable
from multimodal_gemma.data.sources.archive import Archive
from multimodal_gemma.data.sources.buckets import GcsSource
from multimodal_gemma.data.sources.web import LOOPBACK_VARIABLE, PrivateAddressError, check_public
from multimodal_gemma.errors import InputError
from tests.unit.data.serving import COMMIT, Clock, Server, serve

DATA = DataConfig()
LIMIT = 1000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Iterator[Server]:
    monkeypatch.setenv(LOOPBACK_VARIABLE, "1")
    with serve() as running:
        running.files = {"/images/a.jpg": b"first", "/images/b.jpg": b"second"}
        yield running


# Locations


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("ftp://host/file", "unknown scheme ftp://"),
        ("somewhere", "is no location"),
        ("file:///does/not/exist", "does not exist"),
        ("file://host/share", "no path of this machine"),
        ("sample://audio", "does not exist. There are sample://"),
        ("http://example.org/a.json", "is not https://"),
        ("https://example.org/a.json", "host example.org, which is not allowed"),
        ("https://127.0.0.1/a.json", "host 127.0.0.1, which is not allowed"),
        ("https://s3.amazonaws.com.evil.org/a", "host s3.amazonaws.com.evil.org, which is not allowed"),
        ("https://s3.amazonaws.com@evil.org/a", "more than a host and a path"),
        ("https://s3.amazonaws.com\\.evil.org/a", "more than a host and a path"),
        ("hf://gemma", "no location on the hub"),
        ("hf://datasets/one@main", "no location on the hub"),
        ("s3:///prefix", "names no bucket"),
        ("s3://Not_a_bucket!/prefix", "names no bucket"),
        ("https://[::1/a", "is no address"),
        ("https://s3.amazonaws.com:99999/a", "is no address"),
        ("https:///a", "is no address"),
    ],
)
def test_a_wrong_location_is_one_sentence(uri: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LOOPBACK_VARIABLE, raising=False)
    with pytest.raises(InputError, match=said):
        sources.open(uri, DATA)


@pytest.mark.parametrize("name", ["../secret", "a/../../secret", "/etc/passwd", "", "a\\b", "a\nb"])
def test_a_name_never_leaves_its_location(name: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "secret").write_text("secret")
    source = sources.open((tmp_path / "images").as_uri(), DATA)
    with pytest.raises(Unavailable, match="outside the location"):
        source.read(name, LIMIT)


# Folders


def test_a_folder_is_read_by_name(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a b.jpg").write_bytes(b"pixels")
    source = sources.open(tmp_path.as_uri(), DATA)
    assert source.names() == ["sub/a b.jpg"]
    assert source.read("sub/a b.jpg", LIMIT) == b"pixels"
    assert source.exists("sub/a b.jpg")
    with pytest.raises(Unavailable, match="no such file"):
        source.read("none.jpg", LIMIT)
    with pytest.raises(Unavailable, match="larger than 3 bytes"):
        source.read("sub/a b.jpg", 3)


def test_a_folder_stands_for_the_one_file_of_conversations_in_it(shared: Path, tmp_path: Path) -> None:
    sample = shared / "coco-sample"
    sources.open(sample.as_uri(), DATA).fetch(None, tmp_path / "out.json")
    assert (tmp_path / "out.json").read_bytes() == (sample / "llava_instruct_sample.json").read_bytes()


def test_a_folder_of_several_json_files_is_a_sentence_that_lists_them(tmp_path: Path) -> None:
    source = sources.open(tmp_path.as_uri(), DATA)
    with pytest.raises(InputError, match="holds no JSON file"):
        source.fetch(None, tmp_path / "out")
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text('[{"conversations": []}]')
    with pytest.raises(InputError, match=r"holds 2 JSON files \(a.json, b.json\)"):
        source.fetch(None, tmp_path / "out")


def test_a_change_of_a_folder_changes_its_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    source = sources.open(tmp_path.as_uri(), DATA)
    before = source.fingerprint()
    assert source.fingerprint() == before
    (tmp_path / "a").write_bytes(b"other")
    assert source.fingerprint() != before


def test_weights_are_linked_and_texts_are_copied(tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes(b"content")
    source = sources.open(tmp_path.as_uri(), DATA)
    for name in ("model.safetensors", "config.json"):
        source.fetch(name, tmp_path / "out" / name)
    assert (tmp_path / "out" / "model.safetensors").samefile(tmp_path / "model.safetensors")
    assert not (tmp_path / "out" / "config.json").samefile(tmp_path / "config.json")


# Web


def web(server: Server) -> Source:
    return sources.open(f"{server.url}/images/", DATA)


def test_a_file_is_fetched_over_the_web(server: Server, tmp_path: Path) -> None:
    source = web(server)
    assert source.read("a.jpg", LIMIT) == b"first"
    source.fetch("b.jpg", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"second"
    sources.open(f"{server.url}/images/a.jpg", DATA).fetch(None, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"first"
    assert source.exists("a.jpg")
    assert not source.exists("none.jpg")


@pytest.mark.parametrize("fault", [429, 500, 503, "cut"])
def test_a_passing_fault_is_asked_again(server: Server, fault: int | str, tmp_path: Path) -> None:
    server.faults["/images/a.jpg"] = [fault, fault]
    assert web(server).read("a.jpg", LIMIT) == b"first"
    server.faults["/images/b.jpg"] = [fault]
    web(server).fetch("b.jpg", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"second"


def test_an_absent_file_is_not_asked_for_twice(server: Server) -> None:
    for status in (403, 404, 410):
        server.faults["/images/a.jpg"] = [status]
        server.asked.clear()
        with pytest.raises(Unavailable, match=str(status)):
            web(server).read("a.jpg", LIMIT)
        assert server.asked["GET", "/images/a.jpg"] == 1


def test_a_lasting_fault_ends_after_ten_minutes(server: Server, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    server.faults["/images/a.jpg"] = [503] * 1000
    source = web(server)
    with pytest.raises(sources.Unreachable, match="503, for 10 minutes"):
        source.read("a.jpg", LIMIT)
    assert sum(clock.waits) == pytest.approx(600)
    assert 0.25 <= clock.waits[0] <= 0.75  # they double, jittered, up to half a minute
    assert 8 <= clock.waits[5] <= 24
    assert max(clock.waits) <= 30
    told = [record.message for record in caplog.records if "gives nothing (503)" in record.message]
    assert 8 <= len(told) <= 10  # a line a minute
    clock.waits.clear()
    with pytest.raises(sources.Unreachable):  # the place is down: its next file does not take ten minutes, too
        source.read("a.jpg", LIMIT)
    assert clock.waits == []
    server.faults.clear()
    assert source.read("a.jpg", LIMIT) == b"first"


def test_a_server_is_given_the_time_that_it_asks_for(server: Server, clock: Clock) -> None:
    server.faults["/images/a.jpg"] = [429]
    server.retry_after = 200
    assert web(server).read("a.jpg", LIMIT) == b"first"
    assert clock.waits == [200]


def test_one_file_that_always_fails_while_others_come_is_missing(server: Server, clock: Clock) -> None:
    names = [f"{number:04d}.jpg" for number in range(50)]
    server.files |= {f"/images/{name}": name.encode() for name in names}
    server.faults["/images/0007.jpg"] = [503] * 1000
    results = dict(fetch_all(web(server), [(name, name) for name in names], DataConfig(download_threads=2)))
    assert str(results.pop("0007.jpg")) == "503, for 2 minutes in which other files came"
    assert all(content == name.encode() for name, content in results.items())
    assert sum(clock.waits) == pytest.approx(120)


def test_a_file_beyond_the_limit_is_not_kept(server: Server) -> None:
    with pytest.raises(Unavailable, match="larger than 4 bytes"):
        web(server).read("a.jpg", 4)


def test_a_redirect_is_judged_like_the_first_address(server: Server) -> None:
    server.faults["/images/a.jpg"] = [f"-> {server.url}/images/b.jpg"]
    assert web(server).read("a.jpg", LIMIT) == b"second"
    server.faults["/images/a.jpg"] = ["-> http://169.254.169.254/latest/meta-data"]
    with pytest.raises(Unavailable, match=r"169\.254\.169\.254.* is not https://"):
        web(server).read("a.jpg", LIMIT)
    server.faults["/images/a.jpg"] = [f"-> {server.url}/images/a.jpg"] * 10
    with pytest.raises(Unavailable, match="too many redirects"):
        web(server).read("a.jpg", LIMIT)


def test_a_listed_host_with_a_private_address_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    data = DataConfig(allowed_hosts=["localhost"])
    monkeypatch.setenv(LOOPBACK_VARIABLE, "0")
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    source = sources.open(server.url.replace("http://127.0.0.1", "https://localhost"), data)
    with pytest.raises(Unavailable, match="private address"):
        source.read("images/a.jpg", LIMIT)


@pytest.mark.parametrize(
    "address",
    ["10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "fe80::1%eth0", "::1", "fd00::1"],
)
def test_no_private_address_is_public(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LOOPBACK_VARIABLE, raising=False)
    with pytest.raises(PrivateAddressError):
        check_public(address)
    with pytest.raises(PrivateAddressError):
        check_public("::ffff:10.0.0.1")
    check_public("8.8.8.8")


def test_a_web_fingerprint_follows_the_file(server: Server) -> None:
    source = sources.open(f"{server.url}/images/a.jpg", DATA)
    before = source.fingerprint()
    assert source.fingerprint() == before
    server.files["/images/a.jpg"] = b"other"
    assert source.fingerprint() != before
    del server.files["/images/a.jpg"]
    with pytest.raises(Unavailable, match="404"):
        source.fingerprint()


# Many files


def test_many_files_come_in_order_with_what_is_missing(server: Server) -> None:
    names = [f"{number:04d}.jpg" for number in range(200)]
    server.files |= {f"/images/{name}": name.encode() for name in names if name != "0007.jpg"}
    results = list(fetch_all(web(server), [(name, name) for name in names], DATA))
    assert [name for name, _ in results] == names
    assert [str(content) for name, content in results if isinstance(content, Unavailable)] == ["404"]
    assert all(content == name.encode() for name, content in results if name != "0007.jpg")


def test_a_server_that_is_down_ends_the_download_early(server: Server) -> None:
    names = [f"{number}.jpg" for number in range(2000)]
    server.files |= {f"/images/{name}": b"x" for name in names[:100]}
    server.faults = {f"/images/{name}": [503] * 1000 for name in names[100:]}
    with pytest.raises(InputError, match=r"does not answer \(503, for 10 minutes\); 100 of 2,000 files had come"):
        list(fetch_all(web(server), [(name, name) for name in names], DATA))
    assert len(server.asked) < 100 + 4 * DATA.download_threads


def test_a_place_that_has_none_of_many_files_is_the_wrong_one(server: Server) -> None:
    names = [f"{number}.jpg" for number in range(2000)]
    with pytest.raises(InputError, match="gave none of 200 files, last 199.jpg .404.. Check the location"):
        list(fetch_all(web(server), [(name, name) for name in names], DATA))


def test_a_host_that_is_down_is_missing_its_own_files_only(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_HTTPS", "http://")
    here = server.url.removeprefix("http://")
    server.files["/images/a b.jpg"] = b"third"
    names = [f"127.0.0.1:1/{number}.jpg" for number in range(300)]
    names += [f"{here}/images/a.jpg", f"{here}/images/a%20b.jpg?size=full"]
    place = places.addresses({name: name for name in names}, DATA).open()
    found = dict(fetch_all(place, [(name, name) for name in [names[-1], *names]], DATA))
    assert [content for content in found.values() if isinstance(content, bytes)] == [b"third", b"first"]
    assert {str(found[name]) for name in names[:300]} == {"no connection, for 10 minutes"}


# The hub


@pytest.fixture
def hub(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    content = {"config.json": b"{}", "model.safetensors": b"weights", "sub/data.json": b"[]"}
    server.add_hub_repository("models", "org/name", "main", content)
    server.add_hub_repository("datasets", "org/set", "main", content)
    return server


def test_a_branch_of_the_hub_is_resolved_to_its_commit(hub: Server, tmp_path: Path) -> None:
    source = sources.open("hf://org/name@main", DATA)
    assert source.describe() == {"uri": "hf://org/name@main", "commit": COMMIT}
    assert source.names() == ["config.json", "model.safetensors", "sub/data.json"]
    assert source.read("config.json", LIMIT) == b"{}"
    source.fetch("model.safetensors", tmp_path / "out" / "model.safetensors")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == b"weights"
    with pytest.raises(Unavailable, match="no such file"):
        source.read("none.json", LIMIT)


def test_a_file_of_a_dataset_is_fetched_from_a_pinned_commit(hub: Server, tmp_path: Path) -> None:
    source = sources.open(f"hf://datasets/org/set@{COMMIT}/sub/data.json", DATA)
    source.fetch(None, tmp_path / "out.json")
    assert (tmp_path / "out.json").read_bytes() == b"[]"
    assert hub.asked["GET", f"/api/datasets/org/set/revision/{COMMIT}"] == 0  # a commit needs no resolving
    assert sources.open("hf://datasets/org/set@main/sub", DATA).names() == ["data.json"]


@pytest.mark.parametrize("written", ["refs/pr/1", "refs%2Fpr%2F1"])
def test_a_revision_with_a_slash_is_read_as_the_hubs_own_library_reads_it(hub: Server, written: str) -> None:
    hub.add_hub_repository("models", "org/name", "refs/pr/1", {"sub/config.json": b"{}"})
    assert sources.open(f"hf://org/name@{written}", DATA).describe()["commit"] == COMMIT
    assert sources.open(f"hf://org/name@{written}/sub", DATA).names() == ["config.json"]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("GatedRepo", "org/name is gated. Accept its licence .* HF_TOKEN"),
        ("RepoNotFound", "the hub has no model org/name"),
        ("RevisionNotFound", "org/name has no revision 'main'"),
    ],
)
def test_what_the_hub_refuses_is_a_sentence(code: str, said: str, monkeypatch: pytest.MonkeyPatch, hub: Server) -> None:
    hub.errors["/api/models/org/name/revision/main"] = code
    with pytest.raises(InputError, match=said):
        sources.open("hf://org/name@main", DATA).fingerprint()


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize(
    ("uri", "page"), [("hf://org/name@main", "/org/name"), ("hf://datasets/org/set@main", "/datasets/org/set")]
)
def test_a_plain_refusal_names_the_token_and_the_page_of_the_licence(
    uri: str, page: str, status: int, hub: Server
) -> None:
    kind = "datasets" if "datasets" in uri else "models"
    hub.faults[f"/api/{kind}/{page.removeprefix('/datasets').strip('/')}/revision/main"] = [status]
    with pytest.raises(InputError) as caught:
        sources.open(uri, DATA).fingerprint()
    assert f"({status}). Give an access token that may read it in the environment variable HF_TOKEN" in str(
        caught.value
    )
    assert f"if {hub.url}{page} shows a licence, accept it there" in str(caught.value)
    assert "Secret huggingface" in str(caught.value)


@pytest.mark.parametrize("status", [401, 403])
def test_a_web_servers_refusal_says_where_a_token_counts(status: int, server: Server, tmp_path: Path) -> None:
    server.faults["/images/a.jpg"] = [status]
    with pytest.raises(
        Unavailable, match=rf"{status}, and no token is sent .* hf://, with the token .* HF_TOKEN and the"
    ):
        web(server).fetch("a.jpg", tmp_path / "a")


def test_a_hub_that_is_down_is_a_sentence(hub: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.faults["/api/models/org/name/revision/main"] = [500] * 1000
    with pytest.raises(InputError, match="the hub answers 500, for 10 minutes"):
        sources.open("hf://org/name@main", DATA).fingerprint()


# S3


@pytest.fixture
def s3(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    server.files = {"/bucket/prefix/a.jpg": b"first", "/bucket/prefix/sub/b.jpg": b"second"}
    return server


def test_objects_are_read_by_name_and_listed(s3: Server, tmp_path: Path) -> None:
    source = sources.open("s3://bucket/prefix/", DATA)
    assert source.names() == ["a.jpg", "sub/b.jpg"]
    assert source.read("sub/b.jpg", LIMIT) == b"second"
    source.fetch("a.jpg", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"first"
    assert source.exists("a.jpg")
    assert not source.exists("none.jpg")
    with pytest.raises(Unavailable, match="no such object"):
        source.read("none.jpg", LIMIT)
    with pytest.raises(Unavailable, match="larger than 3 bytes"):
        source.read("a.jpg", 3)
    before = source.fingerprint("a.jpg")
    s3.files["/bucket/prefix/a.jpg"] = b"other"
    assert source.fingerprint("a.jpg") != before


def test_a_busy_store_is_asked_again(s3: Server) -> None:
    s3.faults["/bucket/prefix/a.jpg"] = [503, 503]
    assert sources.open("s3://bucket/prefix", DATA).read("a.jpg", LIMIT) == b"first"


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"AWS_ENDPOINT_URL": "seaweedfs:9000"}, "AWS_ENDPOINT_URL=seaweedfs:9000 is no endpoint"),
        ({"AWS_ACCESS_KEY_ID": "key"}, "AWS_SECRET_ACCESS_KEY is not set"),
        ({"AWS_SECRET_ACCESS_KEY": "secret"}, "AWS_ACCESS_KEY_ID is not set"),
    ],
)
def test_a_wrong_setting_of_the_store_is_a_sentence(
    variables: dict[str, str], said: str, s3: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=said):
        sources.open("s3://bucket/prefix", DATA)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("NoSuchBucket", "there is no bucket 'bucket'"),
        ("InvalidAccessKeyId", r"refuses s3://bucket/prefix \(InvalidAccessKeyId\)"),
    ],
)
def test_what_the_store_refuses_is_a_sentence(code: str, said: str, s3: Server) -> None:
    s3.errors["/bucket/prefix/a.jpg"] = code
    with pytest.raises(InputError, match=said):
        sources.open("s3://bucket/prefix", DATA).read("a.jpg", LIMIT)


def test_objects_of_gs_are_written_listed_and_read_as_those_of_s3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a folder in the place of the store: all of ours but the library's own talk with Google."""
    (tmp_path / "bucket" / "set").mkdir(parents=True)
    monkeypatch.setattr(GcsSource, "_files", SubTreeFileSystem(str(tmp_path), LocalFileSystem()))
    first = sources.open("gs://bucket/set/", DATA)
    assert isinstance(first, GcsSource)
    first.put("a.jpg", b"first", "")
    first.put("b.jpg", b"second", "")
    before = first.fingerprint()
    assert first.names() == ["a.jpg", "b.jpg"]
    assert first.stamp("a.jpg").startswith("5-")
    assert first.facts()["b.jpg"].startswith("size and time 6-")
    assert (first.exists("a.jpg"), first.exists("c.jpg")) == (True, False)
    first.put("a.jpg", b"other bytes", "")
    again = sources.open("gs://bucket/set/", DATA)
    assert again.read("a.jpg", LIMIT) == b"other bytes"
    assert again.fingerprint() != before
    assert again.fingerprint("b.jpg") == first.fingerprint("b.jpg")
    again.fetch("b.jpg", tmp_path / "b.jpg")
    assert (tmp_path / "b.jpg").read_bytes() == b"second"
    with pytest.raises(Unavailable, match="no such object"):
        again.read("c.jpg", LIMIT)
    with pytest.raises(Unavailable, match="larger than 3 bytes"):
        again.read("a.jpg", 3)


# Archives


def zipped(path: Path, members: dict[str, bytes], mode: int = stat.S_IFREG | 0o644) -> Archive:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            member = zipfile.ZipInfo(name)
            member.external_attr = mode << 16
            archive.writestr(member, content)
    return Archive(path, path.as_uri())


def test_a_member_is_found_by_its_path_or_the_end_of_it(tmp_path: Path) -> None:
    source = zipped(tmp_path / "a.zip", {"train2017/a.jpg": b"first", "x/b.jpg": b"1", "y/b.jpg": b"2"})
    assert source.read("train2017/a.jpg", LIMIT) == source.read("a.jpg", LIMIT) == b"first"
    assert source.read("y/b.jpg", LIMIT) == b"2"
    with pytest.raises(Unavailable, match="2 members of that name"):
        source.read("b.jpg", LIMIT)
    with pytest.raises(Unavailable, match="not in the archive"):
        source.read("c.jpg", LIMIT)
    with pytest.raises(Unavailable, match="larger than 2 bytes"):
        source.read("a.jpg", 2)


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/passwd", "x/../../a.jpg", "..\\a.jpg"])
def test_an_archive_that_points_outside_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a name that points outside"):
        zipped(tmp_path / "a.zip", {"good.jpg": b"", name: b""})


def test_an_archive_with_a_link_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds the link 'a.jpg'"):
        zipped(tmp_path / "a.zip", {"a.jpg": b"/etc/passwd"}, mode=stat.S_IFLNK | 0o777)


def test_half_an_archive_is_a_sentence(tmp_path: Path) -> None:
    zipped(tmp_path / "a.zip", {"a.jpg": os.urandom(1000)})
    (tmp_path / "b.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:700])
    with pytest.raises(InputError, match="no whole zip archive"):
        Archive(tmp_path / "b.zip", "https://host/b.zip")


def test_one_object_that_may_not_be_read_is_missing(s3: Server) -> None:
    s3.errors["/bucket/prefix/a.jpg"] = "AccessDenied"
    with pytest.raises(Unavailable, match=r"the store refuses it \(AccessDenied\)"):
        sources.open("s3://bucket/prefix", DATA).read("a.jpg", LIMIT)


@pytest.mark.parametrize(
    "address", ["64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "::ffff:169.254.169.254", "224.0.0.1", "ff0e::1", "10.0.0.1"]
)
def test_an_address_that_leads_into_a_private_network_is_refused(address: str) -> None:
    with pytest.raises(PrivateAddressError):
        check_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "64:ff9b::808:808", "2606:4700::1111"])
def test_a_public_address_is_none_of_these(address: str) -> None:
    check_public(address)


@pytest.mark.parametrize("preset", config.presets())
def test_every_preset_names_commits_where_there_are_any(preset: str) -> None:
    """What a branch holds tomorrow is not what a preset was tried with."""
    asked = config.compose(preset, ["data.require_commits=true"])
    found = [source.uri for kind in KINDS.values() for source in kind(asked).sources.values()]
    assert found
    assert not [uri for uri in found if "raw.githubusercontent.com" in uri and not re.search("/[0-9a-f]{40}/", uri)]
