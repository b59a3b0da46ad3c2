//! The request line, judged byte by byte as it arrives: what is no HTTP is refused at once and not when a header's time is over.
//!
//! Clients rely on it: docker, podman, skopeo and buildah try TLS first on every port, and go on with plain HTTP when an HTTP answer comes.

/// How far a request line is known to be one (RFC 9112 section 3).
#[derive(Debug, Default)]
pub(super) struct RequestLine {
    part: Part,
    /// Bytes judged so far.
    judged: usize,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Part {
    #[default]
    Method,
    Target,
    /// Bytes of [`VERSION`] that are here.
    Version(usize),
    Minor,
    Return,
    Feed,
    Whole,
}

/// What the last part of a request line begins with; 0 or 1 follows.
const VERSION: &[u8] = b"HTTP/1.";

/// The type of a TLS record that holds a handshake.
const TLS_HANDSHAKE: u8 = 0x16;

/// What the first version of the PROXY protocol begins with; the second one's signature begins with empty lines and a NUL.
const PROXY: &[u8] = b"PROXY ";

const IS_TLS: &str = "this port speaks plain HTTP and the client began with TLS: use http://, or give the listener a certificate (listen.tls)";
const IS_PROXY: &str = "the client began with the PROXY protocol, which Gantry does not speak: turn it off in the load balancer, and let it send X-Forwarded-For";
const IS_NOTHING: &str = "the first bytes are no HTTP request";
const NO_METHOD: &str = "the request line has no valid method";
const NO_TARGET: &str = "the request line has no valid target";
const NO_VERSION: &str = "the request line does not end in HTTP/1.1 or HTTP/1.0";

impl RequestLine {
    /// Judges what has arrived of a request since the last call. `held` begins with the request's first byte.
    ///
    /// # Errors
    /// Why it cannot be a request, whatever follows.
    pub(super) fn judge(&mut self, held: &[u8]) -> Result<(), &'static str> {
        if self.part == Part::Whole {
            return Ok(());
        }
        for (index, byte) in held.iter().enumerate().skip(self.judged) {
            self.judged = index + 1;
            self.part = match (self.part, *byte) {
                (Part::Method, b' ') if index > 0 && held.starts_with(PROXY) => {
                    return Err(IS_PROXY);
                }
                (Part::Method, b' ') if index > 0 => Part::Target,
                (Part::Method, byte) if super::is_token(byte) => Part::Method,
                // Half of an empty line before the request line.
                (Part::Method, b'\r') if index == 0 && held.len() == 1 => {
                    self.judged = 0;
                    return Ok(());
                }
                (Part::Method, byte) if index == 0 => return Err(foreign(byte)),
                (Part::Method, _) => return Err(NO_METHOD),
                (Part::Target, b' ') if held.get(index - 1) == Some(&b' ') => {
                    return Err(NO_TARGET);
                }
                (Part::Target, b' ') => Part::Version(0),
                (Part::Target, byte) if byte > b' ' && byte != 0x7f => Part::Target,
                (Part::Target, _) => return Err(NO_TARGET),
                (Part::Version(at), byte) if VERSION.get(at) == Some(&byte) => {
                    match at + 1 == VERSION.len() {
                        true => Part::Minor,
                        false => Part::Version(at + 1),
                    }
                }
                (Part::Minor, b'0' | b'1') => Part::Return,
                (Part::Return, b'\r') => Part::Feed,
                (Part::Feed, b'\n') => {
                    self.part = Part::Whole;
                    return Ok(());
                }
                _ => return Err(NO_VERSION),
            };
        }
        Ok(())
    }
}

/// What a first byte that begins no request line means.
fn foreign(first: u8) -> &'static str {
    match first {
        TLS_HANDSHAKE => IS_TLS,
        0 => IS_PROXY,
        _ => IS_NOTHING,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The verdict on a text that arrives at once, after its every byte was judged alone.
    fn judged(text: &[u8]) -> Result<(), &'static str> {
        let mut drip = RequestLine::default();
        let dripped = (1..=text.len())
            .map(|end| drip.judge(&text[..end]))
            .find(Result::is_err)
            .unwrap_or(Ok(()));
        let at_once = RequestLine::default().judge(text);
        assert_eq!(dripped, at_once, "{:?}", String::from_utf8_lossy(text));
        at_once
    }

    #[test]
    fn every_first_byte_but_those_of_a_method_is_refused_alone() {
        for byte in 0..=u8::MAX {
            let verdict = RequestLine::default().judge(&[byte]);
            let may_begin = super::super::is_token(byte) || byte == b'\r';
            assert_eq!(verdict.is_ok(), may_begin, "{byte:#x}");
        }
    }

    #[test]
    fn request_lines_and_their_beginnings_pass() {
        for line in [
            "GET /v2/ HTTP/1.1\r\n",
            "OPTIONS * HTTP/1.0\r\nhost: a\r\n\r\n",
            "M-SEARCH http://a/?b=c HTTP/1.1\r\n\x01",
            "PROX",
        ] {
            assert_eq!(judged(line.as_bytes()), Ok(()), "{line:?}");
        }
    }

    #[test]
    fn what_cannot_become_a_request_line_is_refused_with_its_reason() {
        for (line, why) in [
            ("\x16\x03\x01\x02\0\x01\0", IS_TLS),
            ("\0\r\nQUIT\n", IS_PROXY),
            ("PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", IS_PROXY),
            ("PROXY UNKNOWN\r\n", IS_PROXY),
            ("\n", IS_NOTHING),
            (" GET / HTTP/1.1", IS_NOTHING),
            ("SSH-2.0-OpenSSH_9.9\r\n", NO_METHOD),
            ("GET\t/", NO_METHOD),
            ("GET\r\n", NO_METHOD),
            ("GET /\r\n", NO_TARGET),
            ("GET  / HTTP/1.1\r\n", NO_TARGET),
            ("GET /\x7f", NO_TARGET),
            ("GET / HTTP/1.2", NO_VERSION),
            ("GET / HTTP/2", NO_VERSION),
            ("GET / http", NO_VERSION),
            ("GET / HTTP/1.1\n", NO_VERSION),
            ("GET / HTTP/1.1 \r\n", NO_VERSION),
            ("GET / x HTTP/1.1\r\n", NO_VERSION),
        ] {
            assert_eq!(judged(line.as_bytes()), Err(why), "{line:?}");
        }
    }
}
