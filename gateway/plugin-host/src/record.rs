//! Records what a guest asks of the host: name, arguments shortened, answer, time. For plugin authors.
//!
//! Owns what a recording may show: never a secret's bytes, a password, a token or a configuration. A host without a recorder does not
//! even link this, so production calls pay nothing for it.

use std::{
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use wasmtime::{
    Engine,
    component::{HasData, Linker, Resource},
};

use crate::{
    bindings::{
        Host_,
        gantry::plugin::{clock, config, crypto, http, kv, logging, random, registry, types},
    },
    convert::text,
    host::{CallState, config::GrantedSecret, kv::OpenBucket, registry::OpenBlob},
};

/// The longest argument or answer that is shown, in bytes.
const MAX_SHOWN_BYTES: usize = 120;
const STARS: &str = "***";

/// One call of a guest into the host.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HostCall {
    /// `interface.function`, in the contract's words.
    pub name: &'static str,
    /// Its arguments, shortened, secrets starred, joined by commas.
    pub arguments: String,
    /// What it answered, shortened, secrets starred.
    pub answer: String,
    /// How long the host took.
    pub took: Duration,
}

/// Where a host notes its guests' calls while it is listening. Clones share what they note.
#[derive(Clone, Debug, Default)]
pub struct Recorder(Arc<Mutex<Option<Vec<HostCall>>>>);

impl Recorder {
    /// Begins to listen, with nothing noted.
    pub fn start(&self) {
        *self.lock() = Some(Vec::new());
    }

    /// Ends listening; what was noted since the start.
    #[must_use]
    pub fn finish(&self) -> Vec<HostCall> {
        self.lock().take().unwrap_or_default()
    }

    fn listens(&self) -> bool {
        self.lock().is_some()
    }

    fn note(&self, call: HostCall) {
        if let Some(calls) = self.lock().as_mut() {
            calls.push(call);
        }
    }

    /// Each update is one assignment or push, so a poisoned list is whole.
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Vec<HostCall>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A linker whose imports go through the recorder of their call.
pub(crate) fn linker(engine: &Engine) -> wasmtime::Result<Linker<CallState>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    Host_::add_to_linker::<_, Recording>(&mut linker, |state| Recorded(state))?;
    Ok(linker)
}

struct Recording;

impl HasData for Recording {
    type Data<'a> = Recorded<'a>;
}

/// A call's state that notes what goes through it.
struct Recorded<'a>(&'a mut CallState);

/// A host call that has begun.
struct Begun {
    name: &'static str,
    arguments: String,
    at: Instant,
}

impl Recorded<'_> {
    /// Nothing while nobody listens: then arguments are not even rendered.
    fn begin(&self, name: &'static str, arguments: impl FnOnce() -> String) -> Option<Begun> {
        let recorder = self.0.context.recorder.as_ref()?;
        recorder.listens().then(|| Begun {
            name,
            arguments: arguments(),
            at: Instant::now(),
        })
    }

    fn end<T>(
        &self,
        begun: Option<Begun>,
        answer: &wasmtime::Result<T>,
        show: impl FnOnce(&T) -> String,
    ) {
        let (Some(begun), Some(recorder)) = (begun, self.0.context.recorder.as_ref()) else {
            return;
        };
        let took = begun.at.elapsed();
        recorder.note(HostCall {
            name: begun.name,
            arguments: begun.arguments,
            answer: match answer {
                Ok(answer) => show(answer),
                Err(error) => format!("stopped: {}", shorten(&error.root_cause().to_string())),
            },
            took,
        });
    }
}

fn shorten(shown: &str) -> String {
    let cleaned = text::clean(shown, MAX_SHOWN_BYTES);
    if cleaned.len() < shown.len() {
        format!("{cleaned}…")
    } else {
        cleaned
    }
}

fn debug<T: Debug>(value: &T) -> String {
    shorten(&format!("{value:?}"))
}

/// Answers whose good values are shown by `show` and whose errors as they are.
fn result<T, E: Debug>(show: impl FnOnce(&T) -> String) -> impl FnOnce(&Result<T, E>) -> String {
    |answer| match answer {
        Ok(value) => show(value),
        Err(error) => debug(error),
    }
}

fn starred<T>(_value: &T) -> String {
    STARS.to_owned()
}

fn bytes(bytes: &[u8]) -> String {
    format!("{} bytes", bytes.len())
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "used as a function of `end`, which shows by reference"
)]
fn done(_value: &()) -> String {
    "done".to_owned()
}

impl types::Host for Recorded<'_> {}

impl logging::Host for Recorded<'_> {
    fn log(
        &mut self,
        level: logging::Level,
        message: String,
        fields: Vec<(String, String)>,
    ) -> wasmtime::Result<()> {
        let begun = self.begin("logging.log", || {
            let fields: String = fields
                .iter()
                .map(|(key, value)| format!(", {key}={value:?}"))
                .collect();
            format!("{level:?}, {}", shorten(&format!("{message:?}{fields}")))
        });
        let answer = self.0.log(level, message, fields);
        self.end(begun, &answer, done);
        answer
    }

    fn enabled(&mut self, level: logging::Level) -> wasmtime::Result<bool> {
        let begun = self.begin("logging.enabled", || format!("{level:?}"));
        let answer = self.0.enabled(level);
        self.end(begun, &answer, debug);
        answer
    }
}

impl clock::Host for Recorded<'_> {
    fn now_ms(&mut self) -> wasmtime::Result<u64> {
        let begun = self.begin("clock.now-ms", String::new);
        let answer = self.0.now_ms();
        self.end(begun, &answer, debug);
        answer
    }

    fn deadline_remaining_ms(&mut self) -> wasmtime::Result<u32> {
        let begun = self.begin("clock.deadline-remaining-ms", String::new);
        let answer = self.0.deadline_remaining_ms();
        self.end(begun, &answer, debug);
        answer
    }
}

impl random::Host for Recorded<'_> {
    fn bytes(&mut self, len: u32) -> wasmtime::Result<Vec<u8>> {
        let begun = self.begin("random.bytes", || len.to_string());
        let answer = random::Host::bytes(self.0, len);
        self.end(begun, &answer, |answer| bytes(answer));
        answer
    }
}

impl config::Host for Recorded<'_> {
    fn get(&mut self) -> wasmtime::Result<String> {
        let begun = self.begin("config.get", String::new);
        let answer = config::Host::get(self.0);
        self.end(begun, &answer, |answer| bytes(answer.as_bytes()));
        answer
    }

    fn secret(
        &mut self,
        name: String,
    ) -> wasmtime::Result<Result<Resource<GrantedSecret>, config::SecretError>> {
        let begun = self.begin("config.secret", || debug(&name));
        let answer = self.0.secret(name);
        self.end(begun, &answer, result(starred));
        answer
    }
}

impl config::HostSecretRef for Recorded<'_> {
    fn reveal(&mut self, secret: Resource<GrantedSecret>) -> wasmtime::Result<Vec<u8>> {
        let begun = self.begin("config.secret-ref.reveal", String::new);
        let answer = self.0.reveal(secret);
        self.end(begun, &answer, starred);
        answer
    }

    fn drop(&mut self, secret: Resource<GrantedSecret>) -> wasmtime::Result<()> {
        config::HostSecretRef::drop(self.0, secret)
    }
}

impl crypto::Host for Recorded<'_> {
    async fn verify_password(
        &mut self,
        stored: Option<String>,
        password: Vec<u8>,
    ) -> wasmtime::Result<crypto::PasswordResult> {
        let begun = self.begin("crypto.verify-password", || {
            let stored = if stored.is_some() { STARS } else { "none" };
            format!("{stored}, {STARS}")
        });
        let answer = self.0.verify_password(stored, password).await;
        self.end(begun, &answer, debug);
        answer
    }

    async fn hash_password(&mut self, password: Vec<u8>) -> wasmtime::Result<String> {
        let begun = self.begin("crypto.hash-password", || STARS.to_owned());
        let answer = self.0.hash_password(password).await;
        self.end(begun, &answer, starred);
        answer
    }

    fn verify_signature(
        &mut self,
        alg: crypto::Alg,
        key: crypto::Key,
        message: Vec<u8>,
        signature: Vec<u8>,
    ) -> wasmtime::Result<Result<bool, String>> {
        let begun = self.begin("crypto.verify-signature", || {
            let key = match &key {
                crypto::Key::Jwk(_) => format!("jwk {STARS}"),
                crypto::Key::Spki(der) => format!("spki {}", bytes(der)),
                crypto::Key::Secret(name) => format!("secret {name:?}"),
            };
            format!(
                "{alg:?}, {}, {}, {}",
                shorten(&key),
                bytes(&message),
                bytes(&signature)
            )
        });
        let answer = self.0.verify_signature(alg, key, message, signature);
        self.end(begun, &answer, debug);
        answer
    }

    async fn verify_jwt(
        &mut self,
        token: String,
        policy: crypto::JwtPolicy,
    ) -> wasmtime::Result<Result<String, crypto::JwtError>> {
        let begun = self.begin("crypto.verify-jwt", || {
            format!(
                "{STARS}, {}",
                shorten(&format!(
                    "issuer {:?}, audiences {:?}",
                    policy.issuer, policy.audiences
                ))
            )
        });
        let answer = self.0.verify_jwt(token, policy).await;
        self.end(
            begun,
            &answer,
            result(|claims: &String| format!("claims, {}", bytes(claims.as_bytes()))),
        );
        answer
    }

    fn sha256(&mut self, data: Vec<u8>) -> wasmtime::Result<Vec<u8>> {
        let begun = self.begin("crypto.sha256", || bytes(&data));
        let answer = self.0.sha256(data);
        self.end(begun, &answer, |answer| bytes(answer));
        answer
    }

    fn hmac_sha256(
        &mut self,
        secret_name: String,
        data: Vec<u8>,
    ) -> wasmtime::Result<Result<Vec<u8>, String>> {
        let begun = self.begin("crypto.hmac-sha256", || {
            format!("{}, {}", debug(&secret_name), bytes(&data))
        });
        let answer = self.0.hmac_sha256(secret_name, data);
        self.end(begun, &answer, result(|mac: &Vec<u8>| bytes(mac)));
        answer
    }

    fn constant_time_eq(&mut self, a: Vec<u8>, b: Vec<u8>) -> wasmtime::Result<bool> {
        let begun = self.begin("crypto.constant-time-eq", || format!("{STARS}, {STARS}"));
        let answer = self.0.constant_time_eq(a, b);
        self.end(begun, &answer, debug);
        answer
    }
}

impl http::Host for Recorded<'_> {
    async fn send(
        &mut self,
        request: http::Request,
    ) -> wasmtime::Result<Result<http::Response, http::Error>> {
        let begun = self.begin("http.send", || {
            // The query and every header's text may be a credential.
            let url = request.url.split('?').next().unwrap_or_default();
            let names: Vec<&str> = request
                .headers
                .iter()
                .map(|(name, _)| name.as_str())
                .collect();
            let head = shorten(&format!("{} {url}, headers {names:?}", request.method));
            format!("{head}, {}", bytes(&request.body))
        });
        let answer = self.0.send(request).await;
        self.end(
            begun,
            &answer,
            result(|response: &http::Response| {
                format!("{}, {}", response.status, bytes(&response.body))
            }),
        );
        answer
    }
}

type Kv<T> = wasmtime::Result<Result<T, kv::KvError>>;

impl kv::Host for Recorded<'_> {
    async fn open(&mut self, bucket: String) -> Kv<Resource<OpenBucket>> {
        let begun = self.begin("kv.open", || debug(&bucket));
        let answer = self.0.open(bucket).await;
        self.end(begun, &answer, result(|_bucket| "bucket".to_owned()));
        answer
    }
}

impl kv::HostBucket for Recorded<'_> {
    async fn get(&mut self, bucket: Resource<OpenBucket>, key: String) -> Kv<Option<kv::Entry>> {
        let begun = self.begin("kv.bucket.get", || debug(&key));
        let answer = kv::HostBucket::get(self.0, bucket, key).await;
        self.end(
            begun,
            &answer,
            result(|entry: &Option<kv::Entry>| {
                entry
                    .as_ref()
                    .map_or_else(|| "none".to_owned(), |entry| bytes(&entry.value))
            }),
        );
        answer
    }

    async fn put(
        &mut self,
        bucket: Resource<OpenBucket>,
        key: String,
        value: Vec<u8>,
        ttl_ms: Option<u32>,
    ) -> Kv<u64> {
        let begun = self.begin("kv.bucket.put", || {
            format!("{}, {}, {ttl_ms:?}", debug(&key), bytes(&value))
        });
        let answer = self.0.put(bucket, key, value, ttl_ms).await;
        self.end(begun, &answer, result(debug));
        answer
    }

    async fn compare_and_put(
        &mut self,
        bucket: Resource<OpenBucket>,
        key: String,
        expected: Option<u64>,
        value: Vec<u8>,
        ttl_ms: Option<u32>,
    ) -> Kv<Option<u64>> {
        let begun = self.begin("kv.bucket.compare-and-put", || {
            format!(
                "{}, {expected:?}, {}, {ttl_ms:?}",
                debug(&key),
                bytes(&value)
            )
        });
        let answer = self
            .0
            .compare_and_put(bucket, key, expected, value, ttl_ms)
            .await;
        self.end(begun, &answer, result(debug));
        answer
    }

    async fn delete(&mut self, bucket: Resource<OpenBucket>, key: String) -> Kv<()> {
        let begun = self.begin("kv.bucket.delete", || debug(&key));
        let answer = kv::HostBucket::delete(self.0, bucket, key).await;
        self.end(begun, &answer, result(done));
        answer
    }

    async fn increment(
        &mut self,
        bucket: Resource<OpenBucket>,
        key: String,
        by: u32,
        window_ms: u32,
    ) -> Kv<u64> {
        let begun = self.begin("kv.bucket.increment", || {
            format!("{}, {by}, {window_ms}", debug(&key))
        });
        let answer = self.0.increment(bucket, key, by, window_ms).await;
        self.end(begun, &answer, result(debug));
        answer
    }

    async fn drop(&mut self, bucket: Resource<OpenBucket>) -> wasmtime::Result<()> {
        kv::HostBucket::drop(self.0, bucket).await
    }
}

type Read<T> = wasmtime::Result<Result<T, registry::ReadError>>;

impl registry::Host for Recorded<'_> {
    async fn resolve_tag(
        &mut self,
        repository: String,
        tag: String,
    ) -> Read<Option<types::TagState>> {
        let begun = self.begin("registry.resolve-tag", || debug(&(&repository, &tag)));
        let answer = self.0.resolve_tag(repository, tag).await;
        self.end(begun, &answer, result(debug));
        answer
    }

    async fn get_manifest(
        &mut self,
        repository: String,
        reference: String,
    ) -> Read<registry::StoredManifest> {
        let begun = self.begin("registry.get-manifest", || {
            debug(&(&repository, &reference))
        });
        let answer = self.0.get_manifest(repository, reference).await;
        self.end(
            begun,
            &answer,
            result(|stored: &registry::StoredManifest| {
                let document = match &stored.document {
                    types::Document::Manifest(facts) => bytes(facts.text.as_bytes()),
                    types::Document::Opaque(opaque) => format!("opaque: {}", opaque.why),
                };
                format!("{}, {document}", stored.target.media_type)
            }),
        );
        answer
    }

    async fn list_referrers(
        &mut self,
        repository: String,
        digest: String,
        artifact_type: Option<String>,
    ) -> Read<Vec<types::Descriptor>> {
        let begun = self.begin("registry.list-referrers", || {
            debug(&(&repository, &digest, &artifact_type))
        });
        let answer = self
            .0
            .list_referrers(repository, digest, artifact_type)
            .await;
        self.end(
            begun,
            &answer,
            result(|found: &Vec<types::Descriptor>| format!("{} found", found.len())),
        );
        answer
    }

    async fn list_parents(&mut self, repository: String, digest: String) -> Read<Vec<String>> {
        let begun = self.begin("registry.list-parents", || debug(&(&repository, &digest)));
        let answer = self.0.list_parents(repository, digest).await;
        self.end(
            begun,
            &answer,
            result(|found: &Vec<String>| format!("{} found", found.len())),
        );
        answer
    }

    async fn open_blob(&mut self, repository: String, digest: String) -> Read<Resource<OpenBlob>> {
        let begun = self.begin("registry.open-blob", || debug(&(&repository, &digest)));
        let answer = self.0.open_blob(repository, digest).await;
        self.end(begun, &answer, result(|_blob| "blob".to_owned()));
        answer
    }
}

impl registry::HostBlobReader for Recorded<'_> {
    async fn size(&mut self, blob: Resource<OpenBlob>) -> wasmtime::Result<u64> {
        let begun = self.begin("registry.blob-reader.size", String::new);
        let answer = self.0.size(blob).await;
        self.end(begun, &answer, debug);
        answer
    }

    async fn read(&mut self, blob: Resource<OpenBlob>, offset: u64, len: u32) -> Read<Vec<u8>> {
        let begun = self.begin("registry.blob-reader.read", || format!("{offset}, {len}"));
        let answer = self.0.read(blob, offset, len).await;
        self.end(begun, &answer, result(|read: &Vec<u8>| bytes(read)));
        answer
    }

    async fn drop(&mut self, blob: Resource<OpenBlob>) -> wasmtime::Result<()> {
        registry::HostBlobReader::drop(self.0, blob).await
    }
}
