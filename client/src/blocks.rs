//! `--pipe`: the standard input in blocks of whole records, one for each job.

use std::io::{self, Read};

use clap::Args;

/// How the standard input is cut.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Pipe")]
pub(crate) struct PipeArgs {
    /// Give each job a block of the standard input on its own standard input
    #[arg(long, visible_aliases = ["spreadstdin"])]
    pub(crate) pipe: bool,
    /// Size of a block: as many whole records as fit (1M; k, m, g: 1000s, K, M, G: 1024s)
    #[arg(long, alias = "block-size", value_name = "SIZE", value_parser = size, requires = "pipe")]
    block: Option<usize>,
    /// What begins a record
    #[arg(
        long,
        value_name = "TEXT",
        requires = "pipe",
        allow_hyphen_values = true
    )]
    recstart: Option<String>,
    /// What ends a record [default: a line break]
    #[arg(
        long,
        value_name = "TEXT",
        requires = "pipe",
        allow_hyphen_values = true
    )]
    recend: Option<String>,
}

fn size(text: &str) -> Result<usize, String> {
    let problem = || "a number of bytes from 1 is needed, or a size like 10M".to_owned();
    let (number, unit) = match text.strip_suffix(|c: char| c.is_ascii_alphabetic()) {
        None => (text, 1),
        Some(number) => (
            number,
            match text.as_bytes()[number.len()] {
                b'k' => 1000,
                b'm' => 1000 * 1000,
                b'g' => 1000 * 1000 * 1000,
                b'K' => 1 << 10,
                b'M' => 1 << 20,
                b'G' => 1 << 30,
                _ => return Err(problem()),
            },
        ),
    };
    let number: f64 = number.parse().map_err(|_| problem())?;
    Some((number * f64::from(unit)) as usize)
        .filter(|size| *size > 0)
        .ok_or_else(problem)
}

/// The blocks of an input, as it comes.
pub(crate) struct Blocks<R> {
    input: R,
    buffer: Vec<u8>,
    /// Bytes of the buffer that were searched, and the ends of records that were found in them.
    searched: usize,
    ends: Vec<usize>,
    at_end: bool,
    start: Vec<u8>,
    end: Vec<u8>,
    /// So many lines make a record; none: what ends with `end` is one.
    lines: Option<usize>,
    block: usize,
    records: Option<usize>,
}

impl<R: Read> Blocks<R> {
    /// `lines`: so many make a record (what is less at the end is one, too); `records`: so many for each block, however long they are.
    pub(crate) fn new(
        args: &PipeArgs,
        lines: Option<usize>,
        records: Option<usize>,
        input: R,
    ) -> Self {
        let start = args.recstart.clone().unwrap_or_default();
        let end = args
            .recend
            .clone()
            .unwrap_or_else(|| match start.is_empty() {
                true => "\n".into(),
                false => String::new(),
            });
        Self {
            input,
            buffer: Vec::new(),
            searched: 0,
            ends: Vec::new(),
            at_end: false,
            start: unescape(&start),
            end: unescape(&end),
            lines,
            block: args.block.unwrap_or(1 << 20),
            records: records.filter(|records| *records > 0),
        }
    }

    /// The next block; none at the end.
    pub(crate) fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            self.search();
            if let Some(length) = self.length() {
                return Ok(Some(self.take(length)));
            }
            if self.at_end {
                let whole = self.record_ends().last();
                let apart = self.lines.is_some() && self.records.is_none();
                let length = whole.filter(|_| apart).unwrap_or(self.buffer.len());
                return Ok(Some(self.take(length)).filter(|rest| !rest.is_empty()));
            }
            let more = self.block.clamp(1 << 12, 1 << 20) as u64;
            self.at_end = self
                .input
                .by_ref()
                .take(more)
                .read_to_end(&mut self.buffer)?
                == 0;
        }
    }

    /// The first `length` bytes that have been read.
    fn take(&mut self, length: usize) -> Vec<u8> {
        (self.searched, self.ends) = (0, Vec::new());
        let rest = self.buffer.split_off(length);
        std::mem::replace(&mut self.buffer, rest)
    }

    /// Finds the ends of records in what has been read.
    fn search(&mut self) {
        let separator = [&self.end[..], &self.start].concat();
        if separator.is_empty() {
            return;
        }
        while let Some(found) = find(&self.buffer[self.searched..], &separator) {
            let end = self.searched + found + self.end.len();
            // A record's beginning at the very beginning ends nothing.
            if end > 0 {
                self.ends.push(end);
            }
            self.searched = end.max(self.searched + found + 1);
        }
        self.searched = self
            .searched
            .max((self.buffer.len() + 1).saturating_sub(separator.len()));
    }

    /// How long the next block is, if that is known.
    fn length(&self) -> Option<usize> {
        let mut ends = self.record_ends();
        match self.records {
            Some(records) => ends.nth(records - 1),
            None if self.buffer.len() < self.block => None,
            None => {
                let fits = ends.take_while(|end| *end <= self.block).last();
                // A record that is longer than a block goes whole.
                fits.or_else(|| self.record_ends().next())
            }
        }
    }

    /// Where the records that are known to be whole end.
    fn record_ends(&self) -> impl Iterator<Item = usize> {
        let lines = self.lines.unwrap_or(1);
        self.ends.iter().copied().skip(lines - 1).step_by(lines)
    }
}

fn find(text: &[u8], word: &[u8]) -> Option<usize> {
    match word {
        [byte] => text.iter().position(|b| b == byte),
        _ => text.windows(word.len()).position(|window| window == word),
    }
}

pub(crate) fn unescape(text: &str) -> Vec<u8> {
    text.replace("\\n", "\n")
        .replace("\\t", "\t")
        .replace("\\0", "\0")
        .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader that gives a few bytes at a time.
    struct Slow<'a>(&'a [u8]);

    impl Read for Slow<'_> {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            let n = self.0.len().min(3).min(to.len());
            to[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    fn cut(args: &PipeArgs, records: Option<usize>, text: &str) -> Vec<String> {
        cut_lines(args, None, records, text)
    }

    fn cut_lines(
        args: &PipeArgs,
        lines: Option<usize>,
        records: Option<usize>,
        text: &str,
    ) -> Vec<String> {
        let mut blocks = Blocks::new(args, lines, records, Slow(text.as_bytes()));
        let next = || {
            blocks
                .next()
                .unwrap()
                .map(|block| String::from_utf8(block).unwrap())
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn blocks_are_cut_as_gnu_parallel_does() {
        let with = |block: usize| PipeArgs {
            block: Some(block),
            ..PipeArgs::default()
        };
        let numbers: String = (1..=20).map(|n| format!("{n}\n")).collect();
        let blocks = cut(&with(10), None, &numbers);
        assert_eq!(
            blocks[..3],
            ["1\n2\n3\n4\n5\n", "6\n7\n8\n9\n", "10\n11\n12\n"]
        );
        assert_eq!(blocks.concat(), numbers);
        assert_eq!(
            cut(&with(2), None, "long line\nb\nc"),
            ["long line\n", "b\n", "c"]
        );
        assert_eq!(
            cut(&PipeArgs::default(), Some(2), "1\n2\n3\n"),
            ["1\n2\n", "3\n"]
        );
        assert_eq!(
            cut_lines(&with(20), Some(4), None, &numbers)[0],
            "1\n2\n3\n4\n5\n6\n7\n8\n"
        );
        assert_eq!(
            cut_lines(&PipeArgs::default(), Some(4), Some(1), "1\n2\n3\n4\n5\n"),
            ["1\n2\n3\n4\n", "5\n"]
        );
        assert_eq!(
            cut_lines(&PipeArgs::default(), Some(2), None, "1\n2\n3\n4\n5"),
            ["1\n2\n3\n4\n", "5"]
        );
        assert!(cut(&with(5), None, "").is_empty());
    }

    #[test]
    fn records_begin_and_end_as_is_said() {
        let start = PipeArgs {
            recstart: Some(">".into()),
            ..PipeArgs::default()
        };
        assert_eq!(
            cut(&start, Some(1), ">a\n1\n>b\n2\n"),
            [">a\n1\n", ">b\n2\n"]
        );
        let end = PipeArgs {
            recend: Some(";".into()),
            ..PipeArgs::default()
        };
        assert_eq!(cut(&end, Some(1), "a;b;c"), ["a;", "b;", "c"]);
        let both = PipeArgs {
            recstart: Some("<".into()),
            recend: Some("\\n".into()),
            ..PipeArgs::default()
        };
        assert_eq!(cut(&both, Some(1), "<a<\n\n<b"), ["<a<\n\n", "<b"]);
    }

    #[test]
    fn sizes() {
        assert_eq!(size("100k"), Ok(100_000));
        assert_eq!(size("1M"), Ok(1 << 20));
        assert_eq!(size("7"), Ok(7));
        assert!(
            size("0").is_err() && size("x").is_err() && size("1T").is_err() && size("").is_err()
        );
    }
}
