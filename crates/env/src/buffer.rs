//! Page-aligned buffers, pooled by size.
//!
//! A buffer moves into an I/O and comes back with the result; nobody shares it meanwhile. It exposes a *range*
//! of its pages, which may be narrowed to the part an I/O is about and widened again.

use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::rc::{Rc, Weak};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Alignment and granularity of buffers.
pub const PAGE_BYTES: usize = 4096;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Page([u8; PAGE_BYTES]);

const CLASSES: usize = 15; // 1, 2, 4 ... 16384 pages (64 MiB)

struct Pool {
    free: Vec<Vec<Vec<Page>>>,
    kept_bytes: usize,
    keep_bytes_max: usize,
}

/// Free buffers by size class. Clones are the same pool.
#[derive(Clone)]
pub struct BufferPool(Rc<RefCell<Pool>>);

impl BufferPool {
    /// A pool that keeps at most `keep_bytes_max` bytes of free buffers for reuse.
    pub fn new(keep_bytes_max: usize) -> Self {
        BufferPool(Rc::new(RefCell::new(Pool {
            free: (0..CLASSES).map(|_| Vec::new()).collect(),
            kept_bytes: 0,
            keep_bytes_max,
        })))
    }

    /// A buffer of `length` bytes with whatever content.
    pub fn get(&self, length: usize) -> Buffer {
        let class = class_of(length);
        let mut pool = self.0.borrow_mut();
        let reused = pool.free.get_mut(class).and_then(Vec::pop);
        let pages = match reused {
            Some(pages) => {
                pool.kept_bytes -= pages.len() * PAGE_BYTES;
                pages
            }
            None => Page::new_vec_zeroed(pages_of(length)).expect("memory for a buffer"),
        };
        Buffer {
            pages,
            start: 0,
            end: length,
            pool: Rc::downgrade(&self.0),
        }
    }

    /// A buffer of `length` zero bytes.
    pub fn get_zeroed(&self, length: usize) -> Buffer {
        let mut buffer = self.get(length);
        buffer.fill(0);
        buffer
    }
}

fn class_of(length: usize) -> usize {
    length
        .div_ceil(PAGE_BYTES)
        .max(1)
        .next_power_of_two()
        .trailing_zeros() as usize
}

fn pages_of(length: usize) -> usize {
    let pages = length.div_ceil(PAGE_BYTES).max(1);
    if class_of(length) < CLASSES {
        pages.next_power_of_two()
    } else {
        pages
    }
}

/// Owned, page-aligned bytes. Dereferences to its current range.
pub struct Buffer {
    pages: Vec<Page>,
    start: usize,
    end: usize,
    pool: Weak<RefCell<Pool>>,
}

impl Buffer {
    /// Narrows or moves the range; `range` counts from the start of the pages, not of the current range.
    ///
    /// # Panics
    /// If the range does not fit the pages.
    pub fn set_range(&mut self, range: Range<usize>) {
        assert!(
            range.start <= range.end && range.end <= self.capacity(),
            "buffer range"
        );
        self.start = range.start;
        self.end = range.end;
    }

    /// The current range, from the start of the pages.
    pub fn range(&self) -> Range<usize> {
        self.start..self.end
    }

    /// Bytes in all pages.
    pub fn capacity(&self) -> usize {
        self.pages.len() * PAGE_BYTES
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.pages.as_bytes()[self.start..self.end]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.pages.as_mut_bytes()[self.start..self.end]
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Buffer({}..{} of {})",
            self.start,
            self.end,
            self.capacity()
        )
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(pool) = self.pool.upgrade() else {
            return;
        };
        let mut pool = pool.borrow_mut();
        let bytes = self.capacity();
        let class = class_of(bytes);
        if class < CLASSES && pool.kept_bytes + bytes <= pool.keep_bytes_max {
            pool.kept_bytes += bytes;
            let pages = std::mem::take(&mut self.pages);
            pool.free[class].push(pages);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_page_aligned_and_comes_back_to_its_pool() {
        let pool = BufferPool::new(1 << 20);
        let mut a = pool.get(5000);
        assert_eq!(a.len(), 5000);
        assert_eq!(a.as_ptr() as usize % PAGE_BYTES, 0);
        a[4999] = 7;
        let address = a.as_ptr();
        drop(a);
        let b = pool.get(8192);
        assert_eq!(b.as_ptr(), address);
        assert!(pool.get_zeroed(4096).iter().all(|&x| x == 0));
    }

    #[test]
    fn a_pool_keeps_no_more_than_its_bound() {
        let pool = BufferPool::new(8192);
        let held: Vec<_> = (0..10).map(|_| pool.get(4096)).collect();
        drop(held);
        assert_eq!(pool.0.borrow().kept_bytes, 8192);
    }
}
