//! The rule of agreement: what Brigade did with a case's images against what the kernel did with them.
//!
//! The same volumes with the same content and state, and a refusal of what the kernel refused: status 1 and one line
//! that names the image. Where a case says `may differ`, refusing and serving read-only are as good; what is served
//! must still be what the kernel read, where the kernel read it. A damaged case may always be refused for writing.

use super::case::{Case, Volume};
use crate::pattern::SECTOR;

/// One volume that Brigade served of a case.
#[derive(Clone, Debug, Default)]
pub struct Served {
    /// Export name.
    pub name: String,
    /// File name of the backing device; none for a flash-only volume.
    pub backing: Option<String>,
    /// State of the backing device's superblock.
    pub state: Option<String>,
    /// It takes no writes.
    pub read_only: bool,
    /// Size in bytes.
    pub size: u64,
    /// SHA-256 of the content read.
    pub sha256: String,
}

/// An end instead of service.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// Exit status.
    pub status: Option<i32>,
    /// Lines of standard error.
    pub lines: Vec<String>,
    /// Images named in them.
    pub named: Vec<String>,
}

/// What Brigade did with a case's images.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Refusals; after each the images it named were left out, as one leaves out what the kernel refuses.
    pub refusals: Vec<Refusal>,
    /// What was served in the end.
    pub volumes: Vec<Served>,
    /// Opened for reading only.
    pub read_only: bool,
}

/// The judge's finding: agreement if `wrong` is empty.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Disagreements.
    pub wrong: Vec<String>,
    /// Where Brigade was stricter than the kernel and may be.
    pub stricter: Vec<String>,
}

impl Verdict {
    /// A verdict with one disagreement.
    pub fn wrong(why: String) -> Self {
        Verdict {
            wrong: vec![why],
            stricter: Vec::new(),
        }
    }

    fn note(&mut self, is_allowed: bool, why: String) {
        if is_allowed {
            self.stricter.push(why);
        } else {
            self.wrong.push(why);
        }
    }
}

/// Compares Brigade's behaviour with the kernel's.
pub fn judge(case: &Case, observed: &Observed) -> Verdict {
    let mut verdict = Verdict::default();
    for refusal in &observed.refusals {
        judge_form(refusal, &mut verdict);
    }
    judge_refused(case, observed, &mut verdict);
    judge_volumes(case, observed, &mut verdict);
    verdict
}

/// A refusal is status 1 and one line that says of which image it speaks.
fn judge_form(refusal: &Refusal, verdict: &mut Verdict) {
    let said = refusal.lines.join(" | ");
    if refusal.status != Some(1) {
        verdict.wrong.push(format!(
            "ended with status {:?} instead of 1: {said}",
            refusal.status
        ));
    }
    if refusal.lines.len() != 1 {
        verdict.wrong.push(format!(
            "{} lines on standard error instead of one: {said}",
            refusal.lines.len()
        ));
    } else if refusal.named.is_empty() {
        verdict
            .wrong
            .push(format!("the refusal names no image: {said}"));
    }
}

/// What the kernel refuses has to be refused, and the blame must be where the kernel puts it.
fn judge_refused(case: &Case, observed: &Observed, verdict: &mut Verdict) {
    let refused = case.refused();
    if refused.is_empty() {
        return;
    }
    let theirs = refused.join(", ");
    match observed.refusals.first() {
        None => verdict.note(
            case.may_differ() && observed.read_only,
            format!("served with {theirs}, which the kernel refuses"),
        ),
        Some(first) if !first.named.iter().any(|file| refused.contains(file)) => {
            verdict.wrong.push(format!(
                "blames {}, the kernel refuses {theirs}",
                first.named.join(", ")
            ));
        }
        Some(_) => {}
    }
}

fn judge_volumes(case: &Case, observed: &Observed, verdict: &mut Verdict) {
    let may_refuse = case.may_differ() || (case.is_derived() && !observed.read_only);
    let mut kernel = case.volumes();
    for volume in &observed.volumes {
        match kernel.iter().position(|theirs| is_same(volume, theirs)) {
            Some(i) => judge_volume(case, observed, volume, &kernel.remove(i), verdict),
            None => verdict.note(
                case.may_differ() && observed.read_only,
                format!(
                    "{} ({} bytes): served, the kernel has no such volume",
                    volume.name, volume.size
                ),
            ),
        }
    }
    let said: Vec<&str> = observed
        .refusals
        .iter()
        .flat_map(|refusal| refusal.lines.iter().map(String::as_str))
        .collect();
    for theirs in kernel {
        let name = theirs.backing.unwrap_or(theirs.name);
        verdict.note(
            may_refuse,
            format!(
                "{name}: not served, the kernel serves it: {}",
                said.join(" | ")
            ),
        );
    }
}

/// Cached volumes go by their backing device; flash-only ones have nothing but their content.
fn is_same(ours: &Served, theirs: &Volume) -> bool {
    ours.backing == theirs.backing && (ours.backing.is_some() || ours.sha256 == theirs.sha256)
}

fn judge_volume(
    case: &Case,
    observed: &Observed,
    ours: &Served,
    theirs: &Volume,
    verdict: &mut Verdict,
) {
    let name = ours.backing.as_deref().unwrap_or(&ours.name);
    if ours.size != theirs.sectors * SECTOR as u64 {
        verdict.wrong.push(format!(
            "{name}: {} bytes, the kernel's has {}",
            ours.size,
            theirs.sectors * SECTOR as u64
        ));
    } else if ours.sha256 != theirs.sha256 {
        verdict.note(
            case.content_may_differ(),
            format!("{name}: content differs from the kernel's"),
        );
    }
    if !observed.read_only && ours.read_only != theirs.read_only {
        verdict.note(
            case.may_differ() && ours.read_only,
            format!(
                "{name}: read-only {}, the kernel's: {}",
                ours.read_only, theirs.read_only
            ),
        );
    }
    // Opened for writing, the state may have moved on by itself: written back, or attached.
    let Some(file) = ours.backing.as_deref().filter(|_| observed.read_only) else {
        return;
    };
    let expected = case.state(file);
    if ours.state.as_deref() != expected {
        verdict.wrong.push(format!(
            "{name}: state {}, the kernel's: {}",
            ours.state.as_deref().unwrap_or("unknown"),
            expected.unwrap_or("unknown")
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::super::{fixtures, load};
    use super::*;

    fn refusal(file: &str) -> Observed {
        Observed {
            refusals: vec![Refusal {
                status: Some(1),
                lines: vec![format!("{file}: no")],
                named: vec![file.into()],
            }],
            read_only: true,
            ..Observed::default()
        }
    }

    fn served(sha256: &str, state: &str) -> Observed {
        Observed {
            volumes: vec![Served {
                name: "volume0".into(),
                backing: Some("back.img".into()),
                state: Some(state.into()),
                read_only: true,
                size: 196_592 * 512,
                sha256: sha256.into(),
            }],
            read_only: true,
            ..Observed::default()
        }
    }

    fn complaints(name: &str, observed: &Observed) -> usize {
        let case = load(&fixtures(), name).expect("a manifest");
        judge(&case, observed).wrong.len()
    }

    #[test]
    fn content_and_state_must_be_the_kernels() {
        let case = load(&fixtures(), "wb-dirty").expect("a manifest");
        let right = case.volumes()[0].sha256.clone();
        assert_eq!(complaints("wb-dirty", &served(&right, "dirty")), 0);
        assert_eq!(complaints("wb-dirty", &served(&right, "clean")), 1);
        assert_eq!(complaints("wb-dirty", &served("00", "dirty")), 1);
        let mut other = served(&right, "dirty");
        other.volumes[0].size += 512;
        assert_eq!(complaints("wb-dirty", &other), 1);
        other.volumes.clear();
        assert_eq!(complaints("wb-dirty", &other), 1);
    }

    #[test]
    fn a_refusal_must_be_the_kernels_and_put_the_blame_where_the_kernel_does() {
        assert_eq!(complaints("wb-dirty", &refusal("back.img")), 1);
        assert_eq!(complaints("bad-btree-leaf", &refusal("cache.img")), 0);
        assert_eq!(complaints("bad-btree-leaf", &refusal("back.img")), 1);
        assert_eq!(complaints("bad-btree-leaf", &served("00", "dirty")), 2);
        let mut panicked = refusal("cache.img");
        panicked.refusals[0].status = Some(101);
        panicked.refusals[0].lines.push("b".into());
        assert_eq!(complaints("bad-btree-leaf", &panicked), 2);
        let mut silent = refusal("cache.img");
        silent.refusals[0].named.clear();
        assert_eq!(complaints("bad-btree-leaf", &silent), 2);
    }

    #[test]
    fn being_stricter_is_allowed_where_the_case_says_so_and_for_writing_where_it_is_damaged() {
        assert_eq!(complaints("root-gen-stale", &refusal("cache.img")), 0);
        assert_eq!(complaints("root-gen-stale", &served("00", "dirty")), 1);
        assert_eq!(complaints("check-over-dirty", &refusal("cache.img")), 1);
        let mut for_writing = refusal("cache.img");
        for_writing.read_only = false;
        assert_eq!(complaints("check-over-dirty", &for_writing), 0);
        assert_eq!(complaints("wb-dirty", &for_writing), 1);
    }
}
