//! What image is wanted, and how that is said on a command line.

/// Help.
pub const USAGE: &str = "\
mkimage [OPTION]... CACHE BACKING      writes the sparse images of a cache set with many extents
  --extents N         extents in the index (1000000)
  --bucket SIZE       of the cache device (512k)
  --block SIZE        (4k)
  --extent SIZE       bytes of each extent (4k)
  --gap SIZE          bytes of the volume between two of them (as --extent)
  --size SIZE         of the cache device (what is needed and a tenth)
  --dirty PERCENT     of the extents (0)
  --live PERCENT      of the room in data buckets that extents take (100)
  --fill PERCENT      of a leaf that its keys take (75)
  --fanout N          most children of an interior node (what fits)
  --sets N            sets that the keys of a leaf are in (1)
  --sample N          every Nth extent has data, the others read as zeros; 0: none (so that 10000 have)
  --by brigade|kernel whose clean stop the newest journal entry looks like (brigade)
  --seed N            another set with the same properties (1)";

/// Who stopped the set last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoppedBy {
    /// Brigade: its entries are marked.
    Brigade,
    /// The kernel.
    Kernel,
}

/// What image is wanted.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Extents in the index.
    pub extents: u64,
    /// Sectors of a bucket.
    pub bucket_sectors: u32,
    /// Sectors of a block.
    pub block_sectors: u16,
    /// Sectors of an extent.
    pub extent_sectors: u32,
    /// Sectors of the volume between two extents.
    pub gap_sectors: u64,
    /// Sectors of the cache device; none: what is needed and a tenth.
    pub cache_sectors: Option<u64>,
    /// Dirty extents of a hundred.
    pub dirty_percent: u64,
    /// Slots of a hundred in data buckets that an extent takes.
    pub live_percent: u64,
    /// How full leaves are.
    pub fill_percent: u64,
    /// Most children of an interior node.
    pub fanout: u64,
    /// Sets of a leaf.
    pub sets: u64,
    /// Every which extent has data; 0: none.
    pub sample: u64,
    /// Who stopped the set.
    pub by: StoppedBy,
    /// What uuids, generations and seqs come from.
    pub seed: u64,
}

impl Default for Recipe {
    fn default() -> Recipe {
        Recipe {
            extents: 1_000_000,
            bucket_sectors: 1024,
            block_sectors: 8,
            extent_sectors: 8,
            gap_sectors: 8,
            cache_sectors: None,
            dirty_percent: 0,
            live_percent: 100,
            fill_percent: 75,
            fanout: u64::MAX,
            sets: 1,
            sample: 100,
            by: StoppedBy::Brigade,
            seed: 1,
        }
    }
}

/// Extents that have data unless told otherwise.
const SAMPLES: u64 = 10_000;

/// The recipe and the two paths of a command line, or what is wrong with it.
pub fn parse(arguments: &[String]) -> Result<(Recipe, [String; 2]), String> {
    let mut recipe = Recipe::default();
    let (mut gap, mut sample, mut paths) = (None, None, Vec::new());
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let Some(flag) = word.strip_prefix("--") else {
            paths.push(word.clone());
            continue;
        };
        let value = words.next().ok_or(format!("--{flag} needs a value"))?;
        let number = || size(value).ok_or(format!("--{flag}: {value} is no number"));
        let sectors = || number().map(|bytes| bytes / 512);
        match flag {
            "extents" => recipe.extents = number()?,
            "bucket" => recipe.bucket_sectors = sectors()? as u32,
            "block" => recipe.block_sectors = sectors()? as u16,
            "extent" => recipe.extent_sectors = sectors()? as u32,
            "gap" => gap = Some(sectors()?),
            "size" => recipe.cache_sectors = Some(sectors()?),
            "dirty" => recipe.dirty_percent = number()?,
            "live" => recipe.live_percent = number()?,
            "fill" => recipe.fill_percent = number()?,
            "fanout" => recipe.fanout = number()?,
            "sets" => recipe.sets = number()?,
            "sample" => sample = Some(number()?),
            "seed" => recipe.seed = number()?,
            "by" => recipe.by = stopped_by(value)?,
            _ => return Err(format!("there is no --{flag}")),
        }
    }
    recipe.gap_sectors = gap.unwrap_or(u64::from(recipe.extent_sectors));
    recipe.sample = sample.unwrap_or((recipe.extents / SAMPLES).max(1));
    let paths = paths.try_into().map_err(|_| "two paths are needed")?;
    recipe.check().map(|()| (recipe, paths))
}

fn stopped_by(text: &str) -> Result<StoppedBy, String> {
    match text {
        "brigade" => Ok(StoppedBy::Brigade),
        "kernel" => Ok(StoppedBy::Kernel),
        _ => Err(format!("--by: brigade or kernel, not {text}")),
    }
}

/// `4096`, `4k`, `1M`, `10G`.
fn size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

impl Recipe {
    /// What makes no sense.
    fn check(&self) -> Result<(), String> {
        let block = u64::from(self.block_sectors);
        let rules = [
            (
                (1..=1 << 32).contains(&self.extents),
                "--extents: 1 to 2^32",
            ),
            (
                (1..=65535).contains(&self.extent_sectors)
                    && self.extent_sectors <= self.bucket_sectors,
                "--extent: 512 to 65535 sectors, at most a bucket",
            ),
            (
                block > 0
                    && u64::from(self.extent_sectors).is_multiple_of(block)
                    && self.gap_sectors.is_multiple_of(block),
                "--extent, --gap: multiples of the block",
            ),
            (self.dirty_percent <= 100, "--dirty: at most 100"),
            (
                (1..=100).contains(&self.live_percent),
                "--live: from 1 to 100",
            ),
            (
                (1..=100).contains(&self.fill_percent),
                "--fill: from 1 to 100",
            ),
            (self.fanout >= 2, "--fanout: at least 2"),
            ((1..=16).contains(&self.sets), "--sets: from 1 to 16"),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, rule)) => Err((*rule).into()),
            None => Ok(()),
        }
    }
}
