//! Queries that run nothing: `--list`, `--which`, `--fetch-only`, `--dry-run`.

use std::time::{Duration, SystemTime};

use hostkit_tests::origin::OriginServer;
use hostkit_tests::s3::S3Server;

use super::{
    ALIKE, CommandOutcome, HASH, OTHER, PexrunHost, pex, pex_program, program, unreachable_url, zip,
};

/// A repository with three pexes and a jar of one job, the newest first, and files that must not be listed.
fn publish_builds(host: &PexrunHost) {
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_436_176_800);
    for (age, name) in [
        pex("job", OTHER),
        "job-1.2-SNAPSHOT.jar".to_owned(),
        pex("job", HASH),
        pex("job", ALIKE),
        pex("job-two", HASH),
        format!("job-{HASH}-elsewhere_x86_64.pex"),
        "job-notes.txt".to_owned(),
    ]
    .iter()
    .enumerate()
    {
        let path = host.publish(name, program("echo ran"));
        let file = std::fs::File::open(path).unwrap();
        let days = Duration::from_secs(86_400 * age as u64);
        file.set_modified(long_ago - days).unwrap();
    }
}

#[test]
fn list_shows_newest_first_and_marks_cached_builds() {
    let host = PexrunHost::new();
    publish_builds(&host);
    host.pexrun(["--fetch-only", "job", HASH])
        .exits(0)
        .prints("");
    host.pexrun(["--list", "job"]).exits(0).prints(&format!(
        "job {OTHER} 2015-07-06T10:00:00Z\n\
         job 1.2-SNAPSHOT 2015-07-05T10:00:00Z\n\
         job {HASH} 2015-07-04T10:00:00Z cached\n\
         job {ALIKE} 2015-07-03T10:00:00Z\n"
    ));
    host.pexrun(["--list", "job-two"])
        .exits(0)
        .prints(&format!("job-two {HASH} 2015-07-02T10:00:00Z\n"));
    host.pexrun(["--list", "--arch=elsewhere_x86_64", "job"])
        .exits(0)
        .prints(&format!(
            "job 1.2-SNAPSHOT 2015-07-05T10:00:00Z\njob {HASH} 2015-07-01T10:00:00Z\n"
        ));
}

#[test]
fn list_shows_builds_of_bucket() {
    let (host, s3) = (PexrunHost::bare(), S3Server::start());
    s3.create_bucket("builds");
    for job in ["job", "job-two"] {
        let to = format!("s3://builds/pex/{}", pex(job, HASH));
        host.upload(&s3, "b.pex", &program("echo ran"), &to);
    }
    host.repositories(&["s3://builds/pex"]);
    let list = || {
        let mut command = host.command(["--list", "job"]);
        CommandOutcome::from(command.envs(s3.env()).output().unwrap()).exits(0)
    };
    let first = list().stdout;
    assert!(first.starts_with(&format!("job {HASH} 20")), "{first}");
    assert_eq!(first.lines().count(), 1, "{first}");
    let mut command = host.command(["--fetch-only", "job", &HASH[..9]]);
    CommandOutcome::from(command.envs(s3.env()).output().unwrap()).exits(0);
    assert_eq!(list().stdout, format!("{} cached\n", first.trim()));
    host.repositories(&["s3://bilds/pex"]);
    let mut command = host.command(["--list", "job"]);
    CommandOutcome::from(command.envs(s3.env()).output().unwrap())
        .exits(127)
        .logs("correct the repository")
        .logs("s3://bilds/pex/job-: no such bucket");
}

#[test]
fn cached_builds_are_listed_without_network() {
    let origin = OriginServer::start();
    let host = PexrunHost::bare();
    host.repositories(&[&origin.url("")]);
    origin.put(&format!("/{}", pex("job", HASH)), program("echo ran"));
    origin.put(&format!("/{}", pex("a-job", OTHER)), program("echo ran"));
    origin.put("/a-job-1.2-SNAPSHOT.jar", zip(b"a"));
    host.pexrun(["--list", "--cached"]).exits(0).prints("");
    for (job, version) in [("job", HASH), ("a-job", OTHER), ("a-job", "1.2-SNAPSHOT")] {
        host.pexrun(["--fetch-only", job, version]).exits(0);
    }
    origin.reset_counters();
    let all = format!("a-job 1.2-SNAPSHOT cached\na-job {OTHER} cached\njob {HASH} cached\n");
    host.pexrun(["--list", "--cached"]).exits(0).prints(&all);
    host.pexrun(["--list", "--offline"]).exits(0).prints(&all);
    let one = format!("job {HASH} cached\n");
    host.pexrun(["--list", "--cached", "job"])
        .exits(0)
        .prints(&one);
    host.pexrun(["--list", "--cached", "nothing"])
        .exits(0)
        .prints("");
    assert_eq!(origin.connections(), 0);
}

#[test]
fn json_output_is_one_object_per_line() {
    let host = PexrunHost::new();
    publish_builds(&host);
    host.pexrun(["--fetch-only", "job", OTHER]).exits(0);
    let rows = |args: &[&str]| -> Vec<serde_json::Value> {
        let outcome = host.pexrun(args).exits(0);
        let lines = outcome.stdout.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let listed = rows(&["--list", "--json", "job"]);
    assert_eq!(listed.len(), 4);
    assert_eq!(
        listed[0],
        serde_json::json!({"job": "job", "version": OTHER, "published": "2015-07-06T10:00:00Z", "cached": true})
    );
    assert_eq!(listed[3]["cached"], false);
    assert_eq!(
        rows(&["--list", "--cached", "--json"]),
        [serde_json::json!({"job": "job", "version": OTHER, "published": null, "cached": true})]
    );
    let which = &rows(&["--which", "--json", "job", OTHER])[0];
    assert!(
        which["path"]
            .as_str()
            .unwrap()
            .ends_with(&pex("job", OTHER))
    );
    assert_eq!(
        which["source"],
        format!("{}/{}", host.repository(), pex("job", OTHER))
    );
}

#[test]
fn unlistable_repository_is_error_that_names_it() {
    let host = PexrunHost::new();
    publish_builds(&host);
    host.pexrun(["--list", "nothing"])
        .exits(127)
        .logs("no builds of nothing for here_x86_64")
        .logs(&host.repository());
    let origin = OriginServer::start();
    let dead = unreachable_url();
    host.repositories(&[&origin.url("")]);
    host.pexrun(["--list", "job"])
        .exits(125)
        .logs("a web server has no listing");
    // One listable repository is enough, but the failure is logged.
    let listed = host.repository();
    host.repositories(&[&dead, &listed]);
    let outcome = host.pexrun(["--list", "job"]).exits(0).logs(&dead);
    assert_eq!(outcome.stdout.lines().count(), 4);
    host.pexrun(["--list", "nothing"]).exits(125).logs(&dead);
}

#[test]
fn which_prints_path_with_original_name() {
    let host = PexrunHost::new();
    host.publish(&pex("job", HASH), program("touch ran"));
    let path = host.pexrun(["--which", "job", &HASH[..7]]).exits(0).stdout;
    let path = std::path::Path::new(path.trim());
    assert!(path.starts_with(host.cache()));
    assert_eq!(path.file_name().unwrap(), pex("job", HASH).as_str());
    assert_eq!(std::fs::read(path).unwrap(), program("touch ran"));
    host.pexrun(["--fetch-only", "job", HASH])
        .exits(0)
        .prints("");
    assert!(!host.home().join("ran").exists(), "neither command runs it");
}

#[test]
fn dry_run_opens_no_socket_and_fetches_nothing() {
    let origin = OriginServer::start();
    let path = format!("/{}", pex("job", HASH));
    origin.put(&path, pex_program("touch ran"));
    let host = PexrunHost::bare();
    host.repositories(&[&origin.url(""), "s3://builds/pex"]);
    let dry = |args: &[&str]| {
        let all = [&["--dry-run", "job"], args].concat();
        host.pexrun(all).exits(0).stdout
    };
    let url = origin.url(&path);
    let jar = origin.url(&format!("/job-{HASH}.jar"));
    assert_eq!(
        dry(&[HASH]),
        format!(
            "fetch {url}\nfetch {jar}\nfetch s3://builds/pex/{}\nfetch s3://builds/pex/job-{HASH}.jar\n",
            pex("job", HASH)
        )
    );
    assert!(dry(&["60a43ef"]).contains("list s3://builds/pex/job-60a43ef\n"));
    assert_eq!(origin.connections(), 0);
    host.pexrun(["--fetch-only", "job", HASH]).exits(0);
    origin.reset_counters();
    let at = host.pexrun(["--which", "job", HASH]).exits(0).stdout;
    let root = host.pex_root();
    assert_eq!(
        dry(&[HASH, "--", "--port=1", "it's", ""]),
        format!(
            "cached {url}\nrun PEX_ROOT={} {} -- --port=1 'it'\\''s' ''\n",
            root.display(),
            at.trim()
        )
    );
    assert_eq!(dry(&["static"]).lines().count(), 6);
    assert_eq!(origin.connections(), 0);
    assert!(!host.home().join("ran").exists());
}
