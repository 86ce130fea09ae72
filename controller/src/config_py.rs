//! The profile's `ipcontroller_config.py`: its literal assignments (`c.HeartMonitor.period = 200`) are applied, the
//! other lines are named.

use std::{fs, io, path::Path};

use crate::cli;

/// What a configuration file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Config {
    /// Its assignments, as options: `(line, option)`.
    pub options: Vec<(usize, String)>,
    /// Lines that were not applied, and why.
    pub skipped: Vec<Skipped>,
}

/// A line that was not applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Skipped {
    pub line: usize,
    pub text: String,
    pub why: String,
}

/// Reads a configuration file; one that is not there says nothing.
pub(crate) fn load(path: &Path) -> io::Result<Config> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(parse(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Config::default()),
        Err(error) => Err(error),
    }
}

/// Reads the text of a configuration file.
pub(crate) fn parse(text: &str) -> Config {
    let mut config = Config::default();
    let mut lines = text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let mut statement = strip_comment(line).trim().to_owned();
        // A list or tuple may go on over several lines.
        while statement.contains('=') && open_brackets(&statement) > 0 {
            match lines.next() {
                Some((_, next)) => statement.push_str(strip_comment(next).trim()),
                None => break,
            }
        }
        if statement.is_empty() || is_preamble(&statement) {
            continue;
        }
        match assignment(&statement) {
            Ok(Some(option)) => config.options.push((index + 1, option)),
            Ok(None) => {}
            Err(why) => config.skipped.push(Skipped {
                line: index + 1,
                text: statement,
                why,
            }),
        }
    }
    config
}

/// What IPython itself writes at the head of a configuration file.
fn is_preamble(statement: &str) -> bool {
    let compact: String = statement.chars().filter(|c| !c.is_whitespace()).collect();
    matches!(compact.as_str(), "c=get_config()" | "get_config")
}

fn assignment(statement: &str) -> Result<Option<String>, String> {
    let not_literal =
        || "only literal assignments like `c.HeartMonitor.period = 200` are read".to_owned();
    let (target, value) = statement.split_once('=').ok_or_else(not_literal)?;
    let mut parts = target
        .trim()
        .strip_prefix("c.")
        .ok_or_else(not_literal)?
        .split('.');
    let (Some(class), Some(name), None) = (parts.next(), parts.next(), parts.next()) else {
        return Err(not_literal());
    };
    let is_name =
        |text: &str| !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || c == '_');
    if !is_name(class) || !is_name(name) {
        return Err(not_literal());
    }
    let value = literal(value.trim()).ok_or_else(not_literal)?;
    match cli::translate(class, name, &value) {
        Ok(option) => Ok(option),
        Err(None) => Err(format!("ipctl has no `{class}.{name}`")),
        Err(Some(why)) => Err(why),
    }
}

/// The value of a Python literal as an option's value.
fn literal(text: &str) -> Option<String> {
    if let Some(text) = string(text) {
        return Some(text);
    }
    if let Some(items) = text
        .strip_prefix(['[', '('])
        .and_then(|rest| rest.strip_suffix([']', ')']))
    {
        let items: Option<Vec<String>> = items
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
            .map(literal)
            .collect();
        return items.map(|items| items.join(","));
    }
    if let Some(bounds) = text
        .strip_prefix("range(")
        .and_then(|rest| rest.strip_suffix(')'))
    {
        let bounds: Option<Vec<u16>> = bounds
            .split(',')
            .map(|bound| bound.trim().parse().ok())
            .collect();
        return match bounds?.as_slice() {
            [low, high] if low < high => Some(format!("{low}-{}", high - 1)),
            _ => None,
        };
    }
    let number = text.replace('_', "");
    (matches!(text, "True" | "False") || number.parse::<f64>().is_ok()).then_some(number)
}

/// A Python string literal without its quotes; backslashes only before quotes and backslashes.
fn string(text: &str) -> Option<String> {
    let text = text.trim_start_matches(['b', 'u', 'r']);
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let mut inner = String::new();
    let mut chars = text[1..].chars();
    loop {
        match chars.next()? {
            '\\' => match chars.next()? {
                escaped @ ('\\' | '\'' | '"') => inner.push(escaped),
                _ => return None,
            },
            c if c == quote => return chars.next().is_none().then_some(inner),
            c => inner.push(c),
        }
    }
}

fn strip_comment(line: &str) -> &str {
    let mut quote = None;
    for (at, c) in line.char_indices() {
        match (quote, c) {
            (None, '#') => return &line[..at],
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            _ => {}
        }
    }
    line
}

fn open_brackets(text: &str) -> i32 {
    text.chars()
        .map(|c| match c {
            '[' | '(' => 1,
            ']' | ')' => -1,
            _ => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literal_assignments_become_options() {
        let config = parse(
            "# Configuration file\nc = get_config()  #noqa\n\nc.HeartMonitor.period = 200\n\
             c.IPController.ip = '0.0.0.0'  # all\nc.IPController.reuse_files = True\n\
             c.IPController.restore_engines = False\nc.IPController.ports = [\n  10101,\n  10102,\n]\n\
             c.IPController.db_class = \"NoDB\"\nc.Session.key = b'a#b'\nc.TaskScheduler.hwm = 1_0\n",
        );
        let options: Vec<&str> = config
            .options
            .iter()
            .map(|(_, option)| option.as_str())
            .collect();
        assert_eq!(
            options,
            [
                "--ping=200",
                "--ip=0.0.0.0",
                "--reuse",
                "--ports=10101,10102",
                "--nodb",
                "--session-key=a#b",
                "--hwm=10"
            ]
        );
        assert_eq!(config.skipped, []);
        assert_eq!(config.options[0].0, 4);
    }

    #[test]
    fn other_lines_are_named() {
        let config = parse(
            "import os\nc.HeartMonitor.period = os.getpid()\nc.IPController.use_threads = True\nc.X = 1\n",
        );
        assert!(config.options.is_empty());
        let lines: Vec<usize> = config.skipped.iter().map(|skipped| skipped.line).collect();
        assert_eq!(lines, [1, 2, 3, 4]);
        assert!(config.skipped[2].why.contains("IPController.use_threads"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_survived(text in "[c.=A-Za-z0-9'\"\\[\\]()#,\\\\ \n]{0,200}") {
            let _ = parse(&text);
        }
    }
}
