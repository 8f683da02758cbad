//! `cargo x mkimage`: images of cache sets with any number of extents.
//!
//! The maker needs the format crate, so it is a program of the package `benches`, built here in release mode and run. What
//! is in its images is known here a second time, by [`Sample`], so that a reader's answers are judged by other code.

use crate::pattern::mix;
use crate::process::{Context, Result, output};
use crate::server::{cargo, target_dir};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Runs `cargo x mkimage [OPTION]... CACHE BACKING`.
pub fn main(arguments: &[String]) -> Result<ExitCode> {
    let status = Command::new(program()?)
        .args(arguments)
        .status()
        .context("cannot run mkimage")?;
    Ok(match status.code() {
        Some(0) => ExitCode::SUCCESS,
        Some(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        None => ExitCode::FAILURE,
    })
}

/// Makes a set and says what the maker said.
pub fn make(options: &[String], cache: &Path, backing: &Path) -> Result<String> {
    let said = output(
        Command::new(program()?)
            .args(options)
            .arg(cache)
            .arg(backing),
    )?;
    Ok(said.trim().to_string())
}

fn program() -> Result<PathBuf> {
    let build = ["build", "--quiet", "--release", "-p", "brigade-benches"];
    crate::process::run(cargo().args(build).args(["--bin", "mkimage"]))?;
    Ok(target_dir()?.join("release/mkimage"))
}

/// What is known about an image of extents of 4 KiB with as much between them, of which each `every`th has data.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Extents.
    pub extents: u64,
    /// Dirty ones of a hundred.
    pub dirty_percent: u64,
    /// Every which has data.
    pub every: u64,
}

impl Sample {
    /// Sectors of an extent.
    pub const SECTORS: u64 = 8;
    const SPACING: u64 = 16;

    /// The options that make it.
    pub fn options(&self) -> Vec<String> {
        let numbers = [
            ("--extents", self.extents),
            ("--dirty", self.dirty_percent),
            ("--sample", self.every),
        ];
        numbers
            .iter()
            .flat_map(|(flag, number)| [flag.to_string(), number.to_string()])
            .collect()
    }

    /// The first sector on the volume of an extent.
    pub fn sector(&self, extent: u64) -> u64 {
        extent * Self::SPACING
    }

    /// The tag of its data: 2 if it is dirty, 1 if not, which is what the backing device has.
    pub fn tag(&self, extent: u64) -> u64 {
        1 + u64::from(mix(extent) % 100 < self.dirty_percent)
    }

    /// About `count` of the extents that have data, the first and the last among them.
    pub fn some(&self, count: u64) -> Vec<u64> {
        let all = self.extents.div_ceil(self.every);
        let step = (all / count.max(1)).max(1);
        let mut some: Vec<u64> = (0..all).step_by(step as usize).collect();
        some.push(all - 1);
        some.dedup();
        some.iter().map(|nr| nr * self.every).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_and_the_last_extent_with_data_are_among_some() {
        let sample = Sample {
            extents: 1001,
            dirty_percent: 50,
            every: 10,
        };
        let some = sample.some(7);
        assert_eq!((some[0], some[some.len() - 1]), (0, 1000));
        assert!(some.len() >= 7 && some.iter().all(|extent| extent % 10 == 0));
        assert!(
            some.iter()
                .map(|extent| sample.tag(*extent))
                .any(|tag| tag == 2)
        );
    }
}
