//! The limit of open files. `haproxy -c` does not look at it; a start that needs more than it may have ends with
//! "Cannot raise FD limit" (`strict-limits`, on since 2.3), after the file is in place.
//!
//! HAProxy needs two per connection of `maxconn`, and some for listeners, checks and threads. When `global` has no
//! `maxconn` it makes one that fits.

use std::path::Path;

use super::info::Info;
use super::processes::read;

/// What HAProxy needs besides connections when no running one says: 2.6 with one listener takes 29.
const BESIDES: u64 = 100;

/// `CAP_SYS_RESOURCE` (capabilities(7)): who has it may raise hard limits.
const RAISE: u64 = 1 << 24;

/// What limits the new process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// `RLIMIT_NOFILE`, hard.
    pub hard: u64,
    /// What it may raise that to: `fs.nr_open` with `CAP_SYS_RESOURCE`, otherwise `hard`.
    pub reach: u64,
}

/// The file asks for more than the process may have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "maxconn {maxconn} needs {needed} open files and the limit is {limit}: HAProxy would end at its start; \
     lower `maxconn` in global, or raise the limit (LimitNOFILE in its unit)"
)]
pub struct TooMany {
    /// Global `maxconn` of the file.
    pub maxconn: u64,
    /// About what it comes to.
    pub needed: u64,
    /// What can be had.
    pub limit: u64,
}

/// The limit of a process, and of what it starts; `None` when `/proc` does not say.
#[must_use]
pub fn of_process(pid: u32) -> Option<Limit> {
    let text = |name: &str| {
        let bytes = read(Path::new(&format!("/proc/{pid}/{name}"))).ok()?;
        String::from_utf8(bytes).ok()
    };
    let hard = hard(&text("limits")?)?;
    let may_raise = text("status").is_some_and(|status| effective(&status) & RAISE != 0);
    let open = read(Path::new("/proc/sys/fs/nr_open")).ok();
    let open = open.and_then(|bytes| String::from_utf8(bytes).ok()?.trim().parse().ok());
    let reach = if may_raise {
        open.unwrap_or(hard).max(hard)
    } else {
        hard
    };
    Some(Limit { hard, reach })
}

/// The hard limit in `/proc/PID/limits`: `Max open files   1024   20000   files`.
fn hard(limits: &str) -> Option<u64> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_ascii_whitespace().nth(1)? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

/// The effective capabilities in `/proc/PID/status`.
fn effective(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or_default()
}

/// Checks the text of a file that will listen at `listeners` places against a limit. What the running HAProxy needs
/// besides connections is what the new one will need.
///
/// # Errors
/// [`TooMany`].
pub fn check(
    text: &str,
    listeners: usize,
    running: Option<&Info>,
    limit: Limit,
) -> Result<(), TooMany> {
    let global = Global::read(text);
    let Some(maxconn) = global.maxconn.filter(|_| global.strict) else {
        return Ok(());
    };
    let besides = running.map_or(BESIDES, |info| {
        info.maxsock.saturating_sub(info.maxconn.saturating_mul(2))
    });
    let needed = maxconn
        .saturating_mul(2)
        .saturating_add(besides)
        .saturating_add(listeners as u64)
        .max(global.ulimit_n.unwrap_or_default());
    if needed <= limit.reach {
        return Ok(());
    }
    Err(TooMany {
        maxconn,
        needed,
        limit: limit.reach,
    })
}

/// What `global` says of limits.
struct Global {
    maxconn: Option<u64>,
    ulimit_n: Option<u64>,
    strict: bool,
}

impl Global {
    fn read(text: &str) -> Self {
        let mut found = Self {
            maxconn: None,
            ulimit_n: None,
            strict: true,
        };
        let mut inside = false;
        for line in text.lines() {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            if super::bindings::is_section(words.first().copied().unwrap_or_default()) {
                inside = words[0] == "global";
            }
            if !inside {
                continue;
            }
            match words[..] {
                ["maxconn", n, ..] => found.maxconn = n.parse().ok(),
                ["ulimit-n", n, ..] => found.ulimit_n = n.parse().ok(),
                ["no", "strict-limits", ..] => found.strict = false,
                ["strict-limits", ..] => found.strict = true,
                _ => {}
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Limit = Limit {
        hard: 20_000,
        reach: 20_000,
    };

    #[test]
    fn maxconn_is_held_against_the_limit() {
        let file = |line: &str| format!("global\n  {line}\ndefaults\n  maxconn 999999\n");
        for (line, fits) in [
            ("maxconn 9000", true),
            ("maxconn 30000", false),
            ("no strict-limits\n maxconn 30000", true),
            ("maxconn 1\n ulimit-n 30000", false),
            ("maxconn 99999999999999999999", true), // haproxy -c says what is wrong with it
            ("maxconn 9223372036854775808", false),
            ("nbthread 4", true),
        ] {
            let result = check(&file(line), 1, None, LIMIT);
            assert_eq!(result.is_ok(), fits, "{line}");
        }
    }

    #[test]
    fn what_the_running_one_needs_besides_counts() {
        let running = Info {
            maxconn: 200,
            maxsock: 5400,
            ..Info::default()
        };
        let text = "global\n maxconn 8000\n";
        assert!(check(text, 1, None, LIMIT).is_ok());
        let error = check(text, 1, Some(&running), LIMIT).unwrap_err();
        assert_eq!(error.needed, 21_001);
    }

    #[test]
    fn the_system_says_what_the_limit_is() {
        assert_eq!(
            hard("Limit\nMax open files            1024   20000  files\n"),
            Some(20_000)
        );
        assert_eq!(effective("CapEff:\t000001fffeffffff\n") & RAISE, 0);
        assert_ne!(effective("CapEff:\t000001ffffffffff\n") & RAISE, 0);
        let own = of_process(std::process::id()).unwrap();
        assert!(own.hard > 0 && own.reach >= own.hard);
    }
}
