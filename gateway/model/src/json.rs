//! What a document must be so that every reader finds the same in it: I-JSON (RFC 7493), no deeper than a reader of any language goes,
//! and no field beside another whose name differs in case only, which Go's readers take for the same.
//!
//! Owns the rules. Knows of manifests only the names of their fields.

use std::{collections::BTreeSet, fmt};

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

/// How deep a document may nest.
const MAX_DEPTH: usize = 64;

/// Reads a document for its form alone.
///
/// # Errors
/// Where and why the document is read differently by different readers.
pub(crate) fn check(bytes: &[u8]) -> Result<(), String> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    serde_path_to_error::deserialize::<_, Checked>(&mut reader)
        .map_err(|error| sentence(&error))?;
    reader.end().map_err(|error| error.to_string())
}

/// An error with the field that it is about.
pub(crate) fn sentence(error: &serde_path_to_error::Error<serde_json::Error>) -> String {
    let (path, inner) = (error.path().to_string(), error.inner());
    match path.as_str() {
        // Where a text ends too early, the path is that of the last field read, which is not at fault.
        _ if inner.is_eof() => inner.to_string(),
        "." => inner.to_string(),
        path => format!("{path}: {inner}"),
    }
}

/// Which fields an object may have, as far as this registry reads them.
#[derive(Clone, Copy)]
enum Place {
    Document,
    Descriptor,
    Platform,
    /// Names are the author's own here.
    Free,
}

impl Place {
    fn fields(self) -> &'static [&'static str] {
        match self {
            Self::Document => &[
                "schemaVersion",
                "mediaType",
                "artifactType",
                "config",
                "layers",
                "manifests",
                "blobs",
                "subject",
                "annotations",
                "fsLayers",
            ],
            Self::Descriptor => &[
                "mediaType",
                "digest",
                "size",
                "urls",
                "annotations",
                "artifactType",
                "platform",
                "data",
            ],
            Self::Platform => &["os", "architecture", "variant", "os.version", "os.features"],
            Self::Free => &[],
        }
    }

    /// What an object below this field is.
    fn below(self, field: &str) -> Self {
        match (self, field) {
            (Self::Document, "config" | "layers" | "manifests" | "blobs" | "subject") => {
                Self::Descriptor
            }
            (Self::Descriptor, "platform") => Self::Platform,
            _ => Self::Free,
        }
    }

    /// The field of ours that Go's readers take this name for, though it is spelled otherwise.
    fn confused_with(self, name: &str) -> Option<&'static str> {
        let folded = folded(name);
        let mut fields = self.fields().iter().copied();
        fields.find(|field| *field != name && self::folded(field) == folded)
    }
}

/// A name as `encoding/json` of Go compares it: without case, and with the two letters beyond ASCII whose other case is in it.
pub(crate) fn folded(name: &str) -> String {
    let letters = name.chars().map(|letter| match letter {
        '\u{212a}' => 'k',
        '\u{17f}' => 's',
        other => other.to_ascii_lowercase(),
    });
    letters.collect()
}

/// A document that was read to its end.
struct Checked;

impl<'de> de::Deserialize<'de> for Checked {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let walk = Walk {
            place: Place::Document,
            depth: 0,
        };
        walk.deserialize(deserializer)?;
        Ok(Self)
    }
}

#[derive(Clone, Copy)]
struct Walk {
    place: Place,
    depth: usize,
}

impl Walk {
    fn into<E: de::Error>(self, place: Place) -> Result<Self, E> {
        let depth = self.depth + 1;
        if depth > MAX_DEPTH {
            return Err(E::custom(format!("nested deeper than {MAX_DEPTH}")));
        }
        Ok(Self { place, depth })
    }
}

impl<'de> DeserializeSeed<'de> for Walk {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_bool<E: de::Error>(self, _value: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E: de::Error>(self, _value: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: de::Error>(self, _value: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: de::Error>(self, _value: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<(), E> {
        characters(text)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        // An element of `layers` is what `layers` is below the document.
        let inside = self.into(self.place)?;
        while list.next_element_seed(inside)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<(), A::Error> {
        let mut names = BTreeSet::new();
        while let Some(name) = object.next_key::<String>()? {
            characters(&name)?;
            if let Some(field) = self.place.confused_with(&name) {
                let text = format!("`{name}` is read as `{field}` by some clients");
                return Err(de::Error::custom(text));
            }
            let inside = self.into(self.place.below(&name))?;
            if names.contains(&name) {
                return Err(de::Error::custom(format!("`{name}` is there twice")));
            }
            names.insert(name);
            object.next_value_seed(inside)?;
        }
        Ok(())
    }
}

/// RFC 7493 section 2.1 excludes surrogates, which the parser refuses, and noncharacters.
fn characters<E: de::Error>(text: &str) -> Result<(), E> {
    let is_none = |letter: &char| {
        let code = u32::from(*letter);
        (0xfdd0..=0xfdef).contains(&code) || code & 0xfffe == 0xfffe
    };
    match text.chars().find(is_none) {
        None => Ok(()),
        Some(letter) => Err(E::custom(format!(
            "U+{:04X} is no character",
            u32::from(letter)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_refused_when_two_readers_could_find_different_things_in_it() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let refused = [
            (r#"{"a":1,"a":1}"#.to_owned(), "twice"),
            (
                r#"{"x":{"a":1,"\u0061":1}}"#.to_owned(),
                "x: `a` is there twice",
            ),
            (r#"{"x":[1,1e999]}"#.to_owned(), "x[1]: number out of range"),
            (r#"{"x":"\ud800"}"#.to_owned(), "x: "),
            (r#"{"\udc00":1}"#.to_owned(), "surrogate"),
            ("{\"x\":\"\u{ffff}\"}".to_owned(), "U+FFFF"),
            ("{\"x\":\"\u{fdd0}\"}".to_owned(), "U+FDD0"),
            (nested(65), "deeper"),
            (nested(100_000), "deeper"),
            ("\u{feff}{}".to_owned(), "expected value"),
            (
                r#"{"Layers":[]}"#.to_owned(),
                "`Layers` is read as `layers`",
            ),
            (r#"{"manife\u017fts":[]}"#.to_owned(), "read as `manifests`"),
            (r#"{"layers":[{"Digest":"x"}]}"#.to_owned(), "layers[0]"),
            ("{} {}".to_owned(), "trailing"),
            ("{\"a\":NaN}".to_owned(), "a: "),
        ];
        for (document, why) in refused {
            let error = check(document.as_bytes()).unwrap_err();
            assert!(error.contains(why), "{error} does not say {why}");
        }
        assert!(check(b"{\"a\":\"\xff\"}").is_err(), "no UTF-8");
    }

    #[test]
    fn whatever_every_reader_reads_alike_is_read() {
        let read = [
            format!("{}{}", "[".repeat(64), "]".repeat(64)),
            r#"{"annotations":{"A":"x","a":"y"},"x":{"Layers":1,"layers":2}}"#.to_owned(),
            r#"{"x":[1e308,-0,0.1,18446744073709551615,null,true],"y":"\ud83d\ude00"}"#.to_owned(),
            " {\n}\r\n".to_owned(),
        ];
        for document in read {
            assert_eq!(check(document.as_bytes()), Ok(()), "{document}");
        }
    }
}
