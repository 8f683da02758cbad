//! Laying sorted runs of extents over each other: later ones win, sector by sector.
//!
//! A btree leaf is a log of sorted sets, a journal a sequence of single keys; both have the same meaning. Laying
//! over is associative, so neighbours of similar size are combined first, as in a binary counter: n extents in k
//! runs cost n log k steps on plain vectors. Holes stay as entries, since they too decide what is below.

use crate::extents::Extent;

/// A stack of runs that combines as it grows. Each run is sorted and without overlap.
#[derive(Default)]
pub struct Layers {
    stack: Vec<Vec<Extent>>,
}

impl Layers {
    /// Lays a run over everything so far.
    pub fn push(&mut self, run: Vec<Extent>) {
        if run.is_empty() {
            return;
        }
        self.stack.push(run);
        while let [.., lower, upper] = self.stack.as_slice()
            && lower.len() <= upper.len().saturating_mul(2)
        {
            self.combine_top();
        }
    }

    fn combine_top(&mut self) {
        if let (Some(upper), Some(lower)) = (self.stack.pop(), self.stack.pop()) {
            self.stack.push(overlay(lower, upper));
        }
    }

    /// What all runs say together.
    pub fn finish(mut self) -> Vec<Extent> {
        while self.stack.len() > 1 {
            self.combine_top();
        }
        self.stack.pop().unwrap_or_default()
    }
}

fn starts_before(a: &Extent, b: &Extent) -> bool {
    (a.inode, a.start) < (b.inode, b.start)
}

/// `upper` laid over `lower`.
fn overlay(mut lower: Vec<Extent>, upper: Vec<Extent>) -> Vec<Extent> {
    if let (Some(last), Some(first)) = (lower.last(), upper.first())
        && (last.inode, last.end) <= (first.inode, first.start)
    {
        lower.extend(upper);
        return lower;
    }
    let mut out = Vec::with_capacity(lower.len() + upper.len());
    let mut below = lower.into_iter();
    let mut rest = below.next();
    for over in upper {
        while let Some(e) = rest {
            if !starts_before(&e, &over) && (e.inode > over.inode || e.start >= over.end) {
                break;
            }
            let is_left = e.inode < over.inode || e.end <= over.start;
            if is_left {
                out.push(e);
                rest = below.next();
                continue;
            }
            if e.start < over.start {
                out.push(e.slice(e.start, over.start));
            }
            if e.end > over.end {
                rest = Some(e.slice(over.end, e.end));
                break;
            }
            rest = below.next();
        }
        out.push(over);
    }
    out.extend(rest);
    out.extend(below);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use brigade_format::{Gen, Ptr};

    fn random(state: &mut u64) -> u64 {
        *state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        *state >> 33
    }

    /// A sorted run over two inodes of 64 sectors.
    fn run(state: &mut u64, tag: u64) -> Vec<Extent> {
        let mut out = Vec::new();
        for inode in 0..2 {
            let mut at = random(state) % 20;
            while at < 60 {
                let end = at + 1 + random(state) % 12;
                let ptr =
                    (!random(state).is_multiple_of(4)).then(|| Ptr::new(1000 * tag + at, Gen(0)));
                out.push(Extent {
                    inode,
                    start: at,
                    end,
                    ptr,
                    dirty: false,
                });
                at = end + random(state) % 10;
            }
        }
        out
    }

    type Sectors = std::collections::BTreeMap<(u32, u64), Option<Ptr>>;

    fn paint(sectors: &mut Sectors, run: &[Extent]) {
        for e in run {
            for s in e.start..e.end {
                sectors.insert((e.inode, s), e.ptr.map(|p| p.advance(s - e.start)));
            }
        }
    }

    #[test]
    fn layers_say_what_painting_sector_by_sector_says() {
        let mut state = 7;
        for round in 0..300 {
            let (mut layers, mut twin) = (Layers::default(), Sectors::new());
            for tag in 1..=1 + round % 9 {
                let run = run(&mut state, tag);
                paint(&mut twin, &run);
                layers.push(run);
            }
            let result = layers.finish();
            assert!(
                result
                    .windows(2)
                    .all(|w| (w[0].inode, w[0].end) <= (w[1].inode, w[1].start))
            );
            let mut sectors = Sectors::new();
            paint(&mut sectors, &result);
            assert_eq!(sectors, twin);
        }
    }
}
