//! Runs of sectors with a content each: how a manifest, and the guest, say what a volume holds.

use crate::pattern::{Content, SECTOR, classify};
use crate::process::{Context, Result};
use crate::sectors::{each_piece, hex};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;

const COMPLAINTS_MAX: usize = 20;

/// A run of sectors that are not zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First sector.
    pub start: u64,
    /// Number of sectors.
    pub count: u64,
    /// What is there.
    pub what: ExtentContent,
}

/// Content of an extent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExtentContent {
    /// The pattern with this tag.
    Tag(u64),
    /// Other bytes with this SHA-256.
    Hash(String),
}

/// Parses the lines of an extents file (`P START COUNT TAG`, `R START COUNT SHA256`).
pub fn parse_map(text: &str) -> Result<Vec<Extent>> {
    text.lines()
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [kind, start, count, value] = words.as_slice() else {
                return Err(format!("bad line: {line}"));
            };
            let number = |word: &str| word.parse::<u64>().context(format!("bad line: {line}"));
            let what = match *kind {
                "P" => ExtentContent::Tag(number(value)?),
                _ => ExtentContent::Hash((*value).to_string()),
            };
            Ok(Extent {
                start: number(start)?,
                count: number(count)?,
                what,
            })
        })
        .collect()
}

/// Unpacks and parses an extents file.
pub fn unpack_extents(packed: &[u8]) -> Result<Vec<Extent>> {
    let mut plain = String::new();
    let mut decoder = zstd::stream::read::Decoder::new(packed).context("extents are not zstd")?;
    decoder
        .read_to_string(&mut plain)
        .context("cannot unpack extents")?;
    parse_map(&plain)
}

/// The first differences between a dump and what the kernel read.
pub fn compare(dump: &File, extents: &[Extent]) -> Result<Vec<String>> {
    let mut complaints = Vec::new();
    let mut wrong = 0u64;
    let mut next = 0;
    let mut hash: Option<Sha256> = None;
    let mut complain = |line: String| {
        wrong += 1;
        if complaints.len() < COMPLAINTS_MAX {
            complaints.push(line);
        }
    };
    each_piece(dump, |offset, bytes| {
        for (i, sector) in bytes.chunks_exact(SECTOR).enumerate() {
            let number = offset / SECTOR as u64 + i as u64;
            while extents
                .get(next)
                .is_some_and(|extent| number >= extent.start + extent.count)
            {
                next += 1;
            }
            let found = classify(sector, number);
            match extents.get(next).filter(|extent| number >= extent.start) {
                None if found != Content::Zeros => {
                    complain(format!("sector {number}: want zeros, found {found:?}"))
                }
                Some(Extent {
                    what: ExtentContent::Tag(tag),
                    ..
                }) if found != Content::Tag(*tag) => {
                    complain(format!("sector {number}: want tag {tag}, found {found:?}"));
                }
                None
                | Some(Extent {
                    what: ExtentContent::Tag(_),
                    ..
                }) => {}
                Some(
                    extent @ Extent {
                        what: ExtentContent::Hash(expected),
                        ..
                    },
                ) => {
                    let running = hash.get_or_insert_default();
                    running.update(sector);
                    if number + 1 == extent.start + extent.count {
                        let digest = hex(&std::mem::take(running).finalize());
                        if digest != *expected {
                            complain(format!(
                                "sectors {}+{}: other bytes than the kernel's",
                                extent.start, extent.count
                            ));
                        }
                    }
                }
            }
        }
        Ok(())
    })?;
    if wrong > complaints.len() as u64 {
        complaints.push(format!("{wrong} differences in all"));
    }
    Ok(complaints)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparison_names_the_sector_that_differs() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("dump");
        let mut bytes = vec![0u8; 8 * SECTOR];
        crate::pattern::fill(&mut bytes[2 * SECTOR..4 * SECTOR], 2, 9);
        std::fs::write(&path, &bytes).expect("written");
        let file = File::open(&path).expect("opened");
        let extents = parse_map("P 2 2 9\n").expect("parsed");
        assert!(compare(&file, &extents).expect("compared").is_empty());
        let extents = parse_map("P 2 3 9\n").expect("parsed");
        assert_eq!(
            compare(&file, &extents).expect("compared"),
            ["sector 4: want tag 9, found Zeros"]
        );
    }
}
