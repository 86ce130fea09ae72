//! `--halt`: when the rest is not worth running.

use std::str::FromStr;

/// A condition that ends a run early.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Halt {
    /// What runs is stopped, too.
    pub(crate) now: bool,
    pub(crate) what: What,
    limit: Limit,
}

/// Which jobs count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    Fail,
    Success,
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Limit {
    Count(u64),
    Percent(f64),
}

impl Halt {
    /// At the first failure.
    pub(crate) fn at_failure(now: bool) -> Self {
        Self {
            now,
            what: What::Fail,
            limit: Limit::Count(1),
        }
    }

    /// Whether a job that ended so counts.
    pub(crate) fn counts(&self, success: bool) -> bool {
        match self.what {
            What::Fail => !success,
            What::Success => success,
            What::Done => true,
        }
    }

    /// The exit status when a job that ended with `code` was one too many, and `failed` of `total` have failed.
    pub(crate) fn status(&self, code: u8, failed: u64, total: u64) -> u8 {
        match (self.what, self.limit) {
            (What::Success, _) => 0,
            (_, Limit::Count(1)) => code,
            (_, Limit::Count(_)) => failed.min(101) as u8,
            (_, Limit::Percent(_)) => (failed * 100).div_ceil(total.max(1)).min(100) as u8,
        }
    }

    /// Whether so many of `total` jobs are enough.
    pub(crate) fn reached(&self, count: u64, total: u64) -> bool {
        match self.limit {
            Limit::Count(limit) => count >= limit,
            Limit::Percent(limit) => count as f64 * 100.0 >= limit * total as f64,
        }
    }
}

/// `never`, `now,fail=1`, `soon,success=10%`, and the numbers of earlier times.
pub(crate) fn parse(text: &str) -> Result<Option<Halt>, String> {
    let first = |now, what| {
        let limit = Limit::Count(1);
        Ok(Some(Halt { now, what, limit }))
    };
    let problem = || "it must be like now,fail=1 or soon,success=10%, or never".to_owned();
    match text {
        "never" | "0" => return Ok(None),
        "1" => return first(false, What::Fail),
        "2" => return first(true, What::Fail),
        "-1" => return first(false, What::Success),
        "-2" => return first(true, What::Success),
        _ => {}
    }
    let (when, why) = text.split_once(',').ok_or_else(problem)?;
    let (what, limit) = why.split_once('=').ok_or_else(problem)?;
    let now = match when {
        "now" => true,
        "soon" => false,
        _ => return Err(problem()),
    };
    let what = match what {
        "fail" => What::Fail,
        "success" => What::Success,
        "done" => What::Done,
        _ => return Err(problem()),
    };
    let limit = match limit.strip_suffix('%') {
        None => Limit::Count(
            u64::from_str(limit)
                .ok()
                .filter(|n| *n > 0)
                .ok_or_else(problem)?,
        ),
        Some(percent) => Limit::Percent(
            f64::from_str(percent)
                .ok()
                .filter(|p| (0.0..=100.0).contains(p) && *p > 0.0)
                .ok_or_else(problem)?,
        ),
    };
    Ok(Some(Halt { now, what, limit }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions() {
        let halt = |text: &str| parse(text).unwrap().unwrap();
        assert_eq!(halt("now,fail=1"), Halt::at_failure(true));
        assert_eq!(halt("1"), Halt::at_failure(false));
        assert!(!halt("soon,success=2").reached(1, 9) && halt("soon,success=2").reached(2, 9));
        assert!(!halt("now,done=30%").reached(2, 9) && halt("now,done=30%").reached(3, 9));
        assert_eq!(halt("now,done=1").status(7, 1, 9), 7);
        assert_eq!(halt("now,fail=2").status(7, 2, 9), 2);
        assert_eq!(halt("now,fail=20%").status(7, 2, 9), 23);
        assert_eq!(halt("now,success=2").status(0, 2, 9), 0);
        assert_eq!(parse("never").unwrap(), None);
        for bad in [
            "",
            "now",
            "now,fail",
            "later,fail=1",
            "now,fail=0",
            "now,fail=101%",
            "now,fall=1",
            "soon,fail=-1",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
