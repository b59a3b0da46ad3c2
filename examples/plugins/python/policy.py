"""Decides what may be tagged, cached and served here: repositories on a list, and images that say where they come from.

config: { allowed: [prefixes of repositories], annotation: the annotation an image must carry }
"""

import json

from componentize_py_types import Err
from wit_world.exports import admission as hook
from wit_world.exports import lifecycle
from wit_world.exports.admission import Change
from wit_world.imports import logging, registry, types

allowed: list[str] = []
annotation = ""


class Lifecycle:
    def configure(self, config: str) -> None:
        global allowed, annotation
        given = json.loads(config)
        allowed, annotation = given.get("allowed", []), given.get("annotation", "")
        issues = []
        if not allowed:
            issues.append(lifecycle.ConfigIssue("/allowed", "no repository is allowed", True))
        if not annotation:
            issues.append(lifecycle.ConfigIssue("/annotation", "no annotation is named", True))
        if issues:
            raise Err(issues)

    def config_schema(self) -> str:
        return "{}"

    def self_test(self) -> None:
        pass


class Admission:
    def admit(self, req: hook.AdmissionRequest) -> hook.Decision:
        repository = req.repository
        if req.change in (Change.CREATE_TAG, Change.MOVE_TAG, Change.PUSH_BY_DIGEST, Change.FILL):
            if not repository.startswith(tuple(allowed)):
                return reject(repository, "repository-not-allowed", f"{repository} is not on the list")
            good = req.change == Change.FILL or says_source(req.document)
            return accept() if good else without_source(repository)
        if req.change == Change.SERVE_BLOB:
            good = any(says_source(read(repository, parent)) for parent in req.parents)
            return accept() if good else without_source(repository)
        return hook.Decision_Abstain()


def says_source(document: types.Document | None) -> bool:
    """A document that the gateway does not read says nothing."""
    return isinstance(document, types.Document_Manifest) and bool(dict(document.value.annotations).get(annotation))


def read(repository: str, digest: str) -> types.Document:
    """What cannot be read is no decision: the plugin fails, and the binding's `on_error` says what follows."""
    try:
        return registry.get_manifest(repository, digest).document
    except Err as error:
        if isinstance(error.value, registry.ReadError_NotGranted):
            raise Err(types.PluginError_Misconfigured("the binding does not grant reads of the registry"))
        raise Err(types.PluginError_Upstream(f"the manifest cannot be read: {error.value}"))


def without_source(repository: str) -> hook.Decision:
    return reject(repository, "annotation-missing", f"the image does not say {annotation}")


def reject(repository: str, code: str, message: str) -> hook.Decision:
    logging.log(logging.Level.INFO, "refused", [("repository", repository), ("reason", code)])
    reason = types.Reason(code, message)
    return hook.Decision_Reject(types.Denial(types.DenialCode.DENIED, reason, message, None, None, None))


def accept() -> hook.Decision:
    return hook.Decision_Accept(hook.Accepted(types.CacheHint(0, 0, types.Vary(0)), [], [], False))
