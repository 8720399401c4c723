//! Repositories that cannot be listed: a missing build looks like a forbidden one, and a short hash is resolved by the
//! cache only.

use hostkit_tests::origin::{OriginFault, OriginServer};
use hostkit_tests::s3::S3Server;

use super::{ALIKE, CommandOutcome, HASH, OTHER, PexrunHost, pex, program, zip};

/// A host and a bucket `builds` with a jar and another build, whose client may not list it.
fn start_unlistable() -> (PexrunHost, S3Server) {
    let (host, s3) = (PexrunHost::bare(), S3Server::start());
    s3.create_bucket("builds");
    s3.create_bucket("empty");
    let jar = zip(b"a");
    host.upload(&s3, "b.jar", &jar, "s3://builds/pex/job-1.2.jar");
    s3.forbid_listing();
    (host, s3)
}

#[test]
fn forbidden_name_is_followed_by_next_name_and_repository() {
    let (host, s3) = start_unlistable();
    let denying = OriginServer::start();
    for name in [pex("job", "1.2"), "job-1.2.jar".to_owned()] {
        let denied = OriginFault::Status {
            code: 403,
            retry_after: None,
        };
        denying.fault(&format!("/{name}"), denied);
    }
    let repositories = [
        "s3://builds/pex".to_owned(),
        "s3://empty/pex,s3://builds/pex".to_owned(),
        format!("{},s3://builds/pex", denying.url("")),
    ];
    for (at, repositories) in repositories.iter().enumerate() {
        let cache = host.path(&format!("cache-{at}"));
        let mut command = host.command(["--arch", super::ARCH, "--repository", repositories]);
        command.arg("--cache-dir").arg(cache).envs(s3.env());
        let outcome =
            CommandOutcome::from(command.args(["--which", "job", "1.2"]).output().unwrap());
        let path = outcome.exits(0).stdout;
        assert!(path.ends_with("/job-1.2.jar\n"), "{path}");
    }
}

#[test]
fn forbidden_everywhere_is_125_because_absence_is_unknown() {
    let (host, s3) = start_unlistable();
    let nothing = host.repository();
    for repositories in [
        vec!["s3://builds/pex"],
        vec![&nothing, "s3://builds/pex"],
        vec!["s3://builds/pex", &nothing],
        vec!["s3://empty", "s3://builds/pex"],
    ] {
        host.repositories(&repositories);
        for version in [HASH, "60a43ef", "9.9", "static"] {
            let mut command = host.command(["job", version]);
            CommandOutcome::from(command.envs(s3.env()).output().unwrap())
                .exits(125)
                .logs("cannot fetch build")
                .logs("S3 returns 403 for an absent object too")
                .logs("s3:ListBucket");
        }
    }
}

#[test]
fn short_hash_runs_the_only_cached_match_when_listing_is_impossible() {
    let (host, s3) = (PexrunHost::bare(), S3Server::start());
    let nothing = host.repository();
    s3.create_bucket("builds");
    s3.create_bucket("other");
    for (bucket, hash, says) in [
        ("builds", HASH, "one"),
        ("builds", OTHER, "three"),
        ("other", "f00dfeedaa", "elsewhere"),
    ] {
        let to = format!("s3://{bucket}/pex/{}", pex("job", hash));
        host.upload(&s3, "b.pex", &program(&format!("echo {says}")), &to);
    }
    host.configure("");
    let env = s3.env();
    let run = |repository: &str, secret: &str, hash: &str| {
        let mut command = host.command(["--repository", repository, "job", hash]);
        command.envs(env.clone());
        if !secret.is_empty() {
            command.env("AWS_SECRET_ACCESS_KEY", secret);
        }
        CommandOutcome::from(command.output().unwrap())
    };
    for (bucket, hash) in [("builds", HASH), ("builds", OTHER), ("other", "f00dfeedaa")] {
        run(&format!("s3://{bucket}/pex"), "", hash).exits(0);
    }
    let builds = "s3://builds/pex";
    let check = |secret: &str, cause: &str| {
        // A build of a repository that is not queried does not make it ambiguous.
        let outcome = run(builds, secret, "f00d").exits(0).logs(cause);
        assert_eq!(
            outcome.stdout,
            "three
"
        );
        outcome.logs("running the only cached one").logs(OTHER);
        let outcome = run(&format!("{nothing},{builds}"), secret, "60a43ef");
        outcome.exits(0).logs(cause);
        run(builds, secret, "beef").exits(125).logs(cause);
        run("s3://other/pex", secret, "60a43ef").exits(125);
    };
    check("wrong", "SignatureDoesNotMatch");
    s3.forbid_listing();
    check("", "access denied (403)");
    drop(s3);
    check("", "cannot reach S3");
    // The same with two that have this prefix.
    for hash in [HASH, ALIKE] {
        host.publish(&pex("job", hash), program("echo ran"));
        host.pexrun(["--repository", &nothing, "--fetch-only", "job", hash])
            .exits(0);
    }
    run(&format!("{builds},{nothing}"), "", &HASH[..8]).exits(0);
    std::fs::remove_dir_all(host.path("repo")).unwrap();
    run(&format!("{nothing},{builds}"), "", "60a43ef")
        .exits(125)
        .logs("60a43ef is ambiguous: 2 builds of job start with it")
        .logs(HASH)
        .logs(ALIKE)
        .logs("cannot reach S3");
}
