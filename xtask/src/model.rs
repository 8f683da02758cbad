//! What a volume must hold: the host's record of every write, sector by sector.
//!
//! A sector is *settled* on one tag, or it is *open*: after a crash it may be any of a few. Whoever reads the
//! volume reports what is there; the model then settles on it, so that a sector that flips back later is
//! found out (P1). Tag 0 stands for zeros.

use crate::golden::{Extent, ExtentContent};
use crate::pattern::{Content, Operation, RandomWorkload};
use std::collections::BTreeMap;

const COMPLAINTS_MAX: usize = 12;

/// The record of one volume.
#[derive(Clone, Debug)]
pub struct Model {
    settled: Vec<u64>,
    open: BTreeMap<u64, Vec<u64>>,
}

impl Model {
    /// A volume of zeros.
    pub fn new(sectors: u64) -> Model {
        Model {
            settled: vec![0; sectors as usize],
            open: BTreeMap::new(),
        }
    }

    /// Sectors of the volume.
    pub fn sectors(&self) -> u64 {
        self.settled.len() as u64
    }

    /// A write was sent: old and new are both possible until more is known.
    pub fn sent(&mut self, operation: Operation, tag: u64) {
        for sector in operation.sector..operation.sector + operation.count {
            let before = self.settled[sector as usize];
            self.open
                .entry(sector)
                .or_insert_with(|| vec![before])
                .push(tag);
        }
    }

    /// A write is known to have lasted: it is what the sector holds.
    pub fn lasting(&mut self, operation: Operation, tag: u64) {
        for sector in operation.sector..operation.sector + operation.count {
            self.settled[sector as usize] = tag;
            self.open.remove(&sector);
        }
    }

    /// A single-threaded workload of which the first `lasting` operations must be there and the ones up to
    /// `sent` may be.
    pub fn workload(&mut self, load: &RandomWorkload, tag_base: u64, lasting: u64, sent: u64) {
        for i in 0..lasting {
            self.lasting(load.operation(i), tag_base + i);
        }
        for i in lasting..sent {
            self.sent(load.operation(i), tag_base + i);
        }
    }

    /// Judges one sector and settles on it; false if it may not hold this.
    pub fn observe(&mut self, sector: u64, found: Content) -> bool {
        let tag = match found {
            Content::Zeros => 0,
            Content::Tag(tag) => tag,
            Content::Misplaced { .. } | Content::Torn | Content::Other => return false,
        };
        let fits = match self.open.remove(&sector) {
            Some(possible) => possible.contains(&tag),
            None => self.settled[sector as usize] == tag,
        };
        if fits {
            self.settled[sector as usize] = tag;
        }
        fits
    }

    /// What is expected at a sector, for a message.
    pub fn expected(&self, sector: u64) -> String {
        match self.open.get(&sector) {
            Some(possible) => format!("one of tags {possible:?}"),
            None => format!("tag {}", self.settled[sector as usize]),
        }
    }

    /// Judges a whole map of a volume (as `sectors map` prints it).
    pub fn observe_map(&mut self, map: &[Extent]) -> Vec<String> {
        let mut complaints = Complaints::default();
        let mut at = 0;
        for extent in map {
            self.observe_run(at, extent.start, Content::Zeros, &mut complaints);
            let what = match extent.what {
                ExtentContent::Tag(tag) => Content::Tag(tag),
                ExtentContent::Hash(_) => Content::Other,
            };
            self.observe_run(
                extent.start,
                extent.start + extent.count,
                what,
                &mut complaints,
            );
            at = extent.start + extent.count;
        }
        self.observe_run(at, self.sectors(), Content::Zeros, &mut complaints);
        complaints.finish()
    }

    fn observe_run(&mut self, start: u64, end: u64, what: Content, complaints: &mut Complaints) {
        for sector in start..end.min(self.sectors()) {
            self.observe_one(sector, what, complaints);
        }
    }

    /// Judges one sector and keeps the complaint.
    pub fn observe_one(&mut self, sector: u64, found: Content, complaints: &mut Complaints) {
        let expected = self.expected(sector);
        if !self.observe(sector, found) {
            complaints.add(format!("sector {sector}: want {expected}, found {found:?}"));
        }
    }
}

/// A bounded list of complaints.
#[derive(Debug, Default)]
pub struct Complaints {
    lines: Vec<String>,
    count: u64,
}

impl Complaints {
    fn add(&mut self, line: String) {
        self.count += 1;
        if self.lines.len() < COMPLAINTS_MAX {
            self.lines.push(line);
        }
    }

    /// The lines, with the total behind them if there are more.
    pub fn finish(mut self) -> Vec<String> {
        if self.count > self.lines.len() as u64 {
            self.lines
                .push(format!("{} wrong sectors in all", self.count));
        }
        self.lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OP: Operation = Operation {
        sector: 4,
        count: 2,
    };

    #[test]
    fn an_unacknowledged_write_may_be_there_or_not_but_never_flips_back() {
        let mut model = Model::new(16);
        model.lasting(OP, 1);
        model.sent(OP, 2);
        assert!(model.observe(4, Content::Tag(2)));
        assert!(model.observe(5, Content::Tag(1)));
        assert!(!model.observe(4, Content::Tag(1)));
        assert!(!model.observe(5, Content::Tag(2)));
    }

    #[test]
    fn a_lost_acknowledged_write_and_torn_bytes_are_found() {
        let mut model = Model::new(16);
        model.lasting(OP, 1);
        assert!(!model.observe(4, Content::Zeros));
        assert!(!model.observe(5, Content::Torn));
        assert_eq!(model.observe_map(&[]).len(), 2);
    }
}
