//! A batch on its way to the endpoints: what is sent, in which order, and what each event's outcome is.
//!
//! Owns the order per repository and endpoint, and the time that is left.

use gantry_plugin::{
    clock, crypto,
    events::{Event, Outcome},
    http, log,
};

use crate::{
    config::{Endpoint, Format, HeaderValue},
    format,
    reply::{self, Reply},
};

/// Events of one CloudEvents batch.
const BATCH: usize = 64;
/// Left over for answering, in milliseconds.
const RESERVE_MS: u32 = 250;

/// What a delivery needs of the host.
pub(crate) trait World {
    fn send(&self, request: &http::Request) -> Result<http::Response, http::Error>;
    fn sign(&self, secret: &str, body: &[u8]) -> Result<Vec<u8>, String>;
    fn now_ms(&self) -> u64;
    fn remaining_ms(&self) -> u32;
}

/// The host itself.
#[derive(Debug)]
pub(crate) struct Host;

impl World for Host {
    fn send(&self, request: &http::Request) -> Result<http::Response, http::Error> {
        http::send(request)
    }

    fn sign(&self, secret: &str, body: &[u8]) -> Result<Vec<u8>, String> {
        crypto::hmac_sha256(secret, body)
    }

    fn now_ms(&self) -> u64 {
        clock::now_ms()
    }

    fn remaining_ms(&self) -> u32 {
        clock::deadline_remaining_ms()
    }
}

/// What is known of one event at one endpoint.
#[derive(Clone, Debug)]
enum State {
    /// It does not want it, or has it.
    Done,
    /// It refused for good.
    Gone(String),
    /// Not this time; after so many milliseconds.
    Later(u32),
}

/// A batch on its way.
pub(crate) struct Delivery<'a, W> {
    world: &'a W,
    endpoints: &'a [Endpoint],
    events: &'a [Event],
    /// By event, the states at the endpoints.
    states: Vec<Vec<State>>,
}

impl<'a, W: World> Delivery<'a, W> {
    pub(crate) fn new(world: &'a W, endpoints: &'a [Endpoint], events: &'a [Event]) -> Self {
        Self {
            world,
            endpoints,
            events,
            states: vec![Vec::new(); events.len()],
        }
    }

    /// Sends what is to be sent; answers one outcome per event.
    pub(crate) fn run(mut self) -> Vec<Outcome> {
        for endpoint in self.endpoints {
            let states = self.serve(endpoint);
            for (all, state) in self.states.iter_mut().zip(states) {
                all.push(state);
            }
        }
        self.states.iter().map(|states| outcome(states)).collect()
    }

    /// One endpoint, all events.
    fn serve(&self, endpoint: &Endpoint) -> Vec<State> {
        let mut held: Vec<&str> = Vec::new();
        let mut down: Option<u32> = None;
        let mut states = vec![State::Done; self.events.len()];
        let size = if endpoint.format == Format::CloudeventsBatch {
            BATCH
        } else {
            1
        };
        let wanted: Vec<(usize, &Event)> = self
            .events
            .iter()
            .enumerate()
            .filter(|(_, event)| endpoint.wants(event))
            .collect();
        for group in wanted.chunks(size) {
            let events: Vec<&Event> = group.iter().map(|(_, event)| *event).collect();
            let waits = events
                .iter()
                .any(|event| held.contains(&event.repository.as_str()));
            let state = match down {
                Some(pause) => State::Later(pause),
                // An event never overtakes an earlier one of its repository.
                None if waits => State::Later(0),
                None => self.send(endpoint, &events, &mut down),
            };
            if matches!(state, State::Later(_)) {
                held.extend(events.iter().map(|event| event.repository.as_str()));
            }
            let slots = states.iter_mut().enumerate();
            slots
                .filter(|(index, _)| group.iter().any(|(sent, _)| sent == index))
                .for_each(|(_, slot)| *slot = state.clone());
        }
        states
    }

    fn send(&self, endpoint: &Endpoint, events: &[&Event], down: &mut Option<u32>) -> State {
        let remaining = self.world.remaining_ms().saturating_sub(RESERVE_MS);
        if remaining == 0 {
            *down = Some(0);
            return State::Later(0);
        }
        let request = match self.request(endpoint, events, remaining) {
            Ok(request) => request,
            Err(problem) => {
                log::error("cannot sign a delivery", &[("error", &problem)]);
                return State::Later(0);
            }
        };
        let answer = self.world.send(&request);
        let read = reply::read(&answer, self.world.now_ms());
        if read != Reply::Took {
            explain(endpoint, &answer);
        }
        match read {
            Reply::Took => State::Done,
            Reply::Gone(why) => State::Gone(why),
            Reply::Later => State::Later(0),
            Reply::Down(pause) => {
                *down = Some(pause);
                State::Later(pause)
            }
        }
    }

    fn request(
        &self,
        endpoint: &Endpoint,
        events: &[&Event],
        remaining_ms: u32,
    ) -> Result<http::Request, String> {
        let body = format::body(endpoint, events);
        let text = |name: &str, value: String| (name.to_owned(), http::HeaderValue::Text(value));
        let mut headers: Vec<(String, http::HeaderValue)> = vec![
            text("content-type", body.content_type.to_owned()),
            text(
                "user-agent",
                concat!("gantry-webhook/", env!("CARGO_PKG_VERSION")).to_owned(),
            ),
        ];
        if let [event] = events
            && endpoint.format != Format::CloudeventsBatch
        {
            headers.push(text("x-gantry-event", event.kind.clone()));
            headers.push(text("x-gantry-delivery", event.id.clone()));
        }
        if let Some(secret) = &endpoint.sign_with {
            let mac = self.world.sign(secret, &body.bytes)?;
            let hex: String = mac.iter().map(|byte| format!("{byte:02x}")).collect();
            headers.push(text("x-gantry-signature", format!("sha256={hex}")));
        }
        for (name, value) in &endpoint.headers {
            headers.retain(|(ours, _)| !ours.eq_ignore_ascii_case(name));
            let value = match value {
                HeaderValue::Text(text) => http::HeaderValue::Text(text.clone()),
                HeaderValue::Secret { secret } => http::HeaderValue::Secret(secret.clone()),
            };
            headers.push((name.clone(), value));
        }
        Ok(http::Request {
            method: "POST".to_owned(),
            url: endpoint.url.clone(),
            headers,
            body: body.bytes,
            timeout_ms: Some(endpoint.timeout_ms.min(remaining_ms)),
        })
    }
}

/// Says why something did not arrive. The URL stays out: it may hold a token, as Slack's do.
fn explain(endpoint: &Endpoint, answer: &Result<http::Response, http::Error>) {
    let why = match answer {
        Ok(response) => format!("status {}", response.status),
        Err(error) => error.to_string(),
    };
    let mark = endpoint.mark();
    log::warn(
        "an endpoint did not take an event",
        &[("endpoint", &mark), ("why", &why)],
    );
}

fn outcome(states: &[State]) -> Outcome {
    let mut pause: Option<u32> = None;
    let mut gone = None;
    let mut done = states.is_empty();
    for state in states {
        match state {
            State::Done => done = true,
            State::Gone(why) => gone = Some(why.clone()),
            State::Later(wanted) => pause = Some(pause.unwrap_or(0).max(*wanted)),
        }
    }
    match (pause, gone) {
        (Some(pause), _) => Outcome::Retry(pause),
        (None, Some(why)) if !done => Outcome::dropped(why),
        (None, _) => Outcome::Delivered,
    }
}
