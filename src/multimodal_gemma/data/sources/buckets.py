"""Objects in buckets: `s3://bucket/prefix` (S3, MinIO, SeaweedFS and what speaks like them), `gs://bucket/prefix`.

Of S3, endpoint and credentials come from the environment, where a cluster mounts them from a Secret: AWS_ENDPOINT_URL,
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION. Without a key, AWS_PROFILE names one of
~/.aws/credentials, and a pod's web identity or role is used where the cloud says so (AWS_WEB_IDENTITY_TOKEN_FILE,
AWS_CONTAINER_CREDENTIALS_FULL_URI or _RELATIVE_URI); else the store is asked anonymously. Of Google Cloud Storage they
are the cloud's own chain: GOOGLE_APPLICATION_CREDENTIALS, else the service account that the pod or machine runs as;
STORAGE_EMULATOR_HOST names a store that speaks like it.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from multimodal_gemma import files
from multimodal_gemma.data.sources import retrying, transfer
from multimodal_gemma.data.sources.base import Unavailable, Unreachable, safe_name
from multimodal_gemma.errors import InputError

_ENDPOINT = "https://s3.amazonaws.com"
_CONNECTIONS = 64  # kept alive in the pool
SHA256 = "sha256"  # name of the metadata
SINGLE_PART = 64 << 20  # bytes up to which an object is written in one piece, so that its ETag is the MD5 of its bytes
_ROLES = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
)
_CHANGED = ("PreconditionFailed", "InvalidRange")  # another object than the one whose first part is held
_ABSENT = ("NoSuchKey", "NoSuchObject", "ResourceNotFound")
_DENIED = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken")
_BUSY = ("SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "XMinioServerNotInitialized")
_RETRY_SECONDS = 20.0  # of the library's own retries, which would go on for 15 minutes
_GCS_REFUSED = ("UNAUTHENTICATED", "PERMISSION_DENIED", "Could not create a OAuth2 access token", "credentials")


class BucketSource(transfer.StreamedSource):
    """A prefix of a bucket, or one object; what tells an object from a later one is its stamp in the listing."""

    stamped_by = "ETag"

    @abc.abstractmethod
    def _write(self, path: str, stream: Any, size: int, sha256: str) -> None:
        """Write an object, with the sha256 as its metadata."""

    @abc.abstractmethod
    def _stamp_of(self, path: str | None) -> str:
        """Return an object's stamp, "" if the store does not have it; None: the one that the location may be."""

    @abc.abstractmethod
    def _list(self) -> dict[str, str]:
        """Return the stamp of every object below the prefix."""

    def put(self, name: str, content: bytes | Path, sha256: str) -> None:
        """Write an object with its sha256 beside it.

        Args:
            name: of the object, below the prefix.
            content: its bytes, or the file that holds them.
            sha256: hexadecimal, kept as the object's metadata.

        Raises:
            Unavailable: it cannot be written.
            InputError: the store refuses.
        """
        path = self._path(name)
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        with transfer.Meter(self._patience, "upload", name) as meter:

            def attempt() -> None:
                meter.begin(0, size)
                with content.open("rb") if isinstance(content, Path) else io.BytesIO(content) as stream:
                    self._write(path, _Counted(stream, meter), size, sha256)

            self._ask(attempt)

    def exists(self, name: str) -> bool:
        """Return whether the store has that object."""
        return bool(self._stamp_of(self._path(name)))

    def names(self) -> list[str]:
        """Return every object below the prefix."""
        return sorted(self._listing)

    def stamp(self, name: str) -> str:
        """Return an object's stamp, "" if there is none of that name."""
        return self._listing.get(name, "")

    def fingerprint(self, *names: str) -> str:
        """Return a digest of the objects' stamps."""
        if names:
            return files.digest_of([[name, self._stamp_of(self._path(name))] for name in names])
        return files.digest_of([self.uri, self._stamp_of(None) or sorted(self._listing.items())])

    def facts(self) -> dict[str, str]:
        """Return the stamps below the prefix, or of the one object."""
        single = self._stamp_of(None)
        found = {"": single} if single else self._listing
        return {name: f"{self.stamped_by} {stamp}" for name, stamp in sorted(found.items())}

    @functools.cached_property
    def _listing(self) -> dict[str, str]:
        try:
            return self._list()
        except Unavailable as error:
            raise InputError(
                f"download: {self.uri} cannot be listed ({error}). Check the location, and for s3:// AWS_ENDPOINT_URL."
            ) from None


class _Counted:
    """A stream that is read to be sent."""

    def __init__(self, stream: BinaryIO, meter: transfer.Meter) -> None:
        self._stream, self._meter = stream, meter

    def read(self, size: int = -1) -> bytes:
        piece = self._stream.read(size)
        self._meter.add(len(piece))
        self._meter.keep()
        return piece


@dataclasses.dataclass(frozen=True)
class Stored:
    """What a store knows of an object.

    Attributes:
        size: bytes.
        etag: the MD5 of the bytes, unless the object came in parts.
        sha256: as recorded beside it by `put`, "" if it was not.
    """

    size: int
    etag: str
    sha256: str


class S3Source(BucketSource):
    """A prefix, or one object, of a bucket.

    Args:
        uri: `s3://bucket/prefix`.
        patience: seconds without progress after which the store is down.

    Raises:
        InputError: the location or the endpoint is malformed, or half of the credentials is missing.
    """

    def __init__(self, uri: str, patience: float = retrying.LIMIT) -> None:
        super().__init__(uri, patience)
        self._bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        self._prefix = prefix.strip("/")
        self._client = s3_client()
        from minio.helpers import check_bucket_name

        try:
            check_bucket_name(self._bucket)
        except ValueError:
            raise InputError(f"download: {uri} names no bucket. Write s3://BUCKET/PREFIX.") from None

    def stored(self, name: str) -> Stored | None:
        """Return what the store knows of an object, None if it does not have it."""
        found = self._stat(self._path(name))
        if found is None:
            return None
        return Stored(int(found.size), str(found.etag), str((found.metadata or {}).get(f"x-amz-meta-{SHA256}", "")))

    def stored_all(self) -> dict[str, Stored]:
        """Return what a listing tells of every object below the prefix; no sha256."""
        prefix = f"{self._prefix}/" if self._prefix else ""
        found = self._ask(lambda: list(self._client.list_objects(self._bucket, prefix=prefix, recursive=True)))
        return {item.object_name.removeprefix(prefix): Stored(int(item.size), str(item.etag), "") for item in found}

    def _path(self, name: str | None) -> str:
        key = "/".join(part for part in (self._prefix, "" if name is None else safe_name(name)) if part)
        if not key:
            raise InputError(f"download: {self.uri} names a bucket, not an object in it. Append /OBJECT.")
        return key

    def _write(self, path: str, stream: Any, size: int, sha256: str) -> None:
        part = 0 if size <= SINGLE_PART else SINGLE_PART
        self._client.put_object(self._bucket, path, stream, size, metadata={SHA256: sha256}, part_size=part)

    def _list(self) -> dict[str, str]:
        return {name: found.etag for name, found in self.stored_all().items()}

    def _stamp_of(self, path: str | None) -> str:
        """Return an object's ETag."""
        if path is None and (self.uri.endswith("/") or not self._prefix):
            return ""
        found = self._stat(path or self._prefix)
        return str(found.etag) if found is not None else ""

    def _stat(self, key: str) -> Any:
        try:
            return self._ask(lambda: self._client.stat_object(self._bucket, key))
        except Unreachable:
            raise
        except Unavailable:
            return None

    @contextlib.contextmanager
    def _part(self, path: str, start: int, identity: str) -> Iterator[transfer.Part]:
        """Yield the answer to a request for an object from `start` on."""
        with self._spoken(one=True):
            try:
                answer = self._client.get_object(
                    self._bucket, path, offset=start, request_headers={"If-Match": identity} if start else None
                )
            except _s3_error() as error:
                if error.code not in _CHANGED:
                    raise
                start, answer = 0, self._client.get_object(self._bucket, path)
            try:
                stated = answer.headers.get("Content-Length", "")
                total = start + int(stated) if stated.isdecimal() else None
                recorded = answer.headers.get(f"x-amz-meta-{SHA256}", "")
                yield transfer.Part(answer, start, total, answer.headers.get("ETag", ""), recorded)
            finally:
                answer.close()
                answer.release_conn()

    @contextlib.contextmanager
    def _spoken(self, *, one: bool = False) -> Iterator[None]:
        """Turn what the store refuses into reasons and sentences; `one` object that may not be read is a reason."""
        import urllib3
        from minio.error import InvalidResponseError, ServerError

        try:
            yield
        except _s3_error() as error:
            code = error.code or ""
            if code in _ABSENT:
                raise Unavailable("no such object") from None
            if code == "NoSuchBucket":
                raise InputError(f"download: there is no bucket {self._bucket!r}. Check {self.uri}.") from None
            if code == "AccessDenied" and one:
                raise Unavailable("the store refuses it (AccessDenied)") from None
            if code in _DENIED:
                raise InputError(
                    f"download: the store refuses {self.uri} ({code}). Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY "
                    "and AWS_ENDPOINT_URL, and what the key may do."
                ) from None
            if code in _BUSY:
                raise retrying.Transient(code) from None
            raise Unavailable(code or "refused by the store") from None
        except (ServerError, InvalidResponseError):
            raise retrying.Transient("the store answers with an error") from None
        except urllib3.exceptions.ProtocolError as error:
            broken = isinstance(error, urllib3.exceptions.IncompleteRead)
            raise retrying.Transient("the connection broke" if broken else "no connection to the store") from None
        except urllib3.exceptions.HTTPError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise Unreachable("the store's TLS certificate is not valid") from None
            raise retrying.Transient("no connection to the store") from None


def _s3_error() -> type[Any]:
    from minio.error import S3Error

    return S3Error


def s3_client() -> Any:
    """Return a connection pool to the store that the environment names.

    Raises:
        InputError: the endpoint is malformed, or half of the credentials is missing.
    """
    import urllib3
    from minio import Minio
    from minio.credentials import AWSConfigProvider, IamAwsProvider

    endpoint = os.environ.get("AWS_ENDPOINT_URL") or _ENDPOINT
    split = urlsplit(endpoint)
    if split.scheme not in ("http", "https") or not split.netloc or split.path.strip("/"):
        raise InputError(f"download: AWS_ENDPOINT_URL={endpoint} is no endpoint. Write https://HOST[:PORT].")
    key, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    if bool(key) != bool(secret):
        lacking = "AWS_SECRET_ACCESS_KEY" if key else "AWS_ACCESS_KEY_ID"
        raise InputError(f"download: {lacking} is not set although its other half is. Set both, or neither.")
    pool = urllib3.PoolManager(
        timeout=urllib3.Timeout(connect=10, read=60), retries=False, maxsize=_CONNECTIONS, cert_reqs="CERT_REQUIRED"
    )
    provider: Any = None
    if not key and os.environ.get("AWS_PROFILE"):
        provider = AWSConfigProvider()
    elif not key and any(os.environ.get(name) for name in _ROLES):
        provider = IamAwsProvider()
    return Minio(
        split.netloc,
        access_key=key or None,
        secret_key=secret or None,
        session_token=os.environ.get("AWS_SESSION_TOKEN") or None,
        credentials=provider,
        secure=split.scheme == "https",
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None,
        http_client=pool,
    )


class GcsSource(BucketSource):
    """A prefix, or one object, of a bucket.

    Args:
        uri: `gs://bucket/prefix`.
        patience: seconds without progress after which the store is down.

    Raises:
        InputError: the location names no bucket.
    """

    stamped_by = "size and time"

    def __init__(self, uri: str, patience: float = retrying.LIMIT) -> None:
        super().__init__(uri, patience)
        bucket, _, prefix = uri.removeprefix("gs://").partition("/")
        if not bucket:
            raise InputError(f"download: {uri} names no bucket. Write gs://BUCKET/PREFIX.")
        self._root = f"{bucket}/{prefix.strip('/')}".rstrip("/")

    @functools.cached_property
    def _files(self) -> Any:
        from datetime import timedelta

        from pyarrow.fs import GcsFileSystem

        limit = timedelta(seconds=_RETRY_SECONDS)
        emulator = os.environ.get("STORAGE_EMULATOR_HOST", "")
        if not emulator:
            return GcsFileSystem(retry_time_limit=limit)
        scheme, _, host = emulator.rpartition("://")
        return GcsFileSystem(anonymous=True, scheme=scheme or "http", endpoint_override=host, retry_time_limit=limit)

    def _path(self, name: str | None) -> str:
        return self._root if name is None else f"{self._root}/{safe_name(name)}"

    def _write(self, path: str, stream: Any, size: int, sha256: str) -> None:
        with self._files.open_output_stream(path, metadata={"sha256": sha256}) as sink:
            while piece := stream.read(1 << 22):
                sink.write(piece)

    def _list(self) -> dict[str, str]:
        from pyarrow.fs import FileSelector

        wanted = FileSelector(self._root, recursive=True, allow_not_found=True)
        found = self._ask(lambda: self._files.get_file_info(wanted))
        return {info.path.removeprefix(f"{self._root}/"): _gcs_stamp(info) for info in found if info.is_file}

    def _stamp_of(self, path: str | None) -> str:
        if path is None and (self.uri.endswith("/") or "/" not in self._root):
            return ""
        info = self._ask(lambda: self._files.get_file_info(path or self._root))
        return _gcs_stamp(info) if info.is_file else ""

    @contextlib.contextmanager
    def _part(self, path: str, start: int, identity: str) -> Iterator[transfer.Part]:
        """Yield an object's bytes from `start` on, from its beginning if it is another one by now."""
        with self._spoken():
            info = self._files.get_file_info(path)
            if not info.is_file:
                raise Unavailable("no such object")
            now = _gcs_stamp(info)
            begin = start if now == identity else 0
            with self._files.open_input_file(path) as stream:
                stream.seek(begin)
                yield transfer.Part(stream, begin, info.size, now)

    @contextlib.contextmanager
    def _spoken(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise Unavailable("no such object") from None
        except OSError as error:
            said = str(error)
            if any(word in said for word in _GCS_REFUSED):
                raise InputError(
                    f"download: the store refuses {self.uri} ({said.splitlines()[0][:160]}). Check "
                    "GOOGLE_APPLICATION_CREDENTIALS, or the service account that this runs as and what it may do."
                ) from None
            raise retrying.Transient("the store does not answer") from None


def _gcs_stamp(info: Any) -> str:
    """Return an object's size and time of writing: the listing has no ETag."""
    return f"{info.size}-{info.mtime_ns}"
