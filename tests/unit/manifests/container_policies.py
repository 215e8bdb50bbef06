"""What every container must keep to. Each policy names what breaks it, one line each; no line means it is kept."""

from __future__ import annotations

import re

from tests.unit.manifests.pods import Object, pods

_PINNED = re.compile(r"[^:@]+(:\d+/[^:@]+)?(:(?!latest$)[\w.-]*\d[\w.-]*|@sha256:[0-9a-f]{64})")
_SECRET_NAME = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)


def not_root(objects: list[Object]) -> list[str]:
    """Every container runs as a numbered user that is not root."""
    lines = []
    for pod in pods(objects):
        for container in pod.containers:
            settings = {**(pod.spec or {}).get("securityContext", {}), **container.get("securityContext", {})}
            if settings.get("runAsNonRoot") is not True or not settings.get("runAsUser"):
                lines.append(f"{pod.name}/{container['name']}: may run as root")
    return lines


def no_privilege(objects: list[Object]) -> list[str]:
    """No container can gain rights, and no pod shares the node's network, processes or disk."""
    lines = []
    for pod in pods(objects):
        spec = pod.spec or {}
        if shared := [key for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]:
            lines.append(f"{pod.name}: shares {', '.join(shared)} with its node")
        lines += [f"{pod.name}: mounts its node's disk" for volume in spec.get("volumes", []) if "hostPath" in volume]
        for container in pod.containers:
            settings = container.get("securityContext", {})
            if settings.get("allowPrivilegeEscalation") is not False or settings.get("privileged"):
                lines.append(f"{pod.name}/{container['name']}: may gain privilege")
            capabilities = settings.get("capabilities", {})
            if capabilities.get("drop") != ["ALL"] or capabilities.get("add"):
                lines.append(f"{pod.name}/{container['name']}: keeps capabilities")
            if settings.get("readOnlyRootFilesystem") is not True:
                lines.append(f"{pod.name}/{container['name']}: can change its own image's files")
    return lines


def system_calls_filtered(objects: list[Object]) -> list[str]:
    """Every pod runs under the runtime's seccomp profile."""
    return [
        f"{pod.name}: no seccomp profile"
        for pod in pods(objects)
        if (pod.spec or {}).get("securityContext", {}).get("seccompProfile") != {"type": "RuntimeDefault"}
    ]


def sized(objects: list[Object]) -> list[str]:
    """Every container states what it needs and what it may take at most, and every scratch volume its size."""
    lines = []
    for pod in pods(objects):
        for container in pod.containers:
            resources = container.get("resources", {})
            for part in ("requests", "limits"):
                missing = {"cpu", "memory"} - set(resources.get(part, {}))
                if missing:
                    lines.append(f"{pod.name}/{container['name']}: no {part} of {', '.join(sorted(missing))}")
        for volume in (pod.spec or {}).get("volumes", []):
            if "emptyDir" in volume and not (volume["emptyDir"] or {}).get("sizeLimit"):
                lines.append(f"{pod.name}: scratch volume {volume['name']} has no size")
    return lines


def images_pinned(objects: list[Object]) -> list[str]:
    """Every image is named by version or digest."""
    return [
        f"{pod.name}/{container['name']}: {container['image']} names another image tomorrow"
        for pod in pods(objects)
        for container in pod.containers
        if not _PINNED.fullmatch(container["image"])
    ]


def no_token(objects: list[Object]) -> list[str]:
    """No pod of ours carries a token of the Kubernetes API; none speaks to it."""
    return [
        f"{pod.name}: carries a token of the Kubernetes API"
        for pod in pods(objects)
        if (pod.spec or {}).get("automountServiceAccountToken") is not False
    ]


def no_plain_secret(objects: list[Object]) -> list[str]:
    """No password, key or token stands in a manifest."""
    lines = [
        f"Secret {one['metadata']['name']}: holds its values"
        for one in objects
        if one["kind"] == "Secret" and (one.get("data") or one.get("stringData"))
    ]
    for one in objects:
        for key, text in (one.get("data") or {}).items() if one["kind"] == "ConfigMap" else ():
            if re.search(r"://[^/\s:@]+:[^/\s@]+@|password\s*[=:]\s*\S", text):
                lines.append(f"ConfigMap {one['metadata']['name']}: {key} holds a password")
    for pod in pods(objects):
        for container in pod.containers:
            for variable in container.get("env", []):
                if _SECRET_NAME.search(variable["name"]) and "value" in variable:
                    lines.append(f"{pod.name}/{container['name']}: {variable['name']} stands in the manifest")
            if any(re.search(r"://[^/\s:@]+:[^/\s@]+@", text) for text in container.get("args", [])):
                lines.append(f"{pod.name}/{container['name']}: an argument holds a password")
    return lines


def answers_for_itself(objects: list[Object]) -> list[str]:
    """Every server is asked whether it is ready and whether it lives."""
    return [
        f"{pod.name}/{container['name']}: no {probe}"
        for pod in pods(objects)
        for container in pod.containers
        for probe in ("readinessProbe", "livenessProbe", "startupProbe")
        if container.get("ports") and probe not in container
    ]


POLICIES = (
    not_root,
    no_privilege,
    system_calls_filtered,
    sized,
    images_pinned,
    no_token,
    no_plain_secret,
    answers_for_itself,
)
