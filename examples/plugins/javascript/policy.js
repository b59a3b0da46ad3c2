// Decides what may be tagged, cached and served here: repositories on a list, and images that say where they come from.
//
//   config: { allowed: [prefixes of repositories], annotation: the annotation an image must carry }

import logging from "gantry:plugin/logging@0.1.0";
import registry from "gantry:plugin/registry@0.1.0";

let policy = { allowed: [], annotation: "" };

export const lifecycle = {
  configure(text) {
    policy = { allowed: [], annotation: "", ...JSON.parse(text) };
    const issues = [];
    if (policy.allowed.length === 0) issues.push(issue("/allowed", "no repository is allowed"));
    if (!policy.annotation) issues.push(issue("/annotation", "no annotation is named"));
    if (issues.length > 0) throw issues;
  },
  configSchema: () => "{}",
  selfTest() {},
};

export const admission = {
  admit(request) {
    const { change, repository } = request;
    switch (change) {
      case "create-tag":
      case "move-tag":
      case "push-by-digest":
      case "fill":
        if (!policy.allowed.some((prefix) => repository.startsWith(prefix)))
          return reject(repository, "repository-not-allowed", `${repository} is not on the list`);
        return change === "fill" || saysSource(request.document) ? accept() : withoutSource(repository);
      case "serve-blob":
        return request.parents.some((parent) => saysSource(read(repository, parent))) ? accept() : withoutSource(repository);
      default:
        return { tag: "abstain" };
    }
  },
};

// A document that the gateway does not read says nothing.
function saysSource(document) {
  return document?.tag === "manifest" && document.val.annotations.some(([key, value]) => key === policy.annotation && value !== "");
}

// What cannot be read is no decision: the plugin fails, and the binding's `on_error` says what follows.
function read(repository, digest) {
  try {
    return registry.getManifest(repository, digest).document;
  } catch (error) {
    const { tag } = error.payload ?? error;
    throw tag === "not-granted"
      ? { tag: "misconfigured", val: "the binding does not grant reads of the registry" }
      : { tag: "upstream", val: `the manifest cannot be read: ${tag}` };
  }
}

function withoutSource(repository) {
  return reject(repository, "annotation-missing", `the image does not say ${policy.annotation}`);
}

function reject(repository, code, message) {
  logging.log("info", "refused", [["repository", repository], ["reason", code]]);
  const denial = { code: "denied", reason: { code, text: message }, message, detail: null, retryAfterMs: null, docsUrl: null };
  return { tag: "reject", val: denial };
}

function accept() {
  const cache = { ttlMs: 0, staleIfErrorMs: 0, also: { clientAddr: false, userAgent: false, timeOfDay: false } };
  return { tag: "accept", val: { cache, warnings: [], annotate: [], setImmutable: false } };
}

function issue(pointer, message) {
  return { pointer, message, fatal: true };
}
