//! Making acknowledged writes durable.

use super::Core;
use crate::marks::{self, Mark};
use crate::mutations::{self, Mutation};
use crate::stats::OtherOutcome;
use brigade_env::Env;
use brigade_env::sync::join;
use std::io;
use std::rc::Rc;

/// Everything acknowledged before the call survives a power loss once it returns.
pub async fn flush<E: Env>(core: Rc<Core<E>>) -> io::Result<()> {
    core.note_request();
    let started = core.last_request.get();
    let counters = &core.counters;
    counters.flushes.all.begin();
    let result = flush_all(&core).await;
    let outcome = match core.is_read_only {
        true => OtherOutcome::Ignored,
        false => OtherOutcome::Done,
    };
    let outcome = result.as_ref().ok().map(|()| outcome);
    counters.flushes.end(outcome, 0);
    let took = core.env.now().saturating_sub(started);
    counters.latency.flush.record(took);
    result
}

async fn flush_all<E: Env>(core: &Rc<Core<E>>) -> io::Result<()> {
    if core.is_read_only {
        return Ok(());
    }
    core.check_enabled()?;
    let journal = async {
        match core.attached().and_then(|cache| cache.writer.as_ref()) {
            Some(writer) if !mutations::is(Mutation::FlushForgetsJournal) => {
                writer.journal.flush().await
            }
            Some(_) => Ok(()),
            None => Ok(()),
        }
    };
    let backing = async {
        if mutations::is(Mutation::FlushForgetsBacking) {
            return Ok(());
        }
        core.flush_backing().await
    };
    let (journal, backing) = join(journal, backing).await;
    backing?;
    // What is cached is void then, and everything is on the backing device, which was flushed.
    if let Err(error) = journal {
        core.leave(error).await?;
    }
    core.leave_if_failed().await
}

impl<E: Env> Core<E> {
    /// Flushes the backing device if anything was written to it, and lets in the clean data that waited for it.
    pub async fn flush_backing(self: &Rc<Self>) -> io::Result<()> {
        let Some(backing) = &self.backing else {
            return Ok(());
        };
        let waiting = std::mem::take(&mut *self.unflushed_fills.borrow_mut());
        let result = if backing.unflushed.replace(false) {
            backing.disk.flush().await
        } else {
            // Somebody else's flush may still be under way, and covers what this caller wrote only once it is done.
            backing.disk.flush_settled().await
        };
        if result.is_err() {
            marks::hit(Mark::BackingFlushFailed);
            backing.unflushed.set(true);
        }
        for fill in waiting.fills {
            match (&self.cache, &result) {
                (Some(cache), Ok(())) => self.finish_fill(cache, fill),
                (Some(cache), Err(_)) => self.unpin(cache, fill.pinned),
                (None, _) => (),
            }
        }
        result
    }
}
