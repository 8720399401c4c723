//! Conventions of the sources that no compiler checks.

use std::path::{Path, PathBuf};

use hostkit_tests::workspace;

/// Every source file below a directory.
fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Whether a line inspects the text of an error.
fn reads_error_text(line: &str) -> bool {
    let texts = [
        "message",
        "chain",
        "error.to_string()",
        "failure.to_string()",
        "other.to_string()",
        "cause.to_string()",
    ];
    let questions = ["starts_with", "ends_with", "contains", "find", "eq"];
    texts.iter().any(|text| {
        questions
            .iter()
            .any(|question| line.contains(&format!("{text}.{question}(")))
    })
}

#[test]
fn no_decision_depends_on_error_text() {
    assert!(reads_error_text(r#"if error.message.ends_with(" 416") {"#));
    // Prints a cause only if the message does not contain it already.
    let printing = workspace().join("lib/src/failure.rs");
    let mut files = Vec::new();
    for folder in ["lib", "bins"] {
        sources(&workspace().join(folder), &mut files);
    }
    assert!(files.len() > 100, "{} files", files.len());
    let is_test = |path: &Path| path.components().any(|part| part.as_os_str() == "tests");
    for path in files {
        if path == printing
            || is_test(path.strip_prefix(workspace()).unwrap())
            || path.ends_with("tests.rs")
        {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
        for (index, line) in code.lines().enumerate() {
            assert!(
                !reads_error_text(line),
                "{}:{}: {line}",
                path.display(),
                index + 1
            );
        }
    }
}
