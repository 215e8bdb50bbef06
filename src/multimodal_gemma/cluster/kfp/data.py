"""Whether there is new data since the last run: the trigger of `mmgemma submit --new-data`.

A source can be asked for its identity (a commit, an ETag, sizes and times) without downloading it. A run notes that
identity in its description, so the server itself remembers what was trained on, and a job that starts every night on
a bare machine knows whether there is anything to do.
"""

from __future__ import annotations

import dataclasses

from multimodal_gemma import files
from multimodal_gemma.cluster.kfp import store
from multimodal_gemma.cluster.kfp.api import Api
from multimodal_gemma.config import Config

_IN_VAIN = {"FAILED", "CANCELED"}  # a run that ended so has not used its data


@dataclasses.dataclass(frozen=True)
class Sources:
    """What a run would download.

    Attributes:
        places: digest of where it is.
        digest: digest of what is there.
    """

    places: str
    digest: str

    @classmethod
    def of(cls, config: Config) -> Sources:
        """Ask the dataset, the benchmarks and the base models of a configuration for their identity.

        Raises:
            InputError: a source cannot be asked.
        """
        from multimodal_gemma.data.downloads import KINDS

        kinds = {name: KINDS[name](config) for name in ("dataset", "benchmarks", "models")}
        places = {name: sorted(source.uri for source in kind.sources.values()) for name, kind in kinds.items()}
        return cls(files.digest_of(places), files.digest_of({name: kind.fingerprint() for name, kind in kinds.items()}))

    @property
    def mark(self) -> str:
        """What a run's description says about its data."""
        return f"{self._place} sha256:{self.digest}"

    @property
    def _place(self) -> str:
        return f"data {self.places[:12]}"

    def marked(self, description: str) -> str | None:
        """Return the digest that a description gives for these places, or None."""
        for part in description.split("; "):
            if part.startswith(f"{self._place} sha256:"):
                return part.rpartition(":")[2]
        return None


def run_on(api: Api, sources: Sources, experiment: str, namespace: str) -> str | None:
    """Return the latest run that used the same places, if what it found there is what is there now.

    Args:
        api: the server.
        sources: what a run would download now.
        experiment: name of the experiment whose runs count; one that ended in vain does not.
        namespace: on a multi-user server.
    """
    known = store.experiments(api, namespace)
    if experiment not in known:
        return None
    runs = store.pages(
        api, api.runs.run_service_list_runs, "runs", experiment_id=known[experiment], sort_by="created_at desc"
    )
    for run in runs:
        digest = sources.marked(run.description or "")
        if digest and run.state not in _IN_VAIN:
            return str(run.run_id) if digest == sources.digest else None
    return None
