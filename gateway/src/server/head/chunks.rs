//! Follows a chunked body (RFC 9112 section 7.1) to its end, so that the next head is looked at like the first.
//!
//! Reads what hyper reads, in place, and takes less: what passes here means the same to both. Invariant: sizes, extensions and trailers
//! are bounded; a byte that may not stand where it stands ends the body as broken.

/// Bytes of all extensions of a body at most: they mean nothing to a registry, and one to each byte of data would multiply it.
pub(super) const MAX_EXTENSION_BYTES: usize = 8 << 10;

/// Bytes of all trailer fields at most.
pub(super) const MAX_TRAILER_BYTES: usize = 8 << 10;

/// A size has at most as many digits as a `u64`.
const MAX_SIZE_DIGITS: usize = 16;

/// Where in a chunked body the next byte stands.
#[derive(Debug)]
pub(super) struct Chunks {
    at: At,
    size: u64,
    digits: usize,
    extensions: usize,
    trailers: usize,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum At {
    Size,
    /// Blanks between a size and its extension.
    Blank,
    Extension,
    SizeFeed,
    Data(u64),
    DataReturn,
    DataFeed,
    /// The first byte of a trailer field, or the return of the last, empty line.
    Line,
    Name,
    Value,
    ValueFeed,
    LastFeed,
    End,
}

/// What became of some bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Progress {
    /// All belong to the body, which goes on.
    All,
    /// The body ended after so many.
    Ended(usize),
    /// The body is broken behind so many, and why.
    Broken(usize, &'static str),
}

impl Chunks {
    /// At a body's first byte.
    pub(super) fn new() -> Self {
        Self {
            at: At::Size,
            size: 0,
            digits: 0,
            extensions: 0,
            trailers: 0,
        }
    }

    /// Follows `bytes`, which come behind those of the last call.
    pub(super) fn follow(&mut self, bytes: &[u8]) -> Progress {
        let mut index = 0;
        while let Some(byte) = bytes.get(index) {
            if let At::Data(left) = self.at {
                let here = bytes.len() - index;
                let count = usize::try_from(left).map_or(here, |left| left.min(here));
                index += count;
                self.at = match left - count as u64 {
                    0 => At::DataReturn,
                    left => At::Data(left),
                };
                continue;
            }
            match self.step(*byte) {
                Ok(At::End) => return Progress::Ended(index + 1),
                Ok(at) => self.at = at,
                Err(why) => return Progress::Broken(index, why),
            }
            index += 1;
        }
        Progress::All
    }

    fn step(&mut self, byte: u8) -> Result<At, &'static str> {
        match (self.at, byte) {
            (At::Size, _) if byte.is_ascii_hexdigit() => self.digit(byte),
            (At::Size | At::Extension, b'\r') => self.sized(),
            (At::Size | At::Blank, b' ' | b'\t') if self.digits > 0 => self.extended(At::Blank),
            (At::Size | At::Blank, b';') if self.digits > 0 => self.extended(At::Extension),
            (At::Size | At::Blank, _) => Err("the size of a chunk is malformed"),
            (At::Extension, _) if is_text(byte) => self.extended(At::Extension),
            (At::Extension, _) => Err("the extension of a chunk is malformed"),
            (At::SizeFeed, b'\n') => Ok(self.begun()),
            (At::SizeFeed, _) => Err("the size of a chunk ends in no line feed"),
            (At::DataReturn, b'\r') => Ok(At::DataFeed),
            (At::DataFeed, b'\n') => Ok(At::Size),
            (At::DataReturn | At::DataFeed, _) => Err("a chunk is longer than its size"),
            (At::Line, b'\r') => Ok(At::LastFeed),
            (At::Line | At::Name, _) if super::is_token(byte) => self.trailed(At::Name),
            (At::Name, b':') => self.trailed(At::Value),
            (At::Value, b'\r') => Ok(At::ValueFeed),
            (At::Value, _) if is_text(byte) => self.trailed(At::Value),
            (At::ValueFeed, b'\n') => Ok(At::Line),
            (At::LastFeed, b'\n') => Ok(At::End),
            (At::Line | At::Name | At::Value | At::ValueFeed | At::LastFeed, _) => {
                Err("a trailer is malformed")
            }
            // Data is skipped by its length, and nothing follows the end.
            (At::Data(_) | At::End, _) => Ok(self.at),
        }
    }

    fn digit(&mut self, byte: u8) -> Result<At, &'static str> {
        self.digits += 1;
        let digit = char::from(byte).to_digit(16).map(u64::from);
        match digit {
            Some(digit) if self.digits <= MAX_SIZE_DIGITS => {
                self.size = (self.size << 4) | digit;
                Ok(At::Size)
            }
            _ => Err("the size of a chunk has too many digits"),
        }
    }

    /// The size's line is at its end.
    fn sized(&self) -> Result<At, &'static str> {
        match self.digits {
            0 => Err("a chunk has no size"),
            _ => Ok(At::SizeFeed),
        }
    }

    fn begun(&mut self) -> At {
        self.digits = 0;
        match std::mem::take(&mut self.size) {
            0 => At::Line,
            size => At::Data(size),
        }
    }

    fn extended(&mut self, at: At) -> Result<At, &'static str> {
        self.extensions += 1;
        match self.extensions > MAX_EXTENSION_BYTES {
            true => Err("the extensions of the chunks are too long"),
            false => Ok(at),
        }
    }

    fn trailed(&mut self, at: At) -> Result<At, &'static str> {
        self.trailers += 1;
        match self.trailers > MAX_TRAILER_BYTES {
            true => Err("the trailers are too long"),
            false => Ok(at),
        }
    }
}

/// Whether the byte may stand in an extension, or in a field's value.
fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of a body in one piece; cut in two at every byte it is the same.
    fn followed(body: &[u8]) -> Progress {
        let whole = Chunks::new().follow(body);
        for cut in 0..=body.len() {
            let (first, rest) = body.split_at(cut);
            let mut chunks = Chunks::new();
            let parts = match chunks.follow(first) {
                Progress::All => match chunks.follow(rest) {
                    Progress::All => Progress::All,
                    Progress::Ended(count) => Progress::Ended(cut + count),
                    Progress::Broken(count, why) => Progress::Broken(cut + count, why),
                },
                early => early,
            };
            assert_eq!(
                parts,
                whole,
                "{:?} cut at {cut}",
                String::from_utf8_lossy(body)
            );
        }
        whole
    }

    #[test]
    fn whole_bodies_end_where_they_end() {
        for body in [
            "0\r\n\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "05\r\nhello\r\n00000\r\n\r\n",
            "A\r\n0123456789\r\na\r\n0\r\n\r\n56789\r\n0\r\n\r\n",
            "5;name=value;other=\"a; b\"\r\nhello\r\n0;last\r\n\r\n",
            "5 \t ; name\r\nhello\r\n0\r\n\r\n",
            "5\r\nhello\r\n0\r\nx-checksum: abc\r\nempty:\r\n\r\n",
        ] {
            assert_eq!(
                followed(body.as_bytes()),
                Progress::Ended(body.len()),
                "{body:?}"
            );
            let more = format!("{body}GET / HTTP/1.1\r\n");
            assert_eq!(
                followed(more.as_bytes()),
                Progress::Ended(body.len()),
                "{more:?}"
            );
            for end in 0..body.len() {
                assert_eq!(Chunks::new().follow(&body.as_bytes()[..end]), Progress::All);
            }
        }
    }

    #[test]
    fn broken_bodies_are_broken_at_their_first_wrong_byte() {
        for (right, wrong) in [
            ("", "zz\r\n"),
            ("", "\r\n"),
            ("", " 5\r\n"),
            ("", "-5\r\n"),
            ("", "+5\r\n"),
            ("", ";ext\r\n"),
            ("", "\n"),
            ("0", "x5\r\n"),
            ("5", "_0\r\n"),
            ("5", "\nhello\r\n"),
            ("5 ", "5\r\n"),
            ("5 ", "\r\nhello\r\n"),
            ("5\r", "\rhello\r\n"),
            ("5\r", "hello"),
            ("5;a", "\nhello"),
            ("5;a", "\0\r\n"),
            ("5;a\r", "b\r\n"),
            ("0000000000000001", "0\r\n"),
            ("ffffffffffffffff", "f\r\n"),
            ("5\r\nhello", "!\r\n"),
            ("5\r\nhello", "\n0\r\n\r\n"),
            ("5\r\nhello\r", "0\r\n\r\n"),
            ("5\r\nhello\r\n", "\r\n"),
            ("0\r\n", "\n"),
            ("0\r\n", " folded\r\n"),
            ("0\r\n", ": nameless\r\n"),
            ("0\r\nname", " : value\r\n"),
            ("0\r\nname", "\r\n"),
            ("0\r\nname: val", "\nother: x\r\n"),
            ("0\r\nname: val\r", "x"),
            ("0\r\nname: val\r\n", "\tfolded\r\n"),
            ("0\r\nGET", " / HTTP/1.1\r\n"),
            ("0\r\n\r", "x"),
        ] {
            let body = format!("{right}{wrong}");
            let Progress::Broken(at, _why) = followed(body.as_bytes()) else {
                panic!("{body:?} is not broken");
            };
            assert_eq!(at, right.len(), "{body:?}");
        }
    }

    #[test]
    fn extensions_and_trailers_are_bounded_over_the_whole_body() {
        let one = format!("1;{}\r\nx\r\n", "e".repeat(99));
        let enough = one.repeat(MAX_EXTENSION_BYTES / 100);
        let mut chunks = Chunks::new();
        assert_eq!(chunks.follow(enough.as_bytes()), Progress::All);
        assert!(matches!(
            chunks.follow(one.as_bytes()),
            Progress::Broken(..)
        ));
        let trailers = format!("0\r\n{}", "a: b\r\n".repeat(MAX_TRAILER_BYTES));
        assert!(matches!(
            Chunks::new().follow(trailers.as_bytes()),
            Progress::Broken(..)
        ));
        let blanks = format!("1{}", " ".repeat(MAX_EXTENSION_BYTES + 1));
        assert!(matches!(
            Chunks::new().follow(blanks.as_bytes()),
            Progress::Broken(..)
        ));
    }
}
