//! Every golden file is what is rendered today, and HAProxy takes it without a word of complaint.

use super::*;

fn golden(name: &str) -> PathBuf {
    workspace().join(format!("tests/golden/synapse/{name}.cfg"))
}

#[test]
fn files_are_as_they_were_read_and_accepted() {
    let bless = std::env::var("HOSTKIT_BLESS").is_ok_and(|value| value == "1");
    for (name, case) in cases::all() {
        let path = golden(name);
        let rendered = case.render();
        if bless {
            save(&rendered, &path);
        }
        let expected = fs::read_to_string(&path).unwrap_or_default();
        let text = rendered.text();
        assert_eq!(text, expected, "{name}: HOSTKIT_BLESS=1 accepts it");
    }
}

#[test]
fn no_file_is_left_of_a_case_that_is_gone() {
    let names: Vec<String> = cases::all()
        .iter()
        .map(|(name, _)| format!("{name}.cfg"))
        .collect();
    for entry in fs::read_dir(workspace().join("tests/golden/synapse")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(names.contains(&name), "{name}");
    }
}

#[test]
fn haproxy_takes_every_file() {
    let Some(haproxy) = or_skip("haproxy", find_program("haproxy")) else {
        return;
    };
    for (name, _) in cases::all() {
        let said = check(&haproxy, &golden(name)).unwrap_or_else(|why| panic!("{name}: {why}"));
        let complaints: Vec<&str> = said
            .lines()
            .filter(|line| line.starts_with("[WARNING]") || line.starts_with("[ALERT]"))
            // It is not there yet.
            .filter(|line| !line.contains("global server state file"))
            .collect();
        assert!(complaints.is_empty(), "{name}: {complaints:?}");
    }
}

#[test]
fn hostile_members_and_lines_are_named_and_left_out() {
    let (_, case) = cases::all().pop().unwrap();
    let rendered = case.render();
    let text = rendered.text();
    assert!(!text.contains("6.6.6.6:66\n"), "{text}");
    // Two members and one more of the same, an id, three lines, and a service.
    assert_eq!(rendered.findings.len(), 8, "{:#?}", rendered.findings);
}
