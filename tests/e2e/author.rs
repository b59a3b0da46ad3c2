//! A plugin's author: from nothing to a decision in a running gateway, and the same policy in every language passing the same cases.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use tempfile::TempDir;
use tests::{
    Gateway, Wire,
    gateway::{USER, program, usual_config},
    guests::component,
    image::{Image, MANIFEST},
    tools::{run, workspace},
};

fn plugin(arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.arg("plugin").args(arguments);
    command
}

/// Says how long a step took.
#[expect(clippy::print_stdout, reason = "the times are the test's report")]
fn step(began: &mut Instant, what: &str) {
    println!("{:>8.1} s  {what}", began.elapsed().as_secs_f64());
    *began = Instant::now();
}

#[test]
fn a_new_plugin_decides_in_a_gateway() {
    let folder = TempDir::new().unwrap();
    let target = folder.path().join("target");
    let mut began = Instant::now();

    run(plugin(&["new", "freeze"]).current_dir(folder.path())).ok();
    step(&mut began, "gantry plugin new freeze");
    let freeze = folder.path().join("freeze");
    let tested = run(plugin(&["test"])
        .current_dir(&freeze)
        .env("CARGO_TARGET_DIR", &target));
    let tested = tested.ok();
    assert!(tested.contains("4 passed, 0 failed"), "{tested}");
    step(&mut began, "gantry plugin test, dependencies built");

    let source = freeze.join("src/lib.rs");
    let text = fs::read_to_string(&source).unwrap();
    fs::write(&source, text.replace("is frozen", "sleeps")).unwrap();
    let built = run(plugin(&["build"])
        .current_dir(&freeze)
        .env("CARGO_TARGET_DIR", &target))
    .ok();
    step(&mut began, "gantry plugin build, after a change");
    let wasm = PathBuf::from(built.lines().next().unwrap());
    assert!(wasm.starts_with(target.canonicalize().unwrap()), "{built}");

    let asked = run(plugin(&["run"])
        .arg(&wasm)
        .args(["--config", r#"{"frozen":["team/archive/**"]}"#])
        .args(["--request", r#"{"repository":"team/archive/app"}"#]))
    .ok();
    assert!(asked.contains("team/archive/app sleeps"), "{asked}");
    assert!(asked.contains("us p50"), "{asked}");
    step(&mut began, "gantry plugin run");

    let binding = "  - name: freeze\n    from: ./freeze.wasm\n    changes: [create-tag, move-tag]\n    config: { frozen: [\"team/archive/**\"] }\n";
    let gateway = Gateway::start_with(&usual_config("", binding), |folder| {
        fs::copy(&wasm, folder.join("freeze.wasm")).unwrap();
    });
    step(&mut began, "gantry serve, ready");
    let client = Wire::basic(gateway.port, USER);
    let image = Image::random(1_000);
    client.push_image("team/app", "v1", &image);
    image
        .blobs()
        .for_each(|blob| drop(client.push_blob("team/archive/app", blob).expect(201)));
    let refused = client
        .push_manifest(
            "team/archive/app",
            "v1",
            MANIFEST,
            image.manifest.bytes.clone(),
        )
        .expect(403);
    assert_eq!(refused.message(), "team/archive/app sleeps");
    step(&mut began, "it decides");
}

fn example(language: &str) -> PathBuf {
    workspace().join("examples/plugins").join(language)
}

/// Builds an example by its own Makefile, which installs its tools beside it.
fn made(language: &str) -> PathBuf {
    let folder = example(language);
    run(Command::new("make").arg("-C").arg(&folder)).ok();
    folder.join("build/plugin.wasm")
}

#[expect(clippy::print_stdout, reason = "the time is the test's report")]
fn passes_the_shared_cases(wasm: &Path) {
    let began = Instant::now();
    let tested = run(plugin(&["test"])
        .arg(wasm)
        .arg("--cases")
        .arg(example("cases.yaml")))
    .ok();
    assert!(tested.contains("15 passed, 0 failed"), "{tested}");
    println!(
        "{:>8.1} s  {}",
        began.elapsed().as_secs_f64(),
        wasm.display()
    );
}

#[test]
fn the_rust_example_passes_the_shared_cases() {
    passes_the_shared_cases(&component("provenance"));
}

#[test]
fn the_javascript_example_passes_the_shared_cases() {
    passes_the_shared_cases(&made("javascript"));
}

#[test]
fn the_python_example_passes_the_shared_cases() {
    passes_the_shared_cases(&made("python"));
}

#[test]
fn a_case_that_does_not_hold_is_shown_with_its_line_and_the_hosts_calls() {
    let folder = TempDir::new().unwrap();
    let cases = folder.path().join("cases.yaml");
    fs::write(
        &cases,
        "config: { allowed: [team/], annotation: source }\ncases:\n  - name: wrong\n    request: { repository: other/app }\n    expect: { reject: annotation-missing }\n",
    )
    .unwrap();
    let said = run(plugin(&["test"])
        .arg(component("provenance"))
        .arg("--cases")
        .arg(&cases))
    .fails();
    for expected in [
        "FAIL  wrong",
        "cases.yaml:3",
        r#"reject.reason: expected "annotation-missing", got "repository-not-allowed""#,
        "host: logging.log(Level::Info",
        "1 case does not hold",
    ] {
        assert!(said.contains(expected), "no {expected} in:\n{said}");
    }
}

#[test]
fn mistakes_in_a_case_file_come_with_their_lines() {
    let folder = TempDir::new().unwrap();
    let cases = folder.path().join("cases.yaml");
    fs::write(
        &cases,
        "cases:\n  - name: a\n    request: { change: teleport }\n    expect: accept\n  - name: b\n    host:\n      now: yesterday\n    expect: accept\n  - name: c\n    wants: accept\n",
    )
    .unwrap();
    let test = || {
        run(plugin(&["test"])
            .arg(component("provenance"))
            .arg("--cases")
            .arg(&cases))
        .fails()
    };
    let said = test();
    assert!(
        said.contains("cases.yaml:10: cases[2]: unknown key `wants`"),
        "{said}"
    );
    let text = fs::read_to_string(&cases).unwrap();
    fs::write(&cases, text.replace("    wants: accept\n", "")).unwrap();
    let said = test();
    for expected in [
        "cases.yaml:3: cases[0].request.change: no change of that name",
        "cases.yaml:7: cases[1].host.now: not a time",
        "cases.yaml:9: cases[2]: missing key `expect`",
    ] {
        assert!(said.contains(expected), "no {expected} in:\n{said}");
    }
}
