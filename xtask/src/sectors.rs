//! The guest's hands: this program under the name `sectors` writes and judges patterned sectors.
//!
//! It runs inside the virtual machine (`payload/sectors`), on block devices with direct I/O, and is also
//! handy on the host: `cargo x sectors map FILE`.

use crate::pattern::{Content, RandomWorkload, SECTOR, classify, fill};
use crate::process::{Context, Result};
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

const USAGE: &str = "\
sectors fill DEV START COUNT TAG [IO]        write the pattern, IO sectors at a time (128)
sectors check DEV START COUNT TAG            status 1 and the first differences unless all of it has TAG
sectors spots DEV COUNT START:TAG...         status 1 unless COUNT sectors from each START on have its TAG; reads no others
sectors rand DEV SEED OPS START RANGE ALIGN MAX TAGBASE [THREADS [FLUSH [REPORT]]]
    operation i has tag TAGBASE + i; thread t does t, t + THREADS...; thread 0 flushes after each FLUSH of its
    operations and says `@@flushed a,b,...` (operations of each thread that this flush covers); all together
    say `@@ops N` every REPORT operations
sectors map DEV                              runs of content: P START COUNT TAG, R START COUNT SHA256
sectors values DEV                           what the simulator wrote: START COUNT VOLUME VALUE
sectors hash DEV                             SHA-256 of everything
sectors copy SOURCE TARGET                   all of it, holes stay holes";

const O_DIRECT: i32 = 0x4000;
const ALIGN: usize = 4096;
const CHUNK: usize = 256 << 10;
const THREADS_MAX: usize = 64;

/// Runs `sectors ARGUMENTS`.
pub fn main(arguments: &[String]) -> Result<ExitCode> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["fill", device, rest @ ..] => fill_range(device, rest),
        ["check", device, rest @ ..] => return check_range(device, rest),
        ["spots", device, rest @ ..] => return check_spots(device, rest),
        ["rand", device, rest @ ..] => random(device, rest),
        ["map", device] => map(device, &mut std::io::stdout().lock()),
        ["values", device] => {
            print!("{}", crate::sim_values::list(&open(device, false)?)?);
            Ok(())
        }
        ["hash", device] => {
            println!("{}", hash_file(Path::new(device))?);
            Ok(())
        }
        ["copy", source, target] => copy(source, target),
        _ => {
            eprintln!("{USAGE}");
            return Ok(ExitCode::from(2));
        }
    }?;
    Ok(ExitCode::SUCCESS)
}

fn open(path: &str, write: bool) -> Result<File> {
    let is_file = std::fs::metadata(path).is_ok_and(|meta| meta.is_file());
    let mut options = OpenOptions::new();
    options.read(true).write(write);
    if !is_file {
        options.custom_flags(O_DIRECT);
    }
    options.open(path).context(path)
}

fn numbers(words: &[&str]) -> Result<Vec<u64>> {
    words
        .iter()
        .map(|word| word.parse().context(format!("{word} is no number")))
        .collect()
}

fn at(numbers: &[u64], index: usize, default: u64) -> u64 {
    numbers.get(index).copied().unwrap_or(default)
}

/// Memory that direct I/O takes.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
    size: usize,
}

impl Aligned {
    fn new(size: usize) -> Self {
        let memory = vec![0u8; size + ALIGN];
        let start = memory.as_ptr().align_offset(ALIGN);
        Aligned {
            memory,
            start,
            size,
        }
    }

    fn bytes(&mut self, size: usize) -> &mut [u8] {
        assert!(size <= self.size, "more than the buffer holds");
        &mut self.memory[self.start..self.start + size]
    }
}

/// Reads until `bytes` is full or the file ends; returns how much there was.
fn read_full(file: &File, bytes: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], offset + done as u64)? {
            0 => break,
            count => done += count,
        }
    }
    Ok(done)
}

/// Calls `each` with consecutive pieces of a file or device and their offsets.
pub fn each_piece(file: &File, mut each: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
    let mut buffer = Aligned::new(CHUNK);
    let mut offset = 0;
    loop {
        let count =
            read_full(file, buffer.bytes(CHUNK), offset).context(format!("read at {offset}"))?;
        each(offset, &buffer.bytes(CHUNK)[..count])?;
        offset += count as u64;
        if count < CHUNK {
            return Ok(());
        }
    }
}

/// SHA-256 of a file's content, in hexadecimal.
pub fn hash_file(path: &Path) -> Result<String> {
    let file = File::open(path).context(format!("cannot open {}", path.display()))?;
    let mut hash = Sha256::new();
    each_piece(&file, |_, bytes| {
        hash.update(bytes);
        Ok(())
    })?;
    Ok(hex(&hash.finalize()))
}

/// SHA-256 of what is not zeros in a file, with where it is: whole files of mostly nothing can be told apart by it in
/// the time it takes to read holes.
pub fn hash_data(path: &Path) -> Result<String> {
    let file = File::open(path).context(format!("cannot open {}", path.display()))?;
    let (mut hash, zeros) = (Sha256::new(), vec![0u8; CHUNK]);
    let mut size = 0;
    each_piece(&file, |offset, bytes| {
        size = offset + bytes.len() as u64;
        if bytes != &zeros[..bytes.len()] {
            hash.update(offset.to_le_bytes());
            hash.update(bytes);
        }
        Ok(())
    })?;
    hash.update(size.to_le_bytes());
    Ok(hex(&hash.finalize()))
}

/// Bytes as lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn fill_range(device: &str, rest: &[&str]) -> Result<()> {
    let n = numbers(rest)?;
    let (start, count, tag, io) = (
        at(&n, 0, 0),
        at(&n, 1, 0),
        at(&n, 2, 0),
        at(&n, 3, 128).clamp(1, 65536),
    );
    let file = open(device, true)?;
    let mut buffer = Aligned::new(io as usize * SECTOR);
    let mut done = 0;
    while done < count {
        let now = io.min(count - done);
        let bytes = buffer.bytes(now as usize * SECTOR);
        fill(bytes, start + done, tag);
        file.write_all_at(bytes, (start + done) * SECTOR as u64)
            .context(format!("write at sector {}", start + done))?;
        done += now;
    }
    Ok(())
}

fn check_range(device: &str, rest: &[&str]) -> Result<ExitCode> {
    let n = numbers(rest)?;
    let (start, count, tag) = (at(&n, 0, 0), at(&n, 1, 0), at(&n, 2, 0));
    let mut wrong = 0u64;
    let mut seen = 0u64;
    each_piece(&open(device, false)?, |offset, bytes| {
        let first = offset / SECTOR as u64;
        for (i, sector) in bytes.chunks_exact(SECTOR).enumerate() {
            let number = first + i as u64;
            if number < start || number >= start + count {
                continue;
            }
            seen += 1;
            let found = classify(sector, number);
            if found != Content::Tag(tag) {
                wrong += 1;
                if wrong <= 10 {
                    println!("sector {number}: want tag {tag}, found {found:?}");
                }
            }
        }
        Ok(())
    })?;
    println!("checked {seen} sectors, {wrong} wrong");
    Ok(if wrong == 0 && seen == count {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn check_spots(device: &str, rest: &[&str]) -> Result<ExitCode> {
    let (count, spots) = rest.split_first().ok_or("no COUNT")?;
    let count = numbers(&[*count])?[0].clamp(1, 65536) as usize;
    let file = open(device, false)?;
    let mut buffer = Aligned::new(count * SECTOR);
    let mut wrong = 0u64;
    for spot in spots {
        let words: Vec<&str> = spot.split(':').collect();
        let &[start, tag] = numbers(&words)?.as_slice() else {
            return Err(format!("{spot} is not START:TAG"));
        };
        let bytes = buffer.bytes(count * SECTOR);
        read_full(&file, bytes, start * SECTOR as u64)
            .context(format!("read at sector {start}"))?;
        for (number, sector) in (start..).zip(bytes.chunks_exact(SECTOR)) {
            let found = classify(sector, number);
            if found != Content::Tag(tag) {
                wrong += 1;
                println!("sector {number}: want tag {tag}, found {found:?}");
            }
        }
    }
    println!("checked {} spots, {wrong} sectors wrong", spots.len());
    Ok(match wrong {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

struct Progress {
    by_thread: Vec<AtomicU64>,
    total: AtomicU64,
}

fn random(device: &str, rest: &[&str]) -> Result<()> {
    let n = numbers(rest)?;
    let load = RandomWorkload {
        seed: at(&n, 0, 1),
        start: at(&n, 2, 0),
        range: at(&n, 3, 0),
        align: at(&n, 4, 8).max(1),
        count_max: at(&n, 5, 1).max(1),
    };
    if load.range < load.align {
        return Err("the range holds not one operation".into());
    }
    let threads = (at(&n, 7, 1) as usize).clamp(1, THREADS_MAX);
    let job = Job {
        device: device.to_string(),
        load,
        operations: at(&n, 1, 0),
        tag_base: at(&n, 6, 0),
        flush_every: at(&n, 8, 0),
        report_every: at(&n, 9, 0),
        progress: Progress {
            by_thread: (0..threads).map(|_| AtomicU64::new(0)).collect(),
            total: AtomicU64::new(0),
        },
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|t| {
                scope.spawn({
                    let job = &job;
                    move || job.work(t)
                })
            })
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().map_err(|_| "a worker panicked".to_string())?)
    })
}

/// Where a worker writes: a device of its own handle, or a connection of its own.
enum Target {
    File(File),
    Nbd(Box<crate::nbd::Client>),
}

impl Target {
    fn open(device: &str) -> Result<Target> {
        match device.strip_prefix("nbd:") {
            Some(socket) => Ok(Target::Nbd(Box::new(crate::nbd::Client::connect(
                Path::new(socket),
                "",
            )?))),
            None => open(device, true).map(Target::File),
        }
    }

    fn write(&mut self, bytes: &[u8], sector: u64) -> Result<()> {
        let offset = sector * SECTOR as u64;
        match self {
            Target::File(file) => file
                .write_all_at(bytes, offset)
                .context(format!("write at sector {sector}")),
            Target::Nbd(client) => client.write_at(offset, bytes, false),
        }
    }

    fn flush(&mut self) -> Result<()> {
        match self {
            Target::File(file) => file.sync_all().context("flush"),
            Target::Nbd(client) => client.flush(),
        }
    }
}

struct Job {
    device: String,
    load: RandomWorkload,
    operations: u64,
    tag_base: u64,
    flush_every: u64,
    report_every: u64,
    progress: Progress,
}

impl Job {
    fn work(&self, thread: usize) -> Result<()> {
        let mut target = Target::open(&self.device)?;
        let threads = self.progress.by_thread.len() as u64;
        let mut buffer = Aligned::new((self.load.align * self.load.count_max) as usize * SECTOR);
        let mut index = thread as u64;
        while index < self.operations {
            let op = self.load.operation(index);
            let bytes = buffer.bytes(op.count as usize * SECTOR);
            fill(bytes, op.sector, self.tag_base + index);
            target.write(bytes, op.sector)?;
            let mine = self.progress.by_thread[thread].fetch_add(1, Ordering::SeqCst) + 1;
            let all = self.progress.total.fetch_add(1, Ordering::SeqCst) + 1;
            if self.report_every > 0 && all.is_multiple_of(self.report_every) {
                say(&format!("@@ops {all}"));
            }
            if thread == 0 && self.flush_every > 0 && mine.is_multiple_of(self.flush_every) {
                self.flush(&mut target)?;
            }
            index += threads;
        }
        Ok(())
    }

    /// What was complete before the flush began is what the flush covers.
    fn flush(&self, target: &mut Target) -> Result<()> {
        let covered: Vec<String> = self
            .progress
            .by_thread
            .iter()
            .map(|n| n.load(Ordering::SeqCst).to_string())
            .collect();
        target.flush()?;
        say(&format!("@@flushed {}", covered.join(",")));
        Ok(())
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

#[derive(PartialEq, Eq, Clone, Copy)]
enum Kind {
    Zeros,
    Pattern(u64),
    Raw,
}

/// Prints what is on a device, one line a run; what no line covers is zeros.
pub fn map(device: &str, out: &mut impl Write) -> Result<()> {
    let (mut kind, mut start, mut end, mut hash) = (Kind::Zeros, 0u64, 0u64, Sha256::new());
    let mut lines = String::new();
    let mut finish = |kind: Kind, start: u64, end: u64, hash: &mut Sha256| match kind {
        Kind::Zeros => {}
        Kind::Pattern(tag) => lines.push_str(&format!("P {start} {} {tag}\n", end - start)),
        Kind::Raw => {
            let digest = std::mem::take(hash).finalize();
            lines.push_str(&format!("R {start} {} {}\n", end - start, hex(&digest)));
        }
    };
    each_piece(&open(device, false)?, |offset, bytes| {
        for (i, sector) in bytes.chunks_exact(SECTOR).enumerate() {
            let number = offset / SECTOR as u64 + i as u64;
            let now = match classify(sector, number) {
                Content::Zeros => Kind::Zeros,
                Content::Tag(tag) => Kind::Pattern(tag),
                _ => Kind::Raw,
            };
            if now != kind {
                finish(kind, start, end, &mut hash);
                (kind, start) = (now, number);
            }
            if kind == Kind::Raw {
                hash.update(sector);
            }
            end = number + 1;
        }
        Ok(())
    })?;
    finish(kind, start, end, &mut hash);
    out.write_all(lines.as_bytes()).context("cannot print")
}

fn copy(source: &str, target: &str) -> Result<()> {
    let (from, to) = (open(source, false)?, open(target, true)?);
    let mut buffer = Aligned::new(CHUNK);
    each_piece(&from, |offset, bytes| {
        if bytes.iter().all(|&byte| byte == 0) {
            return Ok(());
        }
        buffer.bytes(bytes.len()).copy_from_slice(bytes);
        to.write_all_at(buffer.bytes(bytes.len()), offset)
            .context(format!("write at {offset}"))
    })?;
    to.sync_all().context("flush")
}
