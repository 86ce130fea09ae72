//! Of what kind a task is: tasks of one kind have one colour in pictures of a run.

/// Programs that run what another word names.
const RUNNERS: [&str; 12] = [
    "bash", "env", "exec", "julia", "nice", "node", "perl", "python", "python3", "Rscript", "sh",
    "time",
];

/// A kind is cut after so many characters.
const LONGEST: usize = 40;

/// Of a command its program, and with an interpreter its script: `align` of `./align a.fa`, `python train.py` of
/// `SEED=1 python3.13 -u src/train.py`.
#[must_use]
pub fn of_command(command: &str) -> String {
    let mut lines = command.lines().map(str::trim);
    let line = lines.find(|line| !line.is_empty() && !line.starts_with('#'));
    let words = line.unwrap_or_default().split_whitespace();
    let mut words = words.filter(|word| !is_assignment(word));
    let first = words.next().map_or("", base);
    if !RUNNERS.contains(&first) {
        return of_name(first);
    }
    for word in words {
        match word {
            // What follows is a program itself.
            "-c" | "-e" => break,
            option if option.starts_with('-') => {}
            script => return of_name(&format!("{first} {}", base(script))),
        }
    }
    of_name(first)
}

/// Of a function its name.
#[must_use]
pub fn of_name(name: &str) -> String {
    name.chars().take(LONGEST).map(plain).collect()
}

/// A character as it is shown in terminals: what would steer them, or turn the direction of what follows, is left out.
#[must_use]
pub fn plain(c: char) -> char {
    match c {
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => ' ',
        c if c.is_control() => ' ',
        c => c,
    }
}

/// A path's last component, out of its quotes.
fn base(word: &str) -> &str {
    let word = word.trim_matches(['"', '\'', '(', ')', ';', '{', '}']);
    word.rsplit('/').next().unwrap_or(word)
}

fn is_assignment(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_of_the_kind_of_its_program() {
        for (command, kind) in [
            ("./align a.fa", "align"),
            ("\n# it counts\n  A=1 B='x' /usr/bin/wc -l <f\n", "wc"),
            ("python -u src/train.py --seed=3", "python train.py"),
            ("python -m pytest", "python pytest"),
            ("env A=1 sort", "env sort"),
            ("sh -c 'echo hi'", "sh"),
            ("bash", "bash"),
            ("'my tool'", "my"),
            ("", ""),
            ("\u{1b}[2J", " [2J"),
        ] {
            assert_eq!(of_command(command), kind, "{command}");
        }
        assert_eq!(of_command(&"é".repeat(100)).chars().count(), LONGEST);
    }
}
