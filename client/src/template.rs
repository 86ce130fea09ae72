//! Replacement strings as GNU parallel's, each value quoted for the shell.

use std::fmt::Write;

/// What a template is read with.
#[derive(Debug, Default)]
pub(crate) struct Style<'a> {
    /// Another word for `{}`.
    pub(crate) whole: Option<&'a str>,
    /// `{..}`, `{+.}` and their like.
    pub(crate) plus: bool,
    /// Names of arguments, by place.
    pub(crate) names: &'a [String],
    /// What is between the replacement strings is one word for the shell.
    pub(crate) quoted: bool,
}

/// What a template is filled with.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Values<'a> {
    pub(crate) arguments: &'a [String],
    /// Number of the job, from 1.
    pub(crate) number: u64,
    /// How many there are, where that is known.
    pub(crate) total: Option<u64>,
    /// Number of the engine, from 1; none: the job's own environment says it.
    pub(crate) slot: Option<u64>,
    /// The values are for a shell.
    pub(crate) quote: bool,
}

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    /// `{}`, `{2}`, `{-1}`, `{name}`, with what is made of it: all arguments, or one, from 1, or from the end.
    Argument(Option<i64>, Make),
    /// An argument that is a command of its own.
    Command,
    /// `{#}`
    Number,
    /// `{##}`
    Total,
    /// `{%}`
    Slot,
}

/// What is made of an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Make {
    /// `{}`: nothing.
    Whole,
    /// `{.}` `{..}` `{...}`: so many extensions less.
    Without(u8),
    /// `{/}`: the last component of its path.
    Base,
    /// `{//}`: the path without it.
    Directory,
    /// `{/.}` `{/..}` `{/...}`: the last component with so many extensions less.
    BaseWithout(u8),
    /// `{+.}` `{+..}` `{+...}`: its extensions.
    Extensions(u8),
    /// `{+/}`: what is before the last component.
    Before,
}

const MAKES: [(&str, Make); 5] = [
    ("", Make::Whole),
    (".", Make::Without(1)),
    ("/", Make::Base),
    ("//", Make::Directory),
    ("/.", Make::BaseWithout(1)),
];

const PLUS: [(&str, Make); 8] = [
    ("..", Make::Without(2)),
    ("...", Make::Without(3)),
    ("/..", Make::BaseWithout(2)),
    ("/...", Make::BaseWithout(3)),
    ("+.", Make::Extensions(1)),
    ("+..", Make::Extensions(2)),
    ("+...", Make::Extensions(3)),
    ("+/", Make::Before),
];

impl Make {
    fn of(self, argument: &str) -> &str {
        match self {
            Self::Whole => argument,
            Self::Without(count) => without_extensions(argument, count),
            Self::Base => base(argument),
            Self::Directory => directory(argument),
            Self::BaseWithout(count) => without_extensions(base(argument), count),
            Self::Extensions(count) => {
                let rest = &argument[without_extensions(argument, count).len()..];
                rest.strip_prefix('.').unwrap_or(rest)
            }
            Self::Before => argument.rfind('/').map_or("", |slash| &argument[..slash]),
        }
    }
}

impl Template {
    /// Reads a template.
    pub(crate) fn new(text: &str, style: &Style<'_>) -> Self {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(next) = rest.chars().next() {
            let found = match (style.whole, rest.strip_prefix('{')) {
                (Some(whole), _) if rest.starts_with(whole) => {
                    Some((Part::Argument(None, Make::Whole), whole.len()))
                }
                (_, Some(inner)) => inner.find('}').and_then(|end| {
                    let part = Part::read(&inner[..end], style)?;
                    Some((part, end + 2))
                }),
                _ => None,
            };
            let length = match found {
                Some((part, length)) => {
                    text_part(&mut parts, &mut plain, style);
                    parts.push(part);
                    length
                }
                None => {
                    plain.push(next);
                    next.len_utf8()
                }
            };
            rest = &rest[length..];
        }
        text_part(&mut parts, &mut plain, style);
        Self { parts }
    }

    /// The template of a command. One without a replacement string gets all arguments at its end, unless it is to get
    /// none; an empty one is its argument.
    pub(crate) fn command(words: &[String], style: &Style<'_>, append: bool) -> Self {
        if words.is_empty() {
            let parts = vec![Part::Command];
            return Self { parts };
        }
        let mut template = Self::default();
        if style.quoted {
            for word in words {
                if !template.parts.is_empty() {
                    template.parts.push(Part::Text(" ".into()));
                }
                template.parts.extend(Self::new(word, style).parts);
            }
        } else {
            template = Self::new(&words.join(" "), style);
        }
        if append && template.is_plain() {
            template.parts.push(Part::Text(" ".into()));
            template.parts.push(Part::Argument(None, Make::Whole));
        }
        template
    }

    /// Fills it.
    pub(crate) fn expand(&self, values: &Values<'_>) -> String {
        let mut text = String::new();
        self.write(values, &mut text);
        text
    }

    fn write(&self, values: &Values<'_>, to: &mut String) {
        let put = |argument: &str, to: &mut String| {
            if values.quote {
                quote(argument, to);
            } else {
                to.push_str(argument);
            }
        };
        for part in &self.parts {
            match part {
                Part::Text(text) => to.push_str(text),
                Part::Command => to.push_str(&values.arguments.join(" ")),
                Part::Argument(None, make) => {
                    for (at, argument) in values.arguments.iter().enumerate() {
                        if at > 0 {
                            to.push(' ');
                        }
                        put(make.of(argument), to);
                    }
                }
                Part::Argument(Some(place), make) => {
                    let count = values.arguments.len() as i64;
                    let at = if *place < 0 { count + place } else { place - 1 };
                    // One that is not there is nothing, not an empty word.
                    if let Some(argument) = usize::try_from(at)
                        .ok()
                        .and_then(|at| values.arguments.get(at))
                    {
                        put(make.of(argument), to);
                    }
                }
                Part::Number => {
                    let _ = write!(to, "{}", values.number);
                }
                Part::Total => {
                    let _ = values.total.map(|total| write!(to, "{total}"));
                }
                Part::Slot => match values.slot {
                    Some(slot) => {
                        let _ = write!(to, "{slot}");
                    }
                    None => to.push_str("$((IPBROKER_ENGINE_ID+1))"),
                },
            }
        }
    }

    /// Fills it with many arguments: each word that has a replacement string comes once for each of them.
    pub(crate) fn repeat(&self, values: &Values<'_>) -> String {
        let mut text = String::new();
        let mut word = Self::default();
        let flush = |word: &mut Self, text: &mut String| {
            let of_arguments = |part: &Part| matches!(part, Part::Argument(..));
            if word.parts.iter().any(of_arguments) {
                for (at, argument) in values.arguments.iter().enumerate() {
                    if at > 0 {
                        text.push(' ');
                    }
                    let arguments = std::slice::from_ref(argument);
                    word.write(
                        &Values {
                            arguments,
                            ..*values
                        },
                        text,
                    );
                }
            } else {
                word.write(values, text);
            }
            word.parts.clear();
        };
        for part in &self.parts {
            let Part::Text(plain) = part else {
                word.parts.push(part.clone());
                continue;
            };
            for piece in plain.split_inclusive(char::is_whitespace) {
                let bare = piece.trim_end();
                if !bare.is_empty() {
                    word.parts.push(Part::Text(bare.to_owned()));
                }
                if bare.len() < piece.len() {
                    flush(&mut word, &mut text);
                    text.push_str(&piece[bare.len()..]);
                }
            }
        }
        flush(&mut word, &mut text);
        text
    }

    /// Whether it needs to know how many jobs there are.
    pub(crate) fn needs_total(&self) -> bool {
        self.parts.contains(&Part::Total)
    }

    /// Whether there is any replacement string in it.
    pub(crate) fn is_plain(&self) -> bool {
        self.parts.iter().all(|part| matches!(part, Part::Text(_)))
    }
}

fn text_part(parts: &mut Vec<Part>, plain: &mut String, style: &Style<'_>) {
    if plain.is_empty() {
        return;
    }
    let text = std::mem::take(plain);
    if style.quoted {
        let mut quoted = String::new();
        quote(&text, &mut quoted);
        parts.push(Part::Text(quoted));
    } else {
        parts.push(Part::Text(text));
    }
}

impl Part {
    /// What is between the braces.
    fn read(inner: &str, style: &Style<'_>) -> Option<Self> {
        match inner {
            "#" => return Some(Self::Number),
            "%" => return Some(Self::Slot),
            "##" if style.plus => return Some(Self::Total),
            "" if style.whole.is_some() => return None,
            _ => {}
        }
        let plus = if style.plus { &PLUS[..] } else { &[] };
        let make = |text: &str| {
            MAKES
                .iter()
                .chain(plus)
                .find(|(name, _)| *name == text)
                .map(|(_, make)| *make)
        };
        if let Some(make) = make(inner) {
            return Some(Self::Argument(None, make));
        }
        let named = (1..).zip(style.names).filter(|(_, name)| !name.is_empty());
        for (place, name) in named {
            if let Some(make) = inner.strip_prefix(name.as_str()).and_then(make) {
                return Some(Self::Argument(Some(place), make));
            }
        }
        let digits = inner.strip_prefix('-').unwrap_or(inner);
        let end = digits
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(digits.len());
        let (number, rest) = inner.split_at(inner.len() - digits.len() + end);
        let place: i64 = number.parse().ok().filter(|place| *place != 0)?;
        Some(Self::Argument(Some(place), make(rest)?))
    }
}

/// What follows the last `/`.
fn base(path: &str) -> &str {
    path.rfind('/').map_or(path, |slash| &path[slash + 1..])
}

/// Without the last `count` dots of the last component and what follows them; with all of it, if it has fewer.
fn without_extensions(path: &str, count: u8) -> &str {
    let start = path.rfind('/').map_or(0, |slash| slash + 1);
    let mut dots = path[start..].rmatch_indices('.');
    dots.nth(usize::from(count) - 1)
        .map_or(path, |(dot, _)| &path[..start + dot])
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
pub(crate) fn quote(value: &str, to: &mut String) {
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

    fn fill(template: &str, arguments: &[&str], style: &Style<'_>) -> String {
        let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
        let values = Values {
            arguments: &arguments,
            number: 7,
            total: Some(9),
            slot: None,
            quote: true,
        };
        Template::command(&[template.to_owned()], style, true).expand(&values)
    }

    fn expand(template: &str, argument: &str) -> String {
        fill(template, &[argument], &Style::default())
    }

    #[test]
    fn several_arguments() {
        let of = |template: &str| fill(template, &["a/b.c", "x y"], &Style::default());
        assert_eq!(of("echo"), "echo a/b.c 'x y'");
        assert_eq!(of("{2}-{1}-{-1}-{3}."), "'x y'-a/b.c-'x y'-.");
        assert_eq!(of("{1.} {1/} {1//} {1/.} {.}"), "a/b b.c a b a/b 'x y'");
        assert_eq!(
            of("{0} {a} {1x} {1,2} {} {%}"),
            "{0} {a} {1x} {1,2} a/b.c 'x y' $((IPBROKER_ENGINE_ID+1))"
        );
        let names = ["one".to_owned(), "two".to_owned()];
        let named = Style {
            names: &names,
            ..Style::default()
        };
        assert_eq!(
            fill("{two} {one/} {three}", &["a/b.c", "x y"], &named),
            "'x y' b.c {three}"
        );
    }

    #[test]
    fn plus() {
        let plus = Style {
            plus: true,
            ..Style::default()
        };
        let of = |path: &str| {
            fill(
                "{..},{+.},{+..},{/..},{+/},{##},{...},{/...},{+...}",
                &[path],
                &plus,
            )
        };
        // As GNU parallel 20221122 prints them.
        assert_eq!(
            of("d/a.tar.gz"),
            "d/a,gz,tar.gz,a,d,9,d/a.tar.gz,a.tar.gz,''"
        );
        assert_eq!(of("e/b"), "e/b,'','',b,e,9,e/b,b,''");
    }

    #[test]
    fn words_are_repeated() {
        let of = |template: &str, style: &Style<'_>| {
            let arguments = ["a".to_owned(), "b c".to_owned()];
            let values = Values {
                arguments: &arguments,
                quote: true,
                ..Values::default()
            };
            Template::command(&[template.to_owned()], style, true).repeat(&values)
        };
        let plain = Style::default();
        assert_eq!(
            of("cp pre{}post {.}.x /tmp", &plain),
            "cp preapost pre'b c'post a.x 'b c'.x /tmp"
        );
        assert_eq!(of("echo", &plain), "echo a 'b c'");
    }

    #[test]
    fn commands_of_their_own_and_quoted_ones() {
        let arguments = ["echo a | cat".to_owned()];
        let values = Values {
            arguments: &arguments,
            quote: true,
            ..Values::default()
        };
        let style = Style::default();
        assert_eq!(
            Template::command(&[], &style, true).expand(&values),
            "echo a | cat"
        );
        let words = ["echo".to_owned(), "a  b".to_owned(), "{}x".to_owned()];
        let style = Style {
            quoted: true,
            whole: Some(",,"),
            ..style
        };
        assert_eq!(
            Template::command(&words, &style, false).expand(&values),
            "echo 'a  b' '{}x'"
        );
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
