//! Images the kernel wrote: read by Brigade, opened for writing by Brigade, and read again by the kernel.
//!
//! This is `cargo x golden check` over the project's own fixtures.

use super::{Passed, Setting};
use crate::golden::{self, Case, Place, Results, fixtures, is_for_writing, kernel_reads};
use crate::pattern::mix;
use crate::process::Result;

fn chosen(setting: &Setting) -> Result<Vec<Case>> {
    let mut cases = golden::list(&fixtures())?;
    if let Some(only) = &setting.only {
        cases.retain(|case| case.name == *only);
    }
    Ok(cases)
}

/// Runs a check and turns what differs into an error.
fn passed(setting: &Setting, check: impl FnOnce(Place, &mut Results)) -> Result<Passed> {
    let mut lines = Vec::new();
    let mut say = |line| lines.push(line);
    let mut results = Results::new(&mut say);
    let place = Place {
        program: &setting.program,
        scratch: &setting.scratch,
    };
    check(place, &mut results);
    let (differ, summary) = (results.differ(), results.summary());
    match differ {
        0 => Ok(Passed::Ran(summary)),
        _ => Err(format!("{summary}\n  {}", lines.join("\n  "))),
    }
}

/// Every fixture through `brigade serve --read-only`: same content, same refusals, no byte written.
pub fn read_only(setting: &Setting) -> Result<Passed> {
    let cases = chosen(setting)?;
    passed(setting, |place, results| {
        golden::read_only(place, &cases, results)
    })
}

/// Images opened for writing by Brigade, stopped, and read by the kernel: as many as there are rounds, other ones with another
/// seed.
pub fn read_write(setting: &Setting) -> Result<Passed> {
    let mut cases = chosen(setting)?;
    cases.retain(is_for_writing);
    let mut order: Vec<_> = (0..).zip(cases).collect();
    order.sort_by_key(|(nr, _)| mix(setting.seed ^ mix(*nr)));
    order.truncate(usize::try_from(setting.rounds).unwrap_or(usize::MAX));
    let cases: Vec<_> = order.into_iter().map(|(_, case)| case).collect();
    passed(setting, |place, results| {
        golden::read_write(place, &cases, results)
    })
}

/// The harness against itself: the kernel opens what it wrote.
pub fn kernel_alone(setting: &Setting) -> Result<Passed> {
    let mut cases = Vec::new();
    for name in ["wb-dirty", "flash-and-backing"] {
        let images = super::folder(setting, name)?;
        let case = golden::load(&fixtures(), name)?;
        case.unpack(&images)?;
        cases.push((case, images));
    }
    passed(setting, |place, results| {
        kernel_reads(place, &cases, results)
    })
}
