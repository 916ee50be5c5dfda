//! Quantities as people write them: `"512MiB"`, `"2h"`, `0.5`.

use std::time::Duration;

/// Reads a size: a number with an optional unit, decimal (`kB`, `MB`, …) or binary (`KiB`, `MiB`, …).
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 13] = [
        ("", 1),
        ("B", 1),
        ("kB", 1_000),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("PB", 1_000_000_000_000_000),
        ("PiB", 1 << 50),
    ];
    let hint = || format!("`{text}` is not a size; write it as \"512MiB\", \"2GB\" or a number of bytes");
    let (number, unit) = split_unit(text);
    let scale = UNITS.iter().find(|(name, _)| *name == unit).map(|&(_, scale)| scale).ok_or_else(hint)?;
    scale_decimal(number, scale).ok_or_else(hint)
}

/// Reads a duration: numbers with units (`ms`, `s`, `m`, `h`, `d`), one after the other: `"1h30m"`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    const UNITS: [(&str, u64); 6] = [
        ("us", 1),
        ("ms", 1_000),
        ("s", 1_000_000),
        ("m", 60_000_000),
        ("h", 3_600_000_000),
        ("d", 86_400_000_000),
    ];
    let hint = || format!("`{text}` is not a duration; write it as \"90s\", \"10m\" or \"1h30m\"");
    let mut rest = text.trim();
    let mut micros = 0_u64;
    if rest.is_empty() {
        return Err(hint());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(hint)?;
        let unit_end =
            rest[digits..].find(|c: char| !c.is_ascii_alphabetic()).map_or(rest.len(), |end| digits + end);
        let unit = &rest[digits..unit_end];
        let scale = UNITS.iter().find(|(name, _)| *name == unit).map(|&(_, scale)| scale).ok_or_else(hint)?;
        let part = scale_decimal(&rest[..digits], scale).ok_or_else(hint)?;
        micros = micros.checked_add(part).ok_or_else(hint)?;
        rest = rest[unit_end..].trim_start();
    }
    Ok(Duration::from_micros(micros))
}

/// Bytes with the largest binary unit that keeps at most one decimal: `512MiB`, `1.5GiB`, `100B`.
pub fn format_bytes(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    for (unit, scale) in UNITS {
        if bytes >= scale {
            let tenths = (u128::from(bytes) * 10 / u128::from(scale)) as u64;
            return if tenths.is_multiple_of(10) || bytes / scale >= 100 {
                format!("{}{unit}", tenths / 10)
            } else {
                format!("{}.{}{unit}", tenths / 10, tenths % 10)
            };
        }
    }
    format!("{bytes}B")
}

/// Thousandths without trailing zeros: `1500` is `1.5`.
pub fn format_milli(milli: u64) -> String {
    let (whole, part) = (milli / 1000, milli % 1000);
    if part == 0 {
        whole.to_string()
    } else {
        let digits = format!("{part:03}");
        format!("{whole}.{}", digits.trim_end_matches('0'))
    }
}

/// Reads a non-negative decimal with at most three places as thousandths.
pub fn parse_milli(text: &str) -> Result<u64, String> {
    let error = || format!("`{text}` is not a number with at most three decimals");
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || part.len() > 3 || !digits(whole) || !digits(part) {
        return Err(error());
    }
    let whole: u64 = whole.parse().map_err(|_| error())?;
    let part: u64 = format!("{part:0<3}").parse().map_err(|_| error())?;
    whole.checked_mul(1000).and_then(|milli| milli.checked_add(part)).ok_or_else(error)
}

fn split_unit(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    (&text[..end], text[end..].trim_start())
}

/// `number · scale` in integers, so that no size depends on rounding; `None` for what is no number or too large.
fn scale_decimal(number: &str, scale: u64) -> Option<u64> {
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && part.is_empty() || part.len() > 18 || !part.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let part_value: u128 = if part.is_empty() { 0 } else { part.parse().ok()? };
    let fraction = part_value * u128::from(scale) / 10_u128.pow(part.len() as u32);
    u64::try_from(whole.checked_mul(u128::from(scale))?.checked_add(fraction)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_bytes("512MiB"), Ok(512 << 20));
        assert_eq!(parse_bytes("1.5 GiB"), Ok(3 << 29));
        assert_eq!(parse_bytes("2GB"), Ok(2_000_000_000));
        assert_eq!(parse_bytes("77"), Ok(77));
        for text in ["", "MiB", "-1MiB", "1 potato", "99999999999PiB", "1e3", "1.2.3MB"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
        assert_eq!(format_bytes(512 << 20), "512MiB");
        assert_eq!(format_bytes(3 << 29), "1.5GiB");
        assert_eq!(format_bytes(12), "12B");
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("0.5s"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        for text in ["", "10", "h", "-5s", "5 parsecs", "1h-3m", "999999999999999999d"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn thousandths() {
        assert_eq!(parse_milli("0.1"), Ok(100));
        assert_eq!(parse_milli("2"), Ok(2000));
        assert_eq!(format_milli(1500), "1.5");
        assert_eq!(format_milli(1005), "1.005");
        assert!(parse_milli("0.0001").is_err());
        assert!(parse_milli("-1").is_err());
    }
}
