"""Can the cluster pull what its pods run?

The registry is asked for each image's manifest, as a node would ask, with the credentials of the service account's pull
secrets. A node may have credentials of its own (on GKE it has), so a refusal is no proof.
"""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING, Any

from multimodal_gemma.cluster.checks.finding import Finding, failed, ok, unknown
from multimodal_gemma.cluster.needs import Needs
from multimodal_gemma.cluster.train_job_api import Namespace, Refused

if TYPE_CHECKING:
    import requests

_TIMEOUT = 10  # seconds
_KINDS = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
Logins = dict[str, tuple[str, str]]  # user and password, by registry


def images(cluster: Namespace, needs: Needs) -> list[Finding]:
    """Ask the registry of each image."""
    logins = _logins(cluster, needs)
    return [_image(name, logins) for name in dict.fromkeys(needs.images)]


def _image(name: str, logins: Logins) -> Finding:
    import requests

    check = f"image {name.rsplit('/', 1)[-1]}"
    registry, repository, reference = parts(name)
    scheme = "http" if registry.split(":")[0] in ("localhost", "127.0.0.1") else "https"
    url = f"{scheme}://{registry}/v2/{repository}/manifests/{reference}"
    try:
        answer = requests.head(url, headers={"Accept": _KINDS}, timeout=_TIMEOUT)
        if answer.status_code == 401:
            headers = {"Accept": _KINDS, "Authorization": _authorization(answer, logins.get(registry))}
            answer = requests.head(url, headers=headers, timeout=_TIMEOUT)
    except (requests.RequestException, ValueError, KeyError) as error:
        return unknown(check, f"{registry} cannot be asked from here ({type(error).__name__})")
    if answer.status_code == 200:
        return ok(check, f"{registry} has it")
    if answer.status_code == 404:
        return failed(
            check,
            f"{registry} has no image {repository} {reference}, so it cannot be pulled",
            "Build and push it: make images push compile-pipeline, with IMAGE_REGISTRY and IMAGE_TAG as compiled.",
        )
    if answer.status_code in (401, 403):
        whose = (
            "the pull secret of the service account does not open it"
            if registry in logins
            else "no pull secret names it"
        )
        return unknown(
            check, f"{registry} answers {answer.status_code}, and {whose}; nodes with access of their own can pull it"
        )
    return unknown(check, f"{registry} answers {answer.status_code}")


def parts(name: str) -> tuple[str, str, str]:
    """Return registry, repository and tag or digest of an image's name, as Docker completes it."""
    rest, at, digest = name.partition("@")
    head, slash, tail = rest.partition("/")
    if not slash or not (":" in head or "." in head or head == "localhost"):
        head, tail = "registry-1.docker.io", rest if slash else f"library/{rest}"
    repository, colon, tag = tail.rpartition(":")
    if not colon:
        repository, tag = tail, "latest"
    return head, repository, digest if at else tag


def _authorization(answer: requests.Response, login: tuple[str, str] | None) -> str:
    """Return the header that answers a registry's challenge (the token scheme of the distribution specification)."""
    import requests

    challenge = answer.headers.get("WWW-Authenticate", "")
    if challenge.lower().startswith("basic"):
        user, password = login or ("", "")
        return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    asked = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    given = requests.get(asked.pop("realm"), params=asked, auth=login, timeout=_TIMEOUT).json()
    return f"Bearer {given.get('token') or given['access_token']}"


def _logins(cluster: Namespace, needs: Needs) -> Logins:
    found: Logins = {}
    try:
        account = cluster.get("/api/v1/namespaces/{namespace}/serviceaccounts", needs.service_account) or {}
        for reference in account.get("imagePullSecrets") or []:
            secret = cluster.get("/api/v1/namespaces/{namespace}/secrets", reference["name"]) or {}
            text = base64.b64decode((secret.get("data") or {}).get(".dockerconfigjson", "")) or b"{}"
            for registry, entry in json.loads(text).get("auths", {}).items():
                found[registry.removeprefix("https://").split("/")[0]] = _login(entry)
    except (Refused, ValueError):
        return found
    return found


def _login(entry: dict[str, Any]) -> tuple[str, str]:
    if "username" in entry:
        return entry["username"], entry.get("password", "")
    user, _, password = base64.b64decode(entry.get("auth", "")).decode().partition(":")
    return user, password
