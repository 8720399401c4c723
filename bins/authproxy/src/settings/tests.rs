use super::*;

/// Settings from the text of a file and a command line behind `authproxy`.
pub(crate) fn loaded(file: &str, line: &str) -> Result<Loaded, hostkit::Failure> {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("authproxy.yaml");
    std::fs::write(&path, file).unwrap();
    let words = ["authproxy", "--config", path.to_str().unwrap()];
    let words = words.into_iter().chain(line.split_whitespace());
    let (args, matches) = hostkit::cli::parse::<crate::Args, _>(words).unwrap();
    load(&args, &matches)
}

/// A site, from what a file says beside the least there has to be.
pub(crate) fn site(file: &str) -> Arc<Site> {
    let least = "port: 1\nserver: unix:/s\nright: all\nacl-file: /acl\n";
    loaded(&format!("{least}{file}"), "").unwrap().settings.site
}
