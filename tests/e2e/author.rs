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
    let built = run(plugin(&["build"]).arg(example(language))).ok();
    PathBuf::from(built.lines().next().unwrap())
}

#[expect(clippy::print_stdout, reason = "the time is the test's report")]
fn passes_the_shared_cases(wasm: &Path) {
    let began = Instant::now();
    let tested = run(plugin(&["test"])
        .arg(wasm)
        .arg("--cases")
        .arg(example("cases.yaml")))
    .ok();
    assert!(tested.contains("17 passed, 0 failed"), "{tested}");
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
fn the_go_example_passes_the_shared_cases() {
    passes_the_shared_cases(&made("go"));
}

#[test]
fn the_c_example_passes_the_shared_cases() {
    passes_the_shared_cases(&made("c"));
}

#[test]
fn a_new_plugin_for_each_other_hook_passes_its_cases_and_is_asked_by_hand() {
    let folder = TempDir::new().unwrap();
    let target = folder.path().join("target");
    let mut began = Instant::now();
    for (hook, count, request, said) in [
        (
            "authorizer",
            3,
            r#"{"repository":"team/app","principal":"user:alice"}"#,
            r#""granted":["repository:team/app:pull"]"#,
        ),
        (
            "authenticator",
            4,
            r#"{"username":"ci","password":"guess"}"#,
            r#"host       crypto.hmac-sha256("robots", 2 bytes) -> 32 bytes"#,
        ),
        (
            "events",
            6,
            r#"{"kind":"tag.moved","tag":"v1","actor":"user:alice"}"#,
            "host       http.send(POST https://chat.example.com/hooks/1, headers [\"authorization\"], 28 bytes) -> 204, 0 bytes",
        ),
    ] {
        let name = format!("my-{hook}");
        run(plugin(&["new", &name, "--hook", hook]).current_dir(folder.path())).ok();
        let new = folder.path().join(&name);
        let tested = run(plugin(&["test"])
            .current_dir(&new)
            .env("CARGO_TARGET_DIR", &target))
        .ok();
        assert!(
            tested.contains(&format!("{count} passed, 0 failed")),
            "{tested}"
        );
        let wasm = format!("wasm32-wasip2/release/my_{hook}.wasm");
        let asked = run(plugin(&["run"])
            .arg(target.join(wasm))
            .arg("--cases")
            .arg(new.join("tests/cases.yaml"))
            .args(["--calls", "3", "--request", request]))
        .ok();
        assert!(asked.contains(said), "no {said} in:\n{asked}");
        step(&mut began, hook);
    }
}

#[test]
fn a_folder_with_a_makefile_is_built_by_it() {
    let folder = TempDir::new().unwrap();
    let build = || {
        plugin(&["build", "."])
            .current_dir(folder.path())
            .output()
            .unwrap()
    };
    let said = |output: &std::process::Output| String::from_utf8_lossy(&output.stderr).into_owned();

    let nothing = build();
    assert!(said(&nothing).contains("is no plugin: cargo builds a folder with a Cargo.toml"));

    let makefile = folder.path().join("Makefile");
    fs::write(
        &makefile,
        "build/plugin.wasm:\n\t@echo no compiler here >&2; exit 1\n",
    )
    .unwrap();
    let failed = build();
    assert!(!failed.status.success());
    for expected in [
        "no compiler here",
        ". does not build: see what its Makefile said",
    ] {
        assert!(said(&failed).contains(expected), "{}", said(&failed));
    }

    let wasm = component("provenance");
    let rule = format!(
        "build/plugin.wasm:\n\t@echo chatter; $(GANTRY) --version; mkdir -p build; cp {} $@\n",
        wasm.display()
    );
    fs::write(&makefile, rule).unwrap();
    let built = build();
    assert!(built.status.success(), "{}", said(&built));
    let printed = String::from_utf8_lossy(&built.stdout);
    assert_eq!(printed.lines().next(), Some("./build/plugin.wasm"));
    assert!(
        said(&built).contains("chatter\ngantry "),
        "{}",
        said(&built)
    );
}

#[test]
fn only_a_core_module_is_made_a_component_and_only_one_that_fits() {
    let folder = TempDir::new().unwrap();
    let empty = folder.path().join("empty.wasm");
    fs::write(&empty, b"\0asm\x01\0\0\0").unwrap();
    let output = folder.path().join("plugin.wasm");
    let build = |module: &Path, hook: &str| {
        run(plugin(&["build"])
            .arg(module)
            .args(["--hook", hook, "--output"])
            .arg(&output))
        .fails()
    };
    let said = run(plugin(&["build"]).arg(&empty)).fails();
    assert!(
        said.contains("say where its component goes by --output FILE"),
        "{said}"
    );
    let said = build(&empty, "admission");
    assert!(said.contains("cannot make a component of"), "{said}");
    assert!(said.contains("gantry:plugin/admission@0.1.0"), "{said}");
    let said = build(&empty, "admit");
    assert!(
        said.contains(
            "no such hook: admit; there are: admission, authenticator, authorizer, events"
        ),
        "{said}"
    );
    let said = build(&component("provenance"), "admission");
    assert!(said.contains("is no core module"), "{said}");
    assert!(!output.exists());
    let said = run(plugin(&["build"]).arg(&empty).arg("--output").arg(&output)).fails();
    assert!(
        said.contains("takes part in no hook; for a core module"),
        "{said}"
    );
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
