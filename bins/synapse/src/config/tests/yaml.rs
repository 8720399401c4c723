//! What YAML may look like, and what is wrong with it.

use proptest::prelude::*;

use super::*;

fn base(options: &str) -> String {
    format!("  a:\n    discovery: {{method: base}}\n    {options}\n    haproxy: {{}}")
}

#[test]
fn ruby_booleans_and_symbols() {
    for (text, expected) in [
        ("yes", true),
        ("On", true),
        ("TRUE", true),
        ("'yes'", true),
        ("no", false),
        ("off", false),
        ("False", false),
        ("~", false),
        ("", false),
    ] {
        let services = services(&base(&format!("keep_default_servers: {text}")));
        assert_eq!(services[0].keep_default_servers, expected, "{text}");
    }
    let services = services("  :a:\n    :discovery: {:method: :base}");
    assert_eq!(services[0].name, "a");
}

#[test]
fn quoted_false_is_true_in_ruby() {
    let text = base("keep_default_servers: 'false'");
    assert_eq!(
        error(&text),
        "synapse.yaml:4:27: `services.a.keep_default_servers` is the text \"false\", which Synapse takes as true: leave the quotes out"
    );
    let (services, kinds) = lenient(&text);
    assert!(services[0].keep_default_servers);
    assert_eq!(kinds, [Kind::Ignored]);
}

#[test]
fn a_key_twice_is_an_error_and_leniently_the_last_counts() {
    let text = "  a:\n    discovery: {method: base}\n    slots: 8\n    slots: 16";
    assert_eq!(
        error(text),
        "synapse.yaml:5:5: `slots` is already set on line 4: leave one of them: Ruby takes the last"
    );
    let (services, kinds) = lenient(text);
    assert_eq!(services[0].slots, Some(16));
    assert_eq!(kinds, [Kind::Ignored]);
}

#[test]
fn a_key_twice_in_a_large_map() {
    let mut text = String::new();
    for number in 0..40 {
        text.push_str(&format!(
            "  s{}:\n    discovery: {{method: base}}\n",
            number % 39
        ));
    }
    assert!(
        error(&text).contains("`s0` is already set on line 2"),
        "{}",
        error(&text)
    );
}

#[test]
fn merge_keys_give_way_to_own_keys_and_come_in_order() {
    let services = services(
        "  a: &a\n    discovery: {method: base}\n    slots: 8\n    panic_threshold: 10\n  \
         b: &b {slots: 9, discovery: {method: base}, leader_election: true}\n  \
         c:\n    <<: [*a, *b]\n    panic_threshold: 20",
    );
    let c = &services[2];
    assert_eq!(
        (c.slots, c.panic_threshold, c.leader_election),
        (Some(8), 20, true)
    );
    let text = "  a:\n    <<: 3\n    discovery: {method: base}";
    assert_eq!(
        error(text),
        "synapse.yaml:3:5: `<<` merges maps: give it a map, or a list of maps"
    );
}

#[test]
fn aliases_cannot_explode() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let below = format!("*a{}", level - 1);
        let items = vec![below; 10].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{items}]\n"));
    }
    assert!(
        error_of(&text).contains("the aliases stand for too much"),
        "{}",
        error_of(&text)
    );
    assert!(error_of("a: &a [*a]").contains("an alias inside what it stands for"));
}

#[test]
fn depth_is_bounded() {
    let text = format!("services: {}", "[".repeat(100_000));
    assert!(
        error_of(&text).contains("this is not YAML"),
        "{}",
        error_of(&text)
    );
}

#[test]
fn syntax_errors_have_a_place() {
    assert!(
        error_of("services:\n  a: [\n").starts_with("synapse.yaml:2:6: this is not YAML: "),
        "{}",
        error_of("services:\n  a: [\n")
    );
    assert!(error_of("services: &a\n  b: *c\n").contains("synapse.yaml:2:6"));
}

#[test]
fn tags() {
    let services = services(&base("slots: !!str 8\n    panic_threshold: !!int 7"));
    assert_eq!(
        (services[0].slots, services[0].panic_threshold),
        (Some(8), 7)
    );
    let text = base("slots: !ruby/object:Object {}");
    assert!(
        error(&text).contains("unknown tag `!ruby/object:Object`"),
        "{}",
        error(&text)
    );
}

#[test]
fn only_the_first_document_counts() {
    let text = format!("services: {{}}\n{HAPROXY}\n---\nservices: 3\n");
    assert!(error_of(&text).contains("a second document begins"));
    assert!(load_text(&text, true).is_ok());
}

#[test]
fn json_with_tabs_and_escapes() {
    let text = "{\n\t\"services\": {\n\t\t\"a\": {\"discovery\": {\"method\": \"base\"}, \"haproxy\": \
                {\"backend\": [\"http-request set-header X-\\u0041 a\\/b\"]}}\n\t},\n\t\"haproxy\": {\"global\": [], \
                \"defaults\": [], \"do_writes\": false, \"do_reloads\": false, \"do_socket\": false}\n}\n";
    let (settings, _) = load_text(text, false).unwrap();
    let proxy = settings.services[0].haproxy.as_ref().unwrap();
    assert_eq!(texts(&proxy.backend), ["http-request set-header X-A a/b"]);
}

#[test]
fn erb_is_refused_leniently_too() {
    let text = format!("services: {{}}\n{HAPROXY}\n# <%= node %>\n");
    let failure = load_text(&text, true).unwrap_err().to_string();
    assert!(
        failure.contains("synapse.yaml:10:3: `<%`: ERB is not run here"),
        "{failure}"
    );
}

#[test]
fn block_scalars_are_lines_with_their_own_places() {
    let services = services(
        "  a:\n    discovery: {method: base}\n    haproxy:\n      backend:\n        - |\n          balance source\n\n          hash-type consistent\n        - >\n          option\n          httpchk",
    );
    let lines = &services[0].haproxy.as_ref().unwrap().backend;
    assert_eq!(
        texts(lines),
        ["balance source", "hash-type consistent", "option httpchk"]
    );
    let places: Vec<usize> = lines
        .iter()
        .map(|line| line.place.as_ref().unwrap().line)
        .collect();
    assert_eq!(places[..2], [7, 9]);
    let services = self::services(
        "  a:\n    discovery: {method: base}\n    haproxy:\n      backend:\n        - |\n\n          balance source",
    );
    let place = services[0].haproxy.as_ref().unwrap().backend[0]
        .place
        .clone()
        .unwrap();
    assert_eq!((place.line, place.column), (8, 11));
    let text = "  a:\n    discovery: {method: base}\n    haproxy:\n      backend:\n        - |\n          balance source\n          nonsense";
    assert!(
        error(text).starts_with("synapse.yaml:8:"),
        "{}",
        error(text)
    );
}

#[test]
fn a_line_that_yaml_takes_for_a_map() {
    let text = "  a:\n    discovery: {method: base}\n    haproxy:\n      backend:\n        - http-request set-header X-A: b";
    assert_eq!(
        error(text),
        "synapse.yaml:6:11: a line of `services.a.haproxy.backend` is a map: write it in quotes: a colon followed by a space makes a map of it"
    );
}

#[test]
fn control_characters_never_reach_a_line() {
    for bad in ["\\u0000", "\\e[0m", "\\r", "\\x7f", "\\u0085"] {
        let text = format!(
            "  a:\n    discovery: {{method: base}}\n    haproxy:\n      backend: [\"balance {bad} x\"]"
        );
        assert!(
            error(&text).contains("control character"),
            "{bad}: {}",
            error(&text)
        );
        let text = format!(
            "  a:\n    discovery: {{method: base}}\n    haproxy: {{server_options: \"check{bad}\"}}"
        );
        assert!(
            error(&text).contains("control character"),
            "{bad}: {}",
            error(&text)
        );
    }
    // A newline would begin a line of its own.
    let text =
        "  a:\n    discovery: {method: base}\n    haproxy: {server_options: \"check\\nbind :1\"}";
    assert!(error(text).contains("control character"), "{}", error(text));
}

#[test]
fn all_errors_are_listed_up_to_fifty() {
    let mut text = String::new();
    for number in 0..70 {
        text.push_str(&format!(
            "  s{number}:\n    discovery: {{method: base}}\n    wrong: 1\n"
        ));
    }
    let shown = error(&text);
    assert!(
        shown.starts_with("70 errors in the configuration:\n"),
        "{shown}"
    );
    assert_eq!(shown.lines().count(), 52);
    assert!(shown.ends_with("and 20 more"), "{shown}");
}

#[test]
fn drop_ins_merge_in_byte_order() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    std::fs::create_dir(directory.path().join("synapse.d")).unwrap();
    let sources = Sources {
        directory: directory.path().to_owned(),
        ..Sources::default()
    };
    let missing = load(&sources, false).unwrap_err().to_string();
    assert!(missing.contains("synapse.yaml: write it"), "{missing}");
    write(
        "synapse.yaml",
        &format!("services:\n  a: {{discovery: {{method: base}}, slots: 4}}\n{HAPROXY}"),
    );
    write(
        "synapse.d/20.yaml",
        "services: {a: {slots: 16}, b: {discovery: {method: base}}}\nhaproxy: {defaults: [mode tcp]}\n",
    );
    write(
        "synapse.d/10.yaml",
        "services: {a: {slots: 8, panic_threshold: 1}}\n",
    );
    write("synapse.d/ignored.txt", "services: [");
    write("synapse.d/30-empty.yaml", "# nothing\n");
    let (settings, _) = load(&sources, false).unwrap();
    assert_eq!(settings.services[0].slots, Some(16));
    assert_eq!(settings.services[0].panic_threshold, 1);
    assert_eq!(settings.services[1].name, "b");
    assert_eq!(texts(&settings.haproxy.defaults), ["mode tcp"]);
    write("synapse.d/40.yaml", "services: {a: {slot: 3}}\n");
    let wrong = load(&sources, false).unwrap_err().to_string();
    assert!(
        wrong.contains("40.yaml:1:16: unknown key `services.a.slot`: did you mean `slots`?"),
        "{wrong}"
    );
}

#[test]
fn what_is_no_configuration() {
    assert!(error_of("").contains("is empty"));
    assert!(error_of("[1]").contains("is a list, not a map"));
    assert!(error_of("services: 3").contains("`services` is text, not a map"));
    let failure = load(&only("/nowhere/synapse.yaml".into()), false).unwrap_err();
    assert_eq!(failure.exit(), Exit::CONFIG);
    assert!(failure.to_string().contains("/nowhere/synapse.yaml"));
}

#[test]
fn the_hash_is_that_of_every_file() {
    let hash = |text: &str| {
        load_text(&format!("{text}\n{HAPROXY}"), false)
            .unwrap()
            .0
            .hash
    };
    assert_eq!(hash("services: {}").len(), 64);
    assert_eq!(hash("services: {}"), hash("services: {}"));
    assert_ne!(hash("services: {}"), hash("services:  {}"));
}

proptest! {
    /// Whatever stands in a file, it is read or refused; and no line of what is read holds a line end.
    #[test]
    fn any_text_is_read_or_refused(text in "[a-z:\\-\\[\\]{}\"'&*!|>%#, \n]{0,200}") {
        let _ = load_text(&text, true);
    }

    #[test]
    fn no_value_breaks_out_of_its_line(value in any::<String>()) {
        let quoted = serde_json::to_string(&value).unwrap();
        let text = format!(
            "services:\n  a:\n    discovery: {{method: base}}\n    haproxy:\n      backend: [{quoted}]\n      server_options: {quoted}\n      backend_name: {quoted}\n      bind_address: {quoted}\n      port: null\n{HAPROXY}"
        );
        if let Ok((settings, _)) = load_text(&text, true) {
            let proxy = settings.services[0].haproxy.as_ref().unwrap();
            let written = proxy.backend.iter().chain(&proxy.server_options).map(|line| line.text.as_str())
                .chain(proxy.backend_name.as_deref()).chain(proxy.bind_address.as_deref());
            for text in written {
                prop_assert!(!text.contains(|c: char| c.is_control() && c != '\t'), "{text:?}");
            }
        }
    }
}
