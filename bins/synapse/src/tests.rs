//! The operator's page says what the program does: its tables are made from the code.

use std::path::Path;

/// Puts `table` between the markers of `name` in `page`.
fn with(page: &str, name: &str, table: &str) -> String {
    let start = format!("<!-- {name}: generated, see CONTRIBUTING.md -->\n");
    let end = format!("<!-- end of {name} -->");
    let (before, rest) = page.split_once(&start).unwrap();
    let (_, after) = rest.split_once(&end).unwrap();
    format!("{before}{start}\n{}\n\n{end}{after}", table.trim())
}

#[test]
fn the_page_has_the_keys_and_metrics_that_there_are() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let page = std::fs::read_to_string(&file).unwrap();
    let wanted = with(&page, "keys", &crate::config::reference());
    let wanted = with(&wanted, "metrics", &crate::metrics::markdown());
    if std::env::var("HOSTKIT_BLESS").is_ok_and(|value| value == "1") {
        std::fs::write(&file, wanted).unwrap();
    } else {
        assert!(
            page == wanted,
            "the tables of {} differ from the code: HOSTKIT_BLESS=1 writes them",
            file.display()
        );
    }
}
