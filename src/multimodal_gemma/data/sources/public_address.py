"""Connections to public addresses only.

A listed host name may resolve to the cloud's metadata service or to a neighbour in the cluster, now or a moment after
it was checked. So the address that was really connected to is judged, before a byte is sent.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from typing import Any

import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

LOOPBACK_VARIABLE = "MMGEMMA_ALLOW_LOOPBACK"  # "1": http:// to this machine, for a mirror or a test server on it
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052
_CONNECTIONS = 64  # kept alive in the pool


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


def check(address: str) -> None:
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


class Adapter(HTTPAdapter):
    """Transport of a requests session that refuses private peers. Through a proxy, it is the proxy that decides."""

    def __init__(self) -> None:
        super().__init__(pool_connections=8, pool_maxsize=_CONNECTIONS)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make the pools of direct connections check their peers."""
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}


def _checked(sock: socket.socket) -> socket.socket:
    try:
        check(sock.getpeername()[0])
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
