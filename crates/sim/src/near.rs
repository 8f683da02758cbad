//! Images whose oldest pointers are nearly as many generations behind their buckets as they may be.
//!
//! A collection is due when the oldest pointer is 64 generations behind, and a bucket is not recycled when its own is 96 behind
//! (docs/format.md 6.3). A set is between the two only while a collection that is due does not come to its end; here it does not
//! begin, as if the work that goes before it never ended. All else is a server at work on a small cache, which goes round and
//! round. Leaves that are not written meanwhile keep their oldest pointers, and so does an interior node that had room for every
//! change.
//!
//! As a rule the guard is two lower here. A kernel refuses to take a bucket over from 96 on, as we do, but frees a node in any case,
//! which raises its bucket's generation once more. So it stays within 96 where a bucket is at 94: one for taking it over as a
//! node, one for freeing that. From 95 on it may come to 97, and is then at odds with a key that it made too old itself.
//!
//! A case is a folder: `cache.img`, `back.img`, what the volume holds (`written`: `START COUNT TAG`, zeros left out), and what
//! was found in the image (`case`). Sectors are patterned as the interop tests do it, so that these can read them.
//!
//! Serves `cargo x interop histories`. Only with the feature `instrumented`.
#![cfg(feature = "instrumented")]

use crate::disk::{DiskState, End};
use crate::exec::{Chance, Store, World};
use crate::export::{runs, write_image};
use crate::small::{disks_of, load, open, options};
use brigade_engine::recovery::Loaded;
use brigade_engine::{Server, Volume, hold_collections};
use brigade_env::{BlockDevice, StreamId};
use brigade_format::{CacheGeometry, CacheMode, Replacement, node};
use std::cell::RefCell;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

const BUCKETS: u64 = 640;
const BUCKET_SECTORS: u64 = 32;
const SECTORS: u64 = 32_000;
/// Dirty data, which keeps its buckets.
const DIRTY: Range<u64> = 0..11_200;
/// Single clean sectors: many leaves that nothing is written to later.
const SCATTERED: Range<u64> = 11_200..31_000;
const SCATTERED_STEP: u64 = 6;
/// A bucket's worth at a time, over and over: one leaf, which hardly grows.
const HOT: Range<u64> = 31_000..31_320;
/// Rounds over all that is hot, at most.
const ROUNDS_MAX: u64 = 20_000;
/// Collections until generations are before 255, at most: one comes every 64.
const COLLECTIONS_MAX: u64 = 40;
/// Generations that are past 255 when they are 96 further, and not much earlier.
const BEFORE_WRAP: Range<u8> = 165..247;
/// Buckets that have such a generation.
const WRAPPING: usize = 100;
/// Rounds of the first session after all else: enough to recycle buckets, which has the table written.
const ROUNDS_FIRST: u64 = 60;
/// Buckets that the guard refuses before it is enough.
const REFUSED: u64 = 100;
/// Generations that the oldest pointers get behind.
pub const BEHIND: u8 = 94;
/// A pointer so many generations behind is nearly as old as it may be.
const FAR: u8 = 90;

/// Which one it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum History {
    /// The server stops at the end.
    Stopped,
    /// The server is killed: some of its keys are in the journal only.
    Killed,
    /// The same, and generations went past 255 while the oldest pointers stayed.
    Wrapped,
}

/// All of them.
pub const HISTORIES: [History; 3] = [History::Stopped, History::Killed, History::Wrapped];

impl History {
    /// As the folder is called.
    pub fn name(self) -> &'static str {
        match self {
            History::Stopped => "stopped",
            History::Killed => "killed",
            History::Wrapped => "wrapped",
        }
    }
}

/// Pointers in the nodes of a kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pointers {
    /// How far the oldest is behind the generation of its bucket in the table on disk.
    behind: u8,
    /// So many are `FAR` behind and more.
    far: u64,
    /// So many of these are from before the generation came round.
    wrapped: u64,
}

/// Makes the case of a seed; says what is in it.
pub fn export(seed: u64, history: History, behind: u8, folder: &Path) -> io::Result<String> {
    let chance = Chance::new(seed);
    let identity = 32 + seed as u8 % 32 * 4 + history as u8;
    let policy = Replacement::Fifo;
    let (cache, backing) = disks_of(identity, policy, BUCKETS, BUCKET_SECTORS, 1, SECTORS);
    let lived = live(&chance, history, behind, &cache, &backing);
    let (loaded, layout) = load(&cache, chance);
    let [leaves, interior] = pointers(&cache.borrow(), &loaded, &layout);
    let is_near = |found: Pointers| (FAR..=behind).contains(&found.behind);
    assert!(
        is_near(leaves)
            && is_near(interior)
            && (leaves.wrapped > 0) == (history == History::Wrapped),
        "seed {seed}: in leaves {leaves:?}, in interior nodes {interior:?}"
    );
    let note = format!(
        "oldest pointers {} generations behind in leaves and {} in interior nodes; {FAR} and more: {} and {}; from before 255: {} and {}",
        leaves.behind, interior.behind, leaves.far, interior.far, leaves.wrapped, interior.wrapped,
    );
    fs::create_dir_all(folder)?;
    write_image(&cache.borrow().image(), &cache, &folder.join("cache.img"))?;
    let data = &backing.borrow().image();
    write_image(data, &backing, &folder.join("back.img"))?;
    let written = runs(&lived.tags, |tag| (*tag > 0).then(|| tag.to_string()));
    fs::write(folder.join("written"), written)?;
    let case = format!("sectors {SECTORS}\nnote {note}\n");
    fs::write(folder.join("case"), case)?;
    Ok(note)
}

/// What a history came to.
struct Lived {
    /// Writes made, all of them acknowledged.
    writes: u64,
    /// Per sector the number of the one it is of.
    tags: Vec<u64>,
}

impl Default for Lived {
    fn default() -> Lived {
        Lived {
            writes: 0,
            tags: vec![0; SECTORS as usize],
        }
    }
}

/// Collections wait as long as it is there.
struct Held;

impl Held {
    fn new(behind: u8) -> Held {
        hold_collections(Some(behind));
        Held
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        hold_collections(None);
    }
}

type Disk = Rc<RefCell<DiskState>>;

/// Two sessions: what the second finds stored tells it exactly how old the oldest pointers are.
fn live(chance: &Chance, history: History, behind: u8, cache: &Disk, backing: &Disk) -> Lived {
    let mut lived = Lived::default();
    for is_second in [false, true] {
        let begin = Duration::from_secs(1 + 100_000 * u64::from(is_second));
        let world = World::new(chance.clone(), begin);
        let server = open(&world, cache, backing, &Store::default(), options(false));
        let _held = is_second.then(|| Held::new(behind));
        let session = match is_second {
            false => world.run(fill_up(server, lived, history), || false),
            true => world.run(go_round(server, lived, history), || false),
        };
        lived = session.expect("it ends");
        world.kill();
        for disk in [cache, backing] {
            disk.borrow_mut().end(End::Kill, chance);
        }
    }
    lived
}

async fn fill_up(server: Rc<Server<World>>, lived: Lived, history: History) -> Lived {
    let mut client = Client::new(&server, lived);
    for at in DIRTY.step_by(BUCKET_SECTORS as usize) {
        client.write(at, BUCKET_SECTORS).await;
    }
    let mode = client.volume.set_mode(CacheMode::Writethrough);
    mode.await.expect("a mode");
    if history == History::Wrapped {
        approach_wrap(&server, &mut client).await;
    }
    for at in SCATTERED.step_by(SCATTERED_STEP as usize) {
        client.write(at, 1).await;
    }
    client.rounds(ROUNDS_FIRST).await;
    server.stop().await.expect("it stops");
    client.lived
}

/// Goes on until a collection has just ended, so that nothing is old, and in many buckets what comes next is from before 255 and
/// what comes at last from behind it.
async fn approach_wrap(server: &Server<World>, client: &mut Client) {
    let passes = || server.status().cache_sets[0].gc.passes;
    for _ in 0..COLLECTIONS_MAX {
        let (before, mut rounds) = (passes(), 0);
        while passes() == before && rounds < ROUNDS_MAX {
            client.rounds(1).await;
            rounds += 1;
        }
        let oldest = server.oldest_gens().concat();
        let count = oldest
            .iter()
            .filter(|oldest| BEFORE_WRAP.contains(&oldest.0));
        if count.count() >= WRAPPING {
            return;
        }
    }
}

async fn go_round(server: Rc<Server<World>>, lived: Lived, history: History) -> Lived {
    let mut client = Client::new(&server, lived);
    let set = || server.status().cache_sets.remove(0);
    let refused = || set().devices[0].victims_refused.generation;
    let mut rounds = 0;
    while refused() < REFUSED && rounds < ROUNDS_MAX {
        client.rounds(1).await;
        rounds += 1;
    }
    assert_eq!(set().gc.passes, 0, "collections are held");
    // The record in memory, which has what was not flushed, is not part of an image.
    client.volume.flush().await.expect("nothing fails here");
    if history == History::Stopped {
        server.stop().await.expect("it stops");
    }
    client.lived
}

/// Writes one after the other.
struct Client {
    volume: Rc<Volume<World>>,
    lived: Lived,
}

impl Client {
    fn new(server: &Server<World>, lived: Lived) -> Client {
        let volume = server.volumes()[0].clone();
        Client { volume, lived }
    }

    async fn rounds(&mut self, count: u64) {
        for _ in 0..count {
            for at in HOT.step_by(BUCKET_SECTORS as usize) {
                self.write(at, BUCKET_SECTORS).await;
            }
        }
    }

    async fn write(&mut self, first: u64, count: u64) {
        self.lived.writes += 1;
        let tag = self.lived.writes;
        let mut buffer = self.volume.buffer(count as usize * 512);
        for (at, sector) in (first..).zip(buffer.chunks_exact_mut(512)) {
            fill(sector, at, tag);
            self.lived.tags[at as usize] = tag;
        }
        let written = self.volume.write(StreamId(1), first * 512, buffer, false);
        written.await.expect("nothing fails here");
    }
}

/// The pattern of the interop tests, written a second time: a magic, the sector, the write, and a hash of both.
fn fill(sector: &mut [u8], number: u64, tag: u64) {
    const GOLDEN_RATIO: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |value: u64| {
        let z = value.wrapping_add(GOLDEN_RATIO);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let hash = mix(number.wrapping_mul(GOLDEN_RATIO).wrapping_add(tag));
    let mut words = [hash; 64];
    words[..3].copy_from_slice(&[u64::from_le_bytes(*b"BRGDPAT1"), number, tag]);
    words[63] = mix(hash);
    for (place, word) in sector.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
}

/// All pointers in all sets of all nodes: those of leaves, and those of interior nodes.
fn pointers(cache: &DiskState, loaded: &Loaded, layout: &CacheGeometry) -> [Pointers; 2] {
    let mut all = [Pointers::default(); 2];
    let block_bytes = layout.block_sectors as usize * 512;
    for loaded_node in &loaded.nodes {
        let place = loaded_node.key.ptr(0).expect("a node has a place");
        let mut bytes = vec![0; loaded_node.key.size() as usize * 512];
        cache.peek(place.sector() * 512, &mut bytes);
        let node = node::parse_node(&bytes, block_bytes, place, layout.set_magic);
        let sets = node.unwrap_or_else(|error| panic!("{}", error.error)).sets;
        let found = &mut all[usize::from(loaded_node.level > 0)];
        for ptr in sets
            .iter()
            .flat_map(|set| &set.keys)
            .filter_map(|key| key.ptr(0))
        {
            let nr = ptr.bucket(layout.bucket_sectors).0 as usize;
            let behind = loaded.chain_gens[nr].after(ptr.r#gen());
            found.behind = found.behind.max(behind);
            found.far += u64::from(behind >= FAR);
            let is_wrapped = behind >= FAR && ptr.r#gen() > loaded.chain_gens[nr];
            found.wrapped += u64::from(is_wrapped);
        }
    }
    all
}
