//! A hook's answer as a small JSON value, and how it differs from what a case expects.
//!
//! Owns the short form of answers, its grammar of expectations, and every sentence about a difference.

use std::time::Duration;

use gantry_model::{AttributeValue, Delivery, Denial, DenialCode, Principal, Scope};
use gantry_plugin_host::{
    AdmitAnswer, AuthenticateAnswer, AuthorizeAnswer, CacheHint, CallError, LoadError,
};
use serde_json::{Map, Value, json};

/// The variant of answers to several events.
const BATCH: &str = "outcomes";

/// An answer: the variant's name, and what goes with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// `accept`, `reject`, `allow`, `fails`, …; `outcomes` of a batch.
    pub variant: &'static str,
    /// Its fields.
    pub fields: Map<String, Value>,
    /// Of a batch of events: what became of each, in their order.
    pub each: Vec<Self>,
}

impl Answer {
    /// `{"reject":{"reason":"frozen",…}}`, or only the name when nothing goes with it; a list for a batch.
    #[must_use]
    pub fn to_json(&self) -> Value {
        if self.variant == BATCH {
            return self.each.iter().map(Self::to_json).collect();
        }
        if self.fields.is_empty() {
            return self.variant.into();
        }
        json!({ self.variant: self.fields })
    }

    /// Whether the plugin did not decide.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        self.variant == "fails" || self.is_refused()
    }

    /// Whether the plugin was not even taken.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.variant == "refused"
    }

    fn new(variant: &'static str, fields: Value) -> Self {
        let fields = match fields {
            Value::Object(fields) => fields
                .into_iter()
                .filter(|(_, value)| !value.is_null())
                .collect(),
            _ => Map::new(),
        };
        Self {
            variant,
            fields,
            each: Vec::new(),
        }
    }

    /// The answer to one event, or to a batch.
    #[must_use]
    pub fn of_deliveries(deliveries: Vec<Delivery>, is_batch: bool) -> Self {
        let mut each: Vec<Self> = deliveries.into_iter().map(Self::from).collect();
        match each.pop() {
            Some(only) if !is_batch && each.is_empty() => only,
            last => {
                each.extend(last);
                Self {
                    each,
                    ..Self::new(BATCH, Value::Null)
                }
            }
        }
    }

    /// What became of a principal.
    #[must_use]
    pub fn of_generation(generation: Option<&str>) -> Self {
        match generation {
            Some(generation) => Self::new("current", json!({ "generation": generation })),
            None => Self::new("gone", Value::Null),
        }
    }

    /// The field that an expectation of one text is about.
    fn leading_field(&self) -> &'static str {
        match self.variant {
            "authenticated" => "id",
            "current" => "generation",
            "fails" => "how",
            "refused" => "message",
            "retry" => "after_ms",
            _ => "reason",
        }
    }
}

impl From<AdmitAnswer> for Answer {
    fn from(answer: AdmitAnswer) -> Self {
        match answer {
            AdmitAnswer::Abstain => Self::new("abstain", Value::Null),
            AdmitAnswer::Reject(refusal) => Self::new("reject", denial(&refusal)),
            AdmitAnswer::Hold {
                retry_after,
                reason,
            } => Self::new(
                "hold",
                json!({ "reason": reason, "retry_after_ms": milliseconds(retry_after) }),
            ),
            AdmitAnswer::Accept {
                warnings,
                set_immutable,
                cache,
            } => Self::new(
                "accept",
                json!({
                    "warnings": (!warnings.is_empty()).then_some(warnings),
                    "set_immutable": set_immutable.then_some(true),
                    "cache_ms": cached(&cache),
                }),
            ),
        }
    }
}

impl From<AuthorizeAnswer> for Answer {
    fn from(answer: AuthorizeAnswer) -> Self {
        match answer {
            AuthorizeAnswer::Abstain(reason) => Self::new(
                "abstain",
                json!({
                    "reason": reason.as_ref().map(|reason| &*reason.code),
                    "text": reason.as_ref().map(|reason| &*reason.text),
                }),
            ),
            AuthorizeAnswer::Deny(refusal, cache) => {
                let mut answer = Self::new("deny", denial(&refusal));
                if let Some(cached) = cached(&cache) {
                    answer.fields.insert("cache_ms".to_owned(), cached.into());
                }
                answer
            }
            AuthorizeAnswer::Allow(grant, cache) => Self::new(
                "allow",
                json!({
                    "granted": scopes(&grant.granted),
                    "reason": &*grant.reason.code,
                    "text": &*grant.reason.text,
                    "cache_ms": cached(&cache),
                }),
            ),
        }
    }
}

impl From<AuthenticateAnswer> for Answer {
    fn from(answer: AuthenticateAnswer) -> Self {
        match answer {
            AuthenticateAnswer::NotMine => Self::new("not-mine", Value::Null),
            AuthenticateAnswer::Rejected(refusal) => Self::new("rejected", denial(&refusal)),
            AuthenticateAnswer::Authenticated(identity) => {
                let mut fields = principal(&identity.principal);
                if let Some(fields) = fields.as_object_mut() {
                    let limit = identity.at_most.as_deref().map(scopes);
                    fields.insert("at_most".to_owned(), json!(limit));
                    fields.insert("cache_ms".to_owned(), json!(cached(&identity.cache)));
                }
                Self::new("authenticated", fields)
            }
        }
    }
}

impl From<Delivery> for Answer {
    fn from(delivery: Delivery) -> Self {
        match delivery {
            Delivery::Delivered => Self::new("delivered", Value::Null),
            Delivery::Retry(after) => Self::new(
                "retry",
                json!({ "after_ms": (!after.is_zero()).then(|| milliseconds(after)) }),
            ),
            Delivery::Drop(reason) => Self::new("drop", json!({ "reason": reason })),
        }
    }
}

impl From<CallError> for Answer {
    fn from(error: CallError) -> Self {
        Self::new(
            "fails",
            json!({ "how": error.failure.as_str(), "detail": error.detail }),
        )
    }
}

impl From<LoadError> for Answer {
    fn from(error: LoadError) -> Self {
        Self::new("refused", json!({ "message": error.reason }))
    }
}

fn denial(refusal: &Denial) -> Value {
    let code = match refusal.code {
        DenialCode::Unauthorized => "unauthorized",
        DenialCode::Denied => "denied",
        DenialCode::TooManyRequests => "too-many-requests",
        DenialCode::NameInvalid => "name-invalid",
        DenialCode::ManifestInvalid => "manifest-invalid",
        DenialCode::Unsupported => "unsupported",
        DenialCode::Unavailable => "unavailable",
    };
    let same = *refusal.reason.text == *refusal.message;
    json!({
        "reason": &*refusal.reason.code,
        "message": refusal.message,
        "text": (!same).then_some(&*refusal.reason.text),
        "code": code,
        "detail": refusal.detail.as_deref().and_then(|detail| serde_json::from_str::<Value>(detail).ok()),
        "retry_after_ms": refusal.retry_after.map(milliseconds),
    })
}

fn principal(principal: &Principal) -> Value {
    let attributes: Map<String, Value> = principal
        .attributes
        .iter()
        .map(|(key, value)| (key.clone(), attribute(value)))
        .collect();
    json!({
        "id": principal.id,
        "kind": principal.kind,
        "issuer": principal.issuer,
        "groups": (!principal.groups.is_empty()).then_some(&principal.groups),
        "attributes": (!attributes.is_empty()).then_some(attributes),
        "expires_at_ms": principal.expires_at_ms,
    })
}

fn attribute(value: &AttributeValue) -> Value {
    match value {
        AttributeValue::Text(text) => text.clone().into(),
        AttributeValue::Number(number) => (*number).into(),
        AttributeValue::Flag(flag) => (*flag).into(),
        AttributeValue::Texts(texts) => texts.clone().into(),
    }
}

fn scopes(scopes: &[Scope]) -> Vec<String> {
    scopes.iter().map(ToString::to_string).collect()
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn cached(hint: &CacheHint) -> Option<u64> {
    (!hint.ttl.is_zero()).then(|| milliseconds(hint.ttl))
}

/// How `answer` differs from `expected`, a line for each difference; empty when it does not.
///
/// `expected` is the answer's name, or the name with a text about its leading field (`reject: frozen` is the reason's code), or the name
/// with the fields that matter. A `*` in a text stands for anything. For a batch of events it is a list of those.
#[must_use]
pub fn differences(expected: &Value, answer: &Answer) -> Vec<String> {
    if let (Value::Array(expected), BATCH) = (expected, answer.variant) {
        return batch_differences(expected, &answer.each);
    }
    let (name, fields) = match expected {
        Value::String(name) => (name.as_str(), None),
        Value::Object(map) if map.len() == 1 => match map.iter().next() {
            Some((name, fields)) => (name.as_str(), Some(fields)),
            None => return vec!["nothing is expected".to_owned()],
        },
        _ => {
            return vec!["`expect` is an answer's name, or one name with its fields".to_owned()];
        }
    };
    if name != answer.variant {
        return vec![format!("expected {name}, got {}", answer.variant)];
    }
    let mut lines = Vec::new();
    match fields {
        None | Some(Value::Null) => {}
        Some(Value::Object(fields)) => {
            for (key, wanted) in fields {
                compare(
                    &format!("{name}.{key}"),
                    wanted,
                    answer.fields.get(key),
                    &mut lines,
                );
            }
        }
        Some(wanted @ Value::Array(_)) => {
            compare(
                &format!("{name}.granted"),
                wanted,
                answer.fields.get("granted"),
                &mut lines,
            );
        }
        Some(wanted) => {
            let key = answer.leading_field();
            compare(
                &format!("{name}.{key}"),
                wanted,
                answer.fields.get(key),
                &mut lines,
            );
        }
    }
    lines
}

fn batch_differences(expected: &[Value], answers: &[Answer]) -> Vec<String> {
    if expected.len() != answers.len() {
        let (expected, answers) = (expected.len(), answers.len());
        return vec![format!("expected {expected} outcomes, got {answers}")];
    }
    let pairs = expected.iter().zip(answers).enumerate();
    let lines = pairs.flat_map(|(index, (expected, answer))| {
        let lines = differences(expected, answer);
        lines
            .into_iter()
            .map(move |line| format!("[{index}]: {line}"))
    });
    lines.collect()
}

fn compare(path: &str, wanted: &Value, got: Option<&Value>, lines: &mut Vec<String>) {
    match (wanted, got) {
        (Value::Null, None) => {}
        (Value::String(pattern), Some(Value::String(text))) if matches(pattern, text) => {}
        (Value::Object(wanted), Some(Value::Object(got))) => {
            for (key, wanted) in wanted {
                compare(&format!("{path}.{key}"), wanted, got.get(key), lines);
            }
        }
        (Value::Array(wanted), Some(Value::Array(got))) if wanted.len() == got.len() => {
            for (index, (wanted, got)) in wanted.iter().zip(got).enumerate() {
                compare(&format!("{path}[{index}]"), wanted, Some(got), lines);
            }
        }
        (wanted, Some(got)) if wanted == got => {}
        (wanted, got) => {
            let got = got.map_or_else(|| "nothing".to_owned(), ToString::to_string);
            lines.push(format!("{path}: expected {wanted}, got {got}"));
        }
    }
}

/// Whether `text` is `pattern`, in which `*` stands for anything.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(text) = text.strip_prefix(head) else {
        return false;
    };
    let ends = text.char_indices().map(|(at, _)| at).chain([text.len()]);
    let mut tails = ends.filter_map(|at| text.get(at..));
    tails.any(|tail| matches(rest, tail))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejected() -> Answer {
        Answer::from(AdmitAnswer::Reject(Denial::new(
            DenialCode::Denied,
            "frozen",
            "team/app is frozen",
        )))
    }

    #[test]
    fn an_expectation_says_only_what_matters() {
        for expected in [
            json!("reject"),
            json!({ "reject": null }),
            json!({ "reject": "frozen" }),
            json!({ "reject": { "message": "*is frozen" } }),
            json!({ "reject": { "reason": "fr*n", "code": "denied", "retry_after_ms": null } }),
        ] {
            assert_eq!(differences(&expected, &rejected()), [""; 0], "{expected}");
        }
    }

    #[test]
    fn a_difference_names_the_field_and_both_values() {
        for (expected, line) in [
            (json!("accept"), "expected accept, got reject"),
            (
                json!({ "reject": "thawed" }),
                r#"reject.reason: expected "thawed", got "frozen""#,
            ),
            (
                json!({ "reject": { "detail": {} } }),
                "reject.detail: expected {}, got nothing",
            ),
            (
                json!({ "reject": { "code": 3 } }),
                r#"reject.code: expected 3, got "denied""#,
            ),
            (
                json!(["reject"]),
                "`expect` is an answer's name, or one name with its fields",
            ),
        ] {
            assert_eq!(differences(&expected, &rejected()), [line], "{expected}");
        }
    }

    #[test]
    fn lists_are_compared_whole() {
        let answer = Answer::from(AuthorizeAnswer::Allow(
            gantry_model::Grant {
                granted: vec!["repository:a:pull".parse().unwrap()],
                reason: gantry_model::Reason::new("r", "t"),
                plugin: None,
            },
            CacheHint::default(),
        ));
        assert!(differences(&json!({ "allow": ["repository:a:pull"] }), &answer).is_empty());
        assert_eq!(differences(&json!({ "allow": [] }), &answer).len(), 1);
        let fields = json!({ "allow": { "granted": ["repository:*:pull"], "reason": "r" } });
        assert!(differences(&fields, &answer).is_empty());
    }

    #[test]
    fn a_batch_is_compared_event_by_event() {
        let deliveries = vec![
            Delivery::Delivered,
            Delivery::Retry(Duration::from_secs(2)),
            Delivery::Drop("gone".to_owned()),
        ];
        let answer = Answer::of_deliveries(deliveries, true);
        let said = json!(["delivered", { "retry": { "after_ms": 2000 } }, { "drop": { "reason": "gone" } }]);
        assert_eq!(answer.to_json(), said);
        assert_eq!(
            differences(
                &json!(["delivered", { "retry": 2000 }, { "drop": "g*" }]),
                &answer
            ),
            [""; 0]
        );
        assert_eq!(
            differences(&json!(["delivered", "retry", "delivered"]), &answer),
            ["[2]: expected delivered, got drop"]
        );
        assert_eq!(
            differences(&json!(["delivered"]), &answer),
            ["expected 1 outcomes, got 3"]
        );
        assert_eq!(
            differences(&json!("delivered"), &answer),
            ["expected delivered, got outcomes"]
        );
    }

    #[test]
    fn one_event_is_answered_without_a_list() {
        let one = || vec![Delivery::Retry(Duration::ZERO)];
        assert_eq!(Answer::of_deliveries(one(), false).to_json(), "retry");
        assert_eq!(
            Answer::of_deliveries(one(), true).to_json(),
            json!(["retry"])
        );
        assert_eq!(Answer::of_deliveries(Vec::new(), true).to_json(), json!([]));
    }

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("*", "", true),
            ("a*c", "abc", true),
            ("a*c", "ac", true),
            ("a*c", "abd", false),
            ("*b*", "äbü", true),
            ("a", "ab", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}
