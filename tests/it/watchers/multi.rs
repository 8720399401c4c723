//! Several sources as one, and what stays of it when one of them goes bad.

use std::fs;

use synapse::settings::{Discovery, Resolver};

use super::Running;

#[test]
fn the_second_source_serves_while_the_first_has_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let child = |name: &str| {
        let file = temp.path().join(name);
        (name.to_owned(), Discovery::File(file))
    };
    let write = |name: &str, text: &str| fs::write(temp.path().join(name), text).unwrap();
    write("second", "- {host: 10.0.0.1, port: 2}\n");
    let children = vec![child("first"), child("second")];
    let order = vec!["first".to_owned(), "second".to_owned()];
    let sequential = Running::start(&Discovery::Multi(
        children.clone(),
        Resolver::Sequential(order),
    ));
    let union = Running::start(&Discovery::Multi(children.clone(), Resolver::Union));
    let base = Running::start(&Discovery::Multi(children, Resolver::Base));
    sequential.finds("the second", &["10.0.0.1:2"]);
    union.suffers("first", &["10.0.0.1:2"]);
    base.suffers("first", &[]);

    write("first", "- {host: 10.0.0.1, port: 1}\n");
    sequential.finds("the first", &["10.0.0.1:1"]);
    union.finds("both", &["10.0.0.1:1", "10.0.0.1:2"]);
    base.finds("the first", &["10.0.0.1:1"]);

    write("first", "[]\n");
    sequential.finds("the second again", &["10.0.0.1:2"]);
    union.finds("the second alone", &["10.0.0.1:2"]);
}

#[test]
fn base_finds_nothing_and_says_so() {
    let running = Running::start(&Discovery::Base);
    running.finds("nothing", &[]);
}
