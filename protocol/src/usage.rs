//! Errors of the programs' command lines.

/// The exit status of an engine process that can never start here: nobody starts it again. (`EX_CONFIG` of `sysexits.h`.)
pub const HOPELESS: u8 = 78;

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
    format!(
        "{} (see `{} --help`)",
        parts.join("; ").replace(":; ", ": "),
        command.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::one_line;

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
