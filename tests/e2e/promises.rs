//! Promise: a test that a document names exists.

use std::{collections::BTreeSet, fs, path::Path};

use tests::tools::workspace;

/// Names of tests in prose are at least this long; shorter words in backquotes are something else, and so are metrics.
const MIN_NAME: usize = 30;
const METRICS: [&str; 2] = ["gantry_", "process_"];

#[test]
fn every_named_test_exists() {
    let mut defined = BTreeSet::new();
    for folder in ["gateway", "plugins", "tests"] {
        collect(&workspace().join(folder), &mut defined);
    }
    for document in ["SECURITY.md", "ARCHITECTURE.md"] {
        let text = fs::read_to_string(workspace().join(document)).unwrap();
        let named: Vec<&str> = text.split('`').filter(|word| is_test_name(word)).collect();
        let missing: Vec<&&str> = named
            .iter()
            .filter(|name| !defined.contains(name.rsplit("::").next().unwrap_or_default()))
            .collect();
        assert!(missing.is_empty(), "{document} names no test: {missing:?}");
        assert!(document != "SECURITY.md" || named.len() > 10, "{named:?}");
    }
}

fn is_test_name(word: &str) -> bool {
    let name = word.rsplit("::").next().unwrap_or_default();
    let is_metric = METRICS.iter().any(|prefix| name.starts_with(prefix));
    !is_metric
        && name.len() >= MIN_NAME
        && name.matches('_').count() >= 3
        && name
            .chars()
            .all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_')
}

fn collect(folder: &Path, defined: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "target") {
                collect(&path, defined);
            }
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let names = text.split("fn ").skip(1);
            let names = names.filter_map(|rest| rest.split_once('(').map(|(name, _)| name));
            defined.extend(names.map(str::to_owned));
        }
    }
}
