//! Finds the elements of one array of a JSON document as its bytes arrive: the `tags` of a tag list, the `manifests` of an index.
//!
//! Pure. What the document holds beside the array, such as GCR's map of every manifest, is skipped without being kept or parsed.
//! Invariant: a document counts as read only when it is one whole object.

/// The longest name of a member that can be the wanted one, quotes and escapes included.
const MAX_NAME_BYTES: usize = 128;

/// Why a document is not read.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum NotElements {
    #[error("not a JSON object")]
    NoObject,
    #[error("the document ends in its middle")]
    Cut,
    #[error("the list in it is not an array")]
    NoArray,
    #[error("an element of the list is larger than allowed")]
    TooLarge,
}

/// A reader that is fed a document piece by piece.
#[derive(Debug)]
pub(crate) struct Elements {
    name: &'static str,
    max_element_bytes: usize,
    state: State,
    /// The member's name, or the element, that is being read.
    kept: Vec<u8>,
    found: Members,
}

/// Which members a document has.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Members {
    /// The wanted array; `null` counts as one without elements, as Go writes it.
    pub(crate) list: bool,
    /// `name`, which a list of tags has.
    pub(crate) name: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Start,
    /// Before a member's name or the end.
    Member,
    Name {
        is_escaped: bool,
    },
    Colon {
        is_wanted: bool,
    },
    Value {
        is_wanted: bool,
    },
    Skipped(Value),
    AfterMember,
    /// In the wanted array, before an element or its end.
    Element,
    Kept(Value),
    AfterElement,
    End,
}

/// How far a value is.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Value {
    depth: u32,
    is_text: bool,
    is_escaped: bool,
}

/// What a byte did to a value.
enum Step {
    Inside,
    /// It is the last one.
    Last,
    /// The value ended before it.
    Over,
}

impl Value {
    const BEFORE: Self = Self {
        depth: 0,
        is_text: false,
        is_escaped: false,
    };

    fn step(&mut self, byte: u8) -> Step {
        if self.is_text {
            return self.step_in_text(byte);
        }
        match byte {
            b'"' => self.is_text = true,
            b'[' | b'{' => self.depth = self.depth.saturating_add(1),
            b']' | b'}' | b',' if self.depth == 0 => return Step::Over,
            b']' | b'}' => {
                self.depth -= 1;
                return self.at_end();
            }
            _ => {}
        }
        Step::Inside
    }

    fn step_in_text(&mut self, byte: u8) -> Step {
        match byte {
            _ if self.is_escaped => self.is_escaped = false,
            b'\\' => self.is_escaped = true,
            b'"' => {
                self.is_text = false;
                return self.at_end();
            }
            _ => {}
        }
        Step::Inside
    }

    /// What the end of a text, of an array or of an object is.
    fn at_end(self) -> Step {
        match self.depth {
            0 => Step::Last,
            _ => Step::Inside,
        }
    }
}

impl Elements {
    /// A reader of the array that is the member `name` of an object.
    pub(crate) fn of(name: &'static str, max_element_bytes: usize) -> Self {
        Self {
            name,
            max_element_bytes,
            state: State::Start,
            kept: Vec::new(),
            found: Members::default(),
        }
    }

    /// Takes the next bytes; `each` gets the JSON text of each element that ends in them.
    pub(crate) fn push<E: From<NotElements>>(
        &mut self,
        bytes: &[u8],
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        for &byte in bytes {
            self.state = self.next(byte, &mut each)?;
        }
        Ok(())
    }

    /// The document is over. What was in it.
    pub(crate) fn finish(self) -> Result<Members, NotElements> {
        match self.state {
            State::End => Ok(self.found),
            State::Start => Err(NotElements::NoObject),
            _ => Err(NotElements::Cut),
        }
    }

    fn next<E: From<NotElements>>(
        &mut self,
        byte: u8,
        each: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<State, E> {
        let is_space = matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
        Ok(match (self.state, byte) {
            (State::Name { is_escaped }, _) => self.name_byte(byte, is_escaped),
            (State::Skipped(value), _) => Self::skipped(value, byte)?,
            (State::Kept(value), _) => self.kept_byte(value, byte, each)?,
            (state, _) if is_space => state,
            (State::Start, b'{') | (State::AfterMember, b',') => State::Member,
            (State::Member, b'"') => {
                self.kept.clear();
                self.kept.push(byte);
                State::Name { is_escaped: false }
            }
            (State::Member | State::AfterMember, b'}') => State::End,
            (State::Colon { is_wanted }, b':') => State::Value { is_wanted },
            (State::Value { is_wanted: false }, _) => Self::skipped(Value::BEFORE, byte)?,
            (State::Value { is_wanted: true }, b'[') => {
                self.found.list = true;
                State::Element
            }
            (State::Value { is_wanted: true }, b'n') => {
                self.found.list = true;
                State::Skipped(Value::BEFORE)
            }
            (State::Value { is_wanted: true }, _) => return Err(NotElements::NoArray.into()),
            (State::Element | State::AfterElement, b']') => State::AfterMember,
            (State::AfterElement, b',') => State::Element,
            (State::Element, _) => {
                self.kept.clear();
                self.kept_byte(Value::BEFORE, byte, each)?
            }
            _ => return Err(NotElements::NoObject.into()),
        })
    }

    fn name_byte(&mut self, byte: u8, is_escaped: bool) -> State {
        if self.kept.len() <= MAX_NAME_BYTES {
            self.kept.push(byte);
        }
        match byte {
            _ if is_escaped => State::Name { is_escaped: false },
            b'\\' => State::Name { is_escaped: true },
            b'"' => State::Colon {
                is_wanted: self.is_wanted(),
            },
            _ => State::Name { is_escaped: false },
        }
    }

    fn is_wanted(&mut self) -> bool {
        let name = serde_json::from_slice::<String>(&self.kept);
        let name = name.unwrap_or_default();
        self.found.name |= name == "name";
        name == self.name
    }

    fn skipped(mut value: Value, byte: u8) -> Result<State, NotElements> {
        match value.step(byte) {
            Step::Inside => Ok(State::Skipped(value)),
            Step::Last => Ok(State::AfterMember),
            Step::Over => Self::after_scalar(byte),
        }
    }

    fn after_scalar(byte: u8) -> Result<State, NotElements> {
        match byte {
            b',' => Ok(State::Member),
            b'}' => Ok(State::End),
            _ => Err(NotElements::NoObject),
        }
    }

    fn kept_byte<E: From<NotElements>>(
        &mut self,
        mut value: Value,
        byte: u8,
        each: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<State, E> {
        let step = value.step(byte);
        if !matches!(step, Step::Over) {
            if self.kept.len() >= self.max_element_bytes {
                return Err(NotElements::TooLarge.into());
            }
            self.kept.push(byte);
        }
        match (step, byte) {
            (Step::Inside, _) => Ok(State::Kept(value)),
            (Step::Last, _) => each(&self.kept).map(|()| State::AfterElement),
            (Step::Over, b',') => each(&self.kept).map(|()| State::Element),
            (Step::Over, b']') => each(&self.kept).map(|()| State::AfterMember),
            (Step::Over, _) => Err(NotElements::NoObject.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value as Json, json};

    use super::*;

    fn read(document: &[u8], chunk: usize) -> Result<Option<Vec<Json>>, NotElements> {
        let mut elements = Elements::of("tags", 1 << 10);
        let mut found = Vec::new();
        for piece in document.chunks(chunk.max(1)) {
            elements.push(piece, |element: &[u8]| {
                let element =
                    serde_json::from_slice(element).map_err(|_malformed| NotElements::NoObject);
                found.push(element?);
                Ok::<_, NotElements>(())
            })?;
        }
        Ok(elements.finish()?.list.then_some(found))
    }

    #[expect(
        clippy::needless_pass_by_value,
        reason = "a table is read best without references"
    )]
    fn check(document: &str, expect: Result<Option<Json>, NotElements>) {
        for chunk in [1, 7, document.len()] {
            let found = read(document.as_bytes(), chunk);
            let found = found.map(|found| found.map(Json::Array));
            assert_eq!(found, expect, "{document} in pieces of {chunk}");
        }
    }

    #[test]
    fn the_elements_are_found_wherever_the_array_stands() {
        check(
            r#"{"name":"a","tags":["x","y"]}"#,
            Ok(Some(json!(["x", "y"]))),
        );
        check(
            r#" { "tags" : [ "x" , "]\"," ] , "name" : 7 } "#,
            Ok(Some(json!(["x", "]\","]))),
        );
        check(r#"{"tags":[]}"#, Ok(Some(json!([]))));
        check(r#"{"tags":null,"name":"a"}"#, Ok(Some(json!([]))));
        check(r#"{"name":"a"}"#, Ok(None));
        check("{}", Ok(None));
        check(
            r#"{"\u0074ags":[1,{"a":[{}]},[[]],null]}"#,
            Ok(Some(json!([1, {"a": [{}]}, [[]], null]))),
        );
        let gcr = r#"{"child":[],"manifest":{"sha256:a":{"tag":["no"],"tags":["neither"],"x":"}"}},"tags":["v1"]}"#;
        check(gcr, Ok(Some(json!(["v1"]))));
    }

    #[test]
    fn what_is_no_whole_object_is_not_read() {
        let no_object = Err(NotElements::NoObject);
        for document in [
            "",
            "[]",
            "7",
            "null",
            "<html>",
            r#"{"tags":["a"]}x"#,
            r#"{"tags" ["a"]}"#,
            r#"{"tags":["a"}"#,
            r#"{tags:["a"]}"#,
            r#"{"a":1]"#,
        ] {
            check(document, no_object.clone());
        }
        for cut in ["{", r#"{"tags"#, r#"{"tags":["#, r#"{"tags":["a"]"#] {
            check(cut, Err(NotElements::Cut));
        }
        check(r#"{"tags":{}}"#, Err(NotElements::NoArray));
        check(r#"{"tags":"a"}"#, Err(NotElements::NoArray));
        let large = format!(r#"{{"tags":["{}"]}}"#, "x".repeat(1 << 10));
        check(&large, Err(NotElements::TooLarge));
    }

    fn any_json() -> impl Strategy<Value = Json> {
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::from),
            any::<i32>().prop_map(Json::from),
            "[ -~é]{0,12}".prop_map(Json::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Json::from),
                proptest::collection::btree_map("[a-z\"\\\\]{0,5}", inner, 0..4)
                    .prop_map(|map| Json::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_document_gives_the_elements_that_a_json_parser_gives(
            tags in proptest::collection::vec(any_json(), 0..5),
            others in proptest::collection::btree_map("[a-z]{1,3}", any_json(), 0..4),
            chunk in 1_usize..40,
            pretty in any::<bool>(),
        ) {
            let mut document: serde_json::Map<String, Json> = others.into_iter().collect();
            document.insert("tags".to_owned(), Json::Array(tags.clone()));
            let document = Json::Object(document);
            let text = if pretty { format!("{document:#}") } else { document.to_string() };
            prop_assert_eq!(read(text.as_bytes(), chunk), Ok(Some(tags)));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            read(&bytes, 3).ok();
        }
    }
}
