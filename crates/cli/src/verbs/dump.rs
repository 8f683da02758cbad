//! `brigade dump`: everything on a cache device, read by the independent reader.

use crate::failure::{Failure, Outcome};
use crate::flags::{DumpFlags, Section};
use crate::target::{Purpose, Target};
use brigade_fsck::dump::{self, Style};
use std::io::{BufWriter, Write};

/// Prints the sections asked for as they are read.
pub fn dump(flags: &DumpFlags) -> Outcome {
    let target = Target::open(&flags.device, Purpose::Look)?;
    if target.file.try_lock_shared().is_err() {
        eprintln!(
            "brigade: warning: {}: in use; it may change while it is read",
            target.name()
        );
    }
    let sections = match flags.section {
        Section::Superblock => vec![dump::Section::Superblock],
        Section::Journal => vec![dump::Section::Journal],
        Section::Prios => vec![dump::Section::Prios],
        Section::Uuids => vec![dump::Section::Uuids],
        Section::Btree => vec![dump::Section::Btree],
        Section::Buckets => vec![dump::Section::Buckets],
        Section::All => dump::Section::ALL.to_vec(),
    };
    let style = if flags.json { Style::Json } else { Style::Text };
    let mut out = BufWriter::with_capacity(64 << 10, std::io::stdout().lock());
    let device = dump::Device {
        name: target.name(),
        source: &target.file,
        size_bytes: target.size_bytes,
        logical_block_bytes: target.logical_block_bytes,
    };
    let result = dump::dump(&device, &sections, style, &mut out);
    out.flush()?;
    match result {
        Ok(0) => Ok(()),
        Ok(errors) => Err(Failure::cannot(format!(
            "{}: {errors} errors, shown where they are",
            target.name()
        ))),
        Err(error) => Err(Failure::from(error)),
    }
}
