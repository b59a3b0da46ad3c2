//! Promise: the command line says what it did, ends with the documented code, and keeps a password file whole and private.

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output, Stdio},
};

use super::examples;

/// Runs the program in `folder` with `input` on its standard input and nothing of ours in its environment.
fn gantry(folder: &Path, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_gantry"))
        .args(arguments)
        .current_dir(folder)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that does not read its input may be gone already.
    drop(child.stdin.take().unwrap().write_all(input.as_bytes()));
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn check_ends_with_0_when_valid_3_when_not_and_2_when_misused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gantry.yaml");
    fs::write(
        &file,
        "plugins: [{ name: access, from: \"builtin:access\" }]",
    )
    .unwrap();
    let output = gantry(folder.path(), &["check", "gantry.yaml"], "");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("valid"));

    fs::write(&file, "mirors: {}\nadmin: 5").unwrap();
    let output = gantry(folder.path(), &["check", "gantry.yaml"], "");
    assert_eq!(output.status.code(), Some(3));
    let said = text(&output.stderr);
    assert!(
        said.contains("gantry.yaml:1:1  mirors") && said.contains("gantry.yaml: 3 mistakes"),
        "{said}"
    );
    assert!(output.stdout.is_empty() && !said.contains('\u{1b}'));

    assert_eq!(
        gantry(folder.path(), &["check", "gone.yaml"], "")
            .status
            .code(),
        Some(3)
    );
    assert_eq!(
        gantry(folder.path(), &["serve", "gantry.yaml"], "")
            .status
            .code(),
        Some(3)
    );
    assert_eq!(gantry(folder.path(), &["chekc"], "").status.code(), Some(2));
    assert_eq!(gantry(folder.path(), &[], "").status.code(), Some(2));
}

#[test]
fn config_schema_prints_the_checked_in_schema() {
    let output = gantry(Path::new("/"), &["config", "schema"], "");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        text(&output.stdout),
        fs::read_to_string(examples().join("gantry.schema.json")).unwrap()
    );
}

#[test]
fn htpasswd_adds_changes_and_removes_one_user_and_leaves_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("htpasswd");
    fs::write(&file, "# our people\nalice:$2y$05$old\n\nbob:keep:this\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();

    let output = gantry(
        folder.path(),
        &["htpasswd", "htpasswd", "alice"],
        "s3cret pass\r\nrest",
    );
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("changed user alice"));
    let after = fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = after.lines().collect();
    assert_eq!(
        (lines.len(), lines[0], lines[2], lines[3]),
        (4, "# our people", "", "bob:keep:this")
    );
    let hash = lines[1].strip_prefix("alice:").unwrap();
    assert!(hash.starts_with("$2y$10$"), "{hash}");
    assert!(bcrypt::verify("s3cret pass", hash).unwrap());
    assert!(!bcrypt::verify("s3cret pass\r", hash).unwrap());
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );

    let output = gantry(folder.path(), &["htpasswd", "htpasswd", "carol"], "another");
    assert!(text(&output.stdout).contains("added user carol"));
    assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 5);

    let output = gantry(folder.path(), &["htpasswd", "-r", "htpasswd", "alice"], "");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let after = fs::read_to_string(&file).unwrap();
    assert!(
        after.starts_with("# our people\n\nbob:keep:this\ncarol:$2y$10$"),
        "{after}"
    );
    assert_eq!(
        gantry(folder.path(), &["htpasswd", "-r", "htpasswd", "alice"], "")
            .status
            .code(),
        Some(1)
    );
    let names: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["htpasswd"]);
}

#[test]
fn htpasswd_makes_the_file_and_refuses_what_bcrypt_cannot_tell_apart() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("new");
    let run =
        |user: &str, password: &str| gantry(folder.path(), &["htpasswd", "new", user], password);
    for (user, password, message) in [
        ("alice", "a".repeat(73).as_str(), "bcrypt reads 72 at most"),
        ("alice", "", "the password is empty"),
        ("alice", "a\0b", "control characters"),
        ("alice", "a\u{7}b", "control characters"),
        ("a:b", "x", "no colon"),
        ("#a", "x", "#"),
        ("a\nb", "x", "no colon"),
    ] {
        let output = run(user, password);
        assert_eq!(output.status.code(), Some(1));
        assert!(
            text(&output.stderr).contains(message),
            "{}",
            text(&output.stderr)
        );
        assert!(!file.exists());
    }
    let longest = "a".repeat(72);
    assert_eq!(run("alice", &longest).status.code(), Some(0));
    let line = fs::read_to_string(&file).unwrap();
    assert!(bcrypt::verify(&longest, line.trim().strip_prefix("alice:").unwrap()).unwrap());
}

#[test]
fn htpasswd_keeps_a_link_a_link() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("real"), "").unwrap();
    std::os::unix::fs::symlink("real", folder.path().join("link")).unwrap();
    assert_eq!(
        gantry(folder.path(), &["htpasswd", "link", "alice"], "x")
            .status
            .code(),
        Some(0)
    );
    assert!(folder.path().join("link").is_symlink());
    assert!(
        fs::read_to_string(folder.path().join("real"))
            .unwrap()
            .starts_with("alice:")
    );
}

#[test]
fn a_pipe_in_place_of_any_file_is_a_mistake_and_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let made = Command::new("mkfifo")
        .arg(folder.path().join("pipe"))
        .status();
    assert!(made.unwrap().success());
    let config = "listen: { address: 127.0.0.1:5000, tls: { certificate: pipe, key: pipe, client_ca: pipe } }
mirrors:
  hub: { url: https://hub.example.com, credentials: { username: me, password: { file: pipe } }, tls: { ca: pipe, certificate: pipe, key: pipe } }
plugins:
  - { name: people, from: \"builtin:htpasswd\", config: { users: { file: pipe } } }
  - { name: own, from: ./pipe }
";
    fs::write(folder.path().join("gantry.yaml"), config).unwrap();
    let output = gantry(folder.path(), &["check", "gantry.yaml"], "");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    let message = "cannot read the file: it is a pipe, a socket or a device, and no plain file";
    let keys = [
        "listen.tls.certificate",
        "listen.tls.key",
        "listen.tls.client_ca",
        "mirrors.hub.credentials.password.file",
        "mirrors.hub.tls.ca",
        "mirrors.hub.tls.certificate",
        "mirrors.hub.tls.key",
        "plugins[0].config.users.file",
        "plugins[1].from",
    ];
    for key in keys {
        assert!(said.contains(&format!("  {key}\n")), "{key}: {said}");
    }
    assert_eq!(said.matches(message).count(), keys.len(), "{said}");
    let output = gantry(folder.path(), &["check", "pipe"], "");
    assert!(text(&output.stderr).contains("it is a pipe"));
    // What the caller gives the program itself has a writer.
    let input = "plugins: [{ name: access, from: \"builtin:access\" }]";
    let output = gantry(folder.path(), &["check", "/dev/stdin"], input);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}
