//! Which hosts, and how many engines on each.

use std::{
    fs, io, iter,
    path::{Path, PathBuf},
};

/// One host as the user named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostSpec {
    /// A name from `~/.ssh/config`, or `[user@]host`.
    pub name: String,
    /// How many engines; none: shared out by cores.
    pub slots: Option<u32>,
    /// What its engines are tagged with.
    pub tags: Vec<String>,
}

/// Why a list of hosts is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostsError {
    /// One entry is none.
    #[error(
        "`{spec}` is not a host: expected HOST or HOST:ENGINES, such as node1:4 (a port goes into ~/.ssh/config)"
    )]
    Spec { spec: String },
    /// The file cannot be read.
    #[error("hosts file {path}: {source}", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    /// A line is none.
    #[error("hosts file {path}, line {line}: {reason}", path = path.display())]
    Line {
        path: PathBuf,
        line: usize,
        reason: String,
    },
    /// There is nothing in it.
    #[error("hosts file {path} names no host: write one `host[:engines] [tags…]` a line", path = path.display())]
    Empty { path: PathBuf },
}

/// Reads `--hosts` values: each may be a list with commas. A host named twice has the sum of its engines.
pub(crate) fn parse_list<S: AsRef<str>>(values: &[S]) -> Result<Vec<HostSpec>, HostsError> {
    let mut hosts = Vec::new();
    for value in values {
        let value = value.as_ref();
        let mut specs = value.split(',').map(str::trim).filter(|s| !s.is_empty());
        // Who names none, by an empty variable say, would wait for engines of none.
        let first = specs.next().unwrap_or_default();
        for spec in iter::once(first).chain(specs) {
            add(
                &mut hosts,
                parse_host(spec).ok_or_else(|| HostsError::Spec {
                    spec: spec.to_owned(),
                })?,
            );
        }
    }
    Ok(hosts)
}

/// Reads a hosts file: one `host[:slots] [tags…]` a line, `#` begins a comment; or, if its name ends in `.py`, an
/// `ipcluster_config.py` with `c.SSHEngineSetLauncher.engines`.
pub(crate) fn read_file(path: &Path) -> Result<Vec<HostSpec>, HostsError> {
    let text = fs::read_to_string(path).map_err(|source| HostsError::Read {
        path: path.to_owned(),
        source,
    })?;
    let at = |line: usize, reason: String| HostsError::Line {
        path: path.to_owned(),
        line,
        reason,
    };
    let mut hosts = Vec::new();
    if path.extension().is_some_and(|e| e == "py") {
        for host in python_engines(&text).map_err(|(line, reason)| at(line, reason))? {
            add(&mut hosts, host);
        }
    } else {
        for (index, line) in text.lines().enumerate() {
            let mut words = line.split('#').next().unwrap_or("").split_whitespace();
            let Some(first) = words.next() else { continue };
            let mut host = parse_host(first).ok_or_else(|| {
                at(
                    index + 1,
                    HostsError::Spec {
                        spec: first.to_owned(),
                    }
                    .to_string(),
                )
            })?;
            for word in words {
                match word.strip_prefix("slots=") {
                    Some(n) => {
                        host.slots = Some(n.parse().ok().filter(|&n| n > 0).ok_or_else(|| {
                            at(index + 1, format!("`{word}` is no number of engines"))
                        })?)
                    }
                    None => host.tags.push(word.to_owned()),
                }
            }
            add(&mut hosts, host);
        }
    }
    if hosts.is_empty() {
        Err(HostsError::Empty {
            path: path.to_owned(),
        })
    } else {
        Ok(hosts)
    }
}

fn add(hosts: &mut Vec<HostSpec>, host: HostSpec) {
    match hosts.iter_mut().find(|h| h.name == host.name) {
        Some(known) => {
            known.slots = match (known.slots, host.slots) {
                (None, None) => None,
                (a, b) => Some(a.unwrap_or(1) + b.unwrap_or(1)),
            };
            known.tags.extend(host.tags);
        }
        None => hosts.push(host),
    }
}

fn parse_host(spec: &str) -> Option<HostSpec> {
    let (name, slots) = match spec.rsplit_once(':') {
        Some((name, slots)) if !name.contains(':') || name.ends_with(']') => {
            (name, Some(slots.parse().ok().filter(|&n| n > 0)?))
        }
        _ => (spec, None),
    };
    let bare = name.rsplit('@').next().unwrap_or(name);
    let valid = !bare.is_empty()
        && !name.starts_with(['-', '@'])
        && name
            .chars()
            .all(|c| !c.is_whitespace() && !c.is_control() && !"'\"`$;&|<>()".contains(c));
    valid.then(|| HostSpec {
        name: name.to_owned(),
        slots,
        tags: Vec::new(),
    })
}

/// Reads `c.SSHEngineSetLauncher.engines = {'host': 4, 'user@other': (2, ['--args'])}` and
/// `c.SSHEngineSetLauncher.engines['host'] = 4` of a Python file, as literals.
fn python_engines(text: &str) -> Result<Vec<HostSpec>, (usize, String)> {
    const KEY: &str = "SSHEngineSetLauncher.engines";
    let mut hosts = Vec::new();
    let mut found = false;
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        let begin = offset;
        offset += line.len();
        let assignment = line.trim_start().strip_prefix("c.");
        if assignment.is_none_or(|assignment| !assignment.starts_with(KEY)) {
            continue;
        }
        let start = begin + line.len() - line.trim_start().len() + "c.".len() + KEY.len();
        let mut lexer = Lexer { text, at: start };
        python_assignment(&mut lexer, &mut hosts).map_err(|reason| {
            (
                text[..lexer.at.min(text.len())].matches('\n').count() + 1,
                format!("{KEY}: {reason}; expected a dictionary such as {{'node1': 4}}"),
            )
        })?;
        found = true;
    }
    if found {
        Ok(hosts)
    } else {
        Err((1, format!("no c.{KEY} = {{…}} in it")))
    }
}

/// `= {…}`, or `['host'] = …`.
fn python_assignment(lexer: &mut Lexer<'_>, hosts: &mut Vec<HostSpec>) -> Result<(), String> {
    if lexer.accept('[') {
        let name = lexer.string()?;
        lexer.expect(']')?;
        lexer.expect('=')?;
        hosts.push(python_entry(lexer, &name)?);
        return Ok(());
    }
    lexer.expect('=')?;
    lexer.expect('{')?;
    while !lexer.accept('}') {
        let name = lexer.string()?;
        lexer.expect(':')?;
        hosts.push(python_entry(lexer, &name)?);
        if !lexer.accept(',') {
            return lexer.expect('}');
        }
    }
    Ok(())
}

/// A number of engines, or a tuple that begins with one.
fn python_entry(lexer: &mut Lexer<'_>, name: &str) -> Result<HostSpec, String> {
    let slots = if lexer.accept('(') || lexer.accept('[') {
        let n = lexer.number()?;
        let mut depth = 1;
        while depth > 0 {
            match lexer.any()? {
                '(' | '[' => depth += 1,
                ')' | ']' => depth -= 1,
                _ => {}
            }
        }
        n
    } else {
        lexer.number()?
    };
    let mut host = parse_host(name).ok_or_else(|| format!("'{name}' is no host"))?;
    host.slots = Some(slots);
    Ok(host)
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl Lexer<'_> {
    fn skip(&mut self) {
        loop {
            let rest = &self.text[self.at..];
            let trimmed = rest.trim_start_matches(|c: char| c.is_whitespace() || c == '\\');
            self.at += rest.len() - trimmed.len();
            if !trimmed.starts_with('#') {
                return;
            }
            self.at += trimmed.find('\n').unwrap_or(trimmed.len());
        }
    }

    fn peek(&mut self) -> Option<char> {
        self.skip();
        self.text[self.at..].chars().next()
    }

    fn accept(&mut self, wanted: char) -> bool {
        let yes = self.peek() == Some(wanted);
        if yes {
            self.at += wanted.len_utf8();
        }
        yes
    }

    fn expect(&mut self, wanted: char) -> Result<(), String> {
        if self.accept(wanted) {
            Ok(())
        } else {
            Err(format!("`{wanted}` missing"))
        }
    }

    /// One token, strings as a whole.
    fn any(&mut self) -> Result<char, String> {
        match self.peek() {
            Some('\'' | '"') => self.string().map(|_| '\''),
            Some(c) => {
                self.at += c.len_utf8();
                Ok(c)
            }
            None => Err("it has no end".to_owned()),
        }
    }

    fn string(&mut self) -> Result<String, String> {
        let quote = self
            .peek()
            .filter(|c| matches!(c, '\'' | '"'))
            .ok_or("a string is missing")?;
        let rest = &self.text[self.at + 1..];
        let end = rest.find(quote).ok_or("a string has no end")?;
        self.at += end + 2;
        Ok(rest[..end].to_owned())
    }

    fn number(&mut self) -> Result<u32, String> {
        self.skip();
        let rest = &self.text[self.at..];
        let digits = rest.len()
            - rest
                .trim_start_matches(|c: char| c.is_ascii_digit() || c == '_')
                .len();
        let n = rest[..digits]
            .replace('_', "")
            .parse()
            .ok()
            .filter(|&n| n > 0)
            .ok_or("a number of engines is missing")?;
        self.at += digits;
        Ok(n)
    }
}

/// Shares `total` engines out over hosts with so many cores each: as evenly as the cores allow, and beyond them as evenly
/// for what they can bear.
pub(crate) fn share(total: u32, cores: &[u32]) -> Vec<u32> {
    let mut shares = vec![0_u32; cores.len()];
    if cores.is_empty() {
        return shares;
    }
    for _ in 0..total {
        // The least engines so far among hosts with a free core; else the least engines a core.
        let free = (0..cores.len())
            .filter(|&i| shares[i] < cores[i])
            .min_by_key(|&i| shares[i]);
        let next = free.or_else(|| {
            (0..cores.len()).min_by(|&a, &b| {
                (u64::from(shares[a] + 1) * u64::from(cores[b].max(1)))
                    .cmp(&(u64::from(shares[b] + 1) * u64::from(cores[a].max(1))))
            })
        });
        if let Some(i) = next {
            shares[i] += 1;
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str, slots: Option<u32>, tags: &[&str]) -> HostSpec {
        HostSpec {
            name: name.into(),
            slots,
            tags: tags.iter().map(|&t| t.into()).collect(),
        }
    }

    #[test]
    fn lists() {
        assert_eq!(
            parse_list(&["a:4,u@b:2", "c"]).unwrap(),
            [
                host("a", Some(4), &[]),
                host("u@b", Some(2), &[]),
                host("c", None, &[])
            ]
        );
        assert_eq!(
            parse_list(&["a:4", "a:1", "b,b"]).unwrap(),
            [host("a", Some(5), &[]), host("b", None, &[])]
        );
        assert_eq!(
            parse_list(&["[fe80::1]:3", "fe80::1"]).unwrap(),
            [host("[fe80::1]", Some(3), &[]), host("fe80::1", None, &[])]
        );
        for bad in ["", ",", "a:0", "a:x", ":4", "-a", "a;b", "u@"] {
            assert!(
                parse_list(&[bad]).unwrap_err().to_string().contains(bad),
                "{bad}"
            );
        }
    }

    fn file(name: &str, text: &str) -> Result<Vec<HostSpec>, HostsError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        read_file(&path)
    }

    #[test]
    fn files() {
        assert_eq!(
            file(
                "hosts",
                "# mine\na:4 rack1 gpu  # fast\n\nb rack2\nc slots=3\n"
            )
            .unwrap(),
            [
                host("a", Some(4), &["rack1", "gpu"]),
                host("b", None, &["rack2"]),
                host("c", Some(3), &[])
            ]
        );
        let error = file("hosts", "a\nb:none\n").unwrap_err().to_string();
        assert!(
            error.contains("line 2") && error.contains("b:none"),
            "{error}"
        );
        assert!(
            file("hosts", "# nothing\n")
                .unwrap_err()
                .to_string()
                .contains("names no host")
        );
        assert!(
            read_file(Path::new("/no/such"))
                .unwrap_err()
                .to_string()
                .contains("/no/such")
        );
    }

    #[test]
    fn python_configurations() {
        let text = "c = get_config()\nc.IPClusterStart.engine_launcher_class = 'SSH'\n# c.SSHEngineSetLauncher.engines = {'no': 1}\n\nc.SSHEngineSetLauncher.engines = {\n    'mezcal01.cl': 4,  # four\n    \"me@mezcal02.cl\": (2, ['--profile-dir=/x, }']),\n}\nc.SSHEngineSetLauncher.engines['late'] = 1\n";
        assert_eq!(
            file("ipcluster_config.py", text).unwrap(),
            [
                host("mezcal01.cl", Some(4), &[]),
                host("me@mezcal02.cl", Some(2), &[]),
                host("late", Some(1), &[])
            ]
        );
        let error = file(
            "x.py",
            "\nc.SSHEngineSetLauncher.engines = {\n 'a': four,\n}\n",
        )
        .unwrap_err()
        .to_string();
        assert!(
            error.contains("line 3") && error.contains("number"),
            "{error}"
        );
        assert!(
            file("x.py", "pass\n")
                .unwrap_err()
                .to_string()
                .contains("SSHEngineSetLauncher")
        );
    }

    #[test]
    fn shares_are_even_within_the_cores() {
        assert_eq!(share(16, &[8, 8, 8]), [6, 5, 5]);
        assert_eq!(share(16, &[2, 8, 8]), [2, 7, 7]);
        assert_eq!(share(12, &[2, 4]), [4, 8]);
        assert_eq!(share(2, &[1, 1, 1]), [1, 1, 0]);
        assert_eq!(share(3, &[0, 0]), [2, 1]);
        assert_eq!(share(4, &[]), [] as [u32; 0]);
    }
}
