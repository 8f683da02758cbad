//! What the simulator's clients write: the number of a write and the sector it was for, sixteen bytes, over and over.
//!
//! Read here a second time, by code that shares nothing with the simulator, in the guest and on the host.

use crate::pattern::SECTOR;
use crate::process::{Context, Result};
use crate::sectors::each_piece;
use std::fmt::Write;
use std::fs::File;

/// What a sector reads as: the number of the write, 0 for zeros; none for bytes that were never written for it.
pub type Value = Option<u64>;

/// Where the volume's number stands in the second word.
const VOLUME_SHIFT: u32 = 48;

/// Volume (counted from 1, 0 for zeros) and write; none for foreign bytes.
type Found = Option<(u64, u64)>;

fn parse(sector: &[u8], number: u64) -> Found {
    if sector[16..] != sector[..SECTOR - 16] {
        return None;
    }
    let word = |at: usize| sector[at..at + 8].try_into().map(u64::from_le_bytes).ok();
    let (value, place) = (word(0)?, word(8)?);
    if (value, place) == (0, 0) {
        return Some((0, 0));
    }
    let is_here = place & ((1 << VOLUME_SHIFT) - 1) == number;
    is_here.then_some((place >> VOLUME_SHIFT, value))
}

/// Everything on a device, lines `START COUNT VOLUME VALUE`; `? ?` for foreign bytes; what no line covers is zeros.
pub fn list(device: &File) -> Result<String> {
    let mut runs: Vec<(u64, u64, Found)> = Vec::new();
    each_piece(device, |offset, bytes| {
        for (i, sector) in bytes.chunks_exact(SECTOR).enumerate() {
            let number = offset / SECTOR as u64 + i as u64;
            let found = parse(sector, number);
            match runs.last_mut() {
                Some((_, count, last)) if *last == found => *count += 1,
                _ => runs.push((number, 1, found)),
            }
        }
        Ok(())
    })?;
    let mut text = String::new();
    for (start, count, found) in runs {
        let _ = match found {
            Some((0, 0)) => Ok(()),
            Some((volume, value)) => writeln!(text, "{start} {count} {volume} {value}"),
            None => writeln!(text, "{start} {count} ? ?"),
        };
    }
    Ok(text)
}

/// A list as one value per sector; what was written for another volume is foreign.
pub fn unlist(text: &str, sectors: u64, volume: u64) -> Result<Vec<Value>> {
    spread(text, sectors, Some(0), |words| match words {
        ["?", "?"] => Ok(None),
        [of, value] => {
            let of: u64 = of.parse().context("a volume")?;
            let value = value.parse().context("a value")?;
            Ok((of == volume).then_some(value))
        }
        _ => Err("a volume and a value were to come".into()),
    })
}

/// Lines `START COUNT WORD...` as one item per sector; `rest` for those no line covers.
pub fn spread<T: Clone>(
    text: &str,
    sectors: u64,
    rest: T,
    item: impl Fn(&[&str]) -> Result<T>,
) -> Result<Vec<T>> {
    let mut all = vec![rest; sectors as usize];
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [start, count, rest @ ..] = words.as_slice() else {
            return Err(format!("bad line: {line}"));
        };
        let number = |word: &str| word.parse::<usize>().context(format!("bad line: {line}"));
        let (start, count) = (number(start)?, number(count)?);
        let end = start.checked_add(count);
        let range = end
            .and_then(|end| all.get_mut(start..end))
            .ok_or_else(|| format!("beyond the end: {line}"))?;
        range.fill(item(rest).context(format!("bad line: {line}"))?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sector(value: u64, place: u64) -> Vec<u8> {
        let words = [value.to_le_bytes(), place.to_le_bytes()].concat();
        words.repeat(SECTOR / 16)
    }

    #[test]
    fn a_list_names_runs_and_what_does_not_belong() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("volume");
        let torn = [
            &sector(7, 1 << 48 | 4)[..256],
            &sector(8, 1 << 48 | 4)[256..],
        ]
        .concat();
        let bytes = [
            sector(0, 0),
            sector(7, 1 << 48 | 1),
            sector(7, 1 << 48 | 2),
            sector(7, 1 << 48 | 9),
            torn,
            sector(5, 2 << 48 | 5),
        ];
        std::fs::write(&path, bytes.concat()).expect("written");
        let text = list(&File::open(&path).expect("opened")).expect("listed");
        assert_eq!(text, "1 2 1 7\n3 2 ? ?\n5 1 2 5\n");
        let values = unlist(&text, 6, 1).expect("parsed");
        assert_eq!(values, [Some(0), Some(7), Some(7), None, None, None]);
        assert!(unlist(&text, 5, 1).is_err());
    }
}
