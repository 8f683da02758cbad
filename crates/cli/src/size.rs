//! Sizes and durations as people write them.

/// `4096`, `4k`, `512K`, `1M`, `10G`, `2T`, also with `iB` or `B` behind; powers of 1024.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no size; write it like 4096, 4k, 512K, 1M or 10G");
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let number: u64 = text
        .get(..digits)
        .and_then(|n| n.parse().ok())
        .ok_or_else(wrong)?;
    let shift = match text[digits..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(wrong()),
    };
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("`{text}` is too large"))
}

/// `512`, `4k`, `1.5M`: short, for people.
pub fn show_size(bytes: u64) -> String {
    const UNITS: [(u32, &str); 4] = [(40, "T"), (30, "G"), (20, "M"), (10, "k")];
    for (shift, unit) in UNITS {
        let one = 1_u64 << shift;
        if bytes >= one {
            let whole = bytes >> shift;
            let tenth = (bytes & (one - 1)) as u128 * 10 / u128::from(one);
            return if tenth == 0 {
                format!("{whole}{unit}")
            } else {
                format!("{whole}.{tenth}{unit}")
            };
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, bytes) in [
            ("4096", 4096),
            ("4k", 4096),
            ("512K", 524_288),
            ("1M", 1 << 20),
            ("10G", 10 << 30),
            ("1MiB", 1 << 20),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "k",
            "-1",
            "1.5k",
            "4x",
            "99999999999999999999",
            "99999999999T",
            "é",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_short() {
        for (bytes, text) in [
            (0, "0"),
            (512, "512"),
            (4096, "4k"),
            (3 << 19, "1.5M"),
            (u64::MAX, "16777215.9T"),
        ] {
            assert_eq!(show_size(bytes), text);
        }
    }
}
