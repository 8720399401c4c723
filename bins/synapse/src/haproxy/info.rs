//! What HAProxy says of itself: `show info`, `show env`, and the master's `show proc`.

use std::time::Duration;

use super::version::Version;

/// Of `show info`, what synapse uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Info {
    /// The running version, which may be older than the installed one.
    pub version: Version,
    /// The process that answered.
    pub pid: i32,
    /// Since it was started.
    pub uptime: Duration,
    /// Its limit of open files.
    pub ulimit_n: u64,
    /// How many files it may come to need: what `ulimit_n` must hold.
    pub maxsock: u64,
    /// `maxconn` of `global`.
    pub maxconn: u64,
    /// Threads.
    pub nbthread: u64,
    /// Open client connections.
    pub connections: u64,
    /// Whether it only finishes what it has (a leftover worker).
    pub stopping: bool,
}

impl Info {
    /// Reads the reply to `show info`; `None` if it has no pid or version. Unknown keys are ignored.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (mut info, mut pid, mut version) = (Self::default(), None, None);
        for line in text.lines() {
            let Some((key, value)) = line.split_once(": ") else {
                continue;
            };
            let number = || value.trim().parse().unwrap_or_default();
            match key {
                "Version" => version = Version::parse(value),
                "Pid" => pid = value.trim().parse().ok().filter(|pid| *pid > 0),
                "Uptime_sec" => info.uptime = Duration::from_secs(number()),
                "Ulimit-n" => info.ulimit_n = number(),
                "Maxsock" => info.maxsock = number(),
                "Maxconn" => info.maxconn = number(),
                "Nbthread" => info.nbthread = number(),
                "CurrConns" => info.connections = number(),
                "Stopping" => info.stopping = number() != 0,
                _ => {}
            }
        }
        (info.pid, info.version) = (pid?, version?);
        Some(info)
    }
}

/// The value in the reply to `show env NAME`; `None` when it is not set.
#[must_use]
pub fn environment(name: &str, reply: &str) -> Option<String> {
    let line = reply.lines().next()?;
    let value = line.strip_prefix(name)?.strip_prefix('=')?;
    Some(value.to_owned())
}

/// Of the master's `show proc`, what synapse uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Processes {
    /// The master.
    pub master: i32,
    /// How often it was told to reload.
    pub reloads: u64,
    /// How many times in a row a reload failed; a successful one sets it back to 0. `None` before 2.6, which does not
    /// say.
    pub failed: Option<u64>,
    /// The workers that serve.
    pub workers: Vec<i32>,
    /// Workers of before, which finish what they have.
    pub old_workers: Vec<i32>,
}

impl Processes {
    /// Reads the reply to `show proc`; `None` if it names no master.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (mut found, mut old) = (Self::default(), false);
        for line in text.lines() {
            if let Some(title) = line.strip_prefix("# ") {
                old = title.trim() == "old workers";
                continue;
            }
            let mut words = line.split_whitespace();
            let Some(pid) = words.next().and_then(|word| word.parse().ok()) else {
                continue;
            };
            match words.next() {
                Some("master") => {
                    found.master = pid;
                    found.reloads = words.next().and_then(|n| n.parse().ok())?;
                    found.failed = (words.next() == Some("[failed:"))
                        .then(|| words.next()?.strip_suffix(']')?.parse().ok())
                        .flatten();
                }
                Some("worker") if old => found.old_workers.push(pid),
                Some("worker") => found.workers.push(pid),
                _ => {}
            }
        }
        (found.master > 0).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn info_is_read() {
        let text = "Name: HAProxy\nVersion: 2.6.12-1+deb12u4\nNbthread: 2\nPid: 395\nUptime: 0d 0h00m01s\n\
                    Uptime_sec: 1\nUlimit-n: 446\nMaxsock: 445\nMaxconn: 200\nCurrConns: 3\nStopping: 0\n";
        let expected = Info {
            version: Version(2, 6, 12),
            pid: 395,
            uptime: Duration::from_secs(1),
            ulimit_n: 446,
            maxsock: 445,
            maxconn: 200,
            nbthread: 2,
            connections: 3,
            stopping: false,
        };
        assert_eq!(Info::parse(text), Some(expected));
        assert_eq!(Info::parse("Version: 2.6.12\n"), None);
        assert_eq!(Info::parse("Version: 2.6.12\nPid: -1\n"), None);
    }

    #[test]
    fn a_variable_is_read() {
        assert_eq!(environment("A", "A=x=y\n").as_deref(), Some("x=y"));
        assert_eq!(environment("A", "AB=x"), None);
        assert_eq!(environment("A", "Variable not found\n"), None);
    }

    #[test]
    fn processes_are_read() {
        let text = "#<PID>          <type>          <reloads>       <uptime>        <version>      \n\
                    394             master          3 [failed: 1]   0d00h00m02s     2.6.12-1+deb12u4\n\
                    # workers\n\
                    395             worker          0               0d00h00m02s     2.6.12-1+deb12u4\n\
                    # old workers\n\
                    300             worker          2               0d00h01m02s     2.6.12-1+deb12u4\n\
                    # programs\n\
                    77              prog            0               -               -\n\n";
        let expected = Processes {
            master: 394,
            reloads: 3,
            failed: Some(1),
            workers: vec![395],
            old_workers: vec![300],
        };
        assert_eq!(Processes::parse(text), Some(expected));
        let older = "12 master 1 0d00h00m02s 2.4.1\n";
        assert_eq!(Processes::parse(older).unwrap().failed, None);
        assert_eq!(Processes::parse("Unknown command"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>, name in "[ -~]{0,8}") {
            let text = String::from_utf8_lossy(&bytes);
            let _ = Info::parse(&text);
            let _ = Processes::parse(&text);
            let _ = environment(&name, &text);
            let _ = Version::parse(&text);
        }

        #[test]
        fn lines_that_look_right_are_read_without_a_panic(
            lines in proptest::collection::vec("(Pid|Version|Maxsock|[0-9]{0,12} (master|worker)|# old workers)[: 0-9.a-z\\[\\]-]{0,20}", 0..12)
        ) {
            let text = lines.join("\n");
            let _ = Info::parse(&text);
            let _ = Processes::parse(&text);
        }
    }
}
