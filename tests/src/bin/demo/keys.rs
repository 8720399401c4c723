//! The demo's API behind authproxy: create a key, send a request with it, and have one without it denied.

use hostkit_tests::authproxy::AuthproxyProcess;

use super::{DemoContext, print_line, print_step, start_instance};

pub(super) fn show_keys(stage: &DemoContext) {
    print_step("authproxy in front of eightball: requests need a key");
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
    print_line("authproxy key new --id=demo --right=read --into acl.yaml");
    print_line(&format!(
        "  {}.. is shown once, on the terminal; acl.yaml has",
        &key[..8]
    ));
    for line in std::fs::read_to_string(&file).unwrap().lines() {
        print_line(&format!("  {line}"));
    }
    let server = format!("--server=http://localhost:{private}");
    let acl = format!("--acl-file={}", file.display());
    let proxy = AuthproxyProcess::start(&[&server, "--right=read", &acl]);
    print_line(&format!(
        "authproxy --port={} {server} --right=read --acl-file=acl.yaml",
        proxy.port()
    ));
    let path = "/shake/?question=allowed";
    let refused = proxy.get(path, &[]);
    assert_eq!(refused.status, 401, "{refused:?}");
    print_line(&format!("GET {path} -> 401 {}", refused.body.trim()));
    let passed = proxy.get_with_key(path, key);
    assert_eq!(passed.status, 200, "{passed:?}");
    print_line(&format!(
        "GET {path} with the key -> 200 {}",
        passed.body.trim()
    ));
    proxy.logs("GET /shake/");
    print_line("its access log:");
    for line in proxy
        .log()
        .lines()
        .filter(|line| line.contains("GET /shake/"))
    {
        print_line(&format!("  {line}"));
    }
}
