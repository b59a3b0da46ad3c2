//! The answer to a request that is not HTTP enough to be routed: the OCI error form, like every other answer.

use bytes::Bytes;
use serde_json::json;

use crate::server::head::HeadFault;

/// hyper's automatic answer is a head of at most this many bytes, without body.
const MAX_AUTOMATIC_BYTES: usize = 256;

/// Our answer with the status of `written`, when that is one of hyper's automatic ones; `None` otherwise. `why` is what the head guard
/// found, when it refused: hyper then answers 400 whatever it was.
pub(super) fn replace(written: &[u8], why: Option<HeadFault>) -> Option<Bytes> {
    if written.len() > MAX_AUTOMATIC_BYTES || !written.ends_with(b"\r\n\r\n") {
        return None;
    }
    let head = std::str::from_utf8(written).ok()?;
    if head.contains("x-request-id") {
        return None;
    }
    let status = head
        .strip_prefix("HTTP/1.1 ")
        .or_else(|| head.strip_prefix("HTTP/1.0 "))?;
    let too_large = (
        "431 Request Header Fields Too Large",
        "the request's header is too large",
    );
    let (phrase, message) = match (status.split(' ').next()?, why) {
        ("400", Some(HeadFault::TooLarge)) | ("431", _) => too_large,
        ("400", Some(HeadFault::Malformed(why))) => ("400 Bad Request", why),
        ("400", None) => ("400 Bad Request", "the request is not valid HTTP"),
        ("414", _) => ("414 URI Too Long", "the request's target is too long"),
        _ => return None,
    };
    let body = json!({ "errors": [{ "code": "UNSUPPORTED", "message": message }] }).to_string();
    let length = body.len();
    Some(Bytes::from(format!(
        "HTTP/1.1 {phrase}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
         docker-distribution-api-version: registry/2.0\r\nconnection: close\r\n\r\n{body}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_automatic_answer_is_replaced_and_keeps_its_status() {
        let automatic = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\ndate: x\r\n\r\n";
        let ours = replace(automatic, None).unwrap();
        let ours = std::str::from_utf8(&ours).unwrap();
        assert!(ours.starts_with("HTTP/1.1 431 "));
        let (head, body) = ours.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())));
        assert!(body.contains("UNSUPPORTED"));
    }

    #[test]
    fn a_reason_of_the_guard_is_the_message() {
        let automatic = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
        let ours = replace(automatic, Some(HeadFault::Malformed("no \"HTTP\""))).unwrap();
        assert!(ours.ends_with(br#""message":"no \"HTTP\""}]}"#), "{ours:?}");
    }

    #[test]
    fn a_head_that_the_guard_found_too_large_is_431() {
        let automatic = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
        let ours = replace(automatic, Some(HeadFault::TooLarge)).unwrap();
        assert!(ours.starts_with(b"HTTP/1.1 431 "), "{ours:?}");
    }

    #[test]
    fn our_own_answers_are_left_alone() {
        for written in [
            "HTTP/1.1 400 Bad Request\r\nx-request-id: a\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\n\r\nbody",
            "",
        ] {
            assert_eq!(replace(written.as_bytes(), None), None, "{written}");
        }
    }
}
