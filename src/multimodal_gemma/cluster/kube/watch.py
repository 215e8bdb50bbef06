"""What a collection of the Kubernetes API holds, kept up to date by a watch in the background.

A watch tells of every change as it happens, and breaks often: after a while by design, with a lost connection, or with
410 Gone when it asks from a revision that the API has forgotten. Each time the collection is listed again and watched
from there, so nothing that lasts is missed.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Self

from multimodal_gemma import logs
from multimodal_gemma.cluster.kube.client import Namespace, Object
from multimodal_gemma.cluster.patience import Refused
from multimodal_gemma.errors import InputError

_SECONDS = 60  # a watch is asked to last


class Watched:
    """The objects that a selector picks; a context manager.

    Args:
        namespace: where they live.
        collection: path of their collection.
        selector: labelSelector or fieldSelector of the API.
        changed: set whenever there is something new to see.

    Attributes:
        error: why nothing more will be seen; None while the watch lives.
    """

    def __init__(
        self, namespace: Namespace, collection: str, selector: Mapping[str, str], changed: threading.Event
    ) -> None:
        self.error: InputError | Refused | None = None
        self._namespace, self._collection, self._selector = namespace, collection, selector
        self._changed, self._lock, self._stop = changed, threading.Lock(), threading.Event()
        self._objects: dict[str, Object] = {}
        self._seen: list[Object] = []
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._replace()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def now(self) -> list[Object]:
        """Return the objects as last heard of."""
        with self._lock:
            return list(self._objects.values())

    def news(self) -> list[Object]:
        """Return every version of every object that was heard of since the last call, oldest first."""
        with self._lock:
            seen, self._seen = self._seen, []
            return seen

    def _replace(self) -> str:
        items, revision = self._namespace.list(self._collection, self._selector)
        with self._lock:
            self._objects = {item["metadata"]["name"]: item for item in items}
            self._seen += items
        self._changed.set()
        return revision

    def _run(self) -> None:
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        while not self._stop.is_set():
            try:
                for event in self._namespace.watch(self._collection, self._selector, self._replace(), _SECONDS):
                    if self._stop.is_set():
                        break
                    self._take(event["type"], event["object"])
            except (InputError, Refused) as error:
                self.error = error
                self._changed.set()
                return
            except (ApiException, HTTPError, OSError, ValueError) as error:  # the next list finds out why, or renews
                logs.get("train").debug(f"a watch broke ({type(error).__name__})")
            self._stop.wait(self._namespace.pause)

    def _take(self, kind: str, item: Object) -> None:
        with self._lock:
            name = item["metadata"]["name"]
            if kind == "DELETED":
                self._objects.pop(name, None)
            else:
                self._objects[name] = item
            self._seen.append(item)
        self._changed.set()
