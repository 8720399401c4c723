//! The demo's API behind authproxy: a key is made, asked with, and a request without one is turned away.

use hostkit_tests::authproxy::Authproxy;
use serde_json::{Value, json};

use super::{Stage, said, start_instance, step};

pub(super) fn ask_for_one(stage: &Stage) {
    step("authproxy in front of eightball: a key or nothing");
    let (_instance, private) = start_instance(stage);
    let made = stage
        .tool("authproxy")
        .args(["key", "new", "--id=demo", "--right=all", "--json"])
        .output()
        .unwrap();
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    let key = made["key"].as_str().unwrap();
    said("authproxy key new --id=demo --right=all");
    said(&format!(
        "  {}.. is shown once; the ACL file has",
        &key[..8]
    ));
    said(&format!("  {}", made["entry"]));
    let file = stage.path("acl.yaml");
    std::fs::write(&file, json!({"keys": [made["entry"]]}).to_string()).unwrap();
    let proxy = Authproxy::before(private, &[&format!("--acl-file={}", file.display())]);
    said(&format!(
        "authproxy --port={} --server=http://localhost:{private} --right=all --acl-file=acl.yaml",
        proxy.port()
    ));
    let path = "/shake/?question=allowed";
    let refused = proxy.get(path, &[]);
    assert_eq!(refused.status, 401, "{refused:?}");
    said(&format!("GET {path} -> 401 {}", refused.body.trim()));
    let passed = proxy.get_with_key(path, key);
    assert_eq!(passed.status, 200, "{passed:?}");
    said(&format!(
        "GET {path} with the key -> 200 {}",
        passed.body.trim()
    ));
    proxy.says("GET /shake/");
    said("its access log:");
    for line in proxy
        .log()
        .lines()
        .filter(|line| line.contains("GET /shake/"))
    {
        said(&format!("  {line}"));
    }
}
