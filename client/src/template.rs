//! Command templates as GNU parallel's: `{}` `{.}` `{/}` `{//}` `{/.}` `{#}`, each value quoted for the shell.

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    /// `{}`: the argument.
    Whole,
    /// `{.}`: without its extension.
    NoExtension,
    /// `{/}`: the last component of its path.
    Base,
    /// `{//}`: the path without it.
    Directory,
    /// `{/.}`: the last component without its extension.
    BaseNoExtension,
    /// `{#}`: the number of the job, from 1.
    Number,
}

impl Template {
    /// Reads a template; one without a placeholder gets ` {}` at its end.
    pub(crate) fn new(text: &str) -> Self {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(open) = rest.find('{') {
            plain.push_str(&rest[..open]);
            rest = &rest[open..];
            let found = [
                ("{}", Part::Whole),
                ("{.}", Part::NoExtension),
                ("{/}", Part::Base),
                ("{//}", Part::Directory),
                ("{/.}", Part::BaseNoExtension),
                ("{#}", Part::Number),
            ]
            .into_iter()
            .find(|(name, _)| rest.starts_with(name));
            match found {
                Some((name, part)) => {
                    if !plain.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut plain)));
                    }
                    parts.push(part);
                    rest = &rest[name.len()..];
                }
                None => {
                    plain.push('{');
                    rest = &rest[1..];
                }
            }
        }
        plain.push_str(rest);
        let any = !parts.is_empty();
        if !any {
            plain.push(' ');
        }
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        if !any {
            parts.push(Part::Whole);
        }
        Self { parts }
    }

    /// The command for one argument; `number` counts from 1.
    pub(crate) fn expand(&self, argument: &str, number: u64) -> String {
        let mut command = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => command.push_str(text),
                Part::Whole => quote(argument, &mut command),
                Part::NoExtension => quote(without_extension(argument), &mut command),
                Part::Base => quote(base(argument), &mut command),
                Part::Directory => quote(directory(argument), &mut command),
                Part::BaseNoExtension => quote(without_extension(base(argument)), &mut command),
                Part::Number => command.push_str(&number.to_string()),
            }
        }
        command
    }
}

/// What follows the last `/`.
fn base(path: &str) -> &str {
    path.rfind('/').map_or(path, |slash| &path[slash + 1..])
}

/// Without the last `.` of the last component and what follows it.
fn without_extension(path: &str) -> &str {
    let start = path.rfind('/').map_or(0, |slash| slash + 1);
    path[start..]
        .rfind('.')
        .map_or(path, |dot| &path[..start + dot])
}

/// What `dirname` prints.
fn directory(path: &str) -> &str {
    let trimmed = path.trim_end_matches('/');
    if trimmed.is_empty() {
        return if path.is_empty() { "." } else { "/" };
    }
    match trimmed.rfind('/') {
        None => ".",
        Some(slash) => match trimmed[..slash].trim_end_matches('/') {
            "" => "/",
            parent => parent,
        },
    }
}

/// Appends `value` so that a shell reads it as one word: as it is where nothing in it is special, else in single quotes.
fn quote(value: &str, to: &mut String) {
    if value.is_empty() {
        to.push_str("''");
    } else if value
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"-_.+/".contains(&b))
    {
        to.push_str(value);
    } else {
        to.push('\'');
        to.push_str(&value.replace('\'', "'\"'\"'"));
        to.push('\'');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(template: &str, argument: &str) -> String {
        Template::new(template).expand(argument, 7)
    }

    #[test]
    fn placeholders() {
        let path = "dir/sub.d/file.tar.gz";
        assert_eq!(expand("a {} b", path), "a dir/sub.d/file.tar.gz b");
        assert_eq!(expand("{.}", path), "dir/sub.d/file.tar");
        assert_eq!(expand("{/}", path), "file.tar.gz");
        assert_eq!(expand("{//}", path), "dir/sub.d");
        assert_eq!(expand("{/.}", path), "file.tar");
        assert_eq!(expand("{#}", path), "7");
        assert_eq!(expand("{}{}", "x"), "xx");
        assert_eq!(expand("gzip <{} >{.}.gz", "a.txt"), "gzip <a.txt >a.gz");
    }

    #[test]
    fn without_a_placeholder_the_argument_comes_last() {
        assert_eq!(expand("wc -l", "f"), "wc -l f");
        assert_eq!(expand("awk '{print $1}'", "f"), "awk '{print $1}' f");
        assert_eq!(expand("echo ${HOME}", "f"), "echo ${HOME} f");
    }

    #[test]
    fn edges_of_paths() {
        assert_eq!(expand("{//}", "file"), ".");
        assert_eq!(expand("{//}", "/file"), "/");
        assert_eq!(expand("{//}", "/"), "/");
        assert_eq!(expand("{//}", "a//b/"), "a");
        assert_eq!(expand("{.}", "dir.d/file"), "dir.d/file");
        assert_eq!(expand("{.}", "x.d/.hidden"), "x.d/");
        assert_eq!(expand("{/}", "dir/"), "''");
    }

    #[test]
    fn values_reach_the_command_unharmed() {
        for value in [
            "a b",
            "it's",
            "'",
            "''",
            "$HOME `id` \\ \"",
            "a\nb",
            "",
            "~",
            "*",
            "日本",
            "-n",
            "a;b&c|d<e>f(g)#h!",
        ] {
            let output = std::process::Command::new("/bin/bash")
                .args([
                    "-o",
                    "pipefail",
                    "-c",
                    &format!("printf %s {}", expand("{}", value)),
                ])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), value);
        }
    }
}
