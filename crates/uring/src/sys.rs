//! Small system calls that the standard library does not offer, as safe functions.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// `BLKDISCARD`: a range of two u64.
pub(crate) const BLKDISCARD: libc::Ioctl = 0x1277;
const BLKGETSIZE64: libc::Ioctl = 0x8008_1272;
const BLKIOOPT: libc::Ioctl = 0x1279;

/// The result of a call that returns -1 and sets errno.
pub(crate) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// The last error as a negative number, as completions carry it.
pub(crate) fn negative_errno() -> i32 {
    -io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO)
}

/// A new non-blocking eventfd.
pub(crate) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; a non-negative result is a new descriptor that nobody else owns.
    unsafe {
        Ok(OwnedFd::from_raw_fd(check(libc::eventfd(
            0,
            libc::EFD_CLOEXEC | libc::EFD_NONBLOCK,
        ))?))
    }
}

/// Adds one to an eventfd. It can only fail when the counter is full, and then it is ringing anyway.
pub(crate) fn ring_bell(bell: &OwnedFd) {
    let one = 1_u64;
    // SAFETY: writes eight bytes from a local.
    let _ = unsafe { libc::write(bell.as_raw_fd(), (&raw const one).cast(), 8) };
}

/// Empties an eventfd.
pub(crate) fn silence_bell(bell: &OwnedFd) {
    let mut count = 0_u64;
    // SAFETY: reads eight bytes into a local.
    let _ = unsafe { libc::read(bell.as_raw_fd(), (&raw mut count).cast(), 8) };
}

/// CLOCK_MONOTONIC, the clock of ring timeouts.
pub(crate) fn monotonic() -> Duration {
    time_of(libc::CLOCK_MONOTONIC)
}

/// Processor time of this thread.
pub(crate) fn thread_time() -> Duration {
    time_of(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn time_of(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes into a local; these clocks always exist.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Some unpredictable bits to start from.
pub(crate) fn seed() -> u64 {
    let mut seed = 0_u64;
    // SAFETY: fills eight bytes of a local. Failure (very early boot) leaves zero, mixed with the clock below.
    unsafe { libc::getrandom((&raw mut seed).cast(), 8, libc::GRND_NONBLOCK) };
    seed ^ monotonic().as_nanos() as u64
}

/// Sets or clears status flags (`O_DIRECT`, `O_NONBLOCK`).
pub(crate) fn change_flags(fd: &OwnedFd, set: libc::c_int, clear: libc::c_int) -> io::Result<()> {
    // SAFETY: F_GETFL and F_SETFL take no pointers.
    unsafe {
        let flags = check(libc::fcntl(fd.as_raw_fd(), libc::F_GETFL))?;
        check(libc::fcntl(
            fd.as_raw_fd(),
            libc::F_SETFL,
            (flags | set) & !clear,
        ))?;
    }
    Ok(())
}

/// `flock` without waiting.
pub(crate) fn try_lock(fd: &OwnedFd, is_exclusive: bool) -> io::Result<()> {
    let how = if is_exclusive {
        libc::LOCK_EX
    } else {
        libc::LOCK_SH
    };
    // SAFETY: no pointers.
    check(unsafe { libc::flock(fd.as_raw_fd(), how | libc::LOCK_NB) }).map(drop)
}

/// The file lives in memory, so that reading and writing it never waits for a disk.
pub(crate) fn is_in_memory(fd: &OwnedFd) -> bool {
    const RAMFS_MAGIC: u64 = 0x8584_58f6;
    // SAFETY: an all-zero statfs is a valid value.
    let mut about: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one statfs into the local.
    let result = unsafe { libc::fstatfs(fd.as_raw_fd(), &raw mut about) };
    result == 0 && [libc::TMPFS_MAGIC as u64, RAMFS_MAGIC].contains(&(about.f_type as u64))
}

/// Length of a file in bytes; `None` if the kernel does not say.
pub(crate) fn length_bytes(fd: &OwnedFd) -> Option<u64> {
    // SAFETY: an all-zero stat is a valid value.
    let mut about: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one stat into the local.
    let result = unsafe { libc::fstat(fd.as_raw_fd(), &raw mut about) };
    (result == 0).then(|| about.st_size.unsigned_abs())
}

/// Size of a block device in bytes.
pub(crate) fn block_size_bytes(fd: &OwnedFd) -> io::Result<u64> {
    let mut size = 0_u64;
    // SAFETY: BLKGETSIZE64 writes one u64.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), BLKGETSIZE64, &raw mut size) })?;
    Ok(size)
}

/// Logical and physical block size of a block device.
pub(crate) fn block_units(fd: &OwnedFd) -> io::Result<(u32, u32)> {
    let (mut logical, mut physical): (libc::c_int, libc::c_uint) = (0, 0);
    // SAFETY: BLKSSZGET writes an int, BLKPBSZGET an unsigned int.
    unsafe {
        check(libc::ioctl(
            fd.as_raw_fd(),
            libc::BLKSSZGET,
            &raw mut logical,
        ))?;
        check(libc::ioctl(
            fd.as_raw_fd(),
            libc::BLKPBSZGET,
            &raw mut physical,
        ))?;
    }
    Ok((logical.max(0) as u32, physical))
}

/// Optimal size of an I/O to a block device, in bytes; 0 if it has none.
pub(crate) fn optimal_io_bytes(fd: &OwnedFd) -> io::Result<u32> {
    let mut bytes: libc::c_uint = 0;
    // SAFETY: BLKIOOPT writes an unsigned int.
    unsafe { check(libc::ioctl(fd.as_raw_fd(), BLKIOOPT, &raw mut bytes))? };
    Ok(bytes)
}

/// Process at the other end of a unix socket.
pub(crate) fn peer_pid(fd: &OwnedFd) -> Option<i32> {
    let mut who = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    let target = (&raw mut who).cast();
    // SAFETY: the kernel writes at most `length` bytes into `who`.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            target,
            &raw mut length,
        )
    };
    (result == 0).then_some(who.pid)
}

/// Asks for room for `bytes` in a socket's send queue; the system may give less.
pub(crate) fn want_send_room(fd: &OwnedFd, bytes: libc::c_int) {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel reads one int from a local.
    let _ = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_SNDBUF,
            (&raw const bytes).cast(),
            length,
        )
    };
}

/// The front of a file, shared with the page cache.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: *mut u8,
    length: usize,
}

impl Mapping {
    /// Allocates the first `length` bytes of the file, growing it if needed, and maps them.
    pub(crate) fn new(file: &File, length: usize) -> io::Result<Mapping> {
        let fd = file.as_raw_fd();
        // SAFETY: no pointers.
        check(unsafe { libc::fallocate(fd, 0, 0, length as libc::off_t) })?;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), length, access, flags, fd, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Mapping {
            start: start.cast(),
            length,
        })
    }

    /// Writes to the file; `false` if the range is not mapped.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> bool {
        let Ok(offset) = usize::try_from(offset) else {
            return false;
        };
        if offset
            .checked_add(bytes.len())
            .is_none_or(|end| end > self.length)
        {
            return false;
        }
        // SAFETY: the range lies within the mapping, which lives as long as `self` and is never lent out as a
        // reference; its pages are allocated and the file is not shortened meanwhile (see `survivor`).
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.add(offset), bytes.len());
        }
        true
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the whole of what mmap gave, once; nothing refers to it any more.
        unsafe { libc::munmap(self.start.cast(), self.length) };
    }
}

/// Ends both directions of a socket; an already broken one is fine.
pub(crate) fn shutdown(fd: &OwnedFd) {
    // SAFETY: no pointers.
    unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_RDWR) };
}

/// Owns a descriptor a completion reported.
pub(crate) fn own(fd: RawFd) -> OwnedFd {
    debug_assert!(fd >= 0);
    // SAFETY: callers pass the result of a successful accept exactly once; nobody else knows the number.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Waits for events; `timeout` `None` is for ever. Interruptions count as "nothing happened".
pub(crate) fn poll(polls: &mut [libc::pollfd], timeout: Option<Duration>) {
    let limit = timeout.map(|timeout| libc::timespec {
        tv_sec: timeout.as_secs().min(1_000_000_000) as libc::time_t,
        tv_nsec: timeout.subsec_nanos().into(),
    });
    let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the array and the optional timeout are borrowed for the call; no signal mask.
    let result = unsafe {
        libc::ppoll(
            polls.as_mut_ptr(),
            polls.len() as libc::nfds_t,
            limit,
            std::ptr::null(),
        )
    };
    if result < 0 {
        polls.iter_mut().for_each(|poll| poll.revents = 0);
    }
}
