//! A strict look at the heads of HTTP/1 requests before hyper sees them, so that nothing is ever read two ways.
//!
//! hyper is lenient where the RFC allows it (a bare line feed, both lengths at once, a length said twice), which is how requests are
//! smuggled past a proxy in front. Owns that refusal and nothing else: hyper still parses. A head is held back until it is whole; a body
//! passes by, and is followed to its end, so that every head of a connection is looked at.

mod chunks;
mod line;

use std::task::Poll;

use bytes::{Buf as _, Bytes, BytesMut};

use self::{
    chunks::{Chunks, Progress},
    line::RequestLine,
};

/// Bytes of a head at most.
pub(super) const MAX_HEAD_BYTES: usize = 64 << 10;

/// What hyper is given in place of a refused head: it answers 400 and closes, in the right order behind earlier answers.
const REFUSED: &[u8] = b"\x01\r\n\r\n";

/// Where in the stream of requests the next byte stands.
#[derive(Debug)]
enum Position {
    Head,
    Body(u64),
    Chunked(Chunks),
    /// HTTP/2: nothing is looked at.
    Aside,
}

/// Why a head is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum HeadFault {
    /// It is no HTTP, or can be read two ways; the sentence is for the client.
    Malformed(&'static str),
    /// It does not end within [`MAX_HEAD_BYTES`].
    TooLarge,
}

/// How the socket's next bytes may be read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Passage {
    /// Into the guard, by [`HeadGuard::hold`].
    Held,
    /// Straight into hyper's buffer, so many at most, and counted by [`HeadGuard::passed`].
    Straight(u64),
    /// Straight into hyper's buffer, which then keeps what [`HeadGuard::follow`] says.
    Followed,
}

/// A chunked body that breaks the rules: the source of the error that hyper's body ends with.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub(super) struct MalformedBody(pub(super) &'static str);

/// Stands between the socket and hyper.
#[derive(Debug)]
pub(super) struct HeadGuard {
    position: Position,
    /// Read from the socket, not yet released.
    held: BytesMut,
    /// Where the search for the head's end goes on.
    searched: usize,
    /// The request line of the head that is awaited.
    line: RequestLine,
    /// Released, not yet taken by hyper.
    ready: Bytes,
    refused: Option<HeadFault>,
    broken: Option<MalformedBody>,
}

impl HeadGuard {
    /// A guard that watches, with what was read while the protocol was found out.
    pub(super) fn new(first: BytesMut) -> Self {
        Self {
            position: Position::Head,
            held: first,
            searched: 0,
            line: RequestLine::default(),
            ready: Bytes::new(),
            refused: None,
            broken: None,
        }
    }

    /// A guard that refuses whatever comes.
    pub(super) fn refusing(why: &'static str) -> Self {
        let mut guard = Self::new(BytesMut::new());
        guard.refuse(HeadFault::Malformed(why));
        guard
    }

    /// A guard that lets everything pass: HTTP/2.
    pub(super) fn aside(first: BytesMut) -> Self {
        Self {
            position: Position::Aside,
            ..Self::new(first)
        }
    }

    /// Why a head was refused.
    pub(super) fn refused(&self) -> Option<HeadFault> {
        self.refused
    }

    /// Why a body cannot be read to its end, once everything before that was released.
    pub(super) fn broken(&self) -> Option<MalformedBody> {
        self.broken.filter(|_| self.ready.is_empty())
    }

    /// Whether what the client still sends will never be read.
    pub(super) fn gave_up(&self) -> bool {
        self.refused.is_some() || self.broken.is_some()
    }

    /// Whether a head's first byte is here and its last is not.
    pub(super) fn in_head(&self) -> bool {
        matches!(self.position, Position::Head) && !self.held.is_empty()
    }

    /// How the socket's next bytes may be read.
    pub(super) fn passage(&self) -> Passage {
        if !self.held.is_empty() || !self.ready.is_empty() || self.gave_up() {
            return Passage::Held;
        }
        match self.position {
            Position::Head => Passage::Held,
            Position::Body(left) => Passage::Straight(left),
            Position::Chunked(_) => Passage::Followed,
            Position::Aside => Passage::Straight(u64::MAX),
        }
    }

    /// Counts bytes that went straight to hyper.
    pub(super) fn passed(&mut self, count: u64) {
        if let Position::Body(left) = &mut self.position {
            *left = left.saturating_sub(count);
            if *left == 0 {
                self.position = Position::Head;
            }
        }
    }

    /// How many of these bytes of a chunked body are hyper's; the guard keeps the others, or drops them when they break the rules.
    pub(super) fn follow(&mut self, bytes: &[u8]) -> usize {
        let Position::Chunked(chunks) = &mut self.position else {
            return bytes.len();
        };
        match chunks.follow(bytes) {
            Progress::All => bytes.len(),
            Progress::Ended(count) => {
                self.position = Position::Head;
                self.held
                    .extend_from_slice(bytes.get(count..).unwrap_or_default());
                count
            }
            Progress::Broken(count, why) => {
                self.broken = Some(MalformedBody(why));
                count
            }
        }
    }

    /// Takes bytes from the socket.
    pub(super) fn hold(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    /// Up to `max` bytes for hyper; pending when more must be read first.
    pub(super) fn release(&mut self, max: usize) -> Poll<Bytes> {
        if self.ready.is_empty() {
            self.advance();
        }
        if self.ready.is_empty() {
            return Poll::Pending;
        }
        Poll::Ready(self.ready.split_to(max.min(self.ready.len())))
    }

    fn advance(&mut self) {
        if self.gave_up() || self.held.is_empty() {
            return;
        }
        match &mut self.position {
            Position::Aside => self.ready = self.held.split().freeze(),
            Position::Body(left) => {
                let count = usize::try_from(*left)
                    .map_or(self.held.len(), |left| left.min(self.held.len()));
                self.ready = self.held.split_to(count).freeze();
                self.passed(count as u64);
            }
            Position::Chunked(_) => {
                let held = self.held.split().freeze();
                let count = self.follow(&held);
                self.ready = held.slice(..count);
            }
            Position::Head => self.advance_head(),
        }
    }

    fn advance_head(&mut self) {
        // Empty lines before a request line are old clients' padding (RFC 9112 section 2.2); hyper skips them too.
        while self.held.starts_with(b"\r\n") {
            self.held.advance(2);
        }
        if let Err(why) = self.line.judge(&self.held) {
            self.refuse(HeadFault::Malformed(why));
            return;
        }
        let from = self.searched.saturating_sub(3);
        let found = self
            .held
            .get(from..)
            .and_then(|rest| rest.windows(4).position(|window| window == b"\r\n\r\n"));
        let Some(end) = found.map(|index| from + index + 4) else {
            if self.held.get(from..).is_some_and(has_bare_end) {
                self.refuse(HeadFault::Malformed("a line ends without carriage return"));
            } else if self.held.len() > MAX_HEAD_BYTES {
                self.refuse(HeadFault::TooLarge);
            }
            self.searched = self.held.len();
            return;
        };
        if end > MAX_HEAD_BYTES {
            self.refuse(HeadFault::TooLarge);
            return;
        }
        self.searched = 0;
        self.line = RequestLine::default();
        let head = self.held.split_to(end).freeze();
        match framing(&head) {
            Ok(Framing::Length(0)) => {}
            Ok(Framing::Length(length)) => self.position = Position::Body(length),
            Ok(Framing::Chunked) => self.position = Position::Chunked(Chunks::new()),
            Err(why) => {
                self.refuse(HeadFault::Malformed(why));
                return;
            }
        }
        self.ready = head;
    }

    fn refuse(&mut self, why: HeadFault) {
        self.refused = Some(why);
        self.held.clear();
        self.ready = Bytes::from_static(REFUSED);
    }
}

/// Whether the text would be a whole head for a reader that takes bare line feeds.
fn has_bare_end(bytes: &[u8]) -> bool {
    bytes.windows(2).any(|window| window == b"\n\n")
        || bytes.windows(3).any(|window| window == b"\n\r\n")
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Framing {
    Length(u64),
    Chunked,
}

/// How long the body is, when there is exactly one way to read the head.
fn framing(head: &[u8]) -> Result<Framing, &'static str> {
    let mut lines = lines(head)?;
    let request = lines.next().unwrap_or_default();
    let is_11 = request.ends_with(b"HTTP/1.1");
    let mut hosts = 0_usize;
    let mut length = None;
    let mut chunked = false;
    for line in lines.filter(|line| !line.is_empty()) {
        let colon = line.iter().position(|byte| *byte == b':');
        let (name, value) = colon
            .and_then(|colon| Some((line.get(..colon)?, line.get(colon + 1..)?)))
            .ok_or("a header line has no colon")?;
        if !name.iter().all(|byte| is_token(*byte)) || name.is_empty() {
            return Err("a header name is malformed");
        }
        let value = value.trim_ascii();
        if name.eq_ignore_ascii_case(b"host") {
            hosts += 1;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            if length.is_some() {
                return Err("the length is said more than once");
            }
            length = Some(number(value).ok_or("the length is not a number")?);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err("the transfer encoding is not chunked");
            }
            chunked = true;
        }
    }
    match (length, chunked) {
        _ if hosts > 1 || (is_11 && hosts == 0) => Err("there must be one Host header"),
        (Some(_), true) => Err("both a length and a transfer encoding"),
        (_, true) if !is_11 => Err("a transfer encoding needs HTTP/1.1"),
        (None, true) => Ok(Framing::Chunked),
        (length, false) => Ok(Framing::Length(length.unwrap_or_default())),
    }
}

/// The lines, when each ends in CRLF and none continues another.
fn lines(head: &[u8]) -> Result<impl Iterator<Item = &[u8]>, &'static str> {
    let mut previous = 0_u8;
    for (index, byte) in head.iter().enumerate() {
        let bare = match (previous, *byte) {
            (b'\r', b'\n') => false,
            (b'\r', _) | (_, b'\n') => true,
            _ => false,
        };
        if bare {
            return Err("a line ends without carriage return or line feed");
        }
        if previous == b'\n' && (*byte == b' ' || *byte == b'\t') {
            return Err("a header line is folded");
        }
        if *byte == 0 && index > 0 {
            return Err("a header holds a NUL");
        }
        previous = *byte;
    }
    Ok(head
        .split(|byte| *byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line)))
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn number(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(guard: &mut HeadGuard, bytes: &[u8]) -> Vec<u8> {
        guard.hold(bytes);
        let mut released = Vec::new();
        while let Poll::Ready(bytes) = guard.release(7) {
            released.extend_from_slice(&bytes);
        }
        released
    }

    const GET: &[u8] = b"GET /v2/ HTTP/1.1\r\nhost: a\r\n\r\n";

    #[test]
    fn a_head_is_released_whole_however_it_arrives() {
        let mut guard = HeadGuard::new(BytesMut::new());
        for byte in &GET[..GET.len() - 1] {
            assert!(feed(&mut guard, &[*byte]).is_empty());
            assert!(guard.in_head());
        }
        assert_eq!(feed(&mut guard, b"\n"), GET);
        assert!(!guard.in_head());
    }

    #[test]
    fn pipelined_requests_with_lengths_are_each_guarded() {
        let put = b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello";
        let bad = b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n";
        let mut guard = HeadGuard::new(BytesMut::new());
        let all = [put.as_slice(), GET, put, bad].concat();
        let released = feed(&mut guard, &all);
        assert_eq!(released, [put.as_slice(), GET, put, REFUSED].concat());
        assert!(guard.gave_up());
        assert!(feed(&mut guard, GET).is_empty());
    }

    #[test]
    fn a_body_may_pass_by_and_the_next_head_is_guarded() {
        let head = b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n";
        let mut guard = HeadGuard::new(BytesMut::from(&head[..]));
        assert_eq!(guard.passage(), Passage::Held);
        assert_eq!(feed(&mut guard, b""), head);
        assert_eq!(guard.passage(), Passage::Straight(1000));
        guard.passed(1000);
        assert_eq!(guard.passage(), Passage::Held);
        assert_eq!(feed(&mut guard, GET), GET);
    }

    const CHUNKED: &[u8] = b"PATCH / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: Chunked\r\n\r\n";
    const BODY: &[u8] = b"5;x=y\r\nhello\r\n3\r\n\r\n0\r\n0\r\nsum: 1\r\n\r\n";
    const TWO_HOSTS: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n";

    #[test]
    fn a_chunked_body_may_pass_by_in_any_pieces_and_the_next_head_is_guarded() {
        let behind = [BODY, TWO_HOSTS].concat();
        for cut in 1..behind.len() {
            let mut guard = HeadGuard::new(BytesMut::from(CHUNKED));
            assert_eq!(feed(&mut guard, b""), CHUNKED);
            assert_eq!(guard.passage(), Passage::Followed);
            let (first, rest) = behind.split_at(cut);
            let mut taken = guard.follow(first);
            if cut < BODY.len() {
                assert_eq!(taken, cut);
                taken += guard.follow(rest);
            } else {
                guard.hold(rest);
            }
            assert_eq!(taken, BODY.len(), "cut at {cut}");
            assert_eq!(guard.passage(), Passage::Held);
            assert_eq!(feed(&mut guard, b""), REFUSED, "cut at {cut}");
        }
    }

    #[test]
    fn pipelined_chunked_requests_are_each_guarded_wherever_the_stream_is_cut() {
        let all = [CHUNKED, BODY, GET, CHUNKED, BODY, TWO_HOSTS, GET].concat();
        let released = [CHUNKED, BODY, GET, CHUNKED, BODY, REFUSED].concat();
        for cut in 0..=all.len() {
            let (first, rest) = all.split_at(cut);
            let mut guard = HeadGuard::new(BytesMut::new());
            let mut seen = feed(&mut guard, first);
            seen.extend(feed(&mut guard, rest));
            assert_eq!(seen, released, "cut at {cut}");
        }
    }

    #[test]
    fn a_chunked_body_that_breaks_the_rules_is_released_up_to_there_and_no_further() {
        for (right, wrong) in [("5\r\nhello", "!\r\n0\r\n\r\n"), ("", "zz\r\n")] {
            let all = [CHUNKED, right.as_bytes(), wrong.as_bytes(), GET].concat();
            for cut in 0..=all.len() {
                let (first, rest) = all.split_at(cut);
                let mut guard = HeadGuard::new(BytesMut::new());
                let mut seen = feed(&mut guard, first);
                seen.extend(feed(&mut guard, rest));
                assert_eq!(seen, [CHUNKED, right.as_bytes()].concat(), "cut at {cut}");
                assert!(guard.broken().is_some(), "cut at {cut}");
                assert_eq!(guard.passage(), Passage::Held);
            }
        }
    }

    #[test]
    fn heads_that_can_be_read_two_ways_are_refused() {
        for headers in [
            "host: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n",
            "host: a\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n",
            "host: a\r\ncontent-length: 5\r\ncontent-length: 5\r\n",
            "host: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n",
            "host: a\r\ncontent-length: 5, 5\r\n",
            "host: a\r\ncontent-length: +5\r\n",
            "host: a\r\ncontent-length: -1\r\n",
            "host: a\r\ncontent-length: 0x5\r\n",
            "host: a\r\ncontent-length:\r\n",
            "host: a\r\ncontent-length: 99999999999999999999\r\n",
            "host: a\r\ntransfer-encoding: xchunked\r\n",
            "host: a\r\ntransfer-encoding: chunked, identity\r\n",
            "host: a\r\ntransfer-encoding: gzip, chunked\r\n",
            "host: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
            "host: a\r\ntransfer-encoding:\x0bchunked\r\n",
            "host: a\r\ntransfer-encoding : chunked\r\n",
            "host: a\r\n transfer-encoding: chunked\r\n",
            "host: a\r\nx: y\r\n\tz\r\n",
            "host: a\r\nx: y\nz: w\r\n",
            "host: a\nx: y\r\n",
            "host: a\r\nx: y\rz\r\n",
            "host: a\r\nx: \0\r\n",
            "host: a\r\nno colon\r\n",
            "host: a\r\n: empty\r\n",
            "host: a\r\nhost: b\r\n",
            "x: y\r\n",
        ] {
            let head = format!("POST / HTTP/1.1\r\n{headers}\r\n");
            let mut guard = HeadGuard::new(BytesMut::new());
            assert_eq!(feed(&mut guard, head.as_bytes()), REFUSED, "{headers:?}");
        }
    }

    #[test]
    fn a_head_that_only_a_lenient_reader_would_call_whole_is_refused_at_once() {
        for head in [
            "GET / HTTP/1.1\nhost: a\n\n",
            "GET / HTTP/1.1\r\nhost: a\n\r\n",
        ] {
            let mut guard = HeadGuard::new(BytesMut::new());
            assert_eq!(feed(&mut guard, head.as_bytes()), REFUSED, "{head:?}");
        }
    }

    #[test]
    fn an_endless_head_is_refused_as_too_large() {
        let mut guard = HeadGuard::new(BytesMut::new());
        let head = vec![b'a'; MAX_HEAD_BYTES + 1];
        assert_eq!(feed(&mut guard, &head), REFUSED);
        assert_eq!(guard.refused(), Some(HeadFault::TooLarge));
    }

    #[test]
    fn a_lenient_end_inside_a_head_that_is_too_large_is_no_end() {
        let mut guard = HeadGuard::new(BytesMut::new());
        let long = "a".repeat(MAX_HEAD_BYTES);
        let head = format!("GET / HTTP/1.1\r\nhost: a\n\r\n{long}");
        assert_eq!(feed(&mut guard, head.as_bytes()), REFUSED);
        assert!(matches!(guard.refused(), Some(HeadFault::Malformed(_))));
    }

    #[test]
    fn http_10_needs_no_host() {
        let head = b"GET / HTTP/1.0\r\n\r\n";
        let mut guard = HeadGuard::new(BytesMut::new());
        assert_eq!(feed(&mut guard, head), head);
    }
}
