"""Files behind `https://`: one connection pool, listed hosts, and no way into a private network.

A location that comes from a configuration may name any machine that the pod can reach, its cloud's metadata service
included. So a host must be listed, and every redirect is judged like the first address. A listed name may resolve to
such a machine, now or a moment after it was checked: the address that was really connected to is judged too, before a
byte is sent.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import os
import re
import socket
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

from multimodal_gemma import __version__, files
from multimodal_gemma.data.sources import retrying, transfer
from multimodal_gemma.data.sources.base import Unavailable, Unreachable, safe_name
from multimodal_gemma.errors import InputError

_TIMEOUT = (10.0, 30.0)  # seconds to connect, seconds between two bytes
_REDIRECTS = 5
LOOPBACK_VARIABLE = "MMGEMMA_ALLOW_LOOPBACK"  # "1": http:// to this machine, for a mirror or a test server on it
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052
_CONNECTIONS = 64  # kept alive in the pool
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


class WebSource(transfer.StreamedSource):
    """A file, or a base that file names are appended to, on a web server.

    Args:
        uri: the location; whether it ends with "/" does not matter when names are appended.
        allowed_hosts: hosts that may be asked.
        patience: see `RemoteSource`.

    Raises:
        InputError: no https://, or a host that is not listed.
    """

    def __init__(self, uri: str, allowed_hosts: Sequence[str], patience: float = retrying.LIMIT) -> None:
        super().__init__(uri, patience)
        self._hosts = frozenset(host.lower() for host in allowed_hosts)
        if fault := self._fault(uri):
            raise InputError(f"download: {uri} {fault}")
        self._session = requests.Session()
        self._session.headers.update({"User-Agent": f"multimodal-gemma/{__version__}", "Accept-Encoding": "identity"})
        self._session.mount("https://", _Adapter())
        self._session.mount("http://", _Adapter())

    def read_address(self, url: str, max_bytes: int) -> bytes:
        """Return the bytes of a file by its whole address, see `Source.read`."""
        return self._bytes(url, max_bytes)

    def exists(self, name: str) -> bool:
        """Ask the server for the header of one file."""
        try:
            self._ask(lambda: self._stamp(self._path(name)))
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
        urls = [self._path(name) for name in names] or [self.uri]
        return files.digest_of([[url, self._ask(functools.partial(self._stamp, url))] for url in urls])

    def facts(self) -> dict[str, str]:
        """Return what the server's header says of the one file that the address is."""
        if urlsplit(self.uri).path.endswith("/"):
            return {}
        return {"": ", ".join(map(str, self._ask(functools.partial(self._stamp, self.uri))))}

    def _path(self, name: str | None) -> str:
        return self.uri if name is None else f"{self.uri.rstrip('/')}/{quote(safe_name(name))}"

    @contextlib.contextmanager
    def _part(self, path: str, start: int, identity: str) -> Iterator[transfer.Part]:
        """Yield the answer to a request for a file from `start` on."""
        wanted = {"Range": f"bytes={start}-", "If-Range": identity} if start else {}
        with self._answer("GET", path, wanted) as answer:
            head = answer.headers
            tag = head.get("ETag", "")
            known = "" if tag.startswith("W/") else tag or head.get("Last-Modified", "")
            if answer.status_code == 206:
                found = _RANGE.fullmatch(head.get("Content-Range", ""))
                if found is None:
                    raise Unavailable("the server answers with an unknown part of the file")
                yield transfer.Part(answer.raw, int(found[1]), int(found[2]), known)
                return
            stated = head.get("Content-Length", "")
            yield transfer.Part(answer.raw, 0, int(stated) if stated.isdecimal() else None, known)

    def _stamp(self, url: str) -> list[str]:
        with self._answer("HEAD", url) as answer:
            return [answer.headers.get(name, "") for name in ("ETag", "Last-Modified", "Content-Length")]

    @contextlib.contextmanager
    def _answer(self, method: str, url: str, headers: dict[str, str] | None = None) -> Iterator[requests.Response]:
        """Yield the answer to one request, redirects followed."""
        with self._spoken():
            for _ in range(_REDIRECTS + 1):
                if fault := self._fault(url):
                    raise Unavailable(f"{url} {fault}")
                answer = self._session.request(
                    method, url, headers=headers, stream=True, timeout=_TIMEOUT, allow_redirects=False
                )
                if not answer.is_redirect:
                    break
                url = urljoin(url, answer.headers["Location"])
                answer.close()
            else:
                raise Unavailable("too many redirects")
            with answer:
                _check_status(answer)
                yield answer

    @contextlib.contextmanager
    def _spoken(self) -> Iterator[None]:
        try:
            yield
        except PrivateAddressError as error:
            raise Unavailable(str(error)) from None
        except requests.RequestException as error:
            raise _reason(error) from None
        except urllib3.exceptions.ReadTimeoutError:
            raise retrying.Transient("no answer in time") from None
        except urllib3.exceptions.HTTPError:
            raise retrying.Transient("the connection broke") from None

    def _fault(self, url: str) -> str:
        """Return why an address may not be asked, "" if it may."""
        try:
            split = urlsplit(url)
            host = (split.hostname or "").lower() if split.port != 0 else ""
        except ValueError:  # half of an IPv6 address, a port beyond 65535
            host = ""
        if not host:
            return "is no address. Write https://HOST/PATH."
        if "@" in split.netloc or "\\" in url:  # readers of URLs differ on which host such an address means
            return "has more than a host and a path in it. Write https://HOST/PATH."
        if loopback_allowed() and is_loopback(host):
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
    if status in (401, 403):  # a token would go to whoever the server leads to: none is sent
        raise Unavailable(
            f"{status}, and no token is sent to web servers; what lies on the hub is had by hf://, with the token in "
            "the environment variable HF_TOKEN and the licence accepted on its page"
        )
    if status not in (200, 206):
        raise Unavailable(str(status))


def _reason(error: requests.RequestException) -> Unavailable | retrying.Transient:
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return Unreachable("its TLS certificate is not valid")
    if isinstance(error, requests.Timeout):
        return retrying.Transient("no answer in time")
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return retrying.Transient("the connection broke")
    if isinstance(error, requests.ConnectionError):
        return retrying.Transient("no connection")
    return Unavailable(type(error).__name__)  # an address that is none, for one


class PrivateAddressError(urllib3.exceptions.HTTPError):
    """A host has an address that is not public."""


def loopback_allowed() -> bool:
    """Return whether this process may talk to its own machine."""
    return os.environ.get(LOOPBACK_VARIABLE) == "1"


def is_loopback(host: str) -> bool:
    """Return whether a host, as it stands in a URL, is this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_public(address: str) -> None:
    """Judge the numeric address of a peer.

    Raises:
        PrivateAddressError: it is not public, nor this machine where that is allowed.
    """
    peer = _inner(ipaddress.ip_address(address.partition("%")[0]))
    public = peer.is_global and not peer.is_multicast
    if not public and not (peer.is_loopback and loopback_allowed()):
        raise PrivateAddressError("its host has a private address")


def _inner(peer: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return the IPv4 address that an IPv6 one carries (mapped, 6to4, NAT64): it is where the bytes go."""
    if isinstance(peer, ipaddress.IPv4Address):
        return peer
    if peer in _NAT64:
        return ipaddress.IPv4Address(int(peer) & 0xFFFFFFFF)
    return peer.ipv4_mapped or peer.sixtofour or peer


class _Adapter(HTTPAdapter):
    """Transport of a requests session that refuses private peers. Through a proxy, it is the proxy that decides."""

    def __init__(self) -> None:
        super().__init__(pool_connections=8, pool_maxsize=_CONNECTIONS)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make the pools of direct connections check their peers."""
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}


def _checked(sock: socket.socket) -> socket.socket:
    try:
        check_public(sock.getpeername()[0])
    except PrivateAddressError:
        sock.close()
        raise
    return sock


class _HTTP(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        return _checked(super()._new_conn())


class _HTTPS(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        return _checked(super()._new_conn())


class _HTTPPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _HTTP


class _HTTPSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HTTPS
