"""Files behind `https://`: one connection pool, listed hosts, and no way into a private network.

A location that comes from a configuration may name any machine that the pod can reach, its cloud's metadata service
included. So a host must be listed, every redirect is judged like the first address, and the address that was really
connected to must be public.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit

import requests

from multimodal_gemma import __version__, files
from multimodal_gemma.data.sources import public_address, retrying
from multimodal_gemma.data.sources.base import Source, Unavailable, Unreachable, safe_name
from multimodal_gemma.errors import InputError

_TIMEOUT = (10.0, 60.0)  # seconds to connect, seconds between two bytes
_REDIRECTS = 5
_CHUNK = 1 << 18
_ABSENT = (401, 403, 404, 410)  # object stores answer 403 for what is absent where listing is not allowed


class WebSource(Source):
    """A file, or a base that file names are appended to, on a web server.

    Args:
        uri: the location; whether it ends with "/" does not matter when names are appended.
        allowed_hosts: hosts that may be asked.

    Raises:
        InputError: no https://, or a host that is not listed.
    """

    def __init__(self, uri: str, allowed_hosts: Sequence[str]) -> None:
        super().__init__(uri)
        self._hosts = frozenset(host.lower() for host in allowed_hosts)
        if fault := self._fault(uri):
            raise InputError(f"download: {uri} {fault}")
        self._session = requests.Session()
        self._session.headers.update({"User-Agent": f"multimodal-gemma/{__version__}", "Accept-Encoding": "identity"})
        self._session.mount("https://", public_address.Adapter())
        self._session.mount("http://", public_address.Adapter())

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return the bytes of one file, see `Source.read`."""
        url = self._url(name)
        return retrying.call(lambda: self._body(url, max_bytes))

    def fetch(self, name: str | None, destination: Path) -> None:
        """Write one file, see `Source.fetch`."""
        url = self.uri if name is None else self._url(name)
        with files.atomic_path(destination) as temporary:
            retrying.call(lambda: self._save(url, temporary))

    def exists(self, name: str) -> bool:
        """Ask the server for the header of one file."""
        try:
            retrying.call(lambda: self._stamp(self._url(name)))
        except Unreachable:
            raise
        except Unavailable:
            return False
        return True

    def names(self) -> list[str]:
        """Refuse: a web server does not list."""
        raise InputError(
            f"download: {self.uri} is on a web server, which lists nothing. Give hf://ORG/NAME@REVISION or a folder."
        )

    def fingerprint(self, *names: str) -> str:
        """Return a digest of ETag, modification time and size; of a base without names, its address alone."""
        if not names and urlsplit(self.uri).path.endswith("/"):
            return files.digest_of(self.uri)
        urls = [self._url(name) for name in names] or [self.uri]
        return files.digest_of([[url, retrying.call(functools.partial(self._stamp, url))] for url in urls])

    def describe(self) -> dict[str, str]:
        """Return the address."""
        return {"uri": self.uri}

    def _url(self, name: str) -> str:
        return f"{self.uri.rstrip('/')}/{quote(safe_name(name))}"

    def _body(self, url: str, max_bytes: int) -> bytes:
        with self._answer("GET", url) as answer:
            stated = answer.headers.get("Content-Length", "")
            size = int(stated) if stated.isdecimal() else 0
            content = bytearray()
            pieces = answer.iter_content(_CHUNK)
            while size <= max_bytes and len(content) <= max_bytes and (piece := next(pieces, None)) is not None:
                content += piece
        if max(size, len(content)) > max_bytes:
            raise Unavailable(f"larger than {max_bytes:,} bytes")
        return bytes(content)

    def _save(self, url: str, path: Path) -> None:
        with self._answer("GET", url) as answer, path.open("wb") as stream:
            for piece in answer.iter_content(_CHUNK):
                stream.write(piece)

    def _stamp(self, url: str) -> list[str]:
        with self._answer("HEAD", url) as answer:
            return [answer.headers.get(name, "") for name in ("ETag", "Last-Modified", "Content-Length")]

    @contextlib.contextmanager
    def _answer(self, method: str, url: str) -> Iterator[requests.Response]:
        """Yield the answer to one request, redirects followed; turn what a network can do into reasons."""
        try:
            for _ in range(_REDIRECTS + 1):
                if fault := self._fault(url):
                    raise Unavailable(f"{url} {fault}")
                answer = self._session.request(method, url, stream=True, timeout=_TIMEOUT, allow_redirects=False)
                if not answer.is_redirect:
                    break
                url = urljoin(url, answer.headers["Location"])
                answer.close()
            else:
                raise Unavailable("too many redirects")
            with answer:
                _check_status(answer)
                yield answer
        except public_address.PrivateAddressError as error:
            raise Unavailable(str(error)) from None
        except requests.RequestException as error:
            raise retrying.Transient(_reason(error)) from None

    def _fault(self, url: str) -> str:
        """Return why an address may not be asked, "" if it may."""
        split = urlsplit(url)
        host = (split.hostname or "").lower()
        if "@" in split.netloc or "\\" in url:  # readers of URLs differ on which host such an address means
            return "has more than a host and a path in it. Write https://HOST/PATH."
        if public_address.loopback_allowed() and public_address.is_loopback(host):
            return ""
        if split.scheme != "https":
            return "is not https://, and nothing else is fetched from the network. Give an https:// address."
        if host not in self._hosts:
            return f"is on the host {host}, which is not allowed. Add it to data.allowed_hosts if you trust it."
        return ""


def _check_status(answer: requests.Response) -> None:
    status = answer.status_code
    if status == 429 or status >= 500:
        raise retrying.Transient(str(status), wait=retrying.parse_retry_after(answer.headers.get("Retry-After")))
    if status in _ABSENT or status != 200:
        raise Unavailable(str(status))


def _reason(error: requests.RequestException) -> str:
    if isinstance(error, requests.exceptions.SSLError):
        return "its TLS certificate is not valid"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return type(error).__name__
