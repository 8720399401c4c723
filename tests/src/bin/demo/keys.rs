//! The demo's API behind authproxy: create a key, send a request with it, and have one without it denied.

use hostkit_tests::authproxy::AuthproxyProcess;

use super::{DemoContext, said, start_instance, step};

pub(super) fn ask_for_one(stage: &DemoContext) {
    step("authproxy in front of eightball: a key or nothing");
    let (_instance, private) = start_instance(stage);
    let file = stage.path("acl.yaml");
    let made = stage
        .tool("authproxy")
        .args(["key", "new", "--id=demo", "--right=read", "--into"])
        .arg(&file)
        .output()
        .unwrap();
    let shown = String::from_utf8(made.stderr).unwrap();
    let key = shown.lines().find(|line| line.starts_with("hk_")).unwrap();
    said("authproxy key new --id=demo --right=read --into acl.yaml");
    said(&format!(
        "  {}.. is shown once, on the terminal; acl.yaml has",
        &key[..8]
    ));
    for line in std::fs::read_to_string(&file).unwrap().lines() {
        said(&format!("  {line}"));
    }
    let server = format!("--server=http://localhost:{private}");
    let acl = format!("--acl-file={}", file.display());
    let proxy = AuthproxyProcess::start(&[&server, "--right=read", &acl]);
    said(&format!(
        "authproxy --port={} {server} --right=read --acl-file=acl.yaml",
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
    proxy.logs("GET /shake/");
    said("its access log:");
    for line in proxy
        .log()
        .lines()
        .filter(|line| line.contains("GET /shake/"))
    {
        said(&format!("  {line}"));
    }
}
