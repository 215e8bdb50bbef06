"""How objects of a Kubernetes API are named, selected and merged."""

from __future__ import annotations

import copy
import dataclasses
import datetime
from typing import Any

Object = dict[str, Any]
_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    409: "AlreadyExists",
    410: "Expired",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


@dataclasses.dataclass(frozen=True)
class Place:
    """What a path names: `/apis/GROUP/v1/namespaces/NS/PLURAL/NAME/SUBRESOURCE`, any tail of it missing."""

    prefix: str
    namespace: str
    plural: str
    name: str
    subresource: str

    @classmethod
    def of(cls, path: str) -> Place | None:
        """Return the place of a path, or None where it names no resource."""
        parts = path.strip("/").split("/")
        head = 2 if parts[0] == "api" else 3
        if parts[0] not in ("api", "apis") or len(parts) <= head:
            return None
        prefix, rest = "/" + "/".join(parts[:head]), parts[head:]
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        rest += [""] * (3 - len(rest))
        return cls(prefix, namespace, rest[0], rest[1], "/".join(rest[2:]).strip("/"))

    @property
    def group(self) -> str:
        """The API group; "" for the core."""
        return self.prefix.split("/")[2] if self.prefix.startswith("/apis/") else ""

    @property
    def version(self) -> str:
        """What objects carry as apiVersion."""
        return self.prefix.removeprefix("/apis/").removeprefix("/api/")

    @property
    def collection(self) -> str:
        """Path of the collection it is in."""
        inside = f"/namespaces/{self.namespace}" if self.namespace else ""
        return f"{self.prefix}{inside}/{self.plural}"


def refusal(code: int, message: str, reason: str | None = None) -> Object:
    """Return the body of an answer that says no."""
    head = {"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure"}
    return {**head, "message": message, "reason": reason or _REASONS.get(code, "Unknown"), "code": code}


def now() -> str:
    """Return the time as Kubernetes writes it."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def kind_of(plural: str) -> str:
    """Return the kind that a plural stands for, as far as its spelling tells."""
    known = {
        "trainjobs": "TrainJob",
        "resourcequotas": "ResourceQuota",
        "customresourcedefinitions": "CustomResourceDefinition",
        "serviceaccounts": "ServiceAccount",
        "storageclasses": "StorageClass",
        "persistentvolumeclaims": "PersistentVolumeClaim",
        "localqueues": "LocalQueue",
        "clusterqueues": "ClusterQueue",
        "priorityclasses": "PriorityClass",
    }
    return known.get(plural, plural.removesuffix("s").capitalize())


def same_collection(collection: str, place: Place) -> bool:
    """Whether a collection is the place's; a place without a namespace is all namespaces."""
    if place.namespace:
        return collection == place.collection
    other = Place.of(collection)
    return other is not None and (other.prefix, other.plural) == (place.prefix, place.plural)


def selected(item: Object, query: dict[str, str]) -> bool:
    """Whether an object passes a query's labelSelector and fieldSelector."""
    labels = item["metadata"].get("labels") or {}
    for term in filter(None, query.get("labelSelector", "").split(",")):
        key, _, value = term.replace("==", "=").partition("=")
        if key not in labels or ("=" in term and labels[key] != value):
            return False
    for term in filter(None, query.get("fieldSelector", "").split(",")):
        key, sign, value = term.partition("!=" if "!=" in term else "=")
        found: Any = item
        for part in key.split("."):
            found = (found or {}).get(part)
        if (found == value) == (sign == "!="):
            return False
    return True


def merged(known: Any, change: Any) -> Any:
    """Return `known` with a merge patch applied (RFC 7396)."""
    if not isinstance(change, dict) or not isinstance(known, dict):
        return copy.deepcopy(change)
    made = dict(known)
    for key, value in change.items():
        if value is None:
            made.pop(key, None)
        else:
            made[key] = merged(made.get(key, {}), value)
    return made
