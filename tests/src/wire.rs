//! A raw client of the distribution API: what it sends is what the test says, and answers come back unread.
//!
//! Blocking on purpose: a test is a sequence of steps.

use std::{sync::OnceLock, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::image::{Content, Image, MANIFEST};

/// A client of one registry.
#[derive(Clone, Debug)]
pub struct Wire {
    base: String,
    authorization: Option<String>,
}

/// An answer, whole.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// The harness's own runtime.
///
/// # Panics
/// When it cannot be made.
pub fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(4)
            .enable_all()
            .build()
            .expect("threads can be made")
    })
}

/// The harness's own client: no redirects, no proxy, no decompression.
///
/// # Panics
/// When it cannot be made.
pub fn http_client() -> &'static reqwest::Client {
    static CLIENT: OnceLock<reqwest::Client> = OnceLock::new();
    CLIENT.get_or_init(|| {
        reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .danger_accept_invalid_certs(true)
            .timeout(Duration::from_secs(120))
            .build()
            .expect("a client can be made")
    })
}

impl Wire {
    /// A client that shows nothing.
    #[must_use]
    pub fn anonymous(port: u16) -> Self {
        Self {
            base: format!("http://127.0.0.1:{port}"),
            authorization: None,
        }
    }

    /// A client that shows a password.
    #[must_use]
    pub fn basic(port: u16, (user, password): (&str, &str)) -> Self {
        use base64::Engine as _;
        let encoded =
            base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        Self {
            authorization: Some(format!("Basic {encoded}")),
            ..Self::anonymous(port)
        }
    }

    /// A client that shows a token.
    #[must_use]
    pub fn bearer(port: u16, token: &str) -> Self {
        Self {
            authorization: Some(format!("Bearer {token}")),
            ..Self::anonymous(port)
        }
    }

    /// The same client at another address.
    #[must_use]
    pub fn at(&self, base: &str) -> Self {
        Self {
            base: base.to_owned(),
            ..self.clone()
        }
    }

    /// One request.
    ///
    /// # Panics
    /// When there is no whole answer.
    #[must_use]
    pub fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        self.try_send(method, path, headers, body)
            .unwrap_or_else(|error| panic!("{method} {path}: {error:?}"))
    }

    /// One request, whose answer may break off.
    ///
    /// # Errors
    /// When there is no whole answer.
    pub fn try_send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Answer, reqwest::Error> {
        let request = self.request(method, path, headers).body(body.into());
        runtime().block_on(async { whole(request).await })
    }

    /// A request to be finished by the test.
    ///
    /// # Panics
    /// When `method` is none.
    pub fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> reqwest::RequestBuilder {
        let url = if path.starts_with("http") {
            path.to_owned()
        } else {
            format!("{}{path}", self.base)
        };
        let mut request = http_client().request(method.parse::<Method>().expect("a method"), url);
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if path.starts_with("/admin/v1/")
            && !headers.iter().any(|(name, _)| *name == "content-type")
        {
            request = request.header("content-type", "application/json");
        }
        request
    }

    /// `GET`.
    #[must_use]
    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "")
    }

    /// `HEAD`.
    #[must_use]
    pub fn head(&self, path: &str) -> Answer {
        self.send("HEAD", path, &[], "")
    }

    /// `DELETE`.
    #[must_use]
    pub fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, &[], "")
    }

    /// Opens an upload session; its location.
    #[must_use]
    pub fn start_upload(&self, repository: &str) -> String {
        self.send("POST", &format!("/v2/{repository}/blobs/uploads/"), &[], "")
            .expect(202)
            .location()
    }

    /// Pushes a blob by POST and PUT.
    #[must_use]
    pub fn push_blob(&self, repository: &str, content: &Content) -> Answer {
        let location = self.start_upload(repository);
        let path = with_query(
            &location,
            &format!("digest={}", content.digest.replace(':', "%3A")),
        );
        self.send(
            "PUT",
            &path,
            &[("content-type", "application/octet-stream")],
            content.bytes.clone(),
        )
    }

    /// Pushes a manifest.
    #[must_use]
    pub fn push_manifest(
        &self,
        repository: &str,
        reference: &str,
        media_type: &str,
        bytes: impl Into<Bytes>,
    ) -> Answer {
        self.send(
            "PUT",
            &format!("/v2/{repository}/manifests/{reference}"),
            &[("content-type", media_type)],
            bytes,
        )
    }

    /// Pushes an image with all its blobs.
    pub fn push_image(&self, repository: &str, reference: &str, image: &Image) {
        for blob in image.blobs() {
            self.push_blob(repository, blob).expect(201);
        }
        self.push_manifest(
            repository,
            reference,
            MANIFEST,
            image.manifest.bytes.clone(),
        )
        .expect(201);
    }

    /// Pulls an image by its reference and holds every byte against `image`.
    ///
    /// # Panics
    /// When a byte differs.
    pub fn pull_image(&self, repository: &str, reference: &str, image: &Image) {
        let manifest = self
            .get(&format!("/v2/{repository}/manifests/{reference}"))
            .expect(200);
        assert_eq!(
            manifest.header("docker-content-digest"),
            image.manifest.digest
        );
        assert_eq!(manifest.body, image.manifest.bytes);
        for blob in image.blobs() {
            let answer = self
                .get(&format!("/v2/{repository}/blobs/{}", blob.digest))
                .expect(200);
            assert!(answer.body == blob.bytes, "{} came back other", blob.digest);
        }
    }

    /// A token for these scopes.
    #[must_use]
    pub fn token(&self, scopes: &[&str]) -> String {
        let query: String = scopes
            .iter()
            .map(|scope| format!("&scope={scope}"))
            .collect();
        let answer = self.get(&format!("/token?service=test{query}")).expect(200);
        answer.json()["token"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }
}

/// Sends a request and reads the whole answer.
///
/// # Errors
/// When there is no whole answer.
pub async fn whole(request: reqwest::RequestBuilder) -> Result<Answer, reqwest::Error> {
    let response = request.send().await?;
    let (status, headers) = (response.status(), response.headers().clone());
    Ok(Answer {
        status,
        headers,
        body: response.bytes().await?,
    })
}

/// A location with one more query parameter.
#[must_use]
pub fn with_query(location: &str, parameter: &str) -> String {
    let separator = if location.contains('?') { '&' } else { '?' };
    format!("{location}{separator}{parameter}")
}

impl Answer {
    /// Itself, when it has this status.
    ///
    /// # Panics
    /// With the whole answer, when it has another.
    #[must_use]
    #[track_caller]
    pub fn has(self, status: u16) -> Self {
        assert_eq!(
            self.status.as_u16(),
            status,
            "{:?}\n{}",
            self.headers,
            String::from_utf8_lossy(&self.body)
        );
        self
    }

    /// As [`Answer::has`], for an answer nobody looks at further.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        self.has(status)
    }

    /// A header, or nothing.
    #[must_use]
    pub fn header(&self, name: &str) -> String {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned()
    }

    /// `Location`.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn location(&self) -> String {
        let location = self.header("location");
        assert!(!location.is_empty(), "no Location in {:?}", self.headers);
        location
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The code of the first error.
    #[must_use]
    #[track_caller]
    pub fn code(&self) -> String {
        self.json()["errors"][0]["code"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// The message of the first error.
    #[must_use]
    #[track_caller]
    pub fn message(&self) -> String {
        self.json()["errors"][0]["message"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }
}
