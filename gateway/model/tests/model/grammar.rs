//! Digests, tags, media types, ranges, upload ids: what is accepted is exactly the grammar, and survives a round trip.

use std::ops::RangeInclusive;

use gantry_model::{
    Algorithm, ByteRange, ContentRange, Digest, MediaType, Reference, RepositoryName, Tag,
    UploadId, digest::DigestError, glob::Glob, media_type::OCI_MANIFEST,
};
use proptest::prelude::*;

const HEX: &str = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

#[test]
fn a_digest_is_an_algorithm_and_as_many_lower_case_hex_digits_as_it_has() {
    let sha512 = format!("sha512:{}", HEX.repeat(2));
    assert_eq!(
        format!("sha256:{HEX}").parse::<Digest>().unwrap().hex(),
        HEX
    );
    assert_eq!(
        sha512.parse::<Digest>().unwrap().algorithm(),
        Algorithm::Sha512
    );
    let malformed = [
        String::new(),
        "sha256".to_owned(),
        ":".to_owned(),
        "sha256:".to_owned(),
        HEX.to_owned(),
        format!("sha256:{}", &HEX[1..]),
        format!("sha256:{HEX}0"),
        format!("sha256:{}", HEX.to_uppercase()),
        format!("sha256:{}g", &HEX[1..]),
        format!("sha512:{HEX}"),
        format!("SHA256:{HEX}"),
        format!(" sha256:{HEX}"),
        format!("sha256:{HEX}\n"),
        format!("sha256/../:{HEX}"),
        format!("sha256:{}é", &HEX[2..]),
    ];
    for text in malformed {
        assert_eq!(
            text.parse::<Digest>(),
            Err(DigestError::Malformed),
            "{text:?}"
        );
    }
    for text in [
        format!("md5:{}", &HEX[..32]),
        format!("sha384:{HEX}"),
        format!("blake3:{HEX}"),
    ] {
        assert_eq!(
            text.parse::<Digest>(),
            Err(DigestError::UnsupportedAlgorithm),
            "{text:?}"
        );
    }
    assert_eq!(Digest::from_bytes(Algorithm::Sha256, &[0; 31]), None);
}

#[test]
fn a_tag_has_128_bytes_at_most_and_does_not_start_with_a_separator() {
    for good in ["v1", "_", "A.b-c_d", "sha256-abc.sig", &"x".repeat(128)] {
        assert!(good.parse::<Tag>().is_ok(), "{good}");
    }
    for bad in [
        "",
        ".x",
        "-x",
        "a/b",
        "a:b",
        "a b",
        "ä",
        "a\0",
        "a\n",
        &"x".repeat(129),
    ] {
        assert!(bad.parse::<Tag>().is_err(), "{bad:?}");
    }
}

#[test]
fn a_reference_with_a_colon_is_a_digest_or_nothing() {
    assert!(matches!("latest".parse(), Ok(Reference::Tag(_))));
    assert!(matches!(
        format!("sha256:{HEX}").parse(),
        Ok(Reference::Digest(_))
    ));
    assert!("v1:v2".parse::<Reference>().is_err());
}

#[test]
fn a_type_with_a_meaning_is_known_whatever_its_case() {
    let parsed: MediaType = "Application/vnd.OCI.image.Manifest.v1+JSON"
        .parse()
        .unwrap();
    assert_eq!(parsed.as_str(), OCI_MANIFEST);
    let own: MediaType = "application/vnd.Own+json".parse().unwrap();
    assert_eq!(own.as_str(), "application/vnd.Own+json");
}

#[test]
fn a_media_type_has_no_parameters() {
    for good in [
        "application/json",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "x/y",
    ] {
        assert!(good.parse::<MediaType>().is_ok(), "{good}");
    }
    for bad in [
        "",
        "json",
        "application/",
        "/json",
        "application/json; charset=utf-8",
        "a/b/c",
        "a b/c",
        "application/\n",
    ] {
        assert!(bad.parse::<MediaType>().is_err(), "{bad:?}");
    }
}

#[test]
fn a_range_header_is_one_range_or_ignored_or_wrong() {
    assert_eq!(
        ByteRange::parse_header("bytes=0-4"),
        Ok(Some(ByteRange::Between { first: 0, last: 4 }))
    );
    assert_eq!(
        ByteRange::parse_header("bytes=7-"),
        Ok(Some(ByteRange::From(7)))
    );
    assert_eq!(
        ByteRange::parse_header("bytes=-3"),
        Ok(Some(ByteRange::Last(3)))
    );
    assert_eq!(
        ByteRange::parse_header("items=0-4"),
        Ok(None),
        "an unknown unit is ignored"
    );
    assert_eq!(
        ByteRange::parse_header("bytes=0-1,4-5"),
        Ok(None),
        "several ranges are answered whole"
    );
    for bad in [
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=a-b",
        "bytes=5-4",
        "bytes=+1-2",
        "bytes=0-1,x",
        "bytes=99999999999999999999-",
    ] {
        assert!(ByteRange::parse_header(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_content_range_is_two_numbers_in_order() {
    assert_eq!("0-9".parse::<ContentRange>().unwrap().length(), 10);
    assert_eq!("bytes 5-9/*".parse::<ContentRange>().unwrap().first, 5);
    assert_eq!("bytes 5-9/10".parse::<ContentRange>().unwrap().last, 9);
    for bad in [
        "",
        "5",
        "9-5",
        "-5",
        "5-",
        "a-b",
        "0-+9",
        "bytes 0-9",
        "bytes 0-9/x",
        "bytes=0-9",
        "0-9/10",
    ] {
        assert!(bad.parse::<ContentRange>().is_err(), "{bad}");
    }
}

#[test]
fn an_upload_id_is_a_version_4_uuid() {
    let id = UploadId::from_random([0xff; 16]);
    assert_eq!(id.to_string(), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    for bad in [
        "",
        "x",
        "ffffffff-ffff-4fff-bfff-fffffffffff",
        "ffffffff-ffff-4fff-bfff-ffffffffffffff",
        "../../../../../../../../../../etc/pw",
    ] {
        assert!(bad.parse::<UploadId>().is_err(), "{bad}");
    }
    assert!(
        "ffffffffffff4fffbfffffffffffffff----"
            .parse::<UploadId>()
            .is_err(),
        "dashes stand in their places"
    );
}

#[test]
fn a_glob_star_stays_within_a_segment_and_two_cross() {
    let table = [
        ("apps/*", "apps/web", true),
        ("apps/*", "apps/web/api", false),
        ("apps/**", "apps/web/api", true),
        ("apps/**", "appsx/web", false),
        ("**", "a/b/c", true),
        ("**", "a", true),
        ("team-*/**", "team-a/x", true),
        ("team-*/**", "other/x", false),
        ("v*", "v1.2.3", true),
        ("v*", "1v", false),
        ("*-rc*", "v1-rc2", true),
        ("{a,b}/x", "b/x", true),
        ("docker.io/**", "docker.io/library/alpine", true),
        ("docker.io/**", "dockerxio/library/alpine", false),
        ("user:*", "user:alice", true),
    ];
    for (pattern, text, expected) in table {
        assert_eq!(
            Glob::parse(pattern).unwrap().matches(text),
            expected,
            "{pattern} on {text}"
        );
    }
    for bad in ["", "{a", "a}", "[a", &"x".repeat(1025)] {
        assert!(Glob::parse(bad).is_err(), "{bad}");
    }
}

/// The spec's own regular expression for names, as a slow second opinion.
fn slow_name(text: &str) -> bool {
    let component = |component: &str| {
        let bytes = component.as_bytes();
        let edge = |byte: Option<&u8>| {
            byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        };
        let legal = bytes.iter().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(byte)
        });
        let separators = component
            .split(|letter: char| letter.is_ascii_alphanumeric())
            .filter(|separator| !separator.is_empty());
        let good = |separator: &str| {
            matches!(separator, "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-')
        };
        edge(bytes.first()) && edge(bytes.last()) && legal && separators.into_iter().all(good)
    };
    text.len() <= 255 && text.split('/').all(component)
}

proptest! {
    #[test]
    fn names_agree_with_the_slow_parser(text in "[a-c0-1._/-]{0,12}|[a-zA-Z0-9._/ -]{0,20}") {
        prop_assert_eq!(text.parse::<RepositoryName>().is_ok(), slow_name(&text), "{}", text);
    }

    #[test]
    fn no_text_makes_a_parser_panic(text in any::<String>()) {
        let _digest = text.parse::<Digest>();
        let _name = text.parse::<RepositoryName>();
        let _reference = text.parse::<Reference>();
        let _media_type = text.parse::<MediaType>();
        let _range = ByteRange::parse_header(&text);
        let _content_range = text.parse::<ContentRange>();
        let _upload = text.parse::<UploadId>();
        let _scope = text.parse::<gantry_model::Scope>();
        let _glob = Glob::parse(&text).map(|glob| glob.matches(&text));
    }

    #[test]
    fn digests_and_upload_ids_survive_a_round_trip(bytes in any::<[u8; 32]>(), id in any::<[u8; 16]>()) {
        let digest = Digest::from_bytes(Algorithm::Sha256, &bytes).unwrap();
        prop_assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        let id = UploadId::from_random(id);
        prop_assert_eq!(id.to_string().parse::<UploadId>().unwrap(), id);
    }

    #[test]
    fn a_resolved_range_is_what_a_slice_would_be(size in 0_u64..50, first in 0_u64..60, length in 0_u64..60, form in 0..3) {
        let content: Vec<u64> = (0..size).collect();
        let (range, slice): (ByteRange, &[u64]) = match form {
            0 => {
                let last = first + length;
                let end = (last + 1).min(size) as usize;
                (ByteRange::Between { first, last }, content.get(first as usize..end).unwrap_or_default())
            }
            1 => (ByteRange::From(first), content.get(first as usize..).unwrap_or_default()),
            _ => (ByteRange::Last(length), &content[size.saturating_sub(length) as usize..]),
        };
        let resolved = range.resolve(size).map_or_else(Vec::new, RangeInclusive::collect);
        prop_assert_eq!(resolved, slice);
    }
}
