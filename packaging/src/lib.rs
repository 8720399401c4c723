//! Man pages and shell completions of the tools, made from their own flag definitions, so that neither can drift.
//!
//! What clap cannot know (files, environment, examples, exit codes) stands in `man/<tool>.roff` and is appended. The
//! completions of jobs, hashes and cached artifacts call the tool, and are in `completion/`.

use std::fs;
use std::io;
use std::path::Path;

use clap::Command;
use clap_complete::Shell;
use hostkit::cli::{Tool, command};

/// A tool, its man section and the page's hand-written end.
struct Page {
    name: &'static str,
    command: Command,
    section: &'static str,
    end: &'static str,
}

fn pages() -> Vec<Page> {
    vec![
        Page {
            name: s3cache::Args::NAME,
            command: command::<s3cache::Args>(),
            section: "1",
            end: include_str!("../man/s3cache.roff"),
        },
        Page {
            name: pexrun::Args::NAME,
            command: command::<pexrun::Args>(),
            section: "1",
            end: include_str!("../man/pexrun.roff"),
        },
        Page {
            name: proxy_healthcheck::Args::NAME,
            command: command::<proxy_healthcheck::Args>(),
            section: "1",
            end: include_str!("../man/proxy-healthcheck.roff"),
        },
        Page {
            name: log_healthcheck::Args::NAME,
            command: command::<log_healthcheck::Args>(),
            section: "1",
            end: include_str!("../man/log-healthcheck.roff"),
        },
        Page {
            name: synapse::Args::NAME,
            command: command::<synapse::Args>(),
            section: "8",
            end: include_str!("../man/synapse.roff"),
        },
        Page {
            name: authproxy::Args::NAME,
            command: command::<authproxy::Args>(),
            section: "1",
            end: include_str!("../man/authproxy.roff"),
        },
    ]
}

/// Writes `man/<tool>.<section>`, one page per verb beside it (`man/<tool>-<verb>.<section>`), and `bash/<tool>`, `zsh/_<tool>` below `out`.
///
/// # Errors
/// A file cannot be written.
pub fn write(out: &Path) -> io::Result<()> {
    for directory in ["man", "bash", "zsh"] {
        fs::create_dir_all(out.join(directory))?;
    }
    for Page {
        name,
        mut command,
        section,
        end,
    } in pages()
    {
        // `help` is not a verb with a page of its own.
        let mut with_verbs = command.clone().disable_help_subcommand(true);
        with_verbs.build();
        write_pages(&out.join("man"), &with_verbs, section, end)?;
        for (shell, path) in [
            (Shell::Bash, format!("bash/{name}")),
            (Shell::Zsh, format!("zsh/_{name}")),
        ] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command, name, &mut script);
            let script = with_builds(shell, name, String::from_utf8_lossy(&script).into_owned());
            fs::write(out.join(path), script)?;
        }
    }
    Ok(())
}

/// Writes the page of a command, and those of its verbs, which it points to.
fn write_pages(out: &Path, command: &Command, section: &str, end: &str) -> io::Result<()> {
    let page = clap_mangen::Man::new(command.clone())
        .section(section)
        .source(format!("hostkit {}", hostkit::VERSION));
    let mut roff = Vec::new();
    page.render(&mut roff)?;
    roff.extend_from_slice(end.as_bytes());
    fs::write(out.join(page.get_filename()), roff)?;
    let name = command.get_display_name().unwrap_or(command.get_name());
    let end = format!(
        ".SH SEE ALSO\n.BR {} ({section})\n",
        name.replace('-', "\\-")
    );
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        write_pages(out, verb, section, &end)?;
    }
    Ok(())
}

/// Lets pexrun's completions know jobs and versions, which clap cannot.
fn with_builds(shell: Shell, name: &str, script: String) -> String {
    match (name, shell) {
        (pexrun::Args::NAME, Shell::Bash) => script + include_str!("../completion/pexrun.bash"),
        (pexrun::Args::NAME, Shell::Zsh) => {
            let (head, body) = script.split_once('\n').unwrap_or((&script, ""));
            let lines: Vec<String> = body
                .lines()
                .map(|line| match line.trim_start_matches(['\'', '*']) {
                    text if text.starts_with("::job ") => {
                        line.replace(":_default", ":_pexrun_jobs")
                    }
                    text if text.starts_with("::build ") => {
                        line.replace(":_default", ":_pexrun_builds")
                    }
                    _ => line.to_owned(),
                })
                .collect();
            format!(
                "{head}\n{}{}\n",
                include_str!("../completion/pexrun.zsh"),
                lines.join("\n")
            )
        }
        _ => script,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn completions_of_pexrun_know_builds() {
        let temp = std::env::temp_dir().join(format!("hostkit-completions-{}", std::process::id()));
        super::write(&temp).unwrap();
        let read = |path: &str| std::fs::read_to_string(temp.join(path)).unwrap();
        assert!(read("bash/pexrun").contains("complete -F _pexrun_builds pexrun"));
        let zsh = read("zsh/_pexrun");
        for word in ["_pexrun_jobs'", "_pexrun_builds'"] {
            assert!(zsh.contains(word), "{word}");
        }
        std::fs::remove_dir_all(&temp).unwrap();
    }

    #[test]
    fn pages_point_only_to_pages_that_are_written_and_verbs_have_their_flags() {
        let temp = std::env::temp_dir().join(format!("hostkit-pages-{}", std::process::id()));
        super::write(&temp).unwrap();
        let tools: Vec<&str> = super::pages().iter().map(|page| page.name).collect();
        let mut pointers = 0;
        for page in std::fs::read_dir(temp.join("man")).unwrap() {
            let page = page.unwrap().path();
            let roff = std::fs::read_to_string(&page).unwrap().replace("\\-", "-");
            for (before, after) in roff
                .match_indices('(')
                .map(|(at, _)| (&roff[..at], &roff[at + 1..]))
            {
                let name = before
                    .trim_end_matches(' ')
                    .rsplit([' ', '\n'])
                    .next()
                    .unwrap();
                let Some((section @ ("1" | "8"), _)) = after.split_once(')') else {
                    continue;
                };
                if tools.iter().any(|tool| name.starts_with(tool)) {
                    pointers += 1;
                    let target = temp.join(format!("man/{name}.{section}"));
                    assert!(
                        target.exists(),
                        "{} points to {name}({section})",
                        page.display()
                    );
                }
            }
        }
        assert!(pointers > 40, "{pointers}");
        for (page, flag) in [
            ("authproxy-key-new.1", "HOSTKIT_AUTHPROXY_KEY_NEW_RIGHT"),
            ("s3cache-put.1", "--replace"),
            ("synapse-journal.8", "HOSTKIT_SYNAPSE_JOURNAL_SINCE"),
        ] {
            let roff = std::fs::read_to_string(temp.join("man").join(page)).unwrap();
            assert!(roff.replace("\\-", "-").contains(flag), "{flag} in {page}");
        }
        std::fs::remove_dir_all(&temp).unwrap();
    }

    #[test]
    fn every_flag_is_in_the_page_and_in_the_completion() {
        let temp = std::env::temp_dir().join(format!("hostkit-packaging-{}", std::process::id()));
        super::write(&temp).unwrap();
        for page in super::pages() {
            let roff =
                std::fs::read_to_string(temp.join(format!("man/{}.{}", page.name, page.section)))
                    .unwrap();
            let bash = std::fs::read_to_string(temp.join(format!("bash/{}", page.name))).unwrap();
            for flag in page.command.get_arguments().filter_map(clap::Arg::get_long) {
                assert!(
                    roff.contains(&format!("\\-\\-{}", flag.replace('-', "\\-"))),
                    "{flag} in the page"
                );
                assert!(
                    bash.contains(&format!("--{flag}")),
                    "{flag} in the completion"
                );
            }
            for heading in ["EXIT STATUS", "FILES", "EXAMPLES"] {
                assert!(roff.contains(heading), "{heading} of {}", page.name);
            }
            for heading in ["OPTIONS", "LOGGING"] {
                assert!(
                    roff.contains(&format!(".SH {heading}\n")),
                    "{heading} of {}",
                    page.name
                );
            }
        }
        std::fs::remove_dir_all(&temp).unwrap();
    }
}
