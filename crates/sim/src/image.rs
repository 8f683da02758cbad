//! The content of a disk: pages that are shared until one of the sharers writes.

use std::rc::Rc;

const SECTOR: usize = 512;
const PAGE: usize = 4096;
const PAGE_SECTORS: u64 = 8;

type Page = Option<Rc<[u8; PAGE]>>;

/// Cheap to clone.
#[derive(Clone, Default)]
pub struct Image {
    pages: Vec<Page>,
}

impl Image {
    /// Zeros.
    pub fn new(size_bytes: u64) -> Self {
        Image {
            pages: vec![None; size_bytes.div_ceil(PAGE as u64) as usize],
        }
    }

    /// More zeros.
    pub fn grow(&mut self, size_bytes: u64) {
        let pages = size_bytes.div_ceil(PAGE as u64) as usize;
        self.pages.resize(pages.max(self.pages.len()), None);
    }

    /// Copies sectors out.
    pub fn read(&self, sector: u64, out: &mut [u8]) {
        let (mut at, mut done) = (sector, 0);
        while done < out.len() {
            let from = (at % PAGE_SECTORS) as usize * SECTOR;
            let length = (PAGE - from).min(out.len() - done);
            let target = &mut out[done..done + length];
            match &self.pages[(at / PAGE_SECTORS) as usize] {
                Some(page) => target.copy_from_slice(&page[from..from + length]),
                None => target.fill(0),
            }
            done += length;
            at += (length / SECTOR) as u64;
        }
    }

    /// Copies sectors in.
    pub fn write(&mut self, sector: u64, bytes: &[u8]) {
        let (mut at, mut done) = (sector, 0);
        while done < bytes.len() {
            let from = (at % PAGE_SECTORS) as usize * SECTOR;
            let length = (PAGE - from).min(bytes.len() - done);
            let slot = &mut self.pages[(at / PAGE_SECTORS) as usize];
            let page = Rc::make_mut(slot.get_or_insert_with(|| Rc::new([0; PAGE])));
            page[from..from + length].copy_from_slice(&bytes[done..done + length]);
            done += length;
            at += (length / SECTOR) as u64;
        }
    }

    /// Whether both hold the same bytes.
    pub fn is_same(&self, other: &Image) -> bool {
        let is_same = |pair: (&Page, &Page)| match pair {
            (Some(a), Some(b)) => Rc::ptr_eq(a, b) || a == b,
            (Some(one), None) | (None, Some(one)) => one.iter().all(|byte| *byte == 0),
            (None, None) => true,
        };
        self.pages.len() == other.pages.len() && self.pages.iter().zip(&other.pages).all(is_same)
    }
}
