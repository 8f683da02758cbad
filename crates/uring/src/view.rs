//! A file in memory, read through a mapping of it.
//!
//! Half of what a small `pread` from a memory file system costs is the way to the page, not the copy. A mapping saves that, with
//! some things to see to:
//!
//! - Reading a hole through a mapping allocates it. So only regions are read this way of which the system says that every page
//!   is there; what is punched later must be told ([`View::forget`]).
//! - Reading behind the end of a file that somebody else truncated raises SIGBUS. The handler here puts a page of zeros under the
//!   read and notes it; the read is thrown away then, done again plainly, and the mapping is not used any more. Signals from
//!   elsewhere go to the handler that was there before.
//! - Behind an end within a page that page is zeros, without a signal: whoever reads zeros at the end looks how long the file is.
//! - Page tables take 1/512 of what is mapped: what lies behind [`VIEW_BYTES_MAX`] is read plainly.

use crate::sys;
use std::cell::RefCell;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Most of a file that is mapped.
const VIEW_BYTES_MAX: u64 = 16 << 30;
/// Longest read that goes through the mapping: longer ones are copied at the same speed by the kernel.
pub(crate) const READ_BYTES_MAX: usize = 64 << 10;
/// What is known to be there is known by pieces of this size.
const REGION_BYTES: usize = 64 << 10;
/// Every page of the region is there.
const IS_THERE: u8 = u8::MAX;
/// After so many plain reads of a region it is looked at again.
const LOOK_AGAIN: u8 = 64;
/// Mappings at a time in this process.
const VIEWS_MAX: usize = 64;
const PAGE_BYTES: usize = 4096;

/// What the signal handler must know of a mapping. `start` 0: free; 1: being taken.
struct Entry {
    start: AtomicUsize,
    end: AtomicUsize,
    is_broken: AtomicBool,
}

static ENTRIES: [Entry; VIEWS_MAX] = [const {
    Entry {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        is_broken: AtomicBool::new(false),
    }
}; VIEWS_MAX];

impl Entry {
    fn take(start: usize, end: usize) -> Option<&'static Entry> {
        let entry = ENTRIES.iter().find(|entry| {
            let taken = entry
                .start
                .compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed);
            taken.is_ok()
        })?;
        entry.is_broken.store(false, Ordering::Relaxed);
        entry.end.store(end, Ordering::Relaxed);
        entry.start.store(start, Ordering::Release);
        Some(entry)
    }

    /// The mapping an address belongs to.
    fn of(address: usize) -> Option<&'static Entry> {
        ENTRIES.iter().find(|entry| {
            let start = entry.start.load(Ordering::Acquire);
            start > 1 && (start..entry.end.load(Ordering::Relaxed)).contains(&address)
        })
    }
}

/// See the module.
pub(crate) struct View {
    start: *const u8,
    length: usize,
    entry: &'static Entry,
    /// [`IS_THERE`], or plain reads until the region is looked at.
    regions: RefCell<Vec<u8>>,
}

impl View {
    /// Maps the front of a file; `None` if that cannot be done or does not pay.
    pub(crate) fn new(fd: &OwnedFd, length: u64) -> Option<View> {
        let length =
            usize::try_from(length.min(VIEW_BYTES_MAX)).ok()? / REGION_BYTES * REGION_BYTES;
        if length == 0 || !install_handler() {
            return None;
        }
        let (access, flags) = (libc::PROT_READ, libc::MAP_SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                access,
                flags,
                fd.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return None;
        }
        // SAFETY: the whole of the new mapping. A core dump needs no copy of the device; failure does not matter.
        unsafe { libc::madvise(start, length, libc::MADV_DONTDUMP) };
        let Some(entry) = Entry::take(start as usize, start as usize + length) else {
            // SAFETY: the whole of what mmap gave, once; nothing refers to it.
            unsafe { libc::munmap(start, length) };
            return None;
        };
        Some(View {
            start: start.cast(),
            length,
            entry,
            regions: RefCell::new(vec![0; length / REGION_BYTES]),
        })
    }

    /// Fills `bytes` from `offset` of the file; `false` if it must be read plainly.
    pub(crate) fn read(&self, offset: u64, bytes: &mut [u8]) -> bool {
        let Some(offset) = self.place(offset, bytes.len()) else {
            return false;
        };
        if self.entry.is_broken.load(Ordering::Relaxed) || !self.is_there(offset, bytes.len()) {
            return false;
        }
        // SAFETY: the range lies within the mapping, which lives as long as `self` and is never lent out as a reference; the
        // target is exclusively ours and does not overlap it. If the file was truncated the handler provides a page.
        unsafe {
            std::ptr::copy_nonoverlapping(self.start.add(offset), bytes.as_mut_ptr(), bytes.len());
        }
        // The handler ran on this thread, within the copy.
        std::sync::atomic::compiler_fence(Ordering::SeqCst);
        !self.entry.is_broken.load(Ordering::Acquire)
    }

    fn place(&self, offset: u64, length: usize) -> Option<usize> {
        let offset = usize::try_from(offset).ok()?;
        let is_mapped = offset
            .checked_add(length)
            .is_some_and(|end| end <= self.length);
        (is_mapped && length > 0).then_some(offset)
    }

    fn is_there(&self, offset: usize, length: usize) -> bool {
        let mut regions = self.regions.borrow_mut();
        let range = offset / REGION_BYTES..=(offset + length - 1) / REGION_BYTES;
        range.into_iter().all(|nr| {
            let known = &mut regions[nr];
            match *known {
                IS_THERE => return true,
                0 if self.has_all_pages(nr) => *known = IS_THERE,
                0 => *known = LOOK_AGAIN,
                _ => *known -= 1,
            }
            *known == IS_THERE
        })
    }

    fn has_all_pages(&self, nr: usize) -> bool {
        let mut pages = [0_u8; REGION_BYTES / PAGE_BYTES];
        // SAFETY: the region lies within the mapping, and the array has a byte for each of its pages.
        let result = unsafe {
            let start = self.start.add(nr * REGION_BYTES).cast_mut();
            libc::mincore(start.cast(), REGION_BYTES, pages.as_mut_ptr())
        };
        result == 0 && pages.iter().all(|page| page & 1 == 1)
    }

    /// A range may have holes from now on.
    pub(crate) fn forget(&self, offset: u64, length: u64) {
        let region = |byte: u64| usize::try_from(byte / REGION_BYTES as u64).unwrap_or(usize::MAX);
        let mut regions = self.regions.borrow_mut();
        let end = region(offset.saturating_add(length).saturating_sub(1));
        let end = end.saturating_add(1).min(regions.len());
        if let Some(forgotten) = regions.get_mut(region(offset)..end) {
            forgotten.fill(0);
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // First, so that the handler never takes what is mapped there next for ours.
        self.entry.start.store(0, Ordering::Release);
        // SAFETY: the whole of what mmap gave, once; nothing refers to it any more.
        unsafe { libc::munmap(self.start.cast_mut().cast(), self.length) };
    }
}

static PREVIOUS: OnceLock<Option<libc::sigaction>> = OnceLock::new();

/// Once for the process; tells whether the handler is there.
fn install_handler() -> bool {
    let previous = PREVIOUS.get_or_init(|| {
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
            on_sigbus;
        // SAFETY: an all-zero sigaction is a valid value: the default action, an empty mask.
        let (mut action, mut previous): (libc::sigaction, libc::sigaction) =
            unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: both are locals of the right type. The handler does only what is allowed in one: atomics, mmap,
        // sigaction, and the handler that was there before.
        let result = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, &raw mut previous) };
        sys::check(result).ok().map(|_| previous)
    });
    previous.is_some()
}

extern "C" fn on_sigbus(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the kernel gives a valid siginfo; SIGBUS has an address.
    let address = unsafe { (*info).si_addr() } as usize;
    if let Some(entry) = Entry::of(address) {
        let page = address / PAGE_BYTES * PAGE_BYTES;
        let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: the page lies within a mapping of a `View`, which only its copying loop reads.
        let result =
            unsafe { libc::mmap(page as *mut _, PAGE_BYTES, libc::PROT_READ, flags, -1, 0) };
        if result != libc::MAP_FAILED {
            entry.is_broken.store(true, Ordering::Release);
            return;
        }
    }
    pass_on(signal, info, context);
}

/// Does what would have happened without the handler.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let previous = PREVIOUS.get().copied().flatten();
    let action = previous.map_or(libc::SIG_DFL, |previous| previous.sa_sigaction);
    let has_info = previous.is_some_and(|previous| previous.sa_flags & libc::SA_SIGINFO != 0);
    if action == libc::SIG_DFL || action == libc::SIG_IGN {
        // The read is done again on return, and ends the process as it would have. The signal cannot be ignored either.
        // SAFETY: a valid value, in a handler where the call is allowed.
        unsafe {
            let default: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal, &raw const default, std::ptr::null_mut());
        }
    } else if has_info {
        // SAFETY: with SA_SIGINFO the previous action is a function of three arguments.
        unsafe {
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                std::mem::transmute(action);
            handler(signal, info, context);
        }
    } else {
        // SAFETY: without SA_SIGINFO the previous action is a function of one argument.
        unsafe {
            let handler: extern "C" fn(libc::c_int) = std::mem::transmute(action);
            handler(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    const LENGTH: u64 = 4 * REGION_BYTES as u64;

    fn file() -> Option<(tempfile::TempDir, File, OwnedFd)> {
        let folder = tempfile::tempdir_in("/dev/shm").ok()?;
        let path = folder.path().join("file");
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .expect("a file");
        file.set_len(LENGTH).expect("a length");
        let fd = file.try_clone().expect("a second descriptor").into();
        Some((folder, file, fd))
    }

    fn allocated(file: &File) -> u64 {
        use std::os::unix::fs::MetadataExt;
        file.metadata().expect("metadata").blocks() * 512
    }

    #[test]
    fn what_is_there_is_read_and_what_is_not_is_left_alone() {
        let Some((_folder, file, fd)) = file() else {
            eprintln!("SKIPPED: no /dev/shm");
            return;
        };
        let view = View::new(&fd, LENGTH).expect("a view");
        file.write_all_at(&[7; REGION_BYTES], 0).expect("a write");
        file.write_all_at(&[8; PAGE_BYTES], REGION_BYTES as u64)
            .expect("a write");
        let mut bytes = [0; PAGE_BYTES];
        assert!(view.read(512, &mut bytes) && bytes == [7; PAGE_BYTES]);
        assert!(
            !view.read(REGION_BYTES as u64, &mut bytes),
            "a region with holes"
        );
        assert!(
            !view.read(REGION_BYTES as u64 - 512, &mut bytes),
            "partly in it"
        );
        assert!(!view.read(LENGTH - 512, &mut bytes), "behind the end");
        assert!(!view.read(u64::MAX, &mut bytes), "far behind the end");
        assert_eq!(allocated(&file), (REGION_BYTES + PAGE_BYTES) as u64);
        // Filled up, it is noticed after a while; written again, it is seen at once.
        file.write_all_at(&[9; REGION_BYTES], REGION_BYTES as u64)
            .expect("a write");
        let reads = (0..=LOOK_AGAIN).filter(|_| view.read(REGION_BYTES as u64, &mut bytes));
        assert!(reads.count() > 0 && bytes == [9; PAGE_BYTES]);
        file.write_all_at(&[1; 512], 0).expect("a write");
        assert!(view.read(0, &mut bytes) && bytes[..512] == [1; 512] && bytes[512] == 7);
        view.forget(REGION_BYTES as u64 - 1, 1);
        assert_eq!(view.regions.borrow()[..2], [0, IS_THERE]);
    }

    #[test]
    fn a_file_truncated_by_somebody_else_is_noticed_and_kills_nobody() {
        let Some((_folder, file, fd)) = file() else {
            eprintln!("SKIPPED: no /dev/shm");
            return;
        };
        file.write_all_at(&[7; 2 * REGION_BYTES], 0)
            .expect("a write");
        let view = View::new(&fd, LENGTH).expect("a view");
        let other = View::new(&fd, LENGTH).expect("a second view");
        let mut bytes = [0; REGION_BYTES];
        assert!(view.read(REGION_BYTES as u64, &mut bytes));
        file.set_len(REGION_BYTES as u64).expect("a length");
        assert!(!view.read(REGION_BYTES as u64, &mut bytes), "it is gone");
        assert!(!view.read(0, &mut bytes), "not trusted any more");
        assert!(other.read(0, &mut bytes), "the other knows nothing of it");
    }
}
