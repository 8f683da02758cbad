//! What a server really reads from a file: its system calls as strace saw them.
//!
//! A server's own count of what it read is a claim, and the kernel's counters do not tell bytes apart. The calls do: file, offset
//! and length of each. Only reads by threads are seen, so the server has to run with `--engine threads`.

use crate::process::{Context, Result};
use regex_lite::Regex;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

const END_TIMEOUT: Duration = Duration::from_secs(20);

/// The command line under which a server is traced into `log`. The tracer is the grandchild: the child is the server.
pub fn under(log: &Path) -> Vec<String> {
    let fixed = "strace -D -f -y -s 0 -e trace=pread64,preadv,preadv2,mmap -o";
    let log = log.display().to_string();
    fixed.split(' ').map(str::to_string).chain([log]).collect()
}

/// Waits for the tracer to finish its log and returns it.
pub fn finished(log: &Path) -> Result<String> {
    let end = Instant::now() + END_TIMEOUT;
    loop {
        let text = std::fs::read_to_string(log).context("no log from strace")?;
        let mut lines = text.lines();
        let first = lines.next().and_then(|line| line.split(' ').next());
        // The first line is the main thread's, which ends last.
        let is_end = |line: &str| line.contains("+++ exited") && line.split(' ').next() == first;
        if lines.any(is_end) {
            return Ok(text);
        }
        if Instant::now() > end {
            return Err("strace does not finish its log".into());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What was read of one file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reads {
    /// Bytes read, however often.
    pub total: u64,
    /// Bytes that were read before.
    pub again: u64,
    /// Where the first of those is.
    pub first_again: Option<u64>,
}

/// Adds up the reads of a file in a log.
pub fn reads_of(log: &str, file: &Path) -> Result<Reads> {
    let call = Regex::new(r"^(\d+) +(pread64|preadv2?|mmap)\((.*)$").context("pattern")?;
    let rest = Regex::new(r"^(\d+) +<\.\.\. pread64 resumed>(.*)$").context("pattern")?;
    let descriptor = format!("<{}>", file.display());
    let mut ranges = Vec::new();
    let mut cut_off: BTreeMap<&str, &str> = BTreeMap::new();
    for line in log.lines() {
        let part = |captures: &regex_lite::Captures<'_>, i: usize| {
            captures.get(i).map_or("", |text| text.as_str()).to_string()
        };
        if let Some(found) = call.captures(line) {
            let arguments = found.get(3).map_or("", |text| text.as_str());
            if !arguments.contains(&descriptor) {
                continue;
            }
            if &part(&found, 2) != "pread64" {
                return Err(format!("this way of reading is not understood: {line}"));
            }
            if arguments.ends_with("<unfinished ...>") {
                cut_off.insert(found.get(1).map_or("", |text| text.as_str()), arguments);
            } else {
                ranges.extend(range(line, arguments)?);
            }
        } else if let Some(found) = rest.captures(line)
            && cut_off.remove(part(&found, 1).as_str()).is_some()
        {
            ranges.extend(range(line, &part(&found, 2))?);
        }
    }
    Ok(add_up(ranges))
}

/// Offset and length from `..., COUNT, OFFSET) = RESULT`; none for a call that read nothing.
fn range(line: &str, arguments: &str) -> Result<Option<(u64, u64)>> {
    let pattern = Regex::new(r", (\d+), (\d+)\) += (-?\d+)").context("pattern")?;
    let found = pattern
        .captures(arguments)
        .ok_or_else(|| format!("not understood: {line}"))?;
    let number = |i: usize| found.get(i).and_then(|text| text.as_str().parse().ok());
    Ok(number(2).zip(number(3).filter(|length| *length > 0)))
}

fn add_up(mut ranges: Vec<(u64, u64)>) -> Reads {
    ranges.sort_unstable();
    let mut reads = Reads::default();
    let mut end = 0u64;
    for (offset, length) in ranges {
        reads.total += length;
        let again = end.saturating_sub(offset).min(length);
        if again > 0 {
            reads.again += again;
            reads.first_again.get_or_insert(offset);
        }
        end = end.max(offset + length);
    }
    reads
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
7 mmap(NULL, 8192, PROT_READ, MAP_PRIVATE, 3</lib/libc.so>, 0) = 0x7f00
8 pread64(9</t/cache.img>, \"\"..., 4096, 4096) = 4096
9 pread64(9</t/cache.img>,  <unfinished ...>
8 pread64(11</t/back.img>, \"\"..., 4096, 4096) = 4096
9 <... pread64 resumed>\"\"..., 8192, 65536) = 8192
8 pread64(9</t/cache.img>, \"\"..., 4096, 1048576) = 0
7 +++ exited with 0 +++
";

    #[test]
    fn reads_are_found_by_file_also_where_another_thread_comes_between() {
        let reads = reads_of(LOG, Path::new("/t/cache.img")).expect("parsed");
        let expected = Reads {
            total: 4096 + 8192,
            ..Reads::default()
        };
        assert_eq!(reads, expected);
    }

    #[test]
    fn what_is_read_twice_is_counted_and_what_is_not_understood_is_no_zero() {
        let twice = format!("{LOG}8 pread64(9</t/cache.img>, \"\"..., 8192, 69632) = 8192\n");
        let reads = reads_of(&twice, Path::new("/t/cache.img")).expect("parsed");
        assert_eq!((reads.again, reads.first_again), (4096, Some(69632)));
        let mapped =
            format!("{LOG}8 mmap(NULL, 9, PROT_READ, MAP_SHARED, 9</t/cache.img>, 0) = 1\n");
        assert!(reads_of(&mapped, Path::new("/t/cache.img")).is_err());
    }
}
