//! Sees to it that the head of every response ends, and that a connection of HTTP/2 brings something.
//!
//! A server may send interim answers (1xx, RFC 9110 section 15.2) before the response, and nothing bounds how many. hyper reads them in one
//! go for as long as bytes are there, so a server that sends them without end would keep a thread of the process. Bodies are not looked at.

use std::io::IoSlice;

/// Interim answers to one request at most. A server sends one or two.
const MAX_INTERIM: u32 = 32;
/// Bytes of them at most.
const MAX_INTERIM_BYTES: usize = 64 << 10;
/// Heads and trailers of HTTP/2 for each request at most, interim answers among them.
const MAX_HEADS: u64 = 16;
/// Frames of HTTP/2 without a head or data, after the last one with data and the last request: pings, settings, windows, unknown ones.
const MAX_CONTROL: u64 = 8192;
/// The bytes before the first frame that a client sends (RFC 9113 section 3.4).
const PREFACE_BYTES: usize = 24;
const FRAME_HEAD_BYTES: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;

/// A server sends interim answers, or frames that bring nothing, and does not come to an end.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the server sends interim answers (1xx) or empty frames without end, and no response")]
pub struct EndlessHead;

/// What a connection has read and written, as far as heads go.
#[derive(Debug)]
pub(super) enum Watch {
    Http1(Heads),
    Http2 { received: Frames, sent: Frames },
}

impl Watch {
    pub(super) fn over(is_http2: bool) -> Self {
        match is_http2 {
            false => Self::Http1(Heads::default()),
            true => Self::Http2 {
                received: Frames::after(0),
                sent: Frames::after(PREFACE_BYTES),
            },
        }
    }

    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<(), EndlessHead> {
        match self {
            Self::Http1(heads) => heads.read(bytes),
            Self::Http2 { received, sent } => {
                received.pass(bytes);
                let is_endless =
                    received.heads > MAX_HEADS * (sent.heads + 1) || received.control > MAX_CONTROL;
                match is_endless {
                    true => Err(EndlessHead),
                    false => Ok(()),
                }
            }
        }
    }

    /// `count` of `bytes` were written.
    pub(super) fn wrote(&mut self, bytes: &[IoSlice<'_>], mut count: usize) {
        let (received, sent) = match self {
            Self::Http1(heads) => return heads.wrote(),
            Self::Http2 { received, sent } => (received, sent),
        };
        let requests = sent.heads;
        for slice in bytes {
            let written = slice.get(..count.min(slice.len())).unwrap_or_default();
            sent.pass(written);
            count -= written.len();
        }
        if sent.heads > requests {
            received.control = 0;
        }
    }
}

/// Where a connection of HTTP/1 is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Phase {
    /// Before or in `HTTP/1.1 200`.
    #[default]
    Status,
    /// In the rest of a head.
    Fields,
    /// After a response's head: nothing is looked at before the next request.
    Body,
}

/// The heads of the responses to one request after another.
#[derive(Debug, Default)]
pub(super) struct Heads {
    phase: Phase,
    status: [u8; STATUS_BYTES],
    /// Bytes of `status`.
    known: usize,
    /// Nothing but line ends since the last one.
    at_line: bool,
    interim: u32,
    interim_bytes: usize,
}

/// `HTTP/1.1 200`.
const STATUS_BYTES: usize = 12;
const VERSION: &[u8] = b"HTTP/1.";

impl Heads {
    fn wrote(&mut self) {
        if self.phase == Phase::Body {
            *self = Self::default();
        }
    }

    fn read(&mut self, bytes: &[u8]) -> Result<(), EndlessHead> {
        for byte in bytes {
            match self.phase {
                Phase::Body => return Ok(()),
                Phase::Status => self.status(*byte),
                Phase::Fields => self.field(*byte),
            }
            self.interim_bytes += 1;
            let is_long = self.interim_bytes > MAX_INTERIM_BYTES && self.interim > 0;
            if self.interim > MAX_INTERIM || is_long {
                return Err(EndlessHead);
            }
        }
        Ok(())
    }

    fn status(&mut self, byte: u8) {
        // hyper skips empty lines here.
        if self.known == 0 && matches!(byte, b'\r' | b'\n') {
            return;
        }
        let Some(place) = self.status.get_mut(self.known) else {
            return;
        };
        *place = byte;
        self.known += 1;
        // A body that goes on while a request is still written, or what hyper takes for no response.
        if VERSION
            .get(self.known - 1)
            .is_some_and(|expected| *expected != byte)
        {
            self.phase = Phase::Body;
        } else if self.known == STATUS_BYTES {
            self.phase = Phase::Fields;
            self.at_line = false;
        }
    }

    fn field(&mut self, byte: u8) {
        match byte {
            b'\n' if self.at_line => self.end(),
            b'\n' => self.at_line = true,
            b'\r' => {}
            _ => self.at_line = false,
        }
    }

    fn end(&mut self) {
        self.known = 0;
        match &self.status {
            // The connection is another protocol's from here.
            [.., b'1', b'0', b'1'] => self.phase = Phase::Body,
            [.., b'1', _, _] => {
                self.phase = Phase::Status;
                self.interim += 1;
            }
            _ => self.phase = Phase::Body,
        }
    }
}

/// The frames of one direction of a connection of HTTP/2.
#[derive(Debug)]
pub(super) struct Frames {
    /// Bytes until the next frame.
    left: usize,
    head: [u8; FRAME_HEAD_BYTES],
    /// Bytes of `head`.
    known: usize,
    /// Frames that begin a head or trailers.
    heads: u64,
    /// Frames without a head or data, after the last one with data.
    control: u64,
}

impl Frames {
    fn after(left: usize) -> Self {
        Self {
            left,
            head: [0; FRAME_HEAD_BYTES],
            known: 0,
            heads: 0,
            control: 0,
        }
    }

    fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let skipped = self.left.min(bytes.len());
            self.left -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            let Some((first, rest)) = bytes.split_first() else {
                return;
            };
            if let Some(place) = self.head.get_mut(self.known) {
                *place = *first;
            }
            self.known += 1;
            bytes = rest;
            if self.known == FRAME_HEAD_BYTES {
                let [high, middle, low, kind, ..] = self.head;
                let length = u32::from_be_bytes([0, high, middle, low]);
                self.left = usize::try_from(length).unwrap_or(usize::MAX);
                match kind {
                    HEADERS => self.heads += 1,
                    DATA if length > 0 => self.control = 0,
                    _ => self.control += 1,
                }
                self.known = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERIM: &[u8] = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

    /// Whether a connection reads all of it, however it is cut.
    fn takes(bytes: &[u8]) -> bool {
        let takes = |piece: usize| {
            let mut watch = Watch::over(false);
            bytes.chunks(piece).all(|piece| watch.read(piece).is_ok())
        };
        let found = takes(1);
        for piece in [2, 3, 7, 100, usize::MAX] {
            assert_eq!(takes(piece), found, "in pieces of {piece}");
        }
        found
    }

    #[test]
    fn a_few_interim_answers_pass_and_many_do_not() {
        assert!(takes(RESPONSE));
        assert!(takes(&[INTERIM, INTERIM, RESPONSE].concat()));
        assert!(takes(&INTERIM.repeat(32)));
        assert!(!takes(&INTERIM.repeat(33)));
        let bare = b"\r\nHTTP/1.0 100 x\n\n".repeat(33);
        assert!(!takes(&bare));
        let mut long = b"HTTP/1.1 100 x\r\n\r\nHTTP/1.1 100 x\r\nA: ".to_vec();
        long.resize(MAX_INTERIM_BYTES + 10, b'a');
        assert!(!takes(&long));
    }

    #[test]
    fn a_body_may_hold_anything() {
        assert!(takes(&[RESPONSE, &INTERIM.repeat(100)].concat()));
        assert!(takes(&vec![b'\n'; 100_000]));
        assert!(takes(
            &[b"HTTP/1.1 101 x\r\n\r\n", &*INTERIM.repeat(100)].concat()
        ));
    }

    #[test]
    fn each_request_has_interim_answers_of_its_own() {
        let mut watch = Watch::over(false);
        for _request in 0..10 {
            watch.wrote(&[IoSlice::new(b"GET")], 3);
            watch.read(&INTERIM.repeat(20)).unwrap();
            // Its body is still written.
            watch.wrote(&[IoSlice::new(b"more")], 4);
            watch.read(&[INTERIM, RESPONSE].concat()).unwrap();
            watch.wrote(&[IoSlice::new(b"more")], 4);
            watch.read(&[b'x'; 100_000]).unwrap();
        }
        watch.wrote(&[IoSlice::new(b"GET")], 3);
        watch.read(&INTERIM.repeat(33)).unwrap_err();
    }

    #[test]
    fn heads_of_http2_are_bounded_by_those_that_were_sent() {
        let frame = |kind: u8, length: u8| {
            let mut frame = vec![0, 0, length, kind, 4, 0, 0, 0, 1];
            frame.resize(9 + usize::from(length), HEADERS);
            frame
        };
        let mut watch = Watch::over(true);
        let request = [&[b'P'; 24][..], &frame(4, 6), &frame(HEADERS, 30)].concat();
        let (one, other) = request.split_at(40);
        watch.wrote(&[IoSlice::new(one), IoSlice::new(other)], 40 + 10);
        watch.wrote(&[IoSlice::new(&other[10..])], other.len() - 10);
        for piece in frame(0, 255).repeat(1000).chunks(100) {
            watch.read(piece).unwrap();
        }
        watch.read(&frame(HEADERS, 5).repeat(32)).unwrap();
        watch.read(&frame(HEADERS, 5)).unwrap_err();
    }

    #[test]
    fn frames_that_bring_nothing_are_bounded_between_data_and_requests() {
        let frame = |kind: u8, length: u8| {
            let mut frame = vec![0, 0, length, kind, 1, 0, 0, 0, 0];
            frame.resize(9 + usize::from(length), 0);
            frame
        };
        let most = usize::try_from(MAX_CONTROL).unwrap();
        for (kind, length) in [(DATA, 0), (4, 0), (6, 8), (8, 4), (99, 3)] {
            let mut watch = Watch::over(true);
            let request = [&[b'P'; 24][..], &frame(HEADERS, 30)].concat();
            watch.wrote(&[IoSlice::new(&request)], request.len());
            watch.read(&frame(kind, length).repeat(most)).unwrap();
            watch.read(&frame(DATA, 1)).unwrap();
            watch.read(&frame(kind, length).repeat(most)).unwrap();
            let next = frame(HEADERS, 30);
            watch.wrote(&[IoSlice::new(&next)], next.len());
            watch.read(&frame(kind, length).repeat(most)).unwrap();
            watch.read(&frame(kind, length)).unwrap_err();
        }
    }
}
