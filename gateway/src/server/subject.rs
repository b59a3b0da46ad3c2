//! The subject and the end of a verified client certificate.
//!
//! Reads just enough DER (X.690) to reach them in an X.509 certificate that rustls already verified. Anything unexpected gives no
//! subject rather than half of one.

/// `CN=alice,O=team` in the certificate's own order; `None` when the name is empty or in a form this does not read.
pub(super) fn read(certificate: &[u8]) -> Option<String> {
    let (_, rest) = element(validity(certificate)?, SEQUENCE)?;
    let (mut name, _) = element(rest, SEQUENCE)?;
    let mut parts = Vec::new();
    while !name.is_empty() {
        let (mut set, rest) = element(name, SET)?;
        name = rest;
        while !set.is_empty() {
            let (attribute, rest) = element(set, SEQUENCE)?;
            set = rest;
            let (kind, value) = element(attribute, OBJECT_IDENTIFIER)?;
            parts.push(format!("{}={}", label(kind)?, text(value)?));
        }
    }
    (!parts.is_empty()).then(|| parts.join(","))
}

/// The certificate's last second, in milliseconds since 1970.
pub(super) fn end_ms(certificate: &[u8]) -> Option<u64> {
    let (validity, _) = element(validity(certificate)?, SEQUENCE)?;
    let after_begin = element(validity, UTC_TIME).or_else(|| element(validity, GENERALIZED_TIME));
    let (_, end) = after_begin?;
    // RFC 5280 section 4.1.2.5: a year of two digits is one from 1950 to 2049.
    let text = match (element(end, UTC_TIME), element(end, GENERALIZED_TIME)) {
        (Some((time, _)), _) => {
            let time = std::str::from_utf8(time).ok()?;
            let century = if time < "50" { "20" } else { "19" };
            format!("{century}{time}")
        }
        (None, Some((time, _))) => std::str::from_utf8(time).ok()?.to_owned(),
        (None, None) => return None,
    };
    let end = jiff::civil::DateTime::strptime("%Y%m%d%H%M%SZ", text).ok()?;
    let end = end.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
    u64::try_from(end.timestamp().as_millisecond()).ok()
}

/// What is left of a certificate from its validity on.
fn validity(certificate: &[u8]) -> Option<&[u8]> {
    let (certificate, _) = element(certificate, SEQUENCE)?;
    let (signed, _) = element(certificate, SEQUENCE)?;
    // version (optional), serial number, signature algorithm, issuer, validity, subject
    let rest = element(signed, VERSION).map_or(signed, |(_, rest)| rest);
    let (_, rest) = element(rest, INTEGER)?;
    let (_, rest) = element(rest, SEQUENCE)?;
    let (_, rest) = element(rest, SEQUENCE)?;
    Some(rest)
}

const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const INTEGER: u8 = 0x02;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
const IA5_STRING: u8 = 0x16;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const VERSION: u8 = 0xa0;

/// The content of the element at the front, when it has this tag, and what follows it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = der.split_first()?;
    let (&first, mut rest) = rest.split_first()?;
    let mut length = usize::from(first);
    if first >= 0x80 {
        let count = usize::from(first & 0x7f);
        if !(1..=3).contains(&count) {
            return None;
        }
        let (bytes, after) = rest.split_at_checked(count)?;
        length = bytes
            .iter()
            .fold(0, |sum, byte| (sum << 8) | usize::from(*byte));
        rest = after;
    }
    let (content, rest) = rest.split_at_checked(length)?;
    (found == tag).then_some((content, rest))
}

/// RFC 4519's short names.
fn label(kind: &[u8]) -> Option<&'static str> {
    match kind {
        [0x55, 0x04, 0x03] => Some("CN"),
        [0x55, 0x04, 0x05] => Some("SERIALNUMBER"),
        [0x55, 0x04, 0x06] => Some("C"),
        [0x55, 0x04, 0x07] => Some("L"),
        [0x55, 0x04, 0x08] => Some("ST"),
        [0x55, 0x04, 0x0a] => Some("O"),
        [0x55, 0x04, 0x0b] => Some("OU"),
        _ => None,
    }
}

/// A string, with RFC 4514's specials escaped so that one value cannot look like two.
fn text(value: &[u8]) -> Option<String> {
    let (content, _) = [UTF8_STRING, PRINTABLE_STRING, IA5_STRING]
        .into_iter()
        .find_map(|tag| element(value, tag))?;
    let text = std::str::from_utf8(content).ok()?;
    if text.chars().any(char::is_control) {
        return None;
    }
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if matches!(character, ',' | '=' | '+' | '"' | '\\' | '<' | '>' | ';') {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    Some(escaped)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    fn subject(parts: &[(DnType, &str)]) -> Option<String> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in parts {
            params.distinguished_name.push(kind.clone(), *value);
        }
        let key = KeyPair::generate().unwrap();
        read(params.self_signed(&key).unwrap().der())
    }

    #[test]
    fn a_subject_is_read() {
        let parts = [
            (DnType::CommonName, "alice"),
            (DnType::OrganizationName, "team"),
        ];
        assert_eq!(subject(&parts).as_deref(), Some("CN=alice,O=team"));
    }

    #[test]
    fn a_value_cannot_look_like_two() {
        let parts = [(DnType::CommonName, "alice,O=admins")];
        assert_eq!(subject(&parts).as_deref(), Some("CN=alice\\,O\\=admins"));
    }

    #[test]
    fn the_end_is_read_in_both_forms() {
        for (year, expected) in [
            (2031, 1_925_003_106_000),
            (2049, 2_493_083_106_000),
            (2050, 2_524_619_106_000),
        ] {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.not_after =
                rcgen::date_time_ymd(year, 1, 1) + std::time::Duration::from_secs(11_106);
            let key = KeyPair::generate().unwrap();
            let certificate = params.self_signed(&key).unwrap();
            assert_eq!(end_ms(certificate.der()), Some(expected), "{year}");
        }
        assert_eq!(end_ms(&[]), None);
    }

    #[test]
    fn what_is_not_understood_gives_no_subject() {
        assert_eq!(subject(&[]), None);
        let custom = [(DnType::CustomDnType(vec![1, 2, 3]), "x")];
        assert_eq!(subject(&custom), None);
        for der in [&[][..], &[0x30], &[0x30, 0x84, 0, 0, 0, 1], &[0x30, 5, 0]] {
            assert_eq!(read(der), None);
        }
    }
}
