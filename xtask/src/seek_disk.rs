//! A disk with an arm: an NBD server on a file, where getting from one place to another takes time.
//!
//! All requests of all connections go into one queue. The arm takes the next one ahead of it, and goes back to the lowest when there is
//! none (an elevator, as disks have one for their queue); what begins where the last request ended costs only its transfer:
//!
//! ```text
//! seek      0, or settle + FULL_STROKE * sqrt(distance / size)
//! transfer  bytes / RATE
//! ```
//! Nothing is cached: a write is answered when it is on the file, a flush costs nothing. The time is slept, but what is done by then is
//! done in order, one request at a time.

use crate::process::{Context, Result};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a request pays that does not begin where the last one ended, unless something else is wanted: until the arm rests, and a bit less
/// than half a turn at 7200 turns a minute, as a queue lets a disk choose what comes round first.
pub const SETTLE: Duration = Duration::from_micros(4000);
/// More, from one end of the disk to the other.
pub const FULL_STROKE: Duration = Duration::from_micros(8000);
/// Bytes a second under the head.
pub const RATE: f64 = 150e6;

const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const OPTION_ABORT: u32 = 2;
const OPTION_GO: u32 = 7;
const ACK: u32 = 1;
const INFO: u32 = 3;
const UNSUPPORTED: u32 = 1 << 31 | 1;
/// Flags, flush, FUA, several connections.
const FLAGS: u16 = 1 | 4 | 8 | 0x100;
const OPTION_BYTES_MAX: u32 = 4096;
const REQUEST_BYTES_MAX: u32 = 32 << 20;
const EIO: u32 = 5;
const EINVAL: u32 = 22;

impl Done {
    /// The difference.
    pub fn since(self, before: Done) -> Done {
        Done {
            requests: self.requests - before.requests,
            seeks: self.seeks - before.seeks,
            bytes: self.bytes - before.bytes,
        }
    }
}

impl std::fmt::Display for Done {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            to,
            "{} requests to the backing device with {} MiB, {} seeks",
            self.requests,
            self.bytes >> 20,
            self.seeks
        )
    }
}

/// The server, there as long as this is.
pub struct SeekDisk {
    /// Where it listens.
    pub socket: PathBuf,
    arm: Arc<Arm>,
}

struct Arm {
    file: std::fs::File,
    size: u64,
    settle: Duration,
    queue: Mutex<Queue>,
    changed: Condvar,
    seeks: AtomicU64,
    requests: AtomicU64,
    bytes: AtomicU64,
}

/// What a disk had to do so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// Reads and writes.
    pub requests: u64,
    /// Those that did not begin where the one before had ended.
    pub seeks: u64,
    /// Read and written.
    pub bytes: u64,
}

#[derive(Default)]
struct Queue {
    /// By place and number.
    waiting: BTreeMap<(u64, u64), Job>,
    next: u64,
    is_over: bool,
}

struct Job {
    command: u16,
    cookie: [u8; 8],
    data: Vec<u8>,
    length: u32,
    answer: Arc<Mutex<UnixStream>>,
}

impl SeekDisk {
    /// On a file, at a socket beside it; a seek takes at least so long.
    pub fn new(image: &Path, settle: Duration) -> Result<SeekDisk> {
        let socket = image.with_extension("seek.sock");
        let _ = std::fs::remove_file(&socket);
        let mut options = std::fs::OpenOptions::new();
        let file = options.read(true).write(true).open(image);
        let file = file.context("no image")?;
        let arm = Arc::new(Arm {
            size: file.metadata().context("no image")?.len(),
            file,
            settle,
            queue: Mutex::default(),
            changed: Condvar::new(),
            seeks: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        });
        let listener = UnixListener::bind(&socket).context("no socket")?;
        let moved = arm.clone();
        std::thread::spawn(move || moved.work());
        let accepting = arm.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(std::result::Result::ok) {
                let arm = accepting.clone();
                std::thread::spawn(move || drop(arm.converse(stream)));
            }
        });
        Ok(SeekDisk { socket, arm })
    }

    /// What it did so far.
    pub fn done(&self) -> Done {
        let count = |it: &AtomicU64| it.load(Ordering::Relaxed);
        Done {
            requests: count(&self.arm.requests),
            seeks: count(&self.arm.seeks),
            bytes: count(&self.arm.bytes),
        }
    }
}

impl Drop for SeekDisk {
    fn drop(&mut self) {
        self.arm.queue().is_over = true;
        self.arm.changed.notify_all();
        let _ = std::fs::remove_file(&self.socket);
    }
}

impl Arm {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one request after the other until the disk is gone.
    fn work(&self) {
        let mut head = 0;
        // Sleeping is not exact; what was slept too long is not paid again.
        let mut due = Instant::now();
        while let Some((offset, job)) = self.take(head) {
            let length = u64::from(job.length);
            due = due.max(Instant::now() - Duration::from_millis(2));
            if job.command < 2 {
                self.requests.fetch_add(1, Ordering::Relaxed);
                self.bytes.fetch_add(length, Ordering::Relaxed);
                let seek = seek(head, offset, self.size, self.settle);
                self.seeks
                    .fetch_add(u64::from(!seek.is_zero()), Ordering::Relaxed);
                due += seek + Duration::from_secs_f64(length as f64 / RATE);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                head = offset + length;
            }
            self.done(offset, job);
        }
    }

    /// The next one ahead of the head, or else the lowest.
    fn take(&self, head: u64) -> Option<(u64, Job)> {
        let mut queue = self.queue();
        loop {
            if queue.is_over {
                return None;
            }
            let ahead = queue.waiting.range((head, 0)..).next();
            let key = ahead
                .or_else(|| queue.waiting.iter().next())
                .map(|(key, _)| *key);
            if let Some(key) = key {
                return queue.waiting.remove(&key).map(|job| (key.0, job));
            }
            queue = self
                .changed
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn done(&self, offset: u64, job: Job) {
        let mut reply = 0x6744_6698_u32.to_be_bytes().to_vec();
        let (mut error, mut data) = (0, Vec::new());
        match job.command {
            0 => {
                data = vec![0; job.length as usize];
                if self.file.read_exact_at(&mut data, offset).is_err() {
                    (error, data) = (EIO, Vec::new());
                }
            }
            1 if self.file.write_all_at(&job.data, offset).is_err() => error = EIO,
            1 | 3 => {}
            _ => error = EINVAL,
        }
        reply.extend(error.to_be_bytes());
        reply.extend(job.cookie);
        reply.extend(data);
        let mut answer = job.answer.lock().unwrap_or_else(PoisonError::into_inner);
        // A client that has gone wants no answer.
        let _ = answer.write_all(&reply);
    }

    fn converse(&self, mut stream: UnixStream) -> std::io::Result<()> {
        self.greet(&mut stream)?;
        let answer = Arc::new(Mutex::new(stream.try_clone()?));
        loop {
            let mut header = [0; 28];
            stream.read_exact(&mut header)?;
            let word = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|i| header[at + i]));
            let offset = u64::from(word(16)) << 32 | u64::from(word(20));
            let (command, length) = (word(4) as u16, word(24));
            if word(0) != 0x2560_9513 || length > REQUEST_BYTES_MAX || command == 2 {
                return Ok(());
            }
            let mut data = vec![0; if command == 1 { length as usize } else { 0 }];
            stream.read_exact(&mut data)?;
            let mut cookie = [0; 8];
            cookie.copy_from_slice(&header[8..16]);
            let mut queue = self.queue();
            let number = queue.next;
            queue.next += 1;
            let job = Job {
                command,
                cookie,
                data,
                length,
                answer: answer.clone(),
            };
            queue.waiting.insert((offset, number), job);
            self.changed.notify_all();
        }
    }

    /// Until the client has the export.
    fn greet(&self, stream: &mut UnixStream) -> std::io::Result<()> {
        stream.write_all(b"NBDMAGIC")?;
        stream.write_all(&OPTION_MAGIC.to_be_bytes())?;
        stream.write_all(&3_u16.to_be_bytes())?;
        stream.read_exact(&mut [0; 4])?;
        loop {
            let mut header = [0; 16];
            stream.read_exact(&mut header)?;
            let word = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|i| header[at + i]));
            let (option, length) = (word(8), word(12));
            if length > OPTION_BYTES_MAX {
                return Err(std::io::ErrorKind::InvalidData.into());
            }
            stream.read_exact(&mut vec![0; length as usize])?;
            let reply = |kind: u32, data: &[u8]| {
                let mut bytes = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
                for word in [option, kind, data.len() as u32] {
                    bytes.extend(word.to_be_bytes());
                }
                bytes.extend(data);
                bytes
            };
            match option {
                OPTION_GO => {
                    let mut info = 0_u16.to_be_bytes().to_vec();
                    info.extend(self.size.to_be_bytes());
                    info.extend(FLAGS.to_be_bytes());
                    stream.write_all(&reply(INFO, &info))?;
                    return stream.write_all(&reply(ACK, &[]));
                }
                OPTION_ABORT => {
                    stream.write_all(&reply(ACK, &[]))?;
                    return Err(std::io::ErrorKind::ConnectionAborted.into());
                }
                _ => stream.write_all(&reply(UNSUPPORTED, &[]))?,
            }
        }
    }
}

fn seek(from: u64, to: u64, size: u64, settle: Duration) -> Duration {
    if from == to {
        return Duration::ZERO;
    }
    let part = from.abs_diff(to) as f64 / size.max(1) as f64;
    settle + FULL_STROKE.mul_f64(part.min(1.0).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nbd::Client;

    #[test]
    fn the_disk_gives_back_what_was_written_and_counts_its_seeks() {
        let folder = tempfile::tempdir().expect("a folder");
        let image = folder.path().join("disk");
        let file = std::fs::File::create(&image).expect("a file");
        file.set_len(1 << 20).expect("room");
        let disk = SeekDisk::new(&image, SETTLE).expect("it serves");
        let mut client = Client::connect(&disk.socket, "").expect("it answers");
        assert_eq!(client.size, 1 << 20);
        for at in [0, 4096, 65536] {
            client
                .write_at(at, &[at as u8 + 7; 4096], false)
                .expect("written");
        }
        client.flush().expect("flushed");
        let done = |requests, seeks| Done {
            requests,
            seeks,
            bytes: 4096 * requests,
        };
        assert_eq!(disk.done(), done(3, 1));
        assert_eq!(client.read_at(65536, 4096).expect("read"), [7; 4096]);
        assert_eq!(disk.done(), done(4, 2));
        client.disconnect();
    }

    #[test]
    fn a_seek_costs_more_the_further_it_goes() {
        let seek = |from, to| seek(from, to, 100, SETTLE);
        assert_eq!(seek(5, 5), Duration::ZERO);
        assert!(seek(0, 1) > SETTLE && seek(0, 1) < seek(50, 0));
        assert_eq!(seek(0, 100), SETTLE + FULL_STROKE);
    }
}
