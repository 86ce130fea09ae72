//! Files in pieces of whole lines: what the jobs of `ipclient mapreduce` read.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;
use std::time::UNIX_EPOCH;

use crate::failure::Failure;

/// A file as it was when it was looked at.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Input {
    /// Its name, as it was given.
    pub(crate) name: String,
    /// Its whole path.
    pub(crate) path: String,
    pub(crate) size: u64,
    /// Last change, in seconds since 1970.
    pub(crate) changed: f64,
}

impl Input {
    /// A file below `cwd`.
    pub(crate) fn new(cwd: &str, name: &str) -> Result<Self, Failure> {
        let path = Path::new(cwd).join(name);
        let problem = |error: io::Error| Failure::usage(format!("{name}: {error}"));
        let meta = fs::metadata(&path).map_err(problem)?;
        if !meta.is_file() {
            return Err(Failure::usage(format!(
                "{name}: is no regular file, which is needed to give its parts to several jobs"
            )));
        }
        File::open(&path).map_err(problem)?;
        let changed = meta.modified().ok();
        let changed = changed.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        Ok(Self {
            name: name.to_owned(),
            path: path.to_string_lossy().into_owned(),
            size: meta.len(),
            changed: changed.map_or(0.0, |since| since.as_secs_f64()),
        })
    }
}

/// Some of the lines of a file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Piece {
    /// Which file.
    pub(crate) input: usize,
    pub(crate) bytes: Range<u64>,
    /// It ends in a line break.
    pub(crate) ended: bool,
}

/// Pieces of one job: its command line has to hold their names.
const MOST: usize = 100;

/// The files in chunks of about `size` bytes: small files together, large ones cut between two lines. Empty files are in none.
pub(crate) fn chunks(inputs: &[Input], size: u64) -> io::Result<Vec<Vec<Piece>>> {
    let (mut chunks, mut chunk, mut filled) = (Vec::new(), Vec::new(), 0);
    for (input, file) in inputs.iter().enumerate() {
        let mut reader = BufReader::new(File::open(&file.path)?);
        let mut at = 0;
        while at < file.size {
            let left = file.size - at;
            if filled > 0 && (filled + left > size || chunk.len() == MOST) {
                chunks.push(std::mem::take(&mut chunk));
                filled = 0;
            }
            let mut end = file.size;
            if left > size {
                reader.seek(SeekFrom::Start(at + size - 1))?;
                end = at + size - 1 + reader.skip_until(b'\n')? as u64;
            }
            let mut last = [0];
            reader.seek(SeekFrom::Start(end - 1))?;
            reader.read_exact(&mut last)?;
            chunk.push(Piece {
                input,
                bytes: at..end,
                ended: last == *b"\n",
            });
            filled += end - at;
            at = end;
        }
    }
    if !chunk.is_empty() {
        chunks.push(chunk);
    }
    Ok(chunks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(texts: &[&str], size: u64) -> Vec<Vec<String>> {
        let dir = tempfile::tempdir().unwrap();
        let cwd = dir.path().to_str().unwrap();
        let inputs: Vec<Input> = (0..)
            .zip(texts)
            .map(|(number, text)| {
                let name = format!("{number}");
                fs::write(dir.path().join(&name), text).unwrap();
                Input::new(cwd, &name).unwrap()
            })
            .collect();
        let words = |piece: &Piece| {
            let text = &texts[piece.input][piece.bytes.start as usize..piece.bytes.end as usize];
            assert_eq!(piece.ended, text.ends_with('\n'));
            text.to_owned()
        };
        let chunks = chunks(&inputs, size).unwrap();
        chunks
            .iter()
            .map(|chunk| chunk.iter().map(words).collect())
            .collect()
    }

    #[test]
    fn lines_stay_whole_and_small_files_together() {
        assert_eq!(cut(&["a\nbb\nccc\n"], 3), [["a\nbb\n"], ["ccc\n"]]);
        assert_eq!(cut(&["a\nbb\nccc"], 2), [["a\n"], ["bb\n"], ["ccc"]]);
        assert_eq!(cut(&["a long line\nb\n"], 1), [["a long line\n"], ["b\n"]]);
        assert_eq!(
            cut(&["a\n", "", "b", "cc\n"], 4),
            [vec!["a\n", "b"], vec!["cc\n"]]
        );
        assert!(cut(&["", ""], 4).is_empty());
        assert_eq!(cut(&["x\n"; 101], 1000).len(), 2);
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let error = Input::new("/", "dev/null").unwrap_err().to_string();
        assert!(error.starts_with("dev/null: is no regular file"), "{error}");
        let error = Input::new("/", "no/such").unwrap_err().to_string();
        assert!(error.starts_with("no/such: No such file"), "{error}");
    }
}
