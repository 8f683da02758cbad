//! The options of a bench: `--flag value` pairs and bare flags, with sizes as people write them.

use crate::process::Result;

/// A command line.
pub struct Options<'a> {
    arguments: &'a [String],
}

impl<'a> Options<'a> {
    /// The arguments, if there is no flag among them but those with a value and the bare ones.
    pub fn of(arguments: &'a [String], with_value: &[&str], bare: &[&str]) -> Result<Self> {
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            if with_value.contains(&word.as_str()) {
                words.next().ok_or(format!("{word} needs a value"))?;
            } else if !bare.contains(&word.as_str()) {
                return Err(format!(
                    "no such option: {word}; there are {}",
                    [with_value, bare].concat().join(" ")
                ));
            }
        }
        Ok(Options { arguments })
    }

    /// Whether a bare flag is there.
    pub fn has(&self, flag: &str) -> bool {
        self.arguments.iter().any(|argument| argument == flag)
    }

    /// The value of a flag.
    pub fn text(&self, flag: &str) -> Option<&'a str> {
        let mut words = self.arguments.iter().skip_while(|word| *word != flag);
        words.nth(1).map(String::as_str)
    }

    /// A number or a size.
    pub fn number(&self, flag: &str, default: u64) -> Result<u64> {
        self.text(flag).map_or(Ok(default), |text| {
            size(text).map_err(|why| format!("{flag}: {why}"))
        })
    }

    /// A number with a fraction.
    pub fn fraction(&self, flag: &str, default: f64) -> Result<f64> {
        self.text(flag).map_or(Ok(default), |text| {
            text.parse().map_err(|why| format!("{flag}: {why}"))
        })
    }
}

/// `4096`, `64k`, `512M`, `10G`.
pub fn size(text: &str) -> Result<u64> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" => Some(0),
        "k" | "K" => Some(10),
        "m" | "M" => Some(20),
        "g" | "G" => Some(30),
        _ => None,
    };
    let number = digits.parse::<u64>().ok();
    number
        .zip(shift)
        .and_then(|(number, shift)| number.checked_mul(1 << shift))
        .ok_or(format!("{text} is no number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_found_and_unknown_ones_refused() {
        let arguments: Vec<String> = ["--size", "64M", "--quick"].map(String::from).into();
        let options = Options::of(&arguments, &["--size"], &["--quick"]).expect("fine");
        assert_eq!(options.number("--size", 1), Ok(64 << 20));
        assert_eq!(options.number("--other", 7), Ok(7));
        assert!(options.has("--quick"));
        assert!(Options::of(&arguments, &["--size"], &[]).is_err());
        assert!(Options::of(&arguments[..1], &["--size"], &[]).is_err());
        assert!(size("12x").is_err() && size("M").is_err());
    }
}
