//! A mirror under another configuration: what is under way goes on.

use std::fs;

use tests::{
    Gateway, Image, Origin, Wire,
    origin::Fault,
    tools::wait_until,
    wire::{runtime, whole},
};

use crate::reload;

#[test]
fn a_fill_goes_on_over_a_reload_and_a_changed_secret_is_a_new_generation() {
    const LENGTH: usize = 16 << 20;
    let origin = Origin::start();
    let image = Image::random(LENGTH);
    origin.push("a/b", "latest", &image);
    let credentials = ", credentials: { username: puller, password: { file: ./secret } }";
    let mirrors = origin.mirror_entry("up", credentials);
    let config =
        reload::config("").replacen("plugins:", &format!("mirrors:\n{mirrors}plugins:"), 1);
    let gateway = Gateway::start_with(&config, |folder| {
        fs::write(folder.join("secret"), "one").unwrap();
    });
    let wire = Wire::anonymous(gateway.port);
    wire.get("/v2/up/a/b/manifests/latest").expect(200);
    let layer = &image.layers[0];
    let path = format!("/v2/up/a/b/blobs/{}", layer.digest);
    origin.break_paths(&layer.digest, Fault::HoldAt(LENGTH / 2));
    let pull = || runtime().spawn(whole(wire.request("GET", &path, &[])));
    let first = pull();
    let running = || gateway.metric("gantry_fills_running") == 1.0;
    wait_until("the fill", reload::PATIENCE, running);
    fs::write(gateway.folder().join("secret"), "two").unwrap();
    reload::wait_generation(&gateway, 2);
    gateway.write_config(&config.replace("up/**", "up/*/**"));
    reload::wait_generation(&gateway, 3);
    assert!(running());
    let second = pull();
    origin.release();
    for answer in [first, second] {
        let answer = runtime().block_on(answer).unwrap().unwrap();
        assert!(answer.has(200).body == layer.bytes);
    }
    assert_eq!(origin.count("GET", &layer.digest), 1);
    wait_until("old generations to be freed", reload::PATIENCE, || {
        gateway.metric("gantry_generations") == 1.0
    });
}
