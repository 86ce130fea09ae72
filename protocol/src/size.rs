//! Sizes as users write them.

/// `4096`, `64K`, `64KiB`, `2G`: powers of 1024.
#[must_use]
pub fn parse(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let shift = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn sizes_with_and_without_suffixes() {
        assert_eq!(parse("4096"), Some(4096));
        assert_eq!(parse("64K"), Some(65536));
        assert_eq!(parse("2 GiB"), Some(2 << 30));
        assert_eq!(parse("1x"), None);
        assert_eq!(parse("99999999999T"), None);
        assert_eq!(parse(""), None);
    }
}
