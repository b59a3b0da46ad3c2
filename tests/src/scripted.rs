//! A registry that answers as a test says: the request's head in, the status, headers and body out.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use bytes::Bytes;

/// The head of a request.
#[derive(Clone, Debug)]
pub struct Asked {
    /// `GET`, `HEAD`, …
    pub method: String,
    /// Path and query.
    pub target: String,
    /// By lower-case names; of two headers of one name the values with a comma between.
    pub headers: HashMap<String, String>,
}

impl Asked {
    /// A header, or nothing.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// An answer.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// Its status.
    pub status: u16,
    /// Its headers, beside `Content-Length`.
    pub headers: Vec<(String, String)>,
    /// Its body; of a HEAD only the length is sent.
    pub body: Bytes,
}

impl Reply {
    /// One without headers.
    #[must_use]
    pub fn new(status: u16, body: impl Into<Bytes>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
        }
    }

    /// The same with a header.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

/// A registry on a port of its own, for as long as the test runs.
#[derive(Clone, Debug)]
pub struct Scripted {
    /// Its port on 127.0.0.1.
    pub port: u16,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Scripted {
    /// Starts one that answers by `script`.
    ///
    /// # Panics
    /// When no port can be had.
    #[must_use]
    pub fn start(script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let scripted = Self {
            port,
            asked: Arc::default(),
        };
        let (script, asked) = (Arc::new(script), Arc::clone(&scripted.asked));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (script, asked) = (Arc::clone(&script), Arc::clone(&asked));
                std::thread::spawn(move || serve(stream, &*script, &asked));
            }
        });
        scripted
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// A `mirrors:` entry that names it.
    #[must_use]
    pub fn mirror_entry(&self, name: &str, more: &str) -> String {
        format!("  {name}: {{ url: \"{}\"{more} }}\n", self.url())
    }

    /// The requests so far, in their order.
    ///
    /// # Panics
    /// When its script panicked.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("no panic").clone()
    }
}

/// One request, and the end of the connection.
fn serve(stream: TcpStream, script: &dyn Fn(&Asked) -> Reply, asked: &Mutex<Vec<Asked>>) {
    let mut reader = BufReader::new(stream);
    let Some(request) = head(&mut reader) else {
        return;
    };
    asked.lock().expect("no panic").push(request.clone());
    let reply = script(&request);
    let mut text = format!(
        "HTTP/1.1 {} X\r\nConnection: close\r\nContent-Length: {}\r\n",
        reply.status,
        reply.body.len()
    );
    for (name, value) in &reply.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    let stream = reader.get_mut();
    // A client that leaves is no failure of this registry.
    if stream.write_all(text.as_bytes()).is_ok() && request.method != "HEAD" {
        stream.write_all(&reply.body).ok();
    }
}

fn head(reader: &mut impl std::io::BufRead) -> Option<Asked> {
    let mut lines = reader.lines();
    let first = lines.next()?.ok()?;
    let (method, rest) = first.split_once(' ')?;
    let target = rest.split(' ').next()?;
    let mut headers: HashMap<String, String> = HashMap::new();
    for line in lines
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
    {
        let (name, value) = line.split_once(':')?;
        let known = headers.entry(name.to_ascii_lowercase()).or_default();
        if !known.is_empty() {
            known.push_str(", ");
        }
        known.push_str(value.trim());
    }
    Some(Asked {
        method: method.to_owned(),
        target: target.to_owned(),
        headers,
    })
}
