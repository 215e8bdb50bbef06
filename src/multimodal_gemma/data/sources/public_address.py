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
    peer = ipaddress.ip_address(address.partition("%")[0])
    peer = getattr(peer, "ipv4_mapped", None) or peer
    if not peer.is_global and not (peer.is_loopback and loopback_allowed()):
        raise PrivateAddressError("its host has a private address")


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
