//! What a life chooses before it opens a set: settings, which devices are given, and which requests are made.

use crate::exec::Chance;
use crate::life::Life;
use crate::work::{MODES, Mix};
use brigade_engine::settings::{Initial, Knob};
use brigade_engine::{AckPolicy, Options};
use brigade_format::CacheMode;

impl Life {
    fn settings(&self) -> Initial {
        let chance = &self.set.chance;
        let runs = chance.percent(if self.plan.crowded { 30 } else { 85 });
        let mut settings = Initial::from([
            (Knob::JournalDelayMs, 1000 * chance.pick(&[1, 10, 100])),
            (
                Knob::SequentialCutoff,
                chance.pick(&[0, 0, 64 << 10, 512 << 10]),
            ),
            (
                Knob::CongestedReadThresholdUs,
                self.plan.congested_after.unwrap_or(0),
            ),
            (
                Knob::CongestedWriteThresholdUs,
                self.plan.congested_after.unwrap_or(0),
            ),
            (
                Knob::CutoffWriteback,
                if self.plan.early_cutoff { 20 } else { 70 },
            ),
            (
                Knob::ReadaheadCachePolicy,
                u64::from(self.plan.refuses_read_ahead),
            ),
            (Knob::WritebackPercent, chance.pick(&[0, 1, 10, 40])),
            (Knob::WritebackDelay, 1000 * chance.pick(&[10, 200, 5000])),
            (Knob::WritebackRunning, u64::from(runs)),
            (Knob::WritebackRate, chance.pick(&[64, 1024, 1 << 24])),
            (
                Knob::WritebackRateMinimum,
                chance.pick(&[8, 1 << 16, 1 << 24]),
            ),
            (Knob::WritebackLatency, 1000 * chance.pick(&[0, 0, 2])),
            (Knob::GcAfterWriteback, chance.pick(&[0, 1])),
            (Knob::CopyGcEnabled, u64::from(self.plan.moving)),
            (Knob::ExpensiveDebugChecks, u64::from(chance.percent(25))),
        ]);
        let stripes = Chance::new(self.set.seed ^ 0x57a1_9e5d_11b0_c3e7);
        settings.insert(
            Knob::StripeSize,
            stripes.pick(&[0, 32 << 10, 40 << 10, 96 << 10]),
        );
        settings.insert(Knob::PartialStripesExpensive, stripes.pick(&[0, 2, 2]));
        let errors = Chance::new(self.set.seed ^ 0x5eed_0e55_7a11_04d9);
        if self.plan.faults {
            settings.insert(Knob::SetIoErrorLimit, errors.pick(&[1, 8]));
            let stops = u64::from(errors.percent(20));
            settings.insert(Knob::StopWhenCacheSetFailed, stops);
            // One that refuses requests is not written back, and nobody lets it in.
            if self.plan.lifecycle && !self.plan.soft_faults {
                let limit = errors.pick(&[1, 1, 4, 64]);
                settings.insert(Knob::VolumeIoErrorLimit, limit);
            }
        }
        if self.plan.cache_faults {
            let limit = chance.pick(&[1, 8, 64, 1 << 20, 1 << 20]);
            settings.insert(Knob::SetIoErrorLimit, limit);
        }
        settings
    }

    pub(crate) fn options(&self) -> Options {
        let chance = &self.set.chance;
        let mode = if self.plan.cache_faults {
            chance.pick(&MODES[1..])
        } else if self.plan.modes && chance.percent(40) {
            chance.pick(&MODES)
        } else {
            CacheMode::Writeback
        };
        let memory_bytes = if self.plan.little_memory {
            chance.pick(&[4 << 10, 16 << 10, 32 << 10, 64 << 10])
        } else {
            1 << 30
        };
        Options {
            read_only: false,
            mode: Some(mode),
            memory_bytes,
            ack: if chance.percent(if self.plan.crowded { 40 } else { 70 }) {
                AckPolicy::Memory
            } else {
                AckPolicy::Journal
            },
            settings: self.settings(),
        }
    }

    pub(crate) fn mix(&self, requests: u64) -> Mix {
        let chance = &self.set.chance;
        let least = self.set.block_sectors.max(1);
        let hot = self
            .set
            .oracles
            .iter()
            .map(|oracle| oracle.borrow().size())
            .filter(|size| *size > 0)
            .min()
            .unwrap_or(0);
        Mix {
            clients: if self.plan.crowded {
                16
            } else {
                chance.pick(&[1, 4, 8, 16])
            },
            requests,
            read: if self.plan.deep {
                10
            } else {
                chance.pick(&[10, 30, 60])
            },
            flush: chance.pick(&[0, 5, 15]),
            clear: if self.plan.crowded {
                chance.pick(&[15, 30])
            } else if self.plan.clear {
                chance.pick(&[0, 5, 15])
            } else {
                0
            },
            fua_percent: chance.pick(&[0, 10, 50]),
            sectors_max: match chance.below(20) {
                _ if self.plan.requests_max <= 40 => chance.pick(&[8, 16, 64]),
                _ if self.plan.deep => chance.pick(&[4, 16, 64]),
                _ if self.plan.crowded => chance.pick(&[8, 16, 64]),
                _ if self.plan.pressure => chance.pick(&[64, 128, 256]),
                0 => 4096,
                1 => 512,
                _ => chance.pick(&[8, 16, 16, 64]),
            },
            is_long: self.plan.pressure,
            hot: if self.plan.pressure || self.plan.deep {
                hot
            } else if self.plan.crowded {
                chance.pick(&[32, 64, 256])
            } else {
                (hot / chance.pick(&[1, 4, 16, 64])).max(64)
            },
            wipes: self.plan.wipes,
            align: chance.pick(&[1, least, 8]),
            modes: self.plan.modes && chance.percent(50),
            pause_percent: chance.pick(&[0, 0, 5, 30]),
        }
    }

    pub(crate) fn given(&self) -> Vec<usize> {
        let all = 0..self.set.backings.len();
        if !self.plan.attach {
            return all.collect();
        }
        let must = self.set.chance.below(all.len() as u64) as usize;
        all.filter(|at| *at == must || self.set.chance.percent(75))
            .collect()
    }
}
