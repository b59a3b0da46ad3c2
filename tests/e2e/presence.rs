//! Where a policy rejects `serve-list`, a client cannot tell a denied image from a missing one, whatever it asks for.

use std::{collections::BTreeMap, fs};

use tests::{
    Gateway, Image, Origin, Wire,
    gateway::{USER, usual_config},
    guests::component,
    image::Content,
    wire::Answer,
};

const HOSTED: &str = "apps/public/hosted";
const MIRRORED: &str = "up/mirrored";

fn gateway(origin: &Origin, denied: &Image, hide: bool) -> Gateway {
    let gate = format!(
        r#"  - name: gate
    from: ./deny_image.wasm
    repositories: ["up/**", "apps/public/**"]
    changes: [serve-manifest, serve-blob, serve-list]
    grants: {{ registry: ["**"] }}
    config: {{ digests: ["{}"], hide: {hide} }}
"#,
        denied.manifest.digest
    );
    let config = usual_config(&origin.mirror_entry("up", ""), &gate);
    Gateway::start_with(&config, |folder| {
        fs::copy(component("deny-image"), folder.join("deny_image.wasm")).unwrap();
    })
}

/// All of an answer but the request's id and the second it was sent in.
fn shown(answer: &Answer) -> (u16, BTreeMap<String, String>, String) {
    let id = answer.header("x-request-id");
    let headers = answer.headers.iter();
    let headers = headers
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .filter(|(name, _value)| name != "date" && name != "x-request-id");
    let body = String::from_utf8_lossy(&answer.body).replace(&id, "ID");
    (answer.status.as_u16(), headers.collect(), body)
}

/// Every read of a repository: of the image, and of content that is nowhere.
fn reads(repository: &str, image: &Image) -> [Vec<String>; 2] {
    let missing = || Content::random(12).digest;
    let of = |name: &str, tag: &str, manifest: &str, layer: &str| {
        vec![
            format!("/v2/{name}/manifests/{tag}"),
            format!("/v2/{name}/manifests/{manifest}"),
            format!("/v2/{name}/blobs/{layer}"),
            format!("/v2/{name}/referrers/{manifest}"),
            format!("/v2/{name}/tags/list"),
        ]
    };
    let (manifest, layer) = (&image.manifest.digest, &image.layers[0].digest);
    let mut nowhere = of(repository, "missing", &missing(), &missing());
    nowhere.extend(of("up/nowhere", "denied", manifest, layer));
    nowhere.extend(of("apps/public/nowhere", "denied", manifest, layer));
    [of(repository, "denied", manifest, layer), nowhere]
}

fn filled(origin: &Origin, gateway: &Gateway, denied: &Image, allowed: &Image) {
    let alice = Wire::basic(gateway.port, USER);
    for (tag, image) in [("denied", denied), ("allowed", allowed)] {
        origin.push("mirrored", tag, image);
        alice.push_image(HOSTED, tag, image);
    }
}

#[test]
fn answers_for_denied_and_for_missing_content_are_the_same_bytes() {
    let (denied, allowed) = (Image::random(40), Image::random(40));
    let origin = Origin::start();
    let gateway = gateway(&origin, &denied, true);
    filled(&origin, &gateway, &denied, &allowed);
    let reader = Wire::anonymous(gateway.port);
    let range: &[(&str, &str)] = &[("range", "bytes=0-3")];
    // In the second round what the mirror's upstream has is here.
    for _round in 0..2 {
        for repository in [HOSTED, MIRRORED] {
            for (method, headers) in [("GET", &[][..]), ("HEAD", &[]), ("GET", range)] {
                let ask = |path: &String| (path.clone(), reader.send(method, path, headers, ""));
                let [here, nowhere] = reads(repository, &denied);
                let expected = shown(&ask(&here[0]).1);
                assert_eq!(expected.0, 403);
                for (path, answer) in here.iter().chain(&nowhere).map(ask) {
                    assert_eq!(shown(&answer), expected, "{method} {path}");
                }
            }
            reader.pull_image(repository, "allowed", &allowed);
        }
    }
}

#[test]
fn an_upstream_that_is_away_does_not_tell_what_it_had() {
    let (denied, allowed) = (Image::random(40), Image::random(40));
    let mut origin = Origin::start();
    let gateway = gateway(&origin, &denied, true);
    filled(&origin, &gateway, &denied, &allowed);
    let reader = Wire::anonymous(gateway.port);
    let [here, nowhere] = reads(MIRRORED, &denied);
    let expected = shown(&reader.get(&here[0]));
    reader.pull_image(MIRRORED, "allowed", &allowed);
    origin.stop();
    for path in here.iter().chain(&nowhere) {
        assert_eq!(shown(&reader.get(path)), expected, "{path}");
    }
    let digest = &allowed.manifest.digest;
    reader.pull_image(MIRRORED, digest, &allowed);
}

#[test]
fn a_policy_that_does_not_hide_what_it_denies_is_asked_and_changes_nothing() {
    let (denied, allowed) = (Image::random(40), Image::random(40));
    let origin = Origin::start();
    let gateway = gateway(&origin, &denied, false);
    filled(&origin, &gateway, &denied, &allowed);
    let reader = Wire::anonymous(gateway.port);
    for repository in [HOSTED, MIRRORED] {
        let [here, nowhere] = reads(repository, &denied);
        reader.get(&here[0]).expect(403);
        reader.get(&nowhere[0]).expect(404);
        reader.get(&nowhere[1]).expect(404);
        reader.get(&nowhere[2]).expect(404);
        reader.get(&here[4]).expect(200);
    }
}

#[test]
fn deletions_tell_no_more_than_reads() {
    let (denied, allowed) = (Image::random(40), Image::random(40));
    let origin = Origin::start();
    let gateway = gateway(&origin, &denied, true);
    filled(&origin, &gateway, &denied, &allowed);
    let alice = Wire::basic(gateway.port, USER);
    let (missing, layer) = (Content::random(12).digest, &denied.layers[0].digest);
    let expected = shown(&alice.get(&format!("/v2/{HOSTED}/tags/list")));
    assert_eq!(expected.0, 403);
    for path in [
        // A manifest names it, so it would be 405 with the manifest's digest.
        format!("/v2/{HOSTED}/blobs/{layer}"),
        format!("/v2/{HOSTED}/blobs/{missing}"),
        format!("/v2/{HOSTED}/manifests/{missing}"),
        format!("/v2/{HOSTED}/manifests/missing"),
    ] {
        assert_eq!(shown(&alice.delete(&path)), expected, "{path}");
    }
    alice
        .delete(&format!("/v2/{HOSTED}/manifests/denied"))
        .expect(202);
}
