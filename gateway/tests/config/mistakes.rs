//! Promise: a mistake is said with its line, its path, a sentence and what to write instead; all of them at once.

use super::{PLUGINS, parse};

/// A file with one mistake: text, line, path, part of the message, part of the hint.
type Mistake = (
    &'static str,
    usize,
    &'static str,
    &'static str,
    &'static str,
);

/// Mistakes outside `plugins`; the smallest list of plugins follows each.
#[rustfmt::skip]
const MISTAKES: &[Mistake] = &[
    // --- keys and kinds ---
    ("mirors: {}", 1, "mirors", "unknown key `mirors`", "did you mean `mirrors`?"),
    ("admin: off\nstorge: {}", 2, "storge", "unknown key", "did you mean `storage`?"),
    ("storage: { blob: {} }", 1, "storage.blob", "unknown key `blob`", "did you mean `blobs`?"),
    ("level: info", 1, "level", "unknown key", "`level` belongs under `log`"),
    ("log: { frobnicate: 1 }", 1, "log.frobnicate", "unknown key", "keys known here: format, level"),
    ("mirrors:\n  ghcr.io:\n    url: https://ghcr.io\n    fresh_for: 5m", 4, "mirrors.ghcr.io.fresh_for", "unknown key", "belongs under `tags`"),
    ("hosted: { names: apps }", 1, "hosted.names", "a list is expected here, not a text", ""),
    ("hosted: { delete: yes }", 1, "hosted.delete", "true or false is expected here, not a text", ""),
    ("hosted:\n  names:\n  - apps/**\n  - 5", 4, "hosted.names[1]", "a text is expected here, not a number", "in quotes"),
    ("tokens: [5m]", 1, "tokens", "a map is expected here, not a list", ""),
    ("limits: { uploads_per_client: -1 }", 1, "limits.uploads_per_client", "not negative", ""),
    ("limits: { uploads_per_client: 0 }", 1, "limits.uploads_per_client", "at least 1", ""),
    ("limits: { connections: 1.5 }", 1, "limits.connections", "a whole number", ""),
    ("limits: { connections: 99999999 }", 1, "limits.connections", "at most 1000000", ""),
    // --- YAML ---
    ("admin: off\nadmin: 127.0.0.1:9", 2, "admin", "duplicate key `admin`, first on line 1", ""),
    ("log: { <<: { level: info } }", 1, "log.<<", "merge keys are not used here", ""),
    ("log: *missing", 1, "log", "no anchor of this name", ""),
    ("log: !mine { level: info }", 1, "log", "YAML tags are not used here", ""),
    // --- addresses ---
    ("listen: localhost", 1, "listen", "not an address", "IP:PORT"),
    ("listen: \":5000\"", 1, "listen", "not an address", "0.0.0.0:PORT"),
    ("listen: unix:run.sock", 1, "listen", "not an absolute path", "unix:/run/gantry.sock"),
    ("listen: []", 1, "listen", "at least one address", ""),
    ("listen: [127.0.0.1:80, 127.0.0.1:80]", 1, "listen[1]", "another listener has this address", ""),
    ("listen:\n  - 0.0.0.0:80\n  - address: 127.0.0.1:80", 3, "listen[1]", "another listener has this address", ""),
    ("listen: [{ tls: null }]", 1, "listen[0].address", "missing key `address`", ""),
    ("listen: { address: null }", 1, "listen.address", "a text is expected here, not nothing", ""),
    ("admin: 127.0.0.1:5000", 1, "admin", "a listener has this address", "`off`"),
    ("admin: of", 1, "admin", "not an address", "did you mean `off`?"),
    ("external_url: ftp://example.com", 1, "external_url", "neither an http nor an https URL", "https://HOST"),
    ("external_url: https://example.com/v2", 1, "external_url", "the registry's own path", "leave /v2 out"),
    ("external_url: https://example.com/a/v2/", 1, "external_url", "the registry's own path", "leave /v2 out"),
    ("http: { headers: { Access-Control-Allow-Origin: [\"https://a.example\", \"https://b.example\"] } }", 1, "http.headers.Access-Control-Allow-Origin", "one origin", ""),
    ("http: { headers: { Accept-Ranges: none } }", 1, "http.headers.Accept-Ranges", "Gantry sets it", ""),
    ("external_url: https://example.com/?a=b", 1, "external_url", "query", ""),
    ("listen: { address: 127.0.0.1:5000, mirror: hub }", 1, "listen.mirror", "no mirror is named `hub`", "there are no `mirrors`"),
    ("listen:\n- 127.0.0.1:5000\n- { address: 127.0.0.1:5002, mirror: hub }\nmirrors: { a: \"https://a.io\" }", 3, "listen[1].mirror", "no mirror is named `hub`", "the mirrors are: a"),
    ("external_url: https://me:canary@example.com", 1, "external_url", "no user name", "credentials"),
    ("trusted_proxies: [10.0.0.0/8, 10.0.0.0/33]", 1, "trusted_proxies[1]", "not an address range", "10.0.0.0/8"),
    // --- storage ---
    ("storage: { blobs: {} }", 1, "storage.blobs", "exactly one of `filesystem`, `s3`", ""),
    ("storage: { blobs: { s3: { bucket: b } } }", 1, "storage.blobs.s3", "`s3` is not available yet", ""),
    ("storage: { metadata: { postgres: { env: DATABASE_URL } } }", 1, "storage.metadata.postgres", "not available yet", ""),
    // --- hosted ---
    ("hosted: { names: [\"apps/{a,b\"] }", 1, "hosted.names[0]", "not a glob: unbalanced", ""),
    ("mirrors: { ghcr.io: \"https://ghcr.io\" }\nhosted: { names: [\"ghcr.io/**\"] }", 2, "hosted.names[0]", "hides every name of mirror `ghcr.io`", "ghcr.io/internal/**"),
    ("mirrors: { docker.io: \"https://registry-1.docker.io\" }\nhosted: { names: [\"docker.io/tool-*\"] }", 2, "hosted.names[0]", "such names are `docker.io/library/…`", "docker.io/library/tool-*"),
    ("mirrors: { docker.io: \"https://registry-1.docker.io\" }\nhosted: { or_upstream: [\"docker.io/tool\"] }", 2, "hosted.or_upstream[0]", "such names are `docker.io/library/…`", "docker.io/library/tool"),
    ("mirrors: { ghcr.io: \"https://ghcr.io\" }\nhosted: { or_upstream: [\"apps/**\"] }", 2, "hosted.or_upstream[0]", "lies below no mirror's prefix", "`names`"),
    ("mirrors: { ghcr.io: \"https://ghcr.io\" }\nhosted: { names: [\"ghcr.io\"] }", 2, "hosted.names[0]", "such names belong to mirror `ghcr.io`", ""),
    ("mirrors: { a: { url: \"https://a.io\", default: true } }\nhosted: { names: [\"**\"] }", 2, "hosted.names[0]", "the default mirror `a` would never be asked", "apps/**"),
    // --- mirrors ---
    ("mirrors:\n  a: { prefix: a }", 2, "mirrors.a.url", "missing key `url`", ""),
    ("mirrors:\n  a: registry.example.com", 2, "mirrors.a", "not a URL", "https://HOST"),
    ("mirrors:\n  Hub: https://registry-1.docker.io", 2, "mirrors.Hub", "the mirror's name cannot be its prefix", "`prefix`"),
    ("mirrors:\n  hub: { url: \"https://a.io\", prefix: /hub }", 2, "mirrors.hub.prefix", "not a repository name", ""),
    ("mirrors:\n  a: https://a.io\n  b: { url: \"https://b.io\", prefix: a }", 3, "mirrors.b.prefix", "mirror `a` has the same prefix", ""),
    ("mirrors:\n  a: https://a.io\n  b: { url: \"https://b.io\", ns: [A] }", 3, "mirrors.b.ns", "mirror `a` has the same ns", ""),
    ("mirrors:\n  a: { url: \"https://a.io\", hosts: [h.io] }\n  b: { url: \"https://b.io\", hosts: [h.io] }", 3, "mirrors.b.hosts", "mirror `a` has the same host", ""),
    ("mirrors:\n  a: { url: \"https://a.io\", default: true }\n  b: { url: \"https://b.io\", default: true }", 3, "mirrors.b.default", "mirror `a` is the default already", ""),
    ("mirrors:\n  a: { url: \"https://a.io\", hosts: [\"https://h.io\"] }", 2, "mirrors.a.hosts[0]", "not a host", "hub.example.com"),
    ("mirrors:\n  a: { url: \"https://a.io\", alternatives: [b.io] }", 2, "mirrors.a.alternatives[0]", "not a URL", ""),
    ("mirrors:\n  a: { url: \"https://a.io\", keep: { for: 10s } }", 2, "mirrors.a.keep.for", "between 1m and", ""),
    ("mirrors:\n  a: { url: \"https://a.io\", keep: { at_most: 1KiB } }", 2, "mirrors.a.keep.at_most", "at least 1MiB", ""),
    ("mirrors:\n  a: { url: \"https://a.io\", prefetch: maybe }", 2, "mirrors.a.prefetch", "", ""),
    ("mirrors:\n  a: { url: \"https://a.io\", parallel: { from: 8MiB } }", 2, "mirrors.a.parallel.from", "at least 16MiB", ""),
    ("mirrors:\n  a: { url: \"https://a.io\", parallel: { ranges: 1 } }", 2, "mirrors.a.parallel.ranges", "at least 2", ""),
    ("mirrors:\n  a: { url: \"https://a.io\", keep: { atmost: 1GiB } }", 2, "mirrors.a.keep.atmost", "unknown key", "at_most"),
    ("mirrors:\n  a: { url: \"https://a.io\", tags: { fresh_for: 600 } }", 2, "mirrors.a.tags.fresh_for", "a text is expected here, not a number", "write a unit"),
    ("mirrors:\n  a: { url: \"https://a.io\", tags: { min_age: 7 days } }", 2, "mirrors.a.tags.min_age", "not a duration", "10m"),
    ("mirrors:\n  a: { url: \"https://a.io\", tags: { fresh_for: 10 minutes } }", 2, "mirrors.a.tags.fresh_for", "not a duration", "10m"),
    ("mirrors:\n  a: { url: \"https://a.io\", credentials: { username: u } }", 2, "mirrors.a.credentials.password", "missing key `password`", ""),
    ("mirrors:\n  a: { url: \"https://a.io\", credentials: { username: u, password: canary } }", 2, "mirrors.a.credentials.password", "never written inline", "{ file: PATH }"),
    ("mirrors:\n  a: { url: \"https://a.io\", credentials: { username: u, password: { file: gone } } }", 2, "mirrors.a.credentials.password.file", "it does not exist", "looked for /nonexistent/gone"),
    ("mirrors:\n  a: { url: \"https://a.io\", credentials: { username: u, password: { env: GONE } } }", 2, "mirrors.a.credentials.password.env", "variable is not set", ""),
    ("mirrors:\n  a: { url: \"https://a.io\", credentials: { username: u, password: { file: f, env: E } } }", 2, "mirrors.a.credentials.password", "exactly one of `file`, `env`", ""),
    // --- whom its upstream decides about ---
    ("mirrors:\n  a: { url: \"https://a.io\", callers: { authorized_by: upstrem } }", 2, "mirrors.a.callers.authorized_by", "", "did you mean `upstream`?"),
    ("mirrors:\n  a: { url: \"https://a.io\", callers: { remember_for: 60s } }", 2, "mirrors.a.callers.remember_for", "only with `authorized_by: upstream`", ""),
    ("mirrors:\n  a: { url: \"https://a.io\", callers: { authorized_by: upstream, remember_for: 59s } }", 2, "mirrors.a.callers.remember_for", "between 1m and", ""),
    ("mirrors:\n  a: { url: \"https://a.io\", callers: { authorized_by: upstream, forget: 59s } }", 2, "mirrors.a.callers.forget", "unknown key", ""),
    ("mirrors:\n  a: { url: \"https://a.io\", callers: { authorized_by: upstream } }\nhosted: { or_upstream: [\"a/x/**\"] }", 3, "hosted.or_upstream[0]", "lies below mirror `a`", "`names`"),
    ("mirrors:\n  a: { url: \"https://a.io\", prefix: corp }\n  b: { url: \"https://b.io\", prefix: corp/x, callers: { authorized_by: upstream } }", 3, "mirrors.b.prefix", "lies below the other", ""),
    // --- how an upstream is reached ---
    ("mirrors:\n  a: { url: \"https://a.io\", credentials: { password: { env: P } } }", 2, "mirrors.a.credentials.username", "missing key `username`", ""),
    ("mirrors:\n  a: { url: \"https://a.io\", credentials: {} }", 2, "mirrors.a.credentials", "exactly one of `username` with `password`, `identity_token`, `helper` and `exec`", ""),
    ("mirrors:\n  a: { url: \"https://a.io\", credentials: { username: u, helper: ecr-login } }", 2, "mirrors.a.credentials", "exactly one of", ""),
    ("mirrors:\n  a: { url: \"https://a.io\", credentials: { helper: /bin/sh } }", 2, "mirrors.a.credentials.helper", "", ""),
    ("mirrors:\n  a: { url: \"https://a.io\", credentials: { helper: nowhere-to-be-found } }", 2, "mirrors.a.credentials.helper", "no such program", "docker-credential-nowhere-to-be-found"),
    ("mirrors:\n  a: { url: \"https://a.io\", credentials: { exec: [] } }", 2, "mirrors.a.credentials.exec", "a program and its arguments", ""),
    ("mirrors:\n  a: { url: \"https://a.io\", credentials: { exec: [./gone] } }", 2, "mirrors.a.credentials.exec", "no such program", "looked for /nonexistent/gone"),
    ("mirrors:\n  a: { url: \"https://a.io\", credentials: { exec: [/bin/sh], timeout: 1h } }", 2, "mirrors.a.credentials.timeout", "between 1s and 5m", ""),
    ("mirrors:\n  a: { url: \"https://a.io\", credentials: { identity_token: { env: GONE } } }", 2, "mirrors.a.credentials.identity_token.env", "variable is not set", ""),
    ("mirrors:\n  a: { url: \"https://a.io\", credentials: { identity_token: canary } }", 2, "mirrors.a.credentials.identity_token", "never written inline", ""),
    ("mirrors:\n  a: { url: \"https://a.io\", token_realms: [b.io] }", 2, "mirrors.a.token_realms[0]", "not a URL", ""),
    ("mirrors:\n  a: { url: \"https://a.io\", tls: { ca: gone.pem } }", 2, "mirrors.a.tls.ca", "it does not exist", "looked for /nonexistent/gone.pem"),
    ("mirrors:\n  a: { url: \"https://a.io\", tls: { minimum: \"1.1\" } }", 2, "mirrors.a.tls.minimum", "", "1.2"),
    ("mirrors:\n  a: { url: \"https://a.io\", proxy: \"http://u:canary@proxy:3128\" }", 2, "mirrors.a.proxy", "no user name and no password", "an account at the proxy"),
    ("mirrors:\n  a: { url: \"https://a.io\", proxy: \"socks5://proxy:1080\" }", 2, "mirrors.a.proxy", "neither an http nor an https URL", "`environment`"),
    ("mirrors:\n  a: { url: \"https://a.io\", proxy: { url: \"http://proxy:3128\", password: canary } }", 2, "mirrors.a.proxy.password", "never written inline", ""),
    ("mirrors:\n  a: { url: \"https://a.io\", limits: { concurrency: 0 } }", 2, "mirrors.a.limits.concurrency", "at least 1", ""),
    ("mirrors:\n  a: { url: \"https://a.io\", limits: { requests_per_second: 0 } }", 2, "mirrors.a.limits.requests_per_second", "at least 1", ""),
    ("mirrors:\n  a: { url: \"https://a.io\", limits: { connect_timeout: 0s } }", 2, "mirrors.a.limits.connect_timeout", "between 100ms and 5m", ""),
    ("mirrors:\n  a: { url: \"https://docker.io\" }", 2, "mirrors.a.url", "no registry", "https://registry-1.docker.io"),
    ("mirrors:\n  a: { url: \"https://www.docker.io\" }", 2, "mirrors.a.url", "no registry", "https://registry-1.docker.io"),
    ("mirrors:\n  a: { url: \"https://hub.docker.com\" }", 2, "mirrors.a.url", "no registry", "https://registry-1.docker.io"),
    ("mirrors:\n  a: { url: \"https://hub.docker.com/r/library\" }", 2, "mirrors.a.url", "no registry", "https://registry-1.docker.io"),
    ("mirrors:\n  a: { url: \"https://index.docker.io/v1/\" }", 2, "mirrors.a.url", "no registry", "https://registry-1.docker.io"),
    ("mirrors:\n  a: { url: \"https://registry-1.docker.io/v1\" }", 2, "mirrors.a.url", "no registry", "https://registry-1.docker.io"),
    ("mirrors:\n  a: { url: \"https://registry-1.docker.io/library\" }", 2, "mirrors.a.url", "the first part of names", "https://registry-1.docker.io"),
    ("mirrors:\n  a: { url: \"https://index.docker.io/library/\" }", 2, "mirrors.a.url", "the first part of names", "https://registry-1.docker.io"),
    ("mirrors:\n  a: { url: \"https://registry-1.docker.io/v2/library\" }", 2, "mirrors.a.url", "in front of every name twice", "library: false"),
    ("mirrors:\n  a: { url: \"https://auth.docker.io/token\" }", 2, "mirrors.a.url", "token endpoint", "https://registry-1.docker.io"),
    ("mirrors:\n  a: { url: \"https://quay.io/repository\" }", 2, "mirrors.a.url", "no registry", "https://quay.io"),
    ("mirrors:\n  a: { url: \"https://quay.io/repository/prometheus/node-exporter\" }", 2, "mirrors.a.url", "no registry", "https://quay.io"),
    ("mirrors:\n  a: { url: \"https://registry.docker.io\" }", 2, "mirrors.a.url", "has another name", "https://registry-1.docker.io"),
    ("mirrors:\n  a: { url: \"https://registry.docker.com/v2\" }", 2, "mirrors.a.url", "has another name", "https://registry-1.docker.io"),
    ("mirrors:\n  a: { url: \"http://registry-1.docker.io\" }", 2, "mirrors.a.url", "over https only", "https://registry-1.docker.io"),
    ("mirrors:\n  a: { url: \"https://registry-1.docker.io/library/alpine\" }", 2, "mirrors.a.url", "the first part of names", "https://registry-1.docker.io"),
    ("mirrors:\n  a: { url: \"https://quay.io/organization/prometheus\" }", 2, "mirrors.a.url", "no registry", "https://quay.io"),
    ("mirrors:\n  a: { url: \"https://github.com/orgs/a/packages\" }", 2, "mirrors.a.url", "no registry", "https://ghcr.io"),
    ("mirrors:\n  a: { url: \"https://gitlab.com/a/b/container_registry\" }", 2, "mirrors.a.url", "no registry", "https://registry.gitlab.com"),
    ("mirrors:\n  a: { url: \"https://harbor.example/harbor/projects/1\" }", 2, "mirrors.a.url", "no registry", "leave the path out"),
    ("mirrors:\n  a: { url: \"https://a.io/v1/\" }", 2, "mirrors.a.url", "first version", "leave the path out"),
    ("mirrors:\n  a: { url: docker.io }", 2, "mirrors.a.url", "not a URL", "https://registry-1.docker.io"),
    ("mirrors:\n  a: { url: index.docker.io/v1/ }", 2, "mirrors.a.url", "not a URL", "https://registry-1.docker.io"),
    ("mirrors:\n  a: https://hub.docker.com", 2, "mirrors.a.url", "no registry", "https://registry-1.docker.io"),
    ("mirrors:\n  a: { url: \"https://a.io\", alternatives: [\"https://docker.io\"] }", 2, "mirrors.a.alternatives[0]", "no registry", "https://registry-1.docker.io"),
    ("mirrors:\n  a: { url: \"https://a.io\", headers: { \"a b\": x } }", 2, "mirrors.a.headers.a b", "not the name of a header", ""),
    ("mirrors:\n  a: { url: \"https://a.io\", headers: { Authorization: x } }", 2, "mirrors.a.headers.Authorization", "Gantry's own", "`credentials`"),
    ("mirrors:\n  a: { url: \"https://a.io\", headers: { X-Key: \"a\\nb\" } }", 2, "mirrors.a.headers.X-Key", "not the value of a header", ""),
    ("mirrors:\n  a: { url: \"https://a.io\", headers: { X-Key: { env: GONE } } }", 2, "mirrors.a.headers.X-Key.env", "variable is not set", ""),
    // --- tokens, limits, log ---
    ("tokens: { lifetime: 30s }", 1, "tokens.lifetime", "between 1m and 1d", ""),
    ("tokens: { key: token.key }", 1, "tokens.key", "unknown key", "did you mean `keys`?"),
    ("limits: { manifest: 8MiB }", 1, "limits.manifest", "at most 4MiB", ""),
    ("limits: { manifest: 10 }", 1, "limits.manifest", "at least 64KiB", ""),
    ("limits: { manifest: 4 megabytes }", 1, "limits.manifest", "not a size", "64MiB"),
    ("limits: { minimum_rate: 1KiB }", 1, "limits.minimum_rate", "not a rate", "1KiB/s"),
    ("limits: { header_timeout: 0s }", 1, "limits.header_timeout", "between 1s and 5m", ""),
    ("log: { format: jsn }", 1, "log.format", "not one of the values", "did you mean `json`?"),
    ("log: { format: logfmt }", 1, "log.format", "not one of the values", "one of human, json"),
    ("log: { level: inof }", 1, "log.level", "not a log level", "did you mean `info`?"),
];

/// Mistakes of `plugins`.
#[rustfmt::skip]
const PLUGIN_MISTAKES: &[Mistake] = &[
    ("admin: off", 1, "plugins", "missing key `plugins`", ""),
    ("plugins: []", 1, "plugins", "no plugin decides", "builtin:access"),
    ("plugins:\n  - from: builtin:access", 2, "plugins[0].name", "missing key `name`", ""),
    ("plugins:\n  - name: a", 2, "plugins[0].from", "missing key `from`", ""),
    ("plugins:\n  - { name: Über, from: \"builtin:access\" }", 2, "plugins[0].name", "not a name", "lower-case"),
    ("plugins:\n  - { name: a, from: \"builtin:access\" }\n  - { name: a, from: \"builtin:htpasswd\" }", 3, "plugins[1].name", "another plugin has this name", ""),
    ("plugins:\n  - { name: a, from: \"builtin:acess\" }", 2, "plugins[0].from", "no built-in plugin", "did you mean builtin:access?"),
    ("plugins:\n  - { name: a, from: \"builtin:ldap\" }", 2, "plugins[0].from", "no built-in plugin", "builtin:htpasswd"),
    ("plugins:\n  - { name: a, from: htpasswd }", 2, "plugins[0].from", "not a file", "builtin:htpasswd"),
    ("plugins:\n  - { name: a, from: ./gone.wasm }", 2, "plugins[0].from", "it does not exist", "/nonexistent/gone.wasm"),
    ("plugins:\n  - { name: a, from: \"oci://example.com/p@sha256:00\" }", 2, "plugins[0].from", "not available yet", "name its file"),
    ("plugins:\n  - { name: a, from: \"https://example.com/p.wasm\" }", 2, "plugins[0].from", "not a place a plugin can come from", "./file.wasm"),
    ("plugins:\n  - { name: a, from: \"builtin:htpasswd\", mode: shadow }", 2, "plugins[0].mode", "only `enforce`", ""),
    ("plugins:\n  - { name: a, from: \"builtin:htpasswd\", mode: audit }", 2, "plugins[0].mode", "only `enforce` is possible", ""),
    ("plugins:\n  - { name: a, from: \"builtin:access\", mode: enforced }", 2, "plugins[0].mode", "not one of the values", "did you mean `enforce`?"),
    ("plugins:\n  - { name: a, from: \"builtin:htpasswd\", on_error: skip }", 2, "plugins[0].on_error", "only `deny` is possible for plugins that decide who", ""),
    ("plugins:\n  - { name: a, from: \"builtin:immutable-tags\", on_error: skip }", 2, "plugins[0].on_error", "only `deny` is possible for plugins that judge changes", "serve-manifest"),
    ("plugins:\n  - { name: a, from: \"builtin:immutable-tags\", on_error: skip, changes: [serve-blob] }", 2, "plugins[0].on_error", "a client can make this plugin fail", "write `on_error: { skip: clients_can_force_this }`"),
    ("plugins:\n  - { name: a, from: \"builtin:immutable-tags\", on_error: { skip: yes }, changes: [serve-blob] }", 2, "plugins[0].on_error.skip", "", "clients_can_force_this"),
    ("plugins:\n  - { name: a, from: \"builtin:immutable-tags\", on_error: { skip: clients_can_force_this } }", 2, "plugins[0].on_error", "only `deny` is possible for plugins that judge changes", "serve-manifest"),
    ("plugins:\n  - { name: a, from: \"builtin:immutable-tags\", on_error: last_known, changes: [serve-blob, move-tag] }", 2, "plugins[0].on_error", "judge changes", ""),
    ("plugins:\n  - { name: a, from: \"builtin:immutable-tags\", on_error: last-known }", 2, "plugins[0].on_error", "not one of the values", "did you mean `last_known`?"),
    ("plugins:\n  - { name: a, from: \"builtin:access\", changes: [fill] }", 2, "plugins[0].changes", "judges no changes", ""),
    ("plugins:\n  - { name: a, from: \"builtin:immutable-tags\", changes: [serve] }", 2, "plugins[0].changes[0]", "not one of the values", "create-tag, move-tag"),
    ("plugins:\n  - { name: a, from: \"builtin:immutable-tags\", changes: [movetag] }", 2, "plugins[0].changes[0]", "not one of the values", "did you mean `move-tag`?"),
    ("plugins:\n  - { name: a, from: \"builtin:access\", repositories: [\"[a\"] }", 2, "plugins[0].repositories[0]", "not a glob", ""),
    ("plugins:\n  - { name: a, from: \"builtin:access\", config: { rules: [{ users: { file: gone } }] } }", 2, "plugins[0].config.rules[0].users.file", "it does not exist", "/nonexistent/gone"),
    ("plugins:\n  - { name: a, from: \"builtin:htpasswd\", config: { users: { file: gone } } }", 2, "plugins[0].config.users.file", "it does not exist", "`gantry htpasswd FILE USER` makes one"),
    ("plugins:\n  - { name: a, from: \"builtin:access\", grants: { http: [hooks.example] } }", 2, "plugins[0].grants.http[0]", "is not an absolute URL", "https://HOST"),
    ("plugins:\n  - { name: a, from: \"builtin:access\", grants: { secrets: { key: canary } } }", 2, "plugins[0].grants.secrets.key", "never written inline", "env"),
    ("plugins:\n  - { name: a, from: \"builtin:access\", limits: { cpu: 2s } }", 2, "plugins[0].limits.cpu", "`cpu` is longer than `deadline`", ""),
    ("plugins:\n  - { name: a, from: \"builtin:access\", limits: { memory: 1KiB } }", 2, "plugins[0].limits.memory", "at least 1MiB", ""),
    ("plugins:\n  - { name: a, from: \"builtin:access\", limits: { concurrency: 0 } }", 2, "plugins[0].limits.concurrency", "at least 1", ""),
    ("plugins:\n  - { name: a, from: \"builtin:access\", sees: x }", 2, "plugins[0].sees", "unknown key", "keys known here"),
    ("[plugins]", 1, "", "a map is expected here, not a list", ""),
    ("plugins:\n  - { name: a, from: \"builtin:access\" }\n---\nadmin: off", 3, "", "a second document", ""),
    ("plugins:\n  - { name: a\nadmin: off", 2, "", "not YAML: unclosed bracket", ""),
    ("plugins:\n\t- name: a", 2, "", "not YAML", ""),
];

fn check(text: &str, (_, line, path, message, hint): Mistake) {
    let report = parse(text).expect_err(text);
    let [problem] = report.problems.as_slice() else {
        panic!("not one problem of {text}:\n{report}");
    };
    assert_eq!(problem.path, path, "{report}");
    assert_eq!(problem.line, Some(line), "{report}");
    assert!(
        problem.message.contains(message),
        "no `{message}`: {report}"
    );
    let said = problem.hint.as_deref().unwrap_or_default();
    assert!(said.contains(hint), "no `{hint}`: {report}");
    assert!(problem.column.is_some_and(|column| column > 0), "{report}");
    assert!(
        problem
            .snippet
            .as_deref()
            .is_some_and(|snippet| snippet.contains('^')),
        "{report}"
    );
    let shown = report.to_string();
    assert!(
        !shown.contains("canary") && !format!("{report:?}").contains("canary"),
        "{shown}"
    );
}

#[test]
fn every_mistake_is_said_with_its_line_path_and_hint() {
    for mistake in MISTAKES {
        check(&format!("{}{PLUGINS}", mistake.0), *mistake);
    }
}

#[test]
fn every_mistake_of_plugins_is_said_with_its_line_path_and_hint() {
    for mistake in PLUGIN_MISTAKES {
        check(mistake.0, *mistake);
    }
}

#[test]
fn all_mistakes_of_a_file_are_said_at_once_in_the_order_of_the_file() {
    let text = "\
listen: [127.0.0.1:5000, 127.0.0.1:5000]
storge: {}
hosted: { names: [\"docker.io/**\"], delete: maybe }
mirrors:
  docker.io:
    url: https://registry-1.docker.io
    default: true
    tags: { fresh_for: 10 minutes }
  ghcr.io: { url: https://ghcr.io, default: true, credentials: { username: u, password: hunter2 } }
plugins:
  - { name: people, from: builtin:htpaswd }
  - name: people
    from: builtin:access
    on_eror: deny
    config: { users: { file: gone } }
tokens: { lifetime: 5s }
log: { level: loud }
log: {}
";
    let report = parse(text).unwrap_err();
    let said: Vec<(Option<usize>, &str)> = report
        .problems
        .iter()
        .map(|problem| (problem.line, problem.path.as_str()))
        .collect();
    let expected = [
        (1, "listen[1]"),
        (2, "storge"),
        (3, "hosted.names[0]"),
        (3, "hosted.delete"),
        (8, "mirrors.docker.io.tags.fresh_for"),
        (9, "mirrors.ghcr.io.default"),
        (9, "mirrors.ghcr.io.credentials.password"),
        (11, "plugins[0].from"),
        (14, "plugins[1].on_eror"),
        (15, "plugins[1].config.users.file"),
        (16, "tokens.lifetime"),
        (17, "log.level"),
        (18, "log"),
    ];
    assert_eq!(
        said,
        expected.map(|(line, path)| (Some(line), path)),
        "{report}"
    );
}

#[test]
fn a_mistake_is_shown_with_three_lines_and_a_caret_under_it() {
    let report = parse(&format!("admin: off\nmirrors:\n  a: {{ url: \"https://a.io\", tags: {{ fresh_for: soon }} }}\nlog: {{}}{PLUGINS}")).unwrap_err();
    assert_eq!(
        report.to_string(),
        "\
error: not a duration
  --> gantry.yaml:3:48  mirrors.a.tags.fresh_for
  |
2 | mirrors:
3 |   a: { url: \"https://a.io\", tags: { fresh_for: soon } }
  |                                                ^^^^
4 | log: {}
  = write 250ms, 10s, 10m, 1h30m or 7d

gantry.yaml: 1 mistake"
    );
}

#[test]
fn a_secret_beside_a_mistake_is_not_quoted() {
    let check = |text: &str| {
        let shown = parse(&format!("{text}{PLUGINS}"))
            .expect_err(text)
            .to_string();
        assert!(!shown.contains("canary"), "{shown}");
        assert!(shown.contains("***"), "{shown}");
    };
    // In the line of another mistake, before and after it, on lines around it, in keys the schema does not know.
    check("mirrors: { a: { url: x, credentials: { username: u, password: canary } } }");
    check("mirrors:\n  a:\n    credentials: { username: u, password: canary }\n    url: x");
    check(
        "mirrors:\n  a:\n    credentials:\n      username: u\n      password: |\n        canary\n        more canary\n    url: x",
    );
    check("pasword_file: 1\napi_token: canary");
    check("secrets: [canary, canary]\nlog: 5");
    check("external_url: https://u:canary@host:port/\nlog: 5");
    // Also where the text is no YAML.
    check("mirrors:\n  a: { credentials: { password: canary: canary");
}
