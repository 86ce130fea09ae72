//! What stands in the way of the programs, in one line for their users.

use std::{fmt::Display, fs, io::Write, path::Path};

use tracing::Level;

/// The exit status of an engine process that can never start here: nobody starts it again. (`EX_CONFIG` of `sysexits.h`.)
pub const HOPELESS: u8 = 78;

/// Tells on standard error why a program ends, in one write: lines of several that share a terminal or a log stay whole.
/// Nothing happens if nobody is there to read it.
pub fn complain(program: &str, words: impl Display) {
    let line = format!("{program}: {words}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Whether the system has what programs that start and watch processes need; some chroots and containers lack it.
///
/// # Errors
/// One line: what is missing, and what to do.
pub fn check_system() -> Result<(), String> {
    check_system_at(Path::new("/"))
}

fn check_system_at(root: &Path) -> Result<(), String> {
    if let Err(error) = fs::read_link(root.join("proc/self/exe")) {
        return Err(format!(
            "/proc/self/exe: {error}: /proc is not mounted, and without it jobs can be neither started nor watched; `mount -t proc proc /proc` in this chroot or container mounts it"
        ));
    }
    let null = root.join("dev/null");
    if let Err(error) = fs::File::options().read(true).write(true).open(null) {
        return Err(format!(
            "/dev/null: {error}: no process can be started without it; `mknod -m 666 /dev/null c 1 3` makes it, or mount the host's /dev"
        ));
    }
    Ok(())
}

/// A usage error that clap has rendered, in one line: what, where, and what to do. `program` is whose help to read when
/// the text has no `Usage:`.
#[must_use]
pub fn one_line(rendered: &str, program: &str) -> String {
    let mut parts = Vec::new();
    let mut usage = program;
    for line in rendered
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
    {
        if let Some(rest) = line.strip_prefix("Usage:") {
            usage = rest;
            break;
        }
        if line.starts_with("For more information") {
            break;
        }
        // Hardly what somebody wanted who has mistyped an option.
        if line.starts_with("tip: to pass") {
            continue;
        }
        parts.push(
            line.strip_prefix("error: ")
                .or_else(|| line.strip_prefix("tip: "))
                .unwrap_or(line),
        );
    }
    let command: Vec<&str> = usage
        .split_whitespace()
        .take_while(|word| !word.starts_with(['[', '<', '-']))
        .collect();
    let mut text = parts.join("; ").replace(":; ", ": ");
    // Rust's words for a number that is none say nothing to others.
    if let Some(before) = text.strip_suffix("invalid digit found in string") {
        text = format!("{before}a whole number is needed");
    }
    format!("{text} (see `{} --help`)", command.join(" "))
}

/// `--log-level`: a name or a number, as Python has them.
///
/// # Errors
/// What would be one.
pub fn level(text: &str) -> Result<Level, String> {
    Ok(match text.to_ascii_lowercase().as_str() {
        "trace" => Level::TRACE,
        "debug" => Level::DEBUG,
        "info" => Level::INFO,
        "warn" | "warning" => Level::WARN,
        "error" | "critical" | "fatal" => Level::ERROR,
        number => match number.parse::<u32>() {
            Ok(0..10) => Level::TRACE,
            Ok(10..20) => Level::DEBUG,
            Ok(20..30) => Level::INFO,
            Ok(30..40) => Level::WARN,
            Ok(_) => Level::ERROR,
            Err(_) => {
                return Err("debug, info, warning, error, critical, or a number like 10".into());
            }
        },
    })
}

#[cfg(test)]
mod tests {
    use super::{Level, check_system, check_system_at, level, one_line};

    #[test]
    fn levels_by_name_and_number() {
        for (text, known) in [
            ("10", Level::DEBUG),
            ("Warning", Level::WARN),
            ("50", Level::ERROR),
            ("INFO", Level::INFO),
            ("0", Level::TRACE),
        ] {
            assert_eq!(level(text), Ok(known));
        }
        assert!(level("loud").is_err());
    }

    #[test]
    fn what_the_system_lacks_is_named() {
        assert_eq!(check_system(), Ok(()));
        let root = tempfile::tempdir().unwrap();
        let error = check_system_at(root.path()).unwrap_err();
        assert!(
            error.contains("mount -t proc") && !error.contains('\n'),
            "{error}"
        );
        std::fs::create_dir_all(root.path().join("proc/self")).unwrap();
        std::os::unix::fs::symlink("/bin/sh", root.path().join("proc/self/exe")).unwrap();
        let error = check_system_at(root.path()).unwrap_err();
        assert!(
            error.starts_with("/dev/null: ") && !error.contains('\n'),
            "{error}"
        );
        std::fs::create_dir(root.path().join("dev")).unwrap();
        std::fs::write(root.path().join("dev/null"), "").unwrap();
        assert_eq!(check_system_at(root.path()), Ok(()));
    }

    #[test]
    fn the_help_of_the_subcommand_is_named() {
        let text = "\
error: unexpected argument '--frobnicate' found

  tip: to pass '--frobnicate' as a value, use '-- --frobnicate'

Usage: ipclient run [OPTIONS] [FILE]

For more information, try '--help'.
";
        assert_eq!(
            one_line(text, "ipclient"),
            "unexpected argument '--frobnicate' found (see `ipclient run --help`)"
        );
    }

    #[test]
    fn tips_and_lists_are_kept() {
        let text = "\
error: unexpected argument '--engine' found

  tip: a similar argument exists: '--engines'

Usage: ipengine --engines <N>

For more information, try '--help'.
";
        assert_eq!(
            one_line(text, "ipengine"),
            "unexpected argument '--engine' found; a similar argument exists: '--engines' (see `ipengine --help`)"
        );
        let text = "\
error: the following required arguments were not provided:
  <SHELL>

Usage: ipctl completions <SHELL>

For more information, try '--help'.
";
        assert_eq!(
            one_line(text, "ipctl"),
            "the following required arguments were not provided: <SHELL> (see `ipctl completions --help`)"
        );
    }

    #[test]
    fn without_usage_the_program_is_named() {
        let text = "\
error: invalid value '0' for '--engines <N>': 0 is not in 1..=65535

For more information, try '--help'.
";
        assert_eq!(
            one_line(text, "ipengine"),
            "invalid value '0' for '--engines <N>': 0 is not in 1..=65535 (see `ipengine --help`)"
        );
    }
}
