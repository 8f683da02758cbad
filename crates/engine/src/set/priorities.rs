//! How recent what is cached is, when somebody asks: counted in small steps, while requests go on.

use super::cache_set::CacheSet;
use super::server::Server;
use crate::alloc::{Priorities, PriorityCount};
use brigade_env::Env;
use brigade_env::sync::yield_now;
use serde::Serialize;

/// Of a cache set.
#[derive(Clone, Debug, Serialize)]
pub struct SetPriorities {
    /// Its identity.
    pub uuid: String,
    /// Its cache devices.
    pub devices: Vec<DevicePriorities>,
}

/// Of a cache device.
#[derive(Clone, Debug, Serialize)]
pub struct DevicePriorities {
    /// Where it is.
    pub path: String,
    /// What was counted.
    pub priority_stats: Priorities,
}

impl<E: Env> CacheSet<E> {
    async fn priorities(&self) -> SetPriorities {
        let mut count = PriorityCount::default();
        while !self.cache.buckets.get().count_priorities(&mut count) {
            yield_now().await;
        }
        let device = DevicePriorities {
            path: self.disk().name().into(),
            priority_stats: self.cache.buckets.get().priorities(&count),
        };
        SetPriorities {
            uuid: self.uuid(),
            devices: vec![device],
        }
    }
}

impl<E: Env> Server<E> {
    /// Counts all buckets of all sets by recency, some at a time.
    pub async fn priorities(&self) -> Vec<SetPriorities> {
        let mut counted = Vec::new();
        for set in self.sets() {
            counted.push(set.priorities().await);
        }
        counted
    }
}
