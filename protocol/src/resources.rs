//! Resources: what a host has, what a task asks for, and what it is granted.
//!
//! Amounts are counted in thousandths ([`Amount`]), so that sums of fractions are exact. `cpus`, `gpus` and `memory`
//! (bytes) are names like all others; only how users write them differs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::size;

/// The name of processors, of which every task has one if it does not ask.
pub const CPUS: &str = "cpus";
/// The name of graphics processors.
pub const GPUS: &str = "gpus";
/// The name of memory, in bytes.
pub const MEMORY: &str = "memory";

/// Thousandths of a unit.
pub type Amount = u64;

/// One unit.
pub const ONE: Amount = 1000;

/// The most that can be had or asked of anything but memory: beyond that it is a mistake.
const MOST: f64 = 1e6;
/// The same for sizes: 4 PiB, so that thousandths of sums never overflow.
const MOST_BYTES: f64 = (1u64 << 52) as f64;

/// The most whole hosts that a task may ask for.
pub const NODES_MOST: u32 = 1_000_000;

/// What a host has of one resource, as an engine registers it and as `--resource` gives it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Pool {
    /// So much of it, which tasks take parts of.
    Sum(f64),
    /// These, each of which one task has at a time.
    Names(Vec<String>),
}

/// All that a host has, by name.
pub type Pools = BTreeMap<String, Pool>;

/// What a task asks for, by name: numbers of units, bytes of memory.
pub type Request = BTreeMap<String, f64>;

/// What a task was granted of one resource.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Granted {
    /// How much.
    pub amount: f64,
    /// Which ones, where they have names: cores, GPUs, the list of `--resource`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
}

/// All that a task was granted, by name.
pub type Grant = BTreeMap<String, Granted>;

/// The amount, in the unit that users count in.
#[must_use]
pub fn units(amount: Amount) -> f64 {
    amount as f64 / ONE as f64
}

/// A number of units as an [`Amount`]; `None` if it is no number from 0 that makes sense.
#[must_use]
pub fn amount(units: f64) -> Option<Amount> {
    ((0.0..=MOST_BYTES).contains(&units)).then(|| (units * ONE as f64).round() as Amount)
}

/// An amount of this resource in words: `2`, `1.5`, `16.0 GiB`.
#[must_use]
pub fn words(name: &str, amount: Amount) -> String {
    if name == MEMORY {
        return bytes(amount / ONE);
    }
    let (whole, rest) = (amount / ONE, amount % ONE);
    if rest == 0 {
        return whole.to_string();
    }
    format!("{whole}.{rest:03}")
        .trim_end_matches('0')
        .to_owned()
}

fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} bytes"),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

/// What is wrong with a number of units of this resource, if anything is: the words that follow "must be".
///
/// # Errors
/// What it must be.
pub fn check(name: &str, units: f64) -> Result<(), String> {
    let whole = units.fract() == 0.0;
    let fits = |least: f64, most: f64| (least..=most).contains(&units);
    match name {
        CPUS if fits(0.001, MOST) => Ok(()),
        CPUS => Err("a number of cpus above 0, at most 1000000".into()),
        GPUS if fits(0.0, MOST) && whole => Ok(()),
        GPUS => Err("a whole number of gpus from 0".into()),
        MEMORY if fits(0.0, MOST_BYTES) => Ok(()),
        MEMORY => Err("a number of bytes, or a size like \"512M\" or \"16GB\"".into()),
        _ if fits(0.0, MOST_BYTES) => Ok(()),
        _ => Err("a number from 0".into()),
    }
}

/// Whether this can be the name of a resource: it becomes part of a variable's name.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let mut chars = name.chars();
    name.len() <= 64
        && chars.next().is_some_and(|c| c.is_ascii_alphabetic())
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}

/// The variable that tells a job what it has of a resource: `IPBROKER_CPUS`, `IPBROKER_RESOURCE_LICENSE_A`.
#[must_use]
pub fn variable(name: &str) -> String {
    let upper = name.to_ascii_uppercase().replace('-', "_");
    match name {
        CPUS | GPUS | MEMORY => format!("IPBROKER_{upper}"),
        _ => format!("IPBROKER_RESOURCE_{upper}"),
    }
}

/// A number of units, or a size, as users write it: `4`, `1.5`, `16GB`.
#[must_use]
pub fn parse_units(text: &str) -> Option<f64> {
    let text = text.trim();
    let plain = text
        .bytes()
        .all(|b| b.is_ascii_digit() || b == b'.' || b == b'-' || b == b'+');
    if plain {
        return text.parse().ok();
    }
    size::parse(text).map(|bytes| bytes as f64)
}

/// Reads `NAME=4`, `NAME=16GB` or `NAME=[a,b,c]`, the argument of `--resource`.
///
/// # Errors
/// One line that says what is wrong.
pub fn parse_pool(text: &str) -> Result<(String, Pool), String> {
    const HOW: &str = "write NAME=4, NAME=16GB or NAME=[a,b,c]";
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| format!("{text:?} has no `=`: {HOW}"))?;
    let (name, value) = (name.trim(), value.trim());
    if !is_name(name) {
        return Err(format!(
            "{name:?} cannot be the name of a resource: a letter, then letters, digits, `_` and `-`, 64 at most"
        ));
    }
    if let Some(list) = value.strip_prefix('[') {
        let list = list
            .strip_suffix(']')
            .ok_or_else(|| format!("{value:?} has no `]` at its end: {HOW}"))?;
        let names: Vec<String> = list.split(',').map(|n| n.trim().to_owned()).collect();
        if let Some(at) = names.iter().position(String::is_empty) {
            return Err(format!("entry {} of {value} is empty: {HOW}", at + 1));
        }
        let mut seen = std::collections::BTreeSet::new();
        if let Some(twice) = names.iter().find(|name| !seen.insert(*name)) {
            return Err(format!("{value} has {twice:?} twice"));
        }
        if matches!(name, CPUS | MEMORY) {
            return Err(format!("{name} is a number, not a list: {HOW}"));
        }
        return Ok((name.to_owned(), Pool::Names(names)));
    }
    let number = parse_units(value)
        .filter(|units| (0.0..=MOST_BYTES).contains(units))
        .ok_or_else(|| format!("{value:?} is no amount: {HOW}"))?;
    if name == GPUS || name == CPUS {
        if number.fract() != 0.0 || number > MOST {
            return Err(format!(
                "{name}={value}: there are only whole ones, at most 1000000"
            ));
        }
        if name == GPUS {
            let names = (0..number as u64).map(|index| index.to_string()).collect();
            return Ok((name.to_owned(), Pool::Names(names)));
        }
    }
    Ok((name.to_owned(), Pool::Sum(number)))
}

/// Reads `NAME=AMOUNT`, what a task asks for.
///
/// # Errors
/// One line that says what is wrong.
pub fn parse_request(text: &str) -> Result<(String, f64), String> {
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| format!("{text:?} has no `=`: write NAME=AMOUNT"))?;
    let (name, value) = (name.trim(), value.trim());
    if !is_name(name) {
        return Err(format!("{name:?} cannot be the name of a resource"));
    }
    let units = parse_units(value).ok_or_else(|| format!("{name}={value} is no amount"))?;
    check(name, units).map_err(|must| format!("{name} must be {must}, not {value}"))?;
    Ok((name.to_owned(), units))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_as_options_give_them() {
        let names = |names: &[&str]| Pool::Names(names.iter().map(|n| (*n).to_owned()).collect());
        for (text, name, pool) in [
            ("lic=4", "lic", Pool::Sum(4.0)),
            ("lic = 2.5", "lic", Pool::Sum(2.5)),
            ("disk=16GB", "disk", Pool::Sum((16u64 << 30) as f64)),
            ("memory=1G", "memory", Pool::Sum((1u64 << 30) as f64)),
            ("port=[a, b,c]", "port", names(&["a", "b", "c"])),
            ("gpus=2", "gpus", names(&["0", "1"])),
        ] {
            assert_eq!(parse_pool(text), Ok((name.to_owned(), pool)), "{text}");
        }
        for bad in [
            "",
            "lic",
            "=4",
            "lic=",
            "lic=x",
            "lic=-1",
            "lic=[a",
            "lic=[a,,b]",
            "lic=[a,a]",
            "1x=4",
            "a b=4",
            "cpus=1.5",
            "cpus=[0,1]",
            "gpus=1e9",
            "lic=nan",
            "lic=inf",
        ] {
            assert!(parse_pool(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn amounts_are_checked_and_exact() {
        for (name, good) in [
            ("cpus", 0.5),
            ("cpus", 1e6),
            ("gpus", 0.0),
            ("memory", 1e12),
            ("x", 0.1),
        ] {
            assert_eq!(check(name, good), Ok(()), "{name} {good}");
        }
        for (name, bad) in [
            ("cpus", 0.0),
            ("cpus", -1.0),
            ("cpus", 1e9),
            ("cpus", f64::NAN),
            ("gpus", 0.5),
            ("gpus", -1.0),
            ("memory", f64::INFINITY),
            ("x", -0.1),
            ("x", f64::NAN),
        ] {
            assert!(check(name, bad).is_err(), "{name} {bad}");
        }
        let third: Amount = amount(0.1).unwrap() + amount(0.2).unwrap();
        assert_eq!(words("x", third), "0.3");
        assert_eq!(words("cpus", 4000), "4");
        assert_eq!(
            words(MEMORY, amount((3u64 << 29) as f64).unwrap()),
            "1.5 GiB"
        );
        assert_eq!(amount(f64::NAN), None);
        assert_eq!(variable("lic-a"), "IPBROKER_RESOURCE_LIC_A");
        assert_eq!(variable(GPUS), "IPBROKER_GPUS");
    }
}
