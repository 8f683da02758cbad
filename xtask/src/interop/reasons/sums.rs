//! The sums that docs/requests.md promises, from a status that was read when nothing was under way.

use super::load::{AHEAD_BYTES, Asked, Count, Export, Kind};
use serde_json::Value;

/// Two numbers that are to be the same, or the first at most the second.
pub struct Sum {
    what: String,
    found: u64,
    wanted: u64,
    may_be_less: bool,
}

impl Sum {
    /// What is wrong, if it is.
    pub fn complaint(&self) -> Option<String> {
        let is_right = match self.may_be_less {
            true => self.found <= self.wanted,
            false => self.found == self.wanted,
        };
        let sign = if self.may_be_less { "<=" } else { "=" };
        let (what, found, wanted) = (&self.what, self.found, self.wanted);
        (!is_right).then(|| format!("{what}: {found} {sign} {wanted} does not hold"))
    }
}

/// A part of the status, with a name.
struct Part<'a> {
    name: &'a str,
    of: &'a Value,
    sums: &'a mut Vec<Sum>,
}

/// A number; what is missing is no number that anything equals.
fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(u64::MAX)
}

fn total(values: &Value) -> u64 {
    let all = values.as_object().into_iter().flatten();
    all.map(|(_, count)| number(count))
        .fold(0, u64::wrapping_add)
}

impl Part<'_> {
    fn get(&self, path: &str) -> u64 {
        number(path.split('.').fold(self.of, |at, key| &at[key]))
    }

    fn all(&self, paths: &str) -> u64 {
        let each = paths.split(' ').map(|path| self.get(path));
        each.fold(0, u64::wrapping_add)
    }

    fn sum_of(&self, path: &str) -> u64 {
        total(path.split('.').fold(self.of, |at, key| &at[key]))
    }

    fn push(&mut self, what: &str, found: u64, wanted: u64, may_be_less: bool) {
        self.sums.push(Sum {
            what: format!("{}: {what}", self.name),
            found,
            wanted,
            may_be_less,
        });
    }

    fn same(&mut self, what: &str, found: u64, wanted: u64) {
        self.push(what, found, wanted, false);
    }

    fn at_most(&mut self, what: &str, found: u64, wanted: u64) {
        self.push(what, found, wanted, true);
    }

    /// One counter is the sum of others.
    fn adds_up(&mut self, whole: &str, parts: &str) {
        let (found, wanted) = (self.get(whole), self.all(parts));
        self.same(
            &format!("{whole} = {}", parts.replace(' ', " + ")),
            found,
            wanted,
        );
    }

    /// One counter is the sum of those by reason.
    fn by_reason(&mut self, whole: &str, reasons: &str) {
        let (found, wanted) = (self.get(whole), self.sum_of(reasons));
        self.same(&format!("{whole} = sum of {reasons}"), found, wanted);
    }

    fn zero(&mut self, paths: &str) {
        for path in paths.split(' ') {
            let found = self.get(path);
            self.same(&format!("{path} = 0"), found, 0);
        }
    }

    /// Requests of a kind are those that clients asked for.
    fn asked(&mut self, kind: &str, asked: Count) {
        for (key, wanted) in [("requests", asked.requests), ("failed", asked.failed)] {
            let path = format!("{kind}.{key}");
            let found = self.get(&path);
            self.same(&format!("{path} = asked"), found, wanted);
        }
        self.zero(&format!("{kind}.in_flight"));
    }

    fn reads(&mut self, asked: Count) {
        self.asked("reads", asked);
        self.adds_up(
            "reads.requests",
            "reads.hits reads.misses reads.bypassed reads.failed reads.in_flight",
        );
        self.adds_up("reads.bypassed", "reads.bypass_hits reads.bypass_misses");
        self.by_reason("reads.bypassed", "reads.bypassed_by");
        self.zero("reads.bypassed_by.discard reads.bypassed_by.writearound reads.bypassed_by.readahead_policy");
        let bytes = self.all("reads.hit_bytes reads.miss_bytes reads.bypassed_bytes");
        self.same(
            "bytes of hits, misses and bypassed reads = asked",
            bytes,
            asked.bytes,
        );
        self.adds_up("latency.read_count", "reads.requests");
    }

    fn writes(&mut self, asked: Count) {
        self.asked("writes", asked);
        self.adds_up(
            "writes.requests",
            "writes.writeback writes.writethrough writes.bypassed writes.failed writes.in_flight",
        );
        self.by_reason("writes.writethrough", "writes.not_dirty_by");
        self.by_reason("writes.bypassed", "writes.bypassed_by");
        self.zero("writes.not_dirty_by.discard writes.not_dirty_by.bypass");
        self.zero("writes.bypassed_by.discard writes.bypassed_by.readahead_policy");
        match asked.failed {
            0 => {
                let bytes = self.get("writes.bytes");
                self.same("writes.bytes = asked", bytes, asked.bytes);
            }
            _ => {
                let bytes = self.get("writes.bytes");
                self.at_most("asked and not failed <= writes.bytes", asked.bytes, bytes);
            }
        }
        let (bypassed, bytes) = (self.get("writes.bypassed_bytes"), self.get("writes.bytes"));
        self.at_most("writes.bypassed_bytes <= writes.bytes", bypassed, bytes);
        self.adds_up("latency.write_count", "writes.requests");
    }

    fn others(&mut self, of: impl Fn(Kind) -> Count) {
        let kinds = [
            ("discards", Kind::Discard),
            ("zeroes", Kind::Zeroes),
            ("flushes", Kind::Flush),
            ("prefetches", Kind::Prefetch),
        ];
        for (name, kind) in kinds {
            let asked = of(kind);
            self.asked(name, asked);
            let parts = ["done", "ignored", "failed", "in_flight"];
            let parts = parts.map(|part| format!("{name}.{part}")).join(" ");
            self.adds_up(&format!("{name}.requests"), &parts);
            let bytes = self.get(&format!("{name}.bytes"));
            let what = format!("{name}.bytes");
            match kind {
                Kind::Prefetch => {
                    let done = self.get("prefetches.done").wrapping_mul(AHEAD_BYTES);
                    self.same(
                        &format!("{what} = bytes of those that were done"),
                        bytes,
                        done,
                    );
                }
                _ if self.get(&format!("{name}.ignored")) == 0 => {
                    self.same(&format!("{what} = asked"), bytes, asked.bytes);
                }
                _ => self.at_most(&format!("{what} <= asked"), bytes, asked.bytes),
            }
        }
        self.by_reason("prefetches.ignored", "prefetches.ignored_by");
        self.adds_up("latency.flush_count", "flushes.requests");
        self.adds_up("latency.discard_count", "discards.requests");
        self.adds_up("latency.zeroes_count", "zeroes.requests");
    }

    fn fills(&mut self) {
        self.zero("fills.under_way");
        self.by_reason("fills.begun", "fills.ended_by");
        let same = [
            ("reads.fill_bytes", "fills.bytes"),
            ("reads.fill_collisions", "fills.ended_by.collided"),
            ("reads.fill_cancelled", "fills.ended_by.cancelled"),
            ("reads.fill_dropped_dry", "fills.ended_by.dropped_dry"),
            ("reads.fill_dropped_memory", "fills.ended_by.dropped_memory"),
            ("reads.fill_dropped_keys", "fills.ended_by.dropped_keys"),
            ("reads.fill_waits", "fills.waits"),
        ];
        same.iter()
            .for_each(|(one, other)| self.adds_up(one, other));
        self.zero("fills.ended_by.failed fills.ended_by.stopped");
    }

    /// What the kernel counts; nothing of what passes by without a cache.
    fn kernels(&mut self, is_flash: bool) {
        let total = "stats.total";
        if is_flash {
            let keys = "cache_hits cache_misses cache_bypass_hits cache_bypass_misses bypassed";
            let keys = keys.split(' ').map(|key| format!("{total}.{key}"));
            return self.zero(&keys.collect::<Vec<_>>().join(" "));
        }
        for (key, of) in [
            ("cache_hits", "reads.hits"),
            ("cache_misses", "reads.misses"),
            ("cache_bypass_hits", "reads.bypass_hits"),
        ] {
            self.adds_up(&format!("{total}.{key}"), of);
        }
        let without = self.get("reads.bypassed_by.no_cache");
        let (found, misses) = (
            self.get("stats.total.cache_bypass_misses"),
            self.get("reads.bypass_misses"),
        );
        let what = "stats.total.cache_bypass_misses = reads.bypass_misses - no_cache";
        self.same(what, found, misses.wrapping_sub(without));
        let (found, most) = (
            self.get("stats.total.cache_miss_collisions"),
            self.get("fills.ended_by.collided"),
        );
        self.at_most("stats.total.cache_miss_collisions <= collided", found, most);
        let was_alone =
            ["reads", "writes"].map(|kind| self.get(&format!("{kind}.bypassed_by.no_cache")));
        if was_alone == [0, 0] && self.get("prefetches.ignored_by.no_cache") == 0 {
            let ahead = self.get("prefetches.ignored").wrapping_mul(AHEAD_BYTES);
            let bytes =
                self.all("reads.bypassed_bytes writes.bypassed_bytes zeroes.bytes discards.bytes");
            let found = self.get("stats.total.bypassed");
            let what = "stats.total.bypassed = bytes of all that bypassed";
            self.same(what, found, bytes.wrapping_add(ahead));
        }
    }
}

/// All sums of a volume.
fn volume(status: &Value, export: &Export, asked: &Asked, sums: &mut Vec<Sum>) {
    let of = |kind| {
        let found = asked.get(&(export.name.clone(), kind));
        found.copied().unwrap_or_default()
    };
    let mut part = Part {
        name: &export.name,
        of: status,
        sums,
    };
    part.reads(of(Kind::Read));
    part.writes(of(Kind::Write));
    part.others(of);
    part.fills();
    part.kernels(export.is_flash);
}

/// All sums of the set and its device.
fn set(status: &Value, volumes: &[&Value], sums: &mut Vec<Sum>) {
    let over = |path: &str| {
        let each = volumes
            .iter()
            .map(|volume| number(path.split('.').fold(*volume, |at, key| &at[key])));
        each.fold(0, u64::wrapping_add)
    };
    let mut part = Part {
        name: "cache_set",
        of: &status["cache_set"],
        sums,
    };
    for key in [
        "cache_hits",
        "cache_misses",
        "cache_bypass_hits",
        "cache_bypass_misses",
        "cache_miss_collisions",
        "bypassed",
    ] {
        let path = format!("stats.total.{key}");
        let found = part.get(&path);
        part.same(&format!("{path} = that of all volumes"), found, over(&path));
    }
    for (stall, of) in [
        ("bucket", "writes.bucket_waits"),
        ("fill_bucket", "fills.waits"),
        ("fill_memory", "fills.request_waits"),
    ] {
        let found = part.get(&format!("stalls.{stall}"));
        part.same(
            &format!("stalls.{stall} = {of} of all volumes"),
            found,
            over(of),
        );
    }
    let (races, entered) = (part.get("cache_read_races"), over("fills.bytes"));
    part.same(
        "cache_read_races = reads.races of all volumes",
        races,
        over("reads.races"),
    );
    let moved = part.get("gc.moved_bytes");
    let mut device = Part {
        name: "cache device",
        of: &status["cache_set"]["devices"][0],
        sums: part.sums,
    };
    device.by_reason("written_bytes", "written_by");
    device.zero("written_by.written_back");
    device.adds_up("recycled.buckets", "recycled.empty recycled.evicted");
    device.adds_up(
        "metadata_written_bytes",
        "written_by.journal written_by.nodes written_by.gen_table written_by.uuid_table written_by.superblock",
    );
    let found = device.get("written_by.moved");
    device.same("written_by.moved = gc.moved_bytes", found, moved);
    let filled = device.get("written_by.fill");
    device.at_most(
        "bytes of fills that entered <= written_by.fill",
        entered,
        filled,
    );
}

/// All sums there are.
pub fn of(status: &Value, exports: &[Export], asked: &Asked) -> Result<Vec<Sum>, String> {
    let mut sums = Vec::new();
    let all = status["volumes"]
        .as_array()
        .ok_or("the status has no volumes")?;
    for export in exports {
        let found = all
            .iter()
            .find(|volume| volume["label"] == export.name.as_str());
        let found = found.ok_or_else(|| format!("the status has no volume {}", export.name))?;
        volume(found, export, asked, &mut sums);
    }
    set(status, &all.iter().collect::<Vec<_>>(), &mut sums);
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn one_more_or_less_is_noticed_and_so_is_a_counter_that_is_missing() {
        let status = |hits: u64| json!({ "reads": { "requests": 7, "hits": hits, "misses": 2 }, "by": { "a": 3, "b": 2 } });
        let complaints = |hits| {
            let (status, mut sums) = (status(hits), Vec::new());
            let mut part = Part {
                name: "one",
                of: &status,
                sums: &mut sums,
            };
            part.adds_up("reads.requests", "reads.hits reads.misses");
            part.by_reason("reads.hits", "by");
            sums.iter().filter_map(Sum::complaint).count()
        };
        assert_eq!([4, 5, 6].map(complaints), [2, 0, 2]);
        let (status, mut sums) = (status(5), Vec::new());
        let mut part = Part {
            name: "one",
            of: &status,
            sums: &mut sums,
        };
        part.zero("reads.failed");
        part.at_most("few", 3, 3);
        part.at_most("many", 4, 3);
        let said: Vec<String> = sums.iter().filter_map(Sum::complaint).collect();
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[1].contains("many: 4 <= 3"));
    }
}
